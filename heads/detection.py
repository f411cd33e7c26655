"""What the detectors share: their inputs, and the way from scored boxes to detections."""

import functools

from keras import ops

from heads.boxes import clip_boxes, rescale_boxes
from heads.losses import poison_faults
from heads.suppression import suppress_boxes

INPUT_NAMES = ("images", "image_sizes", "original_sizes")


def read_inputs(inputs):
    """Gives a detector's inputs by name, with the sizes that were left out.

    Args:
        inputs: images (batch, height, width, 3), or a dict of them as "images" with, if wanted,
            "image_sizes", integers (batch, 2): (height, width) without the padding at the bottom and right;
            and "original_sizes", integers (batch, 2): of the pictures before resizing.

    Returns:
        (images, sizes): `sizes` is a dict of "image_sizes", float32 (batch, 2), and, where given,
        "original_sizes", float32 (batch, 2).

    Raises:
        ValueError: at a dict without "images" or with unknown keys, and, outside of graphs, at a size below
            1 or an image size above that of the array. Inside of a graph all sizes become NaN, and with them
            the losses and the scores.
    """
    if not isinstance(inputs, dict):
        inputs = {"images": inputs}
    if "images" not in inputs or not set(inputs) <= set(INPUT_NAMES):
        raise ValueError(
            f"inputs must be images or a dict of {list(INPUT_NAMES)}, of which only 'images' is needed. "
            f"Received keys: {sorted(inputs)}"
        )
    images = inputs["images"]
    sizes = {name: ops.cast(inputs[name], "float32") for name in INPUT_NAMES[1:] if name in inputs}
    batch, height, width = ops.shape(images)[:3]
    size = ops.cast(ops.stack([height, width]), "float32")
    for name, values in sizes.items():
        faults = ops.logical_or(values < 1.0, ops.isnan(values))
        if name == "image_sizes":
            faults = ops.logical_or(faults, values > size)
        sizes[name] = values + poison_faults(faults, functools.partial(_describe_size, name, values, size))
    if "image_sizes" not in sizes:
        sizes["image_sizes"] = ops.broadcast_to(size[None], (batch, 2))
    return images, sizes


def _describe_size(name, values, size, index):
    limit = " and not above that of the padded images" if name == "image_sizes" else ""
    return (
        f"{name} must be (height, width), at least 1 each{limit}. Received: {_show(values[index[0]])} for "
        f"image {index[0]} of the batch, in a batch of {_show(size)}"
    )


def _show(values):
    return ops.convert_to_numpy(values).tolist()


def read_targets(targets, num_classes, with_masks=False, image_sizes=None):
    """Gives checked targets of a detector by name.

    Args:
        targets: a dict of "boxes" (batch, n, 4), xyxy pixels; "labels" (batch, n), integers, -1 for padding
            and -2 for a crowd; with `with_masks` also "masks" (batch, n, height, width), 0 or 1.
        num_classes: number of classes.
        with_masks: whether "masks" are needed.
        image_sizes: (batch, 2), (height, width) without padding, in which the boxes must lie. Default: no
            limit.

    Returns:
        (targets, poisons): a dict of "boxes" float32, "labels" int32 and perhaps "masks"; and a dict of what
        to add to the losses "class_loss" and "box_loss": 0, or NaN where a label, or a box or size, is faulty
        and values are not known: see `heads.losses.poison_faults`.

    Raises:
        ValueError: at missing keys or other shapes, and, outside of graphs, at a faulty label or box.
    """
    needed = ("boxes", "labels", "masks")[: 3 if with_masks else 2]
    if not isinstance(targets, dict) or not set(needed) <= set(targets):
        received = sorted(targets) if isinstance(targets, dict) else type(targets).__name__
        raise ValueError(f"targets must be a dict with {list(needed)}. Received: {received}")
    shapes = {name: tuple(targets[name].shape) for name in needed}
    ranks = {"boxes": 3, "labels": 2, "masks": 4}
    if any(len(shape) != ranks[name] for name, shape in shapes.items()) or shapes["boxes"][-1] not in (
        4,
        None,
    ):
        raise ValueError(
            "targets must have boxes (batch, n, 4), labels (batch, n)"
            f"{' and masks (batch, n, height, width)' if with_masks else ''}. Received shapes: {shapes}"
        )
    labels, boxes = ops.cast(targets["labels"], "int32"), ops.cast(targets["boxes"], "float32")
    faults, poison = _check_boxes(boxes, labels, image_sizes)
    poisons = {"class_loss": _check_labels(targets["labels"], labels, num_classes), "box_loss": poison}
    # Faulty boxes become padding: what samples a map under a box must not meet a NaN.
    checked = {"boxes": ops.where(faults[..., None], 0.0, boxes), "labels": ops.where(faults, -1, labels)}
    if with_masks:
        checked["masks"] = targets["masks"]
    return checked, poisons


def _check_labels(given, labels, num_classes):
    """Returns 0, or NaN at a label that is no class, padding or crowd."""
    given = ops.convert_to_tensor(given)
    faults = (labels >= num_classes) | (labels < -2) | ops.not_equal(ops.cast(labels, given.dtype), given)
    return poison_faults(
        faults,
        lambda index: (
            f"labels must be class numbers 0 .. {num_classes - 1}, -1 for padding or -2 for a crowd. "
            f"Received: {_show(given[index])} for box {index[1]} of image {index[0]} of the batch"
        ),
    )


def _check_boxes(boxes, labels, image_sizes):
    """Returns which boxes have no area or lie outside of their image; and 0, or NaN where there are any."""
    exists = ops.not_equal(labels, -1)
    # Written so that NaN is a fault.
    valid = ops.all(boxes[..., 2:] > boxes[..., :2], axis=-1) & ops.all(ops.isfinite(boxes), axis=-1)
    if image_sizes is not None:
        # Rounded sizes may be up to a pixel smaller than the boxes that were scaled with them.
        valid &= ops.all(ops.abs(clip_boxes(boxes, image_sizes) - boxes) <= 1.0, axis=-1)

    def describe(index):
        image, row = index
        size = "" if image_sizes is None else f", whose (height, width) is {_show(image_sizes[image])}"
        return (
            "boxes must be (x1, y1, x2, y2) in pixels, x1 < x2 and y1 < y2, inside of their image: convert "
            "other formats, clip what reaches out, give padding the label -1. Received: "
            f"{_show(boxes[index])} as box {row} of image {image} of the batch{size}"
        )

    faults = exists & ops.logical_not(valid)
    poison = poison_faults(faults, describe)
    # All boxes in the first pixel, though they do not start at its corner as what a crop leaves there does.
    in_first_pixel = ops.all(boxes <= 1.0, axis=-1) & ops.any(boxes[..., :2] > 0.0, axis=-1)
    normalized = ops.any(exists) & ops.all(in_first_pixel | ops.logical_not(exists))
    poison += poison_faults(
        exists & normalized,
        lambda index: (
            "boxes must be in pixels: multiply boxes of 0 .. 1 by the width and height of their image. "
            f"Received: {_show(boxes[index])} as box {index[1]} of image {index[0]} of the batch"
        ),
    )
    return faults, poison if image_sizes is None else poison + 0.0 * ops.sum(image_sizes)


def select_best(scores, num_best):
    """Gives the best of the last axis, as many as there are but at most `num_best`: (scores, indices)."""
    count = ops.shape(scores)[-1]
    num_best = min(num_best, count) if isinstance(count, int) else ops.minimum(num_best, count)
    return ops.top_k(scores, num_best)


def select_pairs(scores, num_best):
    """Gives the best pairs of a box and a class, at most `num_best` for each image.

    The best pairs lie among the boxes with the best classes, so that most scores are looked at once only.

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


def take_rows(values, indices):
    """Gives rows of each image: (batch, n, ...) and integers (batch, m) -> (batch, m, ...)."""
    indices = ops.reshape(indices, (*ops.shape(indices), *[1] * (len(values.shape) - 2)))
    return ops.take_along_axis(values, indices, axis=1)


def select_detections(boxes, scores, labels, image_sizes, iou_threshold, max_detections):
    """Gives the detections of scored boxes: clipped to the image, without doubles.

    Args:
        boxes: (batch, n, 4), xyxy pixels of the input.
        scores: (batch, n), 0 where there is none.
        labels: int32 (batch, n).
        image_sizes: (batch, 2), (height, width) without padding.
        iou_threshold: of two boxes of one label that overlap by more, the better one stays.
        max_detections: rows of the result.

    Returns:
        A dict of "boxes" (batch, max_detections, 4), "scores" (batch, max_detections) and "labels"
        (batch, max_detections), the best first; behind the last one label -1, score 0 and a box of zeros.
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
        "labels": ops.where(exists, take_rows(labels, rows), -1),
    }


def restore_boxes(detections, sizes):
    """Gives the detections with boxes in pixels of the original pictures, where their sizes are known."""
    if "original_sizes" not in sizes:
        return detections
    boxes = rescale_boxes(detections["boxes"], sizes["image_sizes"], sizes["original_sizes"])
    return {**detections, "boxes": boxes}
