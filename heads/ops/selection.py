"""From scores to results: the best boxes, detections without duplicates, each pixel's likeliest class."""

import keras
from keras import ops

from heads.ops.backends import top_k
from heads.ops.boxes import clip_boxes, rescale_boxes
from heads.ops.labels import PADDING_LABEL
from heads.ops.suppression import suppress_boxes


def select_best(scores, num_best: int):
    """Returns the best of the last axis, `num_best` or as many as there are: (scores, indices)."""
    count = ops.shape(scores)[-1]
    num_best = min(num_best, count) if isinstance(count, int) else ops.minimum(num_best, count)
    return top_k(scores, num_best)


def select_pairs(scores, num_best: int):
    """Returns the best pairs of a box and a class, at most `num_best` for each image.

    The best pairs lie among the boxes with the best classes, so most scores are looked at only once.

    Args:
        scores: (batch, boxes, classes), or logits.
        num_best: how many pairs.

    Returns:
        (scores, box indices, labels), each (batch, pairs), the best first.
    """
    num_classes = ops.shape(scores)[-1]
    _, boxes = select_best(ops.max(scores, axis=-1), num_best)
    candidates = ops.take_along_axis(scores, ops.expand_dims(boxes, -1), axis=1)
    batch, num_boxes = ops.shape(boxes)
    best, pairs = select_best(ops.reshape(candidates, (batch, num_boxes * num_classes)), num_best)
    pairs = ops.cast(pairs, "int32")
    boxes = ops.take_along_axis(ops.cast(boxes, "int32"), pairs // num_classes, axis=1)
    return best, boxes, pairs % num_classes


def select_each_level(scores, levels, num_best: int):
    """Returns the best pairs of a box and a class of each pyramid level.

    Args:
        scores: (batch, boxes of all levels, classes), or logits; the levels one after another.
        levels: a list with an array (boxes of the level, ...) per level.
        num_best: how many pairs of each level.

    Returns:
        A list of what `select_pairs` returns, with boxes counted over all levels.
    """
    selected, start = [], 0
    for level in levels:
        end = start + ops.shape(level)[0]
        best, rows, labels = select_pairs(scores[:, start:end], num_best)
        selected.append((best, rows + start, labels))
        start = end
    return selected


def select_anchors(logits, levels, num_best: int):
    """Returns the best pairs of an anchor and a class of all levels, and their anchors.

    Args:
        logits: (batch, anchors of all levels, classes); the levels one after another.
        levels: a list with an array (anchors of the level, 4) per level.
        num_best: how many pairs of each level.

    Returns:
        (logits, anchor indices, labels), each (batch, pairs), and anchors (batch, pairs, 4).
    """
    selected = select_each_level(logits, levels, num_best)
    best, rows, labels = (ops.concatenate(parts, axis=1) for parts in zip(*selected, strict=True))
    return best, rows, labels, ops.take(ops.concatenate(levels, axis=0), rows, axis=0)


def take_rows(values, indices):
    """Returns rows of each image: (batch, n, ...) and integers (batch, m) -> (batch, m, ...)."""
    indices = ops.reshape(indices, (*ops.shape(indices), *[1] * (len(values.shape) - 2)))
    return ops.take_along_axis(values, indices, axis=1)


def select_detections(boxes, scores, labels, image_sizes, iou_threshold: float, max_detections: int):
    """Returns the detections of scored boxes: clipped to the image, without duplicates.

    Args:
        boxes: (batch, n, 4), xyxy pixels of the input.
        scores: (batch, n), 0 where there is none.
        labels: int32 (batch, n).
        image_sizes: (batch, 2), (height, width) without padding.
        iou_threshold: of two boxes of one label that overlap by more, the better one stays.
        max_detections: rows of the result.

    Returns:
        A dict of "boxes" (batch, max_detections, 4), "scores" (batch, max_detections) and "labels" (batch,
        max_detections), the best first; after the last one label -1, score 0 and a box of zeros.
    """
    boxes = clip_boxes(boxes, image_sizes)
    has_area = ops.all(boxes[..., 2:] > boxes[..., :2], axis=-1)
    scores = ops.where(has_area, scores, 0.0)
    chosen = suppress_boxes(boxes, scores, labels, iou_threshold, max_detections)
    exists = chosen >= 0
    rows = ops.maximum(chosen, 0)
    return {
        "boxes": ops.where(exists[..., None], take_rows(boxes, rows), 0.0),
        # NaN where the sizes are: see `read_inputs`.
        "scores": ops.where(exists, take_rows(scores, rows), 0.0) + 0.0 * image_sizes[:, :1],
        "labels": ops.where(exists, take_rows(labels, rows), PADDING_LABEL),
    }


def detect_boxes(boxes, scores, labels, predictions, iou_threshold: float, max_detections: int):
    """Returns the detections of scored boxes in pixels of the original pictures, where their sizes are known.

    Args:
        boxes: (batch, n, 4), xyxy pixels of the input.
        scores: (batch, n), 0 where there is none.
        labels: int32 (batch, n).
        predictions: a dict with "image_sizes" (batch, 2) and perhaps "original_sizes" (batch, 2).
        iou_threshold: of two boxes of one label that overlap by more, the better one stays.
        max_detections: rows of the result, which is that of `select_detections`.
    """
    sizes = predictions["image_sizes"]
    detections = select_detections(boxes, scores, labels, sizes, iou_threshold, max_detections)
    return restore_boxes(detections, sizes, predictions.get("original_sizes"))


def restore_boxes(detections, image_sizes, original_sizes=None):
    """Returns detections with boxes in pixels of the original pictures, where their sizes are known.

    Args:
        detections: a dict with "boxes" (batch, n, 4), in pixels of the resized images.
        image_sizes: (batch, 2), (height, width) of the resized images, without padding.
        original_sizes: (batch, 2), (height, width) of the pictures, or None.
    """
    if original_sizes is None:
        return detections
    return {**detections, "boxes": rescale_boxes(detections["boxes"], image_sizes, original_sizes)}


def label_pixels(logits):
    """Returns the likeliest class of each pixel, int32 (batch, height, width), from logits.

    On TensorFlow, `ops.argmax` takes four more passes over the logits, one of which (`Bitcast`) neither ONNX
    nor OpenVINO has. On JAX, `ops.top_k` sends the logits of a batch to all devices that share it.
    """
    if keras.backend.backend() != "tensorflow":
        return ops.cast(ops.argmax(logits, axis=-1), "int32")
    return ops.cast(ops.top_k(logits, 1)[1][..., 0], "int32")
