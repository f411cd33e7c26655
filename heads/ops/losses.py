"""Losses: pure functions, targets first; and how faulty targets are told."""

from keras import ops

from heads.ops.backends import sum_over_devices
from heads.ops.boxes import compare_pairs
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
    return average_values(ops.where(known, losses, 0.0)) + poison


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


def quality_focal_loss(targets, logits, beta: float = 2.0):
    """Returns the focal loss of scores that are to tell how good a box is, elementwise.

    GFL (arXiv 2006.04388, equation 2): the cross-entropy, times the error of the score to the power of
    `beta`.

    Args:
        targets: (..., classes), 0 .. 1: the IoU of the box with its object at the object's class, else 0.
        logits: (..., classes), before the sigmoid.
        beta: how much easy examples are held down.

    Returns:
        (..., classes) float32.
    """
    errors = ops.abs(ops.cast(targets, "float32") - ops.sigmoid(ops.cast(logits, "float32")))
    return binary_cross_entropy(targets, logits) * errors**beta


def distribution_focal_loss(targets, logits):
    """Returns the cross-entropy of a distribution over whole numbers that is to have a number as its mean.

    GFL (arXiv 2006.04388, equation 6): the two whole numbers around the target are to share the probability.

    Args:
        targets: (...), at least 0 and below bins - 1.
        logits: (..., bins), before the softmax; bin i stands for the number i.

    Returns:
        (...) float32.
    """
    logits, targets = ops.cast(logits, "float32"), ops.cast(targets, "float32")
    below = ops.floor(targets)
    share_above = targets - below
    entropies = -ops.log_softmax(logits, axis=-1)
    below = ops.cast(below, "int32")[..., None]
    entropy_below = ops.take_along_axis(entropies, below, axis=-1)[..., 0]
    entropy_above = ops.take_along_axis(entropies, below + 1, axis=-1)[..., 0]
    return entropy_below * (1.0 - share_above) + entropy_above * share_above


def dice_loss(targets, scores):
    """Returns 1 - the Dice coefficient of masks, smoothed by 1 (arXiv 1606.04797, section 3).

    Args:
        targets: (..., points), 0 .. 1.
        scores: (..., points), 0 .. 1.

    Returns:
        (...) float32.
    """
    shared = 2.0 * ops.sum(targets * scores, axis=-1) + 1.0
    return 1.0 - shared / (ops.sum(targets, axis=-1) + ops.sum(scores, axis=-1) + 1.0)


def giou_loss(targets, predictions):
    """Returns 1 - the generalised IoU of boxes (..., 4): see `heads.ops.boxes.compare_pairs`."""
    return 1.0 - compare_pairs(targets, predictions)[1]


def average_losses(total, count):
    """Returns a sum of losses over what it was summed over, at least one.

    Where several devices share a batch (tf.distribute), the count is that of all: Keras divides the losses by
    the number of devices and sums their gradients, which gives the average over the joint batch.

    Args:
        total: scalar, the sum on this device.
        count: scalar, how many there are on this device, or the sum of their weights.
    """
    joint_count, num_devices = sum_over_devices(count)
    return num_devices * total / ops.maximum(joint_count, 1.0)


def average_values(losses):
    """Returns the mean of losses, elementwise ones: over the joint batch, as `average_losses` has it."""
    return average_losses(ops.sum(losses), ops.cast(ops.size(losses), losses.dtype))


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
