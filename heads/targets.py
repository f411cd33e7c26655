"""Targets of segmenters and detectors, checked.

A graph cannot raise: where values are not known before they are computed, a fault makes the loss NaN.
"""

import numpy as np
from keras import backend, ops


def read_label_maps(labels, logits):
    """Gives checked label maps of a segmenter.

    Args:
        labels: integers (batch, height, width) or (batch, height, width, 1): 0 .. classes - 1, or 255 for
            pixels without truth.
        logits: (batch, height, width, classes).

    Returns:
        (labels, poison): int32 (batch, height, width), 255 also where a label is out of range; and 0, or NaN
        where there is such a label and an error cannot be raised.

    Raises:
        ValueError: For other shapes, labels that are no integers and, outside of graphs, labels out of range.
    """
    labels = ops.convert_to_tensor(labels)
    shape, expected = tuple(labels.shape), tuple(logits.shape[:3])
    if len(shape) == 4 and shape[3] == 1:
        labels, shape = labels[..., 0], shape[:3]
    if not _fits(shape, expected):
        raise ValueError(
            f"targets must be label maps (batch, height, width) of the logits' size {expected}. "
            f"Received: shape {shape}"
        )
    dtype = backend.standardize_dtype(labels.dtype)
    if "int" not in dtype and dtype != "bool":
        raise ValueError(
            f"targets must be label maps of integers, 0 .. {logits.shape[-1] - 1} or 255. Received: {dtype}"
        )
    labels = ops.cast(labels, "int32")
    faulty = ops.not_equal(labels, 255) & ((labels < 0) | (labels >= logits.shape[-1]))
    poison = poison_faulty(
        faulty, labels, f"labels must be 0 .. {logits.shape[-1] - 1}, or 255 to ignore a pixel"
    )
    return ops.where(faulty, 255, labels), poison


def read_targets(targets, num_classes, image_sizes, with_masks=False):
    """Gives checked targets of a detector by name.

    Args:
        targets: a dict of "boxes" (batch, n, 4), xyxy pixels; "labels" (batch, n), integers, -1 for padding
            and -2 for a crowd; with `with_masks` also "masks" (batch, n, height, width), 0 or 1.
        num_classes: number of classes.
        image_sizes: (batch, 2), (height, width) without padding.
        with_masks: whether "masks" are needed.

    Returns:
        (targets, poison): a dict of "boxes" float32, "labels" int32 and perhaps "masks"; and 0, or NaN where
        a target is faulty and an error cannot be raised.

    Raises:
        ValueError: For missing keys or other shapes and, outside of graphs, for labels out of range and boxes
            that are not finite, have no area, lie outside of their image or seem to be shares of its size.
    """
    needed = ("boxes", "labels", "masks")[: 3 if with_masks else 2]
    if not isinstance(targets, dict) or not set(needed) <= set(targets):
        received = sorted(targets) if isinstance(targets, dict) else type(targets).__name__
        raise ValueError(f"targets must be a dict with {list(needed)}. Received: {received}")
    shapes = {name: tuple(targets[name].shape) for name in needed}
    rows = (*shapes["labels"], None, None)[:2]
    expected = {"boxes": (*rows, 4), "labels": rows, "masks": (*rows, None, None)}
    if not all(_fits(shape, expected[name]) for name, shape in shapes.items()):
        raise ValueError(
            "targets must have boxes (batch, n, 4), labels (batch, n)"
            f"{' and masks (batch, n, height, width)' if with_masks else ''}. Received shapes: {shapes}"
        )
    boxes, labels = ops.cast(targets["boxes"], "float32"), ops.cast(targets["labels"], "int32")
    poison = poison_faulty(
        (labels >= num_classes) | (labels < -2),
        labels,
        f"labels must be 0 .. {num_classes - 1}, -1 for padding or -2 for a crowd",
    )
    poison = poison + _check_boxes(boxes, ops.not_equal(labels, -1), image_sizes)
    checked = {"boxes": boxes, "labels": labels}
    if with_masks:
        checked["masks"] = targets["masks"]
    return checked, poison


def check_mask_size(masks, finest_level):
    """Gives 0, or NaN where masks (batch, n, height, width) have not the images' size; raises where it can.

    The images are known by their level "P2" (batch, ceil(height / 4), ceil(width / 4), channels).
    """
    sizes, expected = ops.shape(masks)[2:4], ops.shape(finest_level)[1:3]
    faulty = [(side + 3) // 4 != length for side, length in zip(sizes, expected, strict=True)]
    if True in faulty:
        raise ValueError(
            f"masks must have the images' size, about {tuple(4 * length for length in expected)}. "
            f"Received: (height, width) {tuple(sizes)}"
        )
    return ops.where(ops.any(ops.stack(faulty)), float("nan"), 0.0)


def poison_faulty(faulty, values, rule):
    """Gives 0, or NaN where anything is faulty and the values are not known yet; else raises.

    Args:
        faulty: bool (batch, ...).
        values: (batch, ...), perhaps with further axes: what is shown.
        rule: what the error says first.
    """
    try:
        places = np.argwhere(ops.convert_to_numpy(faulty))
        values = ops.convert_to_numpy(values)
    except Exception:  # each backend has its own error for values that only exist once the graph runs
        return ops.where(ops.any(faulty), float("nan"), 0.0)
    if len(places):
        image, *place = places[0].tolist()
        value = values[tuple(places[0])].tolist()
        raise ValueError(f"{rule}. Received: {value} in image {image} of the batch, at {place}")
    return ops.zeros(())


def _check_boxes(boxes, exists, image_sizes):
    """Gives 0 or poison: see `poison_faulty`."""
    height, width = (ops.cast(image_sizes[:, axis, None], "float32") for axis in (0, 1))
    x1, y1, x2, y2 = (boxes[..., side] for side in range(4))
    # Written so that NaN is not sound. Infinite sides are caught by the reach: no box is as long as that.
    sound = (x2 > x1) & (y2 > y1) & (x2 > 0) & (y2 > 0) & (x1 < width) & (y1 < height)
    sound = sound & ops.all(ops.abs(boxes) < 1e9, axis=-1)
    poison = poison_faulty(
        exists & ops.logical_not(sound),
        boxes,
        "boxes must be finite, [x1, y1, x2, y2] in pixels with x1 < x2 and y1 < y2, and reach into their "
        "image; label -1 marks padding",
    )
    # A single such box can be an object of one pixel in the corner; a batch of them cannot.
    in_corner = ops.all((boxes >= 0) & (boxes <= 1), axis=-1) | ops.logical_not(exists)
    relative = exists & ops.all(in_corner) & (ops.sum(ops.cast(exists, "int32")) > 1)
    return poison + poison_faulty(
        relative, boxes, "boxes must be in pixels, not shares of the image's size (multiply them by it)"
    )


def _fits(shape, expected):
    """Returns whether a static shape may be the expected one; None stands for any length."""
    return len(shape) == len(expected) and all(
        ours == theirs or None in (ours, theirs) for ours, theirs in zip(shape, expected, strict=True)
    )
