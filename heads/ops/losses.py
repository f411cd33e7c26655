"""Losses: pure functions, targets first."""

import numbers
from collections.abc import Sequence

from keras import ops

from heads.ops.backends import sum_over_devices
from heads.ops.boxes import compare_pairs
from heads.ops.inputs import read_labels
from heads.ops.labels import IGNORED_LABEL

SEGMENTATION_LOSSES = ("cross_entropy", "focal", "dice", "cross_entropy+dice")
SMALLEST_WEIGHT = 1e-6  # instead of a division by 0
FOCAL_ALPHA = 0.5  # as in mmsegmentation: zeros and ones count alike


def segmentation_loss(labels, logits, loss: str = "cross_entropy", class_weights=None):
    """Returns one of the losses for label maps; pixels of label 255 are left out.

    Args:
        labels: (batch, height, width) or (batch, height, width, 1), integers.
        logits: (batch, height, width, classes).
        loss: one of `SEGMENTATION_LOSSES`: see `semantic_cross_entropy`, `semantic_focal_loss` and
            `semantic_dice_loss`; for two names, their sum.
        class_weights: a number for each class, or None.

    Returns:
        A float32 scalar; inside of a graph NaN where a label is no class.
    """
    # Not Keras's Dice, Tversky and CategoricalFocalCrossentropy: they cannot ignore pixels (a mask weighs
    # their results, for which a Dice has summed the pixels already), and sum over one device's batch.
    functions = {
        "cross_entropy": semantic_cross_entropy,
        "focal": semantic_focal_loss,
        "dice": semantic_dice_loss,
    }
    return sum(functions[part](labels, logits, class_weights=class_weights) for part in loss.split("+"))


def check_segmentation_loss(loss: str, class_weights: Sequence[float] | None, num_classes: int):
    """Returns the class weights as a list of floats, or None; raises a ValueError if an argument is wrong."""
    if loss not in SEGMENTATION_LOSSES:
        raise ValueError(f"loss must be one of {SEGMENTATION_LOSSES}. Received: {loss!r}")
    if class_weights is None:
        return None
    rule = f"class_weights must be a number for each of the {num_classes} classes, 0 or more, and not all 0"
    weights = list(class_weights) if hasattr(class_weights, "__iter__") else []
    fits = len(weights) == num_classes and all(isinstance(weight, numbers.Real) for weight in weights)
    if not fits or not all(0 <= weight < float("inf") for weight in weights) or not any(weights):
        raise ValueError(f"{rule}. Received: {class_weights!r}")
    return [float(weight) for weight in weights]


def semantic_cross_entropy(labels, logits, ignore_label: int = IGNORED_LABEL, class_weights=None):
    """Returns the cross-entropy of a label map, averaged over all pixels.

    Ignored pixels add nothing to the sum but count in the average, as in mmsegmentation (its
    `avg_non_ignore=False`): a picture that is mostly ignored weighs little. With class weights, as in
    mmsegmentation and PyTorch, it is the mean over the pixels that are not ignored, weighted by their
    classes: only the ratios of the weights matter.

    Args:
        labels: (batch, height, width) or (batch, height, width, 1), integers; `ignore_label` is left out.
        logits: (batch, height, width, classes).
        ignore_label: the label of pixels without truth.
        class_weights: a number for each class, or None.

    Returns:
        A float32 scalar; inside of a graph NaN where a label is no class.

    Raises:
        ValueError: for other shapes, and, outside of graphs, for a label that is not a class.
    """
    logits = ops.cast(logits, "float32")
    labels, poison = read_labels(labels, logits, ignore_label)
    known = ops.not_equal(labels, ignore_label)
    labels = ops.where(known, labels, 0)
    losses = ops.sparse_categorical_crossentropy(labels, logits, from_logits=True)
    losses = ops.where(known, losses, 0.0)
    if class_weights is None:
        return average_values(losses) + poison
    weights = ops.take(ops.convert_to_tensor(class_weights, "float32"), labels)
    weights = ops.where(known, weights, 0.0)
    return average_losses(ops.sum(weights * losses), ops.sum(weights), SMALLEST_WEIGHT) + poison


def semantic_focal_loss(labels, logits, class_weights=None):
    """Returns the focal loss of a label map: each class is a yes-or-no question for each pixel.

    mmsegmentation's `FocalLoss`: see `sigmoid_focal_loss`, here with an alpha of 0.5, averaged over the
    classes and all pixels, including ignored ones.

    Args:
        labels: see `semantic_cross_entropy`.
        logits: see `semantic_cross_entropy`.
        class_weights: a factor for each class's losses, or None.
    """
    logits = ops.cast(logits, "float32")
    known, targets, poison = _split_labels(labels, logits)
    losses = sigmoid_focal_loss(targets, logits, FOCAL_ALPHA)
    if class_weights is not None:
        losses = losses * ops.convert_to_tensor(class_weights, "float32")
    return average_values(ops.where(known, losses, 0.0)) + poison


def semantic_dice_loss(labels, logits, class_weights=None):
    """Returns the Dice loss of a label map and the softmax of the logits: see `dice_loss`.

    It is computed for each picture and each class that occurs in its truth, however few its pixels, and
    averaged over a picture's classes, then over the pictures. Unlike mmsegmentation's `DiceLoss`, it leaves
    out classes that do not occur, whose loss would be nearly 1 for any prediction that is not exactly 0. It
    is computed per picture, not per batch, so that devices that share a batch need not share its sums.

    Args:
        labels: see `semantic_cross_entropy`.
        logits: see `semantic_cross_entropy`.
        class_weights: how much each class counts in a picture's mean, or None.
    """
    logits = ops.cast(logits, "float32")
    known, targets, poison = _split_labels(labels, logits)
    # Ignored logits become 0 before the softmax, whose gradient is not finite if they are infinite.
    scores = ops.where(known, ops.softmax(ops.where(known, logits, 0.0)), 0.0)
    targets, scores = (
        ops.transpose(ops.reshape(values, (ops.shape(values)[0], -1, logits.shape[-1])), (0, 2, 1))
        for values in (targets, scores)
    )  # (batch, classes, pixels)
    weights = ops.cast(ops.any(targets > 0, axis=-1), "float32")  # (batch, classes)
    if class_weights is not None:
        weights = weights * ops.convert_to_tensor(class_weights, "float32")
    totals = ops.sum(weights * dice_loss(targets, scores), axis=-1)
    return average_values(totals / ops.maximum(ops.sum(weights, axis=-1), SMALLEST_WEIGHT)) + poison


def _split_labels(labels, logits):
    """Returns which pixels have truth (..., 1), one-hot labels (0 without truth), and the poison."""
    labels, poison = read_labels(labels, logits)
    known = ops.not_equal(labels, IGNORED_LABEL)
    targets = ops.one_hot(ops.where(known, labels, -1), logits.shape[-1], dtype="float32")
    return known[..., None], targets, poison


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
        gamma: how strongly easy examples are down-weighted; 0 gives the weighted cross-entropy.

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
    """Returns the focal loss of scores that predict how good a box is, elementwise.

    GFL (arXiv 2006.04388, equation 2): the cross-entropy, times the error of the score to the power of
    `beta`.

    Args:
        targets: (..., classes), 0 .. 1: the IoU of the box with its object at the object's class, else 0.
        logits: (..., classes), before the sigmoid.
        beta: how strongly easy examples are down-weighted.

    Returns:
        (..., classes) float32.
    """
    errors = ops.abs(ops.cast(targets, "float32") - ops.sigmoid(ops.cast(logits, "float32")))
    return binary_cross_entropy(targets, logits) * errors**beta


def distribution_focal_loss(targets, logits):
    """Returns the cross-entropy of distributions over whole numbers whose means should be the targets.

    GFL (arXiv 2006.04388, equation 6): the two whole numbers around the target should share the probability.

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


def average_losses(total, count, smallest_count: float = 1.0):
    """Returns a sum of losses divided by the count of its terms, or by `smallest_count` if that is larger.

    If several devices share a batch (tf.distribute), the count includes all of them. Keras divides the losses
    by the number of devices and sums their gradients, which gives the average over the joint batch.

    Args:
        total: scalar, the sum on this device.
        count: scalar, how many terms there are on this device, or the sum of their weights.
        smallest_count: the smallest divisor, below 1 for weights that may sum up to less than 1.
    """
    joint_count, num_devices = sum_over_devices(count)
    return num_devices * total / ops.maximum(joint_count, smallest_count)


def average_values(losses):
    """Returns the mean of elementwise losses over the joint batch: see `average_losses`."""
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
