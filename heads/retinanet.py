"""RetinaNet: Focal Loss for Dense Object Detection (arXiv 1708.02002)."""

import math

import keras
from keras import ops

from heads.dense_model import DenseModel, check_counts, check_shares
from heads.layers.fpn import FPN
from heads.ops.anchors import make_anchors, mark_inside
from heads.ops.boxes import decode_boxes, encode_boxes
from heads.ops.inputs import read_inputs, read_targets
from heads.ops.losses import sigmoid_focal_loss
from heads.ops.matching import match_boxes
from heads.ops.selection import restore_boxes, select_detections, select_pairs, take_rows

LEVELS = ("P3", "P4", "P5")
STRIDES = (8, 16, 32, 64, 128)
# Sec. 4, "Anchors": three sizes per octave, in units of the stride.
ANCHOR_SCALES = (4.0, 4.0 * 2 ** (1 / 3), 4.0 * 2 ** (2 / 3))
ANCHOR_RATIOS = (0.5, 1.0, 2.0)
CANDIDATES_PER_LEVEL = 1000


@keras.saving.register_keras_serializable(package="heads")
class RetinaNet(DenseModel):
    """Object detection in one stage: anchors on five levels, classified with the focal loss.

    `model(images)` gives raw predictions: "class_logits" (batch, anchors, classes) and "box_deltas"
    (batch, anchors, 4), float32, levels from fine to coarse, then y, x, anchor; "anchors", a list of
    (anchors of the level, 4); and "image_sizes" (batch, 2). `model.predict` gives detections, `fit` takes
    padded boxes and labels: see `decode` and `compute_losses`.

    Inputs are images (batch, height, width, 3) or a dict, which also tells the sizes: see
    `heads.ops.inputs.read_inputs`.

    Args:
        backbone: a functional Keras model with `pyramid_outputs` "P3" .. "P5".
        num_classes: number of classes; there is none for the background.
        channels: channels of the pyramid and the head.
        num_convs: 3 x 3 convolutions before each output.
        score_threshold: detections below are left out.
        iou_threshold: of two detections of one class that overlap by more, the better one stays.
        max_detections: rows of `predict`'s result.
        **kwargs: `name`, `trainable`, `dtype`.

    Raises:
        ValueError: at an argument out of range or a backbone that lacks a level.

    Reference:
        - Lin et al., "Focal Loss for Dense Object Detection", arXiv 1708.02002, section 4; the numbers are
          mmdetection's `RetinaNet` with P6 from C5.
    """

    # The reference names of the layers that depend on the number of classes.
    class_layers = ("bbox_head.retina_cls",)

    def __init__(
        self,
        backbone,
        num_classes=80,
        channels=256,
        num_convs=4,
        score_threshold=0.05,
        iou_threshold=0.5,
        max_detections=100,
        **kwargs,
    ):
        check_counts(num_classes=num_classes, channels=channels, max_detections=max_detections)
        check_shares(score_threshold=score_threshold)
        check_shares(with_one=True, iou_threshold=iou_threshold)
        check_counts(least=0, num_convs=num_convs)
        super().__init__(backbone, LEVELS, ("class_loss", "box_loss"), **kwargs)
        # Each batch has its own number of objects: XLA would compile anew for each.
        self.supports_jit = keras.backend.backend() != "tensorflow"
        self.num_classes = num_classes
        self.channels = channels
        self.num_convs = num_convs
        self.score_threshold = score_threshold
        self.iou_threshold = iou_threshold
        self.max_detections = max_detections
        dtype = self.dtype_policy
        self.neck = FPN(channels, num_extra_levels=2, extra_levels_from="input", dtype=dtype, name="neck")
        num_anchors = len(ANCHOR_SCALES) * len(ANCHOR_RATIOS)
        # Sec. 4.1: start at a probability of 0.01, or the easy background drowns the first steps.
        self.class_tower = Tower(
            num_anchors, num_classes, channels, num_convs, -math.log(99.0), dtype=dtype, name="class_tower"
        )
        self.box_tower = Tower(num_anchors, 4, channels, num_convs, dtype=dtype, name="box_tower")
        self.build(backbone.input_shape)

    def build(self, input_shape):
        if self.built:
            return
        self.neck.build(self.level_shapes)
        for tower in (self.class_tower, self.box_tower):
            tower.build((None, None, None, self.channels))
        self.built = True

    def call(self, inputs, training=None):
        images, sizes = read_inputs(inputs)
        pyramid = self.pyramid(images, training=training)
        levels = self.neck([pyramid[level] for level in LEVELS])
        level_sizes = [ops.shape(level)[1:3] for level in levels]
        return {
            "class_logits": ops.concatenate([self.class_tower(level) for level in levels], axis=1),
            "box_deltas": ops.concatenate([self.box_tower(level) for level in levels], axis=1),
            "anchors": make_anchors(level_sizes, STRIDES, ANCHOR_SCALES, ANCHOR_RATIOS),
            **sizes,
        }

    def compute_losses(self, targets, predictions):
        """Gives "class_loss" (focal) and "box_loss" (L1 of the deltas), both per object.

        Args:
            targets: a dict of "boxes" (batch, n, 4), xyxy pixels, and "labels" (batch, n), 0 .. classes - 1,
                -1 for padding, -2 for crowds, in which no anchor counts as background.
            predictions: what `call` gave.

        Returns:
            A dict of float32 scalars; NaN where a target is faulty: see `heads.ops.inputs.read_targets`.
        """
        image_sizes = predictions["image_sizes"]
        targets, poisons = read_targets(targets, self.num_classes, image_sizes=image_sizes)
        boxes, labels = targets["boxes"], targets["labels"]
        anchors = ops.concatenate(predictions["anchors"], axis=0)
        inside = mark_inside(anchors, image_sizes)
        matches = match_boxes(anchors, boxes, labels, 0.5, 0.4, inside=inside)
        positive = matches >= 0
        rows = ops.maximum(matches, 0)
        num_positive = ops.sum(ops.cast(positive, "float32"), axis=1)
        # As mmdetection counts: an image without objects weighs like one with a single anchor.
        num_objects = ops.sum(ops.maximum(num_positive, 1.0))

        # (batch, anchors, classes)
        classes = ops.arange(self.num_classes, dtype="int32")
        is_class = (take_rows(labels, rows)[..., None] == classes) & positive[..., None]
        losses = sigmoid_focal_loss(ops.cast(is_class, "float32"), predictions["class_logits"])
        class_loss = ops.sum(ops.where((matches > -2)[..., None], losses, 0.0))

        deltas = encode_boxes(take_rows(boxes, rows), anchors)
        distances = ops.abs(predictions["box_deltas"] - deltas)
        box_loss = ops.sum(ops.where(positive[..., None], distances, 0.0))
        losses = {"class_loss": class_loss / num_objects, "box_loss": box_loss / num_objects}
        return {name: loss + poisons[name] for name, loss in losses.items()}

    def decode(self, predictions):
        """Gives detections of raw predictions.

        Returns:
            A dict of "boxes" (batch, max_detections, 4), xyxy pixels of the original picture where its size
            was among the inputs, else of the input; "scores" (batch, max_detections); "labels"
            (batch, max_detections), -1 where there is no detection. The best come first.
        """
        candidates = []
        start = 0
        for anchors in predictions["anchors"]:
            end = start + ops.shape(anchors)[0]
            logits, rows, labels = select_pairs(
                predictions["class_logits"][:, start:end], CANDIDATES_PER_LEVEL
            )
            deltas = take_rows(predictions["box_deltas"][:, start:end], rows)
            boxes = decode_boxes(deltas, ops.take(anchors, rows, axis=0))
            candidates.append((boxes, ops.sigmoid(logits), labels))
            start = end
        boxes, scores, labels = (ops.concatenate(parts, axis=1) for parts in zip(*candidates, strict=True))
        scores = ops.where(scores > self.score_threshold, scores, 0.0)
        detections = select_detections(
            boxes, scores, labels, predictions["image_sizes"], self.iou_threshold, self.max_detections
        )
        return restore_boxes(detections, predictions)

    def reference_layers(self):
        """Gives mmdetection's names: name -> layer or variable."""
        names = dict(self.backbone.reference_layers())
        names |= {f"neck.{name}": layer for name, layer in self.neck.reference_layers().items()}
        for kind, tower in (("cls", self.class_tower), ("reg", self.box_tower)):
            names |= {f"bbox_head.{kind}_convs.{i}.conv": conv for i, conv in enumerate(tower.convs)}
            names[f"bbox_head.retina_{kind}"] = tower.output_conv
        return names

    def get_config(self):
        return {
            **super().get_config(),
            "num_classes": self.num_classes,
            "channels": self.channels,
            "num_convs": self.num_convs,
            "score_threshold": self.score_threshold,
            "iou_threshold": self.iou_threshold,
            "max_detections": self.max_detections,
        }


@keras.saving.register_keras_serializable(package="heads")
class Tower(keras.layers.Layer):
    """Convolutions with ReLU and a last one: a map -> float32 (batch, height * width * anchors, values).

    Args:
        num_anchors: anchors at each position.
        num_values: outputs of each anchor.
        channels: channels between the convolutions.
        num_convs: convolutions before the last one.
        first_bias: the last convolution's bias at the start.
        **kwargs: base arguments of the layer.
    """

    def __init__(self, num_anchors, num_values, channels, num_convs, first_bias=0.0, **kwargs):
        super().__init__(**kwargs)
        self.num_anchors = num_anchors
        self.num_values = num_values
        self.channels = channels
        self.num_convs = num_convs
        self.first_bias = first_bias

        def make_convolution(filters, name, bias=0.0, activation=None):
            return keras.layers.Conv2D(
                filters,
                3,
                padding="same",
                data_format="channels_last",
                activation=activation,
                kernel_initializer=keras.initializers.RandomNormal(0.0, 0.01),
                bias_initializer=keras.initializers.Constant(bias),
                dtype=self.dtype_policy,
                name=name,
            )

        self.convs = [make_convolution(channels, f"conv_{i}", 0.0, "relu") for i in range(num_convs)]
        self.output_conv = make_convolution(num_anchors * num_values, "output", first_bias)

    def build(self, input_shape):
        for conv in self.convs:
            conv.build(input_shape)
            input_shape = (*input_shape[:-1], self.channels)
        self.output_conv.build(input_shape)
        self.built = True

    def call(self, inputs):
        for conv in self.convs:
            inputs = conv(inputs)
        outputs = self.output_conv(inputs)
        batch, height, width, _ = ops.shape(outputs)
        shape = (batch, height * width * self.num_anchors, self.num_values)
        return ops.cast(ops.reshape(outputs, shape), "float32")

    def compute_output_shape(self, input_shape):
        batch, height, width, _ = input_shape
        known = height is not None and width is not None
        return batch, height * width * self.num_anchors if known else None, self.num_values

    def get_config(self):
        return {
            **super().get_config(),
            "num_anchors": self.num_anchors,
            "num_values": self.num_values,
            "channels": self.channels,
            "num_convs": self.num_convs,
            "first_bias": self.first_bias,
        }
