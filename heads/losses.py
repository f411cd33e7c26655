"""Losses: pure functions, targets first; and how faulty targets are told."""

import keras
import numpy as np
from keras import ops


def poison_faults(faults, describe):
    """Raises at the first fault of the targets where values are known; gives a NaN for the loss elsewhere.

    Inside of a graph nothing can raise on every backend, but a loss that is not a number is seen in the logs,
    and callbacks stop at it. It has no gradient: the weights stay as they would be.

    Args:
        faults: bool, any shape; a NumPy array is known in graphs, too.
        describe: function of a fault's index, a tuple, that gives the error's message.

    Returns:
        float32 scalar: NaN where there is a fault, else 0.

    Raises:
        ValueError: at a fault, outside of graphs.
    """
    faulty = faults.any() if isinstance(faults, np.ndarray) else ops.any(faults)
    try:
        raises = bool(faulty)
    except (TypeError, RuntimeError):  # a graph's tensor, on TensorFlow and JAX or on PyTorch
        raises = False
    if raises:
        raise ValueError(describe(tuple(np.argwhere(ops.convert_to_numpy(faults))[0].tolist())))
    return ops.where(faulty, float("nan"), ops.zeros((), "float32"))


def read_labels(labels, logits, ignore_label=255):
    """Returns checked label maps, and what to add to the loss.

    Args:
        labels: (batch, height, width) or (batch, height, width, 1), integers, or floats that are whole.
        logits: (batch, height, width, classes).
        ignore_label: the label of pixels without truth.

    Returns:
        (labels, poison): int32 (batch, height, width), `ignore_label` in place of labels that are no class;
        and 0, or NaN where there are any: see `poison_faults`.

    Raises:
        ValueError: at other shapes or dtypes, and, outside of graphs, at a label that is no class.
    """
    if labels is None or keras.tree.is_nested(labels):
        received = "None" if labels is None else f"a {type(labels).__name__}"
        raise ValueError(f"labels must be one array (batch, height, width). Received: {received}")
    labels = ops.convert_to_tensor(labels)
    *size, num_classes = logits.shape
    try:
        has_channel = len(labels.shape) == len(size) + 1 and labels.shape[-1] == 1
    except ValueError:  # TensorFlow no longer knows the rank after label maps with and without a channel
        has_channel = True
    if has_channel:
        labels = ops.reshape(labels, ops.shape(logits)[:-1])
    shape = tuple(labels.shape)
    same = len(shape) == len(size) and all(
        ours == theirs or None in (ours, theirs) for ours, theirs in zip(shape, size, strict=True)
    )
    dtype = keras.backend.standardize_dtype(labels.dtype)
    if not same or not dtype.startswith(("int", "uint", "float", "bfloat", "bool")):
        raise ValueError(
            "labels must be label maps (batch, height, width) of class numbers, at the size of the images, "
            f"here {tuple(size)}; take the argmax of one-hot labels. Received: shape {shape} of {dtype}"
        )
    numbers = ops.cast(labels, "int32")
    faults = ops.not_equal(ops.cast(numbers, labels.dtype), labels)
    outside = ops.logical_or(numbers < 0, numbers >= num_classes)
    faults = ops.logical_or(faults, ops.logical_and(outside, ops.not_equal(numbers, ignore_label)))

    def describe(index):
        return (
            f"labels must be class numbers 0 .. {num_classes - 1}, or {ignore_label} for pixels without "
            f"truth. Received: {ops.convert_to_numpy(labels)[index]} at (row, column) {index[1:]} of image "
            f"{index[0]} of the batch"
        )

    return ops.where(faults, ignore_label, numbers), poison_faults(faults, describe)


def semantic_cross_entropy(labels, logits, ignore_label=255):
    """Gives the cross-entropy of a label map, averaged over all pixels.

    Ignored pixels add nothing to the sum but count in the average, as in mmsegmentation (its
    `avg_non_ignore=False`): a picture that is mostly ignored weighs little.

    Args:
        labels: (batch, height, width) or (batch, height, width, 1), integers; `ignore_label` is left out.
        logits: (batch, height, width, classes).
        ignore_label: the label of pixels without truth.

    Returns:
        A float32 scalar; inside of a graph NaN where a label is no class.

    Raises:
        ValueError: at other shapes, and, outside of graphs, at a label that is no class.
    """
    logits = ops.cast(logits, "float32")
    labels, poison = read_labels(labels, logits, ignore_label)
    known = ops.not_equal(labels, ignore_label)
    losses = ops.sparse_categorical_crossentropy(ops.where(known, labels, 0), logits, from_logits=True)
    return ops.mean(ops.where(known, losses, 0.0)) + poison


def binary_cross_entropy(targets, logits):
    """Gives the cross-entropy of independent yes-or-no questions, elementwise.

    Args:
        targets: (...) probabilities, mostly 0 or 1.
        logits: (...) of the same shape, before the sigmoid.

    Returns:
        (...) float32, finite for any finite logit.
    """
    logits, targets = ops.cast(logits, "float32"), ops.cast(targets, "float32")
    return ops.binary_crossentropy(targets, logits, from_logits=True)


def sigmoid_focal_loss(targets, logits, alpha=0.25, gamma=2.0):
    """Gives the focal loss, elementwise.

    RetinaNet (arXiv 1708.02002, Sec. 3): the cross-entropy, times the error of the probability to the power
    of `gamma`, so that the many easy negatives do not drown the rest.

    Args:
        targets: (..., classes), 0 or 1.
        logits: (..., classes), before the sigmoid.
        alpha: weight of the ones; the zeros have 1 - alpha.
        gamma: how much easy examples are held down; 0 gives the weighted cross-entropy.

    Returns:
        (..., classes) float32.
    """
    logits, targets = ops.cast(logits, "float32"), ops.cast(targets, "float32")
    scores = ops.sigmoid(logits)
    errors = scores + targets - 2.0 * scores * targets  # 1 - p of the ones, p of the zeros
    weights = 1.0 - alpha + (2.0 * alpha - 1.0) * targets
    losses = weights * binary_cross_entropy(targets, logits)
    # 0**0 has no finite gradient.
    return losses if gamma == 0 else losses * errors**gamma


def smooth_l1_loss(targets, predictions, beta):
    """Gives the smooth L1 loss, elementwise: a parabola up to errors of `beta`, a line from there.

    Fast R-CNN (arXiv 1504.08083, Sec. 2.3).

    Args:
        targets: (...).
        predictions: (...).
        beta: error at which the parabola meets the line; 0 gives the absolute error.

    Returns:
        (...) float32.
    """
    errors = ops.abs(ops.cast(predictions, "float32") - ops.cast(targets, "float32"))
    if beta == 0:
        return errors
    return ops.where(errors < beta, 0.5 * errors**2 / beta, errors - 0.5 * beta)
