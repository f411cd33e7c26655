"""How strongly a head's predictions speak for one class, as a number: what Grad-CAM differentiates."""

import numpy as np
from keras import ops

from heads.ops.selection import label_pixels

# How many boxes, or queries with masks, count: those with the best scores.
NUM_BEST = 10


def find_class(model, predictions, point=None) -> int:
    """Returns the class that stands out in the predictions of one image.

    Args:
        model: a head with classes; for a saliency model the answer is always 0.
        predictions: what `model(images)` returned, of a batch of one.
        point: (x, y) in pixels of the image, at which the class of a segmenter is wanted; other heads ignore
            it.

    Returns:
        For a segmenter the class of most pixels, for a detector or a `Mask2Former` the one with the best
        score.

    Raises:
        ValueError: if the model predicts no classes, or the point is outside.
    """
    logits, are_pixels = _read_logits(model, predictions)
    if are_pixels:
        labels = ops.convert_to_numpy(label_pixels(logits))[0]
        if point is not None:
            return int(labels[_find_pixel(labels.shape, point)])
        return int(np.bincount(labels.ravel()).argmax())
    return int(ops.convert_to_numpy(ops.max(logits, axis=0)).argmax())


def score_class(model, predictions, label: int, point=None):
    """Returns how strongly the predictions of one image speak for a class, a float32 scalar tensor.

    For a segmenter, the mean logit over the pixels that are predicted as the class, or over all if there are
    none; with a point, the logit there. For a detector or a `Mask2Former`, the mean of the ten best scores,
    as logits before a sigmoid or log-probabilities of a softmax.

    Args:
        model: see `find_class`.
        predictions: what `model(images)` returned, of a batch of one.
        label: the class.
        point: (x, y) in pixels of the image, or None.

    Raises:
        ValueError: if the model predicts no classes, there is no such class, or the point is outside.
    """
    logits, are_pixels = _read_logits(model, predictions)
    num_classes = logits.shape[-1]
    if not 0 <= label < num_classes:
        raise ValueError(f"label must be in 0 .. {num_classes - 1}. Received: {label!r}")
    if not are_pixels:
        values = logits[:, label]
        return ops.mean(ops.top_k(values, min(NUM_BEST, values.shape[0]))[0])
    values = logits[0, :, :, label]
    if point is not None:
        return values[_find_pixel(values.shape, point)]
    if num_classes == 1:
        chosen = ops.greater(values, 0.0)
    else:
        chosen = ops.equal(ops.stop_gradient(label_pixels(logits))[0], label)
    chosen = ops.cast(chosen, "float32")
    count = ops.sum(chosen)
    weights = ops.where(count > 0, chosen, ops.ones_like(chosen))
    return ops.sum(values * weights) / ops.sum(weights)


def _read_logits(model, predictions):
    """Returns the logits, (1, height, width, classes) or (n, classes), and whether they are a map."""
    logits = predictions
    if isinstance(predictions, dict):
        logits = predictions["logits"] if "logits" in predictions else predictions.get("class_logits")
    if logits is None or hasattr(model, "num_keypoints"):
        raise ValueError(f"model must be a segmenter, a detector or a saliency model. Received: {model!r}")
    if logits.shape[0] != 1:
        raise ValueError(f"predictions must be those of one image. Received: those of {logits.shape[0]}")
    logits = ops.cast(logits, "float32")
    if not isinstance(predictions, dict) or "logits" in predictions:
        return logits, True
    # Heads that refine their predictions have them for each layer, of which the last counts: (n, classes).
    logits = logits[0] if len(logits.shape) == 3 else logits[0, -1]
    if logits.shape[-1] == model.num_classes + 1:  # the last one is the background
        logits = ops.log_softmax(logits, axis=-1)[:, :-1]
    return logits, False


def _find_pixel(size, point):
    x, y = (int(place) for place in point)
    if not (0 <= x < size[1] and 0 <= y < size[0]):
        raise ValueError(
            f"point must be (x, y) within the image of {size[1]} x {size[0]} pixels. Received: {tuple(point)}"
        )
    return y, x
