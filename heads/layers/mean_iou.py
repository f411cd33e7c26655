"""The running mean IoU of semantic segmentation, for the progress line of `fit`."""

import keras
import numpy as np
from keras import ops

from heads.ops.label_overlaps import measure_overlaps
from heads.ops.labels import IGNORED_LABEL
from heads.ops.selection import label_pixels


@keras.saving.register_keras_serializable("van_backbones.heads")
class MeanIoU(keras.metrics.Metric):
    """Mean IoU over the classes that occur in the truth or in the predictions; 0 where no pixel has a truth.

    `heads.metrics` computes the scores per class. Unlike `keras.metrics.MeanIoU`, this metric takes logits as
    well as label maps, counts a prediction outside the classes as wrong instead of ignoring its pixel, and
    does not overflow at 2^31 pixels.

    Args:
        num_classes: Number of classes, 1 .. 255.
        name: Name of the metric.
    """

    # Counts are kept in two int32 digits of this base, exact up to 2^55: float32 stops counting at 2^24
    # pixels (one batch of 64 crops), int32 at 2^31 (ADE20K's training set), and JAX has no int64 by default.
    _BASE = 2**24
    # Pixels of a batch are spread over this many counters per cell, because on PyTorch Keras adds segments in
    # float32. keras.ops has nothing better for all backends: `bincount` is not jit-safe on JAX, and `scatter`
    # (what `keras.metrics.MeanIoU` uses) is a Python loop over the pixels on PyTorch.
    _LANES = 16

    def __init__(self, num_classes: int, name: str = "mean_iou"):
        super().__init__(name=name)
        if not 1 <= num_classes <= IGNORED_LABEL:
            raise ValueError(f"num_classes must be between 1 and {IGNORED_LABEL}. Received: {num_classes}")
        self.num_classes = num_classes
        # One more column than classes, for predictions that are not a class.
        shape = (num_classes, num_classes + 1)
        self.low_digit = self.add_variable(shape, "zeros", dtype="int32", name="low_digit")
        self.high_digit = self.add_variable(shape, "zeros", dtype="int32", name="high_digit")

    def update_state(self, labels, predictions, sample_weight=None):
        """Counts a batch.

        Args:
            labels: True label map `(batch, height, width)`; 255 and other values outside the classes are
                ignored.
            predictions: Label map of the same shape, or logits `(batch, height, width, num_classes)`.
            sample_weight: Must be None.

        Raises:
            ValueError: For shapes that do not fit, or weights.
        """
        if sample_weight is not None:
            raise ValueError(
                f"sample_weight must be None: pixels are counted. Set the labels of pixels to leave out to "
                f"{IGNORED_LABEL}. Received: {sample_weight}"
            )
        labels, predictions = ops.convert_to_tensor(labels), ops.convert_to_tensor(predictions)
        _check_shapes(labels.shape, predictions.shape, self.num_classes)
        if len(predictions.shape) > len(labels.shape):
            predictions = label_pixels(predictions)
        counts = self._count(ops.cast(labels, "int32"), ops.cast(predictions, "int32"))
        low = self.low_digit + counts
        self.high_digit.assign(self.high_digit + low // self._BASE)
        self.low_digit.assign(low % self._BASE)

    def merge_counts(self, states):
        """Replaces the counts by the sum of those of several processes.

        Args:
            states: For each process the values of `variables`.
        """
        low, high = (np.sum(digits, axis=0, dtype="int64") for digits in zip(*states, strict=True))
        self.high_digit.assign((high + low // self._BASE).astype("int32"))
        self.low_digit.assign((low % self._BASE).astype("int32"))

    def _count(self, labels, predictions):
        """Confusion matrix of one batch, `(classes, classes + 1)` int32."""
        rows, columns = self.num_classes, self.num_classes + 1
        predictions = ops.where((predictions >= 0) & (predictions < rows), predictions, rows)
        # An extra last cell takes the ignored pixels, so that every shape is static for jit compilation.
        cells = ops.where((labels >= 0) & (labels < rows), labels * columns + predictions, rows * columns)
        cells = ops.reshape(cells, (-1,))
        lanes = ops.arange(ops.shape(cells)[0], dtype="int32") % self._LANES
        counts = ops.segment_sum(
            ops.ones_like(cells),
            cells * self._LANES + lanes,
            num_segments=(rows * columns + 1) * self._LANES,
        )
        counts = ops.sum(ops.reshape(counts, (-1, self._LANES))[:-1], axis=-1)
        return ops.reshape(counts, (rows, columns))

    def result(self):
        counts = ops.cast(self.high_digit, "float32") * self._BASE + ops.cast(self.low_digit, "float32")
        iou, occurs = measure_overlaps(counts)
        return ops.sum(iou) / ops.maximum(ops.sum(ops.cast(occurs, "float32")), 1.0)

    def get_config(self):
        return {"num_classes": self.num_classes, "name": self.name}


def _check_shapes(labels, predictions, num_classes):
    """Raises a ValueError if the static shapes do not fit each other."""
    labels, predictions = tuple(labels), tuple(predictions)
    expected = labels if len(predictions) == len(labels) else (*labels, num_classes)
    fits = len(predictions) == len(expected) and all(
        ours == theirs or None in (ours, theirs) for ours, theirs in zip(expected, predictions, strict=True)
    )
    if not fits:
        raise ValueError(
            f"predictions must be label maps {labels}, like the labels, or logits {(*labels, num_classes)}; "
            f"resize them to the labels' size first. Received: shape {predictions}"
        )
