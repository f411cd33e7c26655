"""Losses: pure functions, targets first; and how faulty targets are told."""

from keras import ops

from heads.ops.inputs import read_labels
from heads.ops.labels import IGNORED_LABEL


def semantic_cross_entropy(labels, logits, ignore_label: int = IGNORED_LABEL):
    """Returns the cross-entropy of a label map, averaged over all pixels.

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
    """Returns the cross-entropy of independent yes-or-no questions, elementwise.

    Args:
        targets: (...) probabilities, mostly 0 or 1.
        logits: (...) of the same shape, before the sigmoid.

    Returns:
        (...) float32, finite for any finite logit.
    """
    logits, targets = ops.cast(logits, "float32"), ops.cast(targets, "float32")
    return ops.binary_crossentropy(targets, logits, from_logits=True)


def sigmoid_focal_loss(targets, logits, alpha: float = 0.25, gamma: float = 2.0):
    """Returns the focal loss, elementwise.

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


def l1_loss(targets, predictions):
    """Returns the absolute difference, elementwise."""
    return ops.abs(predictions - targets)


def smooth_l1_loss(targets, predictions, beta: float):
    """Returns the smooth L1 loss, elementwise: a parabola up to errors of `beta`, a line from there.

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
