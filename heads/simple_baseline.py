"""Simple Baselines for Human Pose Estimation (arXiv 1804.06208): heatmaps from the coarsest level alone."""

import keras
from keras import ops

from heads.arguments import check_counts, read_pairs
from heads.dense_model import DenseModel
from heads.layers.blocks import BatchNormalization, Chain, join_reference_layers
from heads.ops.heatmaps import draw_heatmaps, find_peaks, mirror_heatmaps
from heads.ops.inputs import read_crops, read_keypoints
from heads.ops.losses import average_values

LEVELS = ("P5",)
STRIDE = 4  # of the heatmaps, three doublings after P5
NUM_DOUBLINGS = 3
DEVIATION = 2.0  # of the target's Gaussians, in cells
CROP_SIZE = (256, 192)  # the paper's (height, width)


@keras.saving.register_keras_serializable("van_backbones.heads")
class SimpleBaseline(DenseModel):
    """Top-down pose estimation: a person's crop in, a heatmap for each keypoint out.

    `model(images)` gives heatmaps, float32 (batch, height / 4, width / 4, keypoints), rounded up;
    `model.predict` gives "keypoints", float32 (batch, keypoints, 2), (x, y) in pixels of the crop, and
    "scores", float32 (batch, keypoints), the heights of the heatmaps, about 1 if the model is sure. The
    centre of the first pixel is (0, 0), as in COCO's files.

    `fit` takes "keypoints" (batch, keypoints, 2) and "weights" (batch, keypoints), 0 for a keypoint without
    a label. `predict_pictures` takes pictures with boxes around the people, and cuts out crops as large as
    `resizing.image_size`, (256, 192) by default; both sides should be multiples of 32.

    Args:
        backbone: a functional Keras model with `pyramid_outputs` "P5".
        num_keypoints: number of keypoints of a person.
        channels: channels of the transposed convolutions.
        flip_pairs: pairs of left and right keypoints that a mirror swaps, for `flip_test`.
        keypoint_names: a text for each keypoint; kept in the model's file.
        skeleton: pairs of keypoints that a line connects in pictures; kept in the model's file.
        **kwargs: `resizing`, see `DenseModel`; `name`, `trainable`, `dtype`.

    Raises:
        ValueError: if an argument is out of range or the backbone lacks the level.

    Reference:
        - Xiao et al., "Simple Baselines for Human Pose Estimation and Tracking", arXiv 1804.06208; the
          numbers are mmpose's `HeatmapHead` with the codec `MSRAHeatmap`.
    """

    has_fixed_targets = True
    # The reference names of the layers that depend on the number of keypoints.
    class_layers = ("head.final_layer",)

    def __init__(
        self,
        backbone,
        num_keypoints: int = 17,
        channels: int = 256,
        flip_pairs=None,
        keypoint_names=None,
        skeleton=None,
        **kwargs,
    ):
        check_counts(num_keypoints=num_keypoints, channels=channels)
        flip_pairs = read_pairs("flip_pairs", flip_pairs, num_keypoints, only_once=True)
        skeleton = read_pairs("skeleton", skeleton, num_keypoints)
        keypoint_names = _read_names(keypoint_names, num_keypoints)
        super().__init__(backbone, LEVELS, ("keypoint_loss",), locals(), **kwargs)
        dtype = self.dtype_policy
        self.doublings = [
            DoublingBlock(channels, dtype=dtype, name=f"doubling_{index}") for index in range(NUM_DOUBLINGS)
        ]
        self.output_conv = keras.layers.Conv2D(
            num_keypoints,
            1,
            data_format="channels_last",
            kernel_initializer=_small_numbers(),
            dtype=dtype,
            name="output",
        )
        shape = self.level_shapes[0]
        for part in (*self.doublings, self.output_conv):
            part.build(shape)
            shape = (None, None, None, channels)

    def call(self, inputs, training=None):
        images, others = read_crops(inputs)
        features = self.pyramid(images, training=training)["P5"]
        for block in self.doublings:
            features = block(features, training=training)
        heatmaps = ops.cast(self.output_conv(features), "float32")
        # There are eight cells for each 32 pixels, rounded up: those beyond the image are cut off. Rounds up
        # without negative numbers, whose quotients ONNX rounds towards zero.
        height, width = ((side + STRIDE - 1) // STRIDE for side in ops.shape(images)[1:3])
        heatmaps = heatmaps[:, :height, :width]
        return {"heatmaps": heatmaps, **others} if isinstance(inputs, dict) else heatmaps

    def call_mirrored(self, inputs):
        """Returns the outputs of `call`, with heatmaps averaged with those of the mirrored images.

        mmpose's `flip_test`.

        Raises:
            ValueError: if the model has no `flip_pairs`.
        """
        order = self.find_counterparts()
        images, others = read_crops(inputs)
        heatmaps = self(images, training=False)
        mirrored = mirror_heatmaps(self(ops.flip(images, axis=2), training=False), order)
        heatmaps = 0.5 * (heatmaps + mirrored)
        return {"heatmaps": heatmaps, **others} if isinstance(inputs, dict) else heatmaps

    def compute_losses(self, targets, predictions):
        """Returns `{"keypoint_loss"}`, the mean squared error over all cells of all heatmaps.

        Args:
            targets: a dict of "keypoints" (batch, keypoints, 2), (x, y) in pixels, and "weights" (batch,
                keypoints), 0 for a keypoint without a label.
            predictions: what `call` gave.

        Returns:
            A dict of a float32 scalar; NaN where a target is faulty: see `heads.ops.inputs.read_keypoints`.
        """
        heatmaps = _find_heatmaps(predictions)
        keypoints, weights, poison = read_keypoints(targets, self.num_keypoints)
        size = ops.shape(heatmaps)[1:3]
        truth, weights = draw_heatmaps(keypoints / STRIDE, weights, size, DEVIATION)
        errors = weights[:, None, None] * (heatmaps - truth) ** 2
        return {"keypoint_loss": average_values(errors) + poison}

    def decode(self, predictions):
        """Returns the keypoints of heatmaps.

        Returns:
            A dict of "keypoints" (batch, keypoints, 2), (x, y) in pixels of the picture where "to_pictures"
            was among the inputs, else of the input; and "scores" (batch, keypoints).
        """
        points, scores = find_peaks(_find_heatmaps(predictions))
        keypoints = STRIDE * points
        if isinstance(predictions, dict) and "to_pictures" in predictions:
            maps = predictions["to_pictures"][:, None]  # (batch, 1, 2, 3)
            keypoints = ops.sum(maps[..., :2] * keypoints[:, :, None], axis=-1) + maps[..., 2]
        return {"keypoints": keypoints, "scores": scores}

    def with_flip_test(self):
        """Returns a `FlipTest` of the model, always the same one, so that it is traced only once."""
        if "_find_flip_test" not in vars(self):
            flip_test = FlipTest(self)
            # In a function, as Keras would save an attribute with the model.
            self._find_flip_test = lambda: flip_test
        return self._find_flip_test()

    def find_counterparts(self):
        """Returns for each keypoint the number of the one that a mirror swaps it with."""
        if self.flip_pairs is None:
            raise ValueError(
                "flip_test needs the model's flip_pairs, [] if a mirror swaps no keypoints. Received: "
                f"flip_pairs=None of {self.name!r}"
            )
        order = list(range(self.num_keypoints))
        for left, right in self.flip_pairs:
            order[left], order[right] = right, left
        return order

    @property
    def crop_size(self) -> tuple[int, int]:
        """(height, width) of the crops that `predict_pictures` makes."""
        if self.resizing.short_side is not None:
            raise ValueError(
                "resizing must be Resizing(image_size=(height, width)): each crop has this size. Received: "
                f"{self.resizing.get_config()}"
            )
        return tuple(self.resizing.image_size or CROP_SIZE)

    def prepare_pictures(self, pictures, image_size=None):
        raise ValueError(
            "pictures must be cut out around people for a pose model: calibrate with the batches of "
            f"`heads.data.pose_evaluation_batches`, or of crops of your own. Received: {pictures!r}"
        )

    def predict_pictures(self, pictures, boxes, batch_size: int = 32, flip_test=False, progress=True):
        """Returns the keypoints of the people in pictures, in the pixels of each.

        Args:
            pictures: a picture file, a folder of them, an array (height, width, 3), uint8 or float 0 .. 255,
                or a sequence of files and arrays.
            boxes: for each picture (n, 4), xyxy pixels, a box around each person, such as those that a
                detector's `predict_pictures` returns; n may be 0.
            batch_size: how many people go through the model at once, at most.
            flip_test: whether to average with the mirrored crops, which takes twice the time.
            progress: whether to show a progress bar, for two pictures or more.

        Returns:
            A list with a dict for each picture, in their order: "path" (None for arrays), "boxes" (n, 4),
            "keypoints", float32 (n, keypoints, 2), (x, y), and "scores", float32 (n, keypoints).

        Raises:
            ValueError: if a file cannot be read, an array is not a picture, or the boxes are malformed.
        """
        from heads.prediction import predict_people  # with Pillow, which nothing else here needs

        return predict_people(self, pictures, boxes, batch_size, flip_test, progress)

    def reference_layers(self):
        """Returns mmpose's names: name -> layer or variable."""
        parts = {}
        for index, block in enumerate(self.doublings):
            # Every third module of the sequence is a ReLU.
            parts |= {f"deconv_layers.{3 * index}": block.conv, f"deconv_layers.{3 * index + 1}": block.norm}
        names = {f"head.{name}": part for name, part in parts.items()}
        return self.backbone.reference_layers() | join_reference_layers(
            {**names, "head.final_layer": self.output_conv}
        )


@keras.saving.register_keras_serializable("van_backbones.heads")
class DoublingBlock(Chain):
    """Doubles a map's size: transposed convolution without bias, batch normalisation, ReLU.

    Args:
        channels: output channels.
        **kwargs: base arguments of the layer.
    """

    def __init__(self, channels: int, **kwargs):
        super().__init__(**kwargs)
        self.conv = keras.layers.Conv2DTranspose(
            channels,
            4,
            strides=2,
            padding="same",
            use_bias=False,
            data_format="channels_last",
            kernel_initializer=_small_numbers(),
            dtype=self.dtype_policy,
            name="conv",
        )
        self.norm = BatchNormalization(dtype=self.dtype_policy, name="norm")
        self.parts = [self.conv, self.norm]

    def call(self, inputs, training=None):
        return ops.relu(super().call(inputs, training=training))


class FlipTest(keras.Model):
    """A pose model that averages the heatmaps of crops and their mirror images.

    Args:
        model: a `SimpleBaseline` with `flip_pairs`.

    Call arguments:
        inputs: those of the model. The outputs are decoded.
    """

    def __init__(self, model, **kwargs):
        super().__init__(**kwargs)
        model.find_counterparts()  # raises if there are no pairs
        self.pose_model = model
        self.built = True

    def call(self, inputs, training=None):
        return self.pose_model.decode(self.pose_model.call_mirrored(inputs))


def _small_numbers():
    # As in mmpose. A new one each time: a shared initializer would draw the same values for each layer.
    return keras.initializers.RandomNormal(0.0, 0.001)


def _find_heatmaps(predictions):
    return predictions["heatmaps"] if isinstance(predictions, dict) else predictions


def _read_names(names, num_keypoints):
    if names is None:
        return None
    names = list(names)
    if len(names) != num_keypoints or not all(isinstance(name, str) for name in names):
        raise ValueError(
            f"keypoint_names must be a text for each of the {num_keypoints} keypoints. Received: {names!r}"
        )
    return names
