"""What semantic segmenters share: label maps, the running mean IoU, windows and several views."""

import keras
import numpy as np
from keras import ops

from heads.dense_model import DenseModel
from heads.layers.mean_iou import MeanIoU
from heads.ops.inputs import read_labels
from heads.ops.labels import IGNORED_LABEL
from heads.ops.resizing import resize_bilinear
from heads.ops.selection import label_pixels
from heads.ops.windows import place_windows


class SemanticModel(DenseModel):
    """A head whose predictions are logits at the images' size, or a dict that contains them as "logits".

    `fit` takes label maps in which 255 is ignored, (batch, height, width) or (batch, height, width, 1), and
    shows the running mean IoU. Metrics of `compile` compare the label maps with the logits: `metrics` see all
    pixels, `weighted_metrics` give those of label 255 the weight 0.

    Args:
        backbone: a functional Keras model with `pyramid_outputs`.
        levels: the levels that the head reads.
        loss_names: the keys of `compute_losses`.
        arguments: `locals()` of the head's constructor, with `num_classes` among them.
        **kwargs: `class_names` and `resizing`, see `DenseModel`; `name`, `trainable`, `dtype`.
    """

    takes_metrics = True
    has_fixed_targets = True
    size_divisor = 1  # pictures are scored as they are, not padded

    def __init__(self, backbone, levels, loss_names, arguments, **kwargs):
        super().__init__(backbone, levels, loss_names, arguments, **kwargs)
        self.mean_iou = MeanIoU(self.num_classes)

    @classmethod
    def from_release(cls, name: str, **kwargs):
        """Returns a published model: its weights, class names and how pictures are resized.

        The releases come with the package of their backbone. Import that first, as for `load_model`, which
        also finds the classes of a file through Keras.

        Args:
            name: such as "upernet_b2_ade20k"; `python -m van_backbones.checkpoints list` lists all.
            **kwargs: arguments of the head, and `backbone`: see `van_backbones.load_release`.

        Raises:
            ValueError: if `van_backbones` was not imported, or the name is not a release of this head.
        """
        load_release = keras.saving.get_registered_object("van_backbones>load_release")
        if load_release is None:
            raise ValueError(f"run `import van_backbones` first: it has the releases. Received: {name!r}")
        return load_release(name, cls, **kwargs)

    def decode(self, predictions):
        """Returns label maps, int32 (batch, height, width), from the outputs of `call`."""
        return label_pixels(_find_logits(predictions))

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        logits = _find_logits(y_pred)
        labels, _ = read_labels(y, logits)
        self.mean_iou.update_state(labels, label_pixels(logits))
        known = ops.cast(ops.not_equal(labels, IGNORED_LABEL), "float32")
        return super().compute_metrics(x, labels, logits, known)

    def predict_resized(self, images, image_sizes, original_sizes, **views):
        """Returns `{"label_map"}` of each image at its original size: see `predict_pictures`.

        Args:
            images: (batch, height, width, channels).
            image_sizes: (batch, 2), (height, width) without padding.
            original_sizes: (batch, 2), (height, width) of the pictures.
            **views: `crop`, `stride`, `scales` and `flip` of `segment_images`.
        """
        if not views and (image_sizes == original_sizes).all():
            label_maps = self.predict_on_batch(images)
            crops = zip(label_maps, image_sizes, strict=True)
            return [{"label_map": label_map[:height, :width]} for label_map, (height, width) in crops]
        # Scores are resized instead of label maps, so that borders stay smooth.
        scores = score_images(self, images, **views) if views else _find_logits(self.predict_raw(images))
        results = []
        for row, ((height, width), size) in enumerate(zip(image_sizes, original_sizes.tolist(), strict=True)):
            resized = scores[row : row + 1, :height, :width]
            if [height, width] != size:
                resized = resize_bilinear(resized, tuple(size))
            results.append({"label_map": ops.convert_to_numpy(label_pixels(resized))[0]})
        return results

    def segment(self, images, crop=None, stride=None, scales=(1.0,), flip=False):
        """Returns label maps with sliding windows and several views: see `segment_images`."""
        return segment_images(self, images, crop, stride, scales, flip)


def _find_logits(predictions):
    return predictions["logits"] if isinstance(predictions, dict) else predictions


def segment_images(model, images, crop=None, stride=None, scales=(1.0,), flip=False):
    """Returns label maps of images, with mmsegmentation's test-time options.

    Args:
        model: images (batch, height, width, 3) -> logits (batch, height, width, classes).
        images: (batch, height, width, 3), as the model wants them.
        crop: (height, width) of a sliding window, or None for whole images.
        stride: (height, width) of the window's step; None is two thirds of `crop`.
        scales: factors by which the images are resized; the views' class probabilities are averaged.
        flip: whether to add each view's mirror image.

    Returns:
        A NumPy int32 array (batch, height, width).
    """
    return ops.convert_to_numpy(label_pixels(score_images(model, images, crop, stride, scales, flip)))


def score_images(model, images, crop=None, stride=None, scales=(1.0,), flip=False):
    """Returns the logits of one view, or the sum of the class probabilities of several: see `segment_images`.

    Returns:
        Float32 (batch, height, width, classes).
    """
    images = ops.cast(images, "float32")
    if len(images.shape) != 4:
        raise ValueError(f"images must be (batch, height, width, 3). Received: shape {tuple(images.shape)}")
    size = tuple(images.shape[1:3])
    views = [(scale, flipped) for scale in scales for flipped in ((False, True) if flip else (False,))]
    total = 0.0
    for scale, flipped in views:
        view_size = tuple(max(1, int(side * scale + 0.5)) for side in size)
        view = images if view_size == size else resize_bilinear(images, view_size)
        logits = predict_logits(model, ops.flip(view, axis=2) if flipped else view, crop, stride)
        logits = ops.flip(logits, axis=2) if flipped else logits
        logits = logits if view_size == size else resize_bilinear(logits, size)
        total += logits if len(views) == 1 else ops.softmax(logits, axis=-1)
    return total


def predict_logits(model, images, crop=None, stride=None):
    """Returns the logits of images, from whole images or averaged over a sliding window.

    Args:
        model: images -> logits, as in `segment_images`.
        images: (batch, height, width, 3).
        crop: (height, width) of the window, or None for whole images.
        stride: (height, width) of the window's step; None is two thirds of `crop`.

    Returns:
        Float32 (batch, height, width, classes).
    """
    if crop is None:
        return ops.cast(model(images, training=False), "float32")
    stride = stride or tuple(max(1, side * 2 // 3) for side in crop)
    if min(*crop, *stride) < 1 or stride[0] > crop[0] or stride[1] > crop[1]:
        raise ValueError(
            "crop and stride must be positive, and stride no larger than crop, or pixels are missed. "
            f"Received: crop={crop}, stride={stride}"
        )
    batch, height, width = images.shape[:3]
    total, count = None, np.zeros((1, height, width, 1), np.float32)
    for top, bottom in place_windows(height, crop[0], stride[0]):
        for left, right in place_windows(width, crop[1], stride[1]):
            logits = ops.convert_to_numpy(model(images[:, top:bottom, left:right], training=False))
            if total is None:
                total = np.zeros((batch, height, width, logits.shape[-1]), np.float32)
            total[:, top:bottom, left:right] += logits
            count[:, top:bottom, left:right] += 1.0
    return ops.convert_to_tensor(total / count)
