"""Checks of inputs and targets: images with their sizes, boxes with their labels, label maps."""

import functools

import keras
import numpy as np
from keras import ops

from heads.ops.boxes import clip_boxes
from heads.ops.labels import CROWD_LABEL, IGNORED_LABEL, PADDING_LABEL, VOID_SEGMENT

FINEST_STRIDE = 4  # of level P2
INPUT_NAMES = ("images", "image_sizes", "original_sizes")


def read_inputs(inputs):
    """Returns a detector's inputs by name, with the sizes that were left out.

    Args:
        inputs: images (batch, height, width, 3), or a dict of them as "images" with, if wanted,
            "image_sizes", integers (batch, 2): (height, width) without the padding at the bottom and right;
            and "original_sizes", integers (batch, 2): of the pictures before resizing.

    Returns:
        (images, sizes): `sizes` is a dict of "image_sizes", float32 (batch, 2), and, where given,
        "original_sizes", float32 (batch, 2).

    Raises:
        ValueError: for a dict without "images" or with unknown keys, and, outside of graphs, for a size below
            1 or an image size above that of the array. Inside a graph, all sizes become NaN instead, and with
            them the losses and the scores.
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
    """Returns checked targets of a detector by name.

    Args:
        targets: a dict of "boxes" (batch, n, 4), xyxy pixels; "labels" (batch, n), integers, -1 for padding
            and -2 for a crowd; with `with_masks` also "masks" (batch, n, height, width), 0 or 1.
        num_classes: number of classes.
        with_masks: whether "masks" are needed.
        image_sizes: (batch, 2), (height, width) without padding, in which the boxes must lie. Default: no
            limit.

    Returns:
        (targets, poisons): a dict of "boxes" float32, "labels" int32 and perhaps "masks"; and a dict of what
        to add to the losses "class_loss" and "box_loss": 0, or inside a graph NaN if a label, or a box or
        size, is faulty: see `heads.ops.inputs.poison_faults`.

    Raises:
        ValueError: for missing keys or other shapes, and, outside of graphs, for a faulty label or box.
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
    faulty_boxes, box_poison = _check_boxes(boxes, labels, image_sizes)
    faulty_labels, label_poison = _check_labels(targets["labels"], labels, num_classes)
    poisons = {"class_loss": label_poison, "box_loss": box_poison}
    # Faulty objects become padding: sampling a map under a box must not meet a NaN, and looking up a class
    # must not go beyond the last one.
    labels = ops.where(faulty_boxes | faulty_labels, PADDING_LABEL, labels)
    checked = {"boxes": ops.where(faulty_boxes[..., None], 0.0, boxes), "labels": labels}
    if with_masks:
        checked["masks"] = targets["masks"]
    return checked, poisons


def _check_labels(given, labels, num_classes):
    """Returns which labels are not a class, padding or crowd; and 0, or NaN if there are any."""
    given = ops.convert_to_tensor(given)
    faults = (
        (labels >= num_classes) | (labels < CROWD_LABEL) | ops.not_equal(ops.cast(labels, given.dtype), given)
    )
    return faults, poison_faults(
        faults,
        lambda index: (
            f"labels must be class numbers 0 .. {num_classes - 1}, {PADDING_LABEL} for padding or "
            f"{CROWD_LABEL} for a crowd. Received: {_show(given[index])} for box {index[1]} of image "
            f"{index[0]} of the batch"
        ),
    )


def _check_boxes(boxes, labels, image_sizes):
    """Returns which boxes have no area or lie outside of their image; and 0, or NaN if there are any."""
    exists = ops.not_equal(labels, PADDING_LABEL)
    # The comparison is written so that NaN is a fault.
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
    # All boxes in the first pixel are relative ones, except those at its corner, which a crop may leave.
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


def read_crops(inputs):
    """Returns the inputs of a pose model: (images, other inputs).

    Args:
        inputs: images (batch, height, width, 3), or a dict of them as "images" with, if wanted,
            "to_pictures", (batch, 2, 3): the affine map from (x, y, 1) in the image to (x, y) in the picture
            that it was cut out of.

    Returns:
        (images, others): `others` is a dict of "to_pictures", float32 (batch, 2, 3), or empty.

    Raises:
        ValueError: for a dict without "images" or with unknown keys, or maps of another shape.
    """
    if not isinstance(inputs, dict):
        return inputs, {}
    if "images" not in inputs or not set(inputs) <= {"images", "to_pictures"}:
        raise ValueError(
            "inputs must be images or a dict of ['images', 'to_pictures'], of which only 'images' is needed. "
            f"Received keys: {sorted(inputs)}"
        )
    if "to_pictures" not in inputs:
        return inputs["images"], {}
    maps = ops.cast(inputs["to_pictures"], "float32")
    if len(maps.shape) != 3 or tuple(maps.shape[1:]) != (2, 3):
        raise ValueError(f"to_pictures must be (batch, 2, 3). Received: shape {tuple(maps.shape)}")
    return inputs["images"], {"to_pictures": maps}


def read_keypoints(targets, num_keypoints: int):
    """Returns checked keypoints, their weights, and what to add to the loss.

    Args:
        targets: a dict of "keypoints" (batch, keypoints, 2), (x, y) in pixels, and "weights" (batch,
            keypoints), 0 for a keypoint without a label, whose position may be anything.
        num_keypoints: number of keypoints.

    Returns:
        (keypoints, weights, poison): float32; and 0, or NaN if a weight is negative or a keypoint with a
        weight is not finite: see `poison_faults`.

    Raises:
        ValueError: for missing keys or other shapes, and, outside of graphs, for a fault.
    """
    needed = ("keypoints", "weights")
    if not isinstance(targets, dict) or not set(needed) <= set(targets):
        received = sorted(targets) if isinstance(targets, dict) else type(targets).__name__
        raise ValueError(f"targets must be a dict with {list(needed)}. Received: {received}")
    keypoints, weights = (ops.cast(targets[name], "float32") for name in needed)
    shapes = tuple(keypoints.shape), tuple(weights.shape)
    ends = (shapes[0][1:], (num_keypoints, 2)), (shapes[1][1:], (num_keypoints,))
    if any(len(end) != len(wanted) or not _fits(end, wanted) for end, wanted in ends):
        raise ValueError(
            f"targets must have keypoints (batch, {num_keypoints}, 2) and weights (batch, {num_keypoints}). "
            f"Received shapes: {shapes[0]} and {shapes[1]}"
        )
    right = ops.logical_and(ops.isfinite(weights), weights >= 0.0)
    labelled = ops.logical_and(right, weights > 0.0)
    is_finite = ops.all(ops.isfinite(keypoints), axis=-1)
    faults = ops.logical_not(right) | ops.logical_and(labelled, ops.logical_not(is_finite))
    poison = poison_faults(
        faults,
        lambda index: (
            "weights must be 0 or more, and keypoints with a weight finite. Received: "
            f"{_show(keypoints[index])} with weight {_show(weights[index])} as keypoint {index[1]} of image "
            f"{index[0]} of the batch"
        ),
    )
    known = ops.logical_and(labelled, is_finite)
    return ops.where(known[..., None], keypoints, 0.0), ops.where(known, weights, 0.0), poison


def _fits(shape, wanted):
    return all(side in (None, other) for side, other in zip(shape, wanted, strict=True))


def check_masks(masks, finest_level):
    """Returns 0, or NaN if masks do not have the images' size (up to the stride) or exceed 1.

    Args:
        masks: (batch, n, height, width).
        finest_level: (batch, height / 4, width / 4, channels), level P2 of the pyramid.

    Raises:
        ValueError: for such masks outside of graphs: see `poison_faults`.
    """
    size, cells = ops.shape(masks)[2:], ops.shape(finest_level)[1:3]
    differs = [-(-side // FINEST_STRIDE) != number for side, number in zip(size, cells, strict=True)]
    known = all(isinstance(each, bool) for each in differs)
    poison = poison_faults(
        np.array(differs) if known else ops.stack(differs),
        lambda index: (
            "masks must have the (height, width) of the padded images, in multiples of "
            f"{FINEST_STRIDE} {tuple(FINEST_STRIDE * int(side) for side in cells)}. "
            f"Received: {tuple(map(int, size))}"
        ),
    )
    return poison + _check_mask_values(masks)


def _check_mask_values(masks):
    """Returns 0, or NaN if a mask holds more than 1."""
    masks = ops.convert_to_tensor(masks)
    if keras.backend.standardize_dtype(masks.dtype) == "bool":
        return 0.0
    return poison_faults(
        ops.max(masks, initial=0) > 1,
        lambda index: f"masks must be 0 or 1. Received: values up to {float(ops.max(masks))}",
    )


def read_segments(targets, num_classes, inside):
    """Returns checked targets of a model that learns masks of segments.

    Args:
        targets: a dict of "labels" and either "masks" or "segments": see `heads.Mask2Former.compute_losses`.
        num_classes: number of classes.
        inside: (batch, height, width), of the images' size.

    Returns:
        (labels, masks, poison): int32 (batch, n), (batch, n, height, width), and what to add to the losses:
        0, or inside a graph NaN if a value is faulty: see `poison_faults`.

    Raises:
        ValueError: for missing keys or other shapes, and, outside of graphs, for faulty values.
    """
    ranks = {"labels": 2, "masks": 4, "segments": 3}
    given = set(targets) & set(ranks) if isinstance(targets, dict) else set()
    if given not in ({"labels", "masks"}, {"labels", "segments"}):
        received = sorted(targets) if isinstance(targets, dict) else type(targets).__name__
        raise ValueError(
            f"targets must be a dict with 'labels', and either 'masks' or 'segments'. Received: {received}"
        )
    shapes, size = {name: tuple(targets[name].shape) for name in given}, tuple(inside.shape)[1:]
    differs = any(len(shape) != ranks[name] for name, shape in shapes.items()) or any(
        None not in (ours, theirs) and ours != theirs
        for name, shape in shapes.items()
        if name != "labels"
        for ours, theirs in zip(shape[-2:], size, strict=True)
    )
    if differs:
        raise ValueError(
            "targets must have labels (batch, n), and masks (batch, n, height, width) or segments "
            f"(batch, height, width) of the padded images' (height, width), {size}. Received shapes: {shapes}"
        )
    labels = ops.cast(targets["labels"], "int32")
    faulty, poison = _check_labels(targets["labels"], labels, num_classes)
    labels = ops.where(faulty, PADDING_LABEL, labels)
    if "masks" in targets:
        return labels, targets["masks"], poison + _check_mask_values(targets["masks"])
    segments, count = ops.cast(targets["segments"], "int32"), ops.shape(labels)[1]
    faults = (segments >= count) | (segments < VOID_SEGMENT)
    poison = poison + poison_faults(
        faults,
        lambda index: (
            f"segments must be rows of labels, 0 .. {int(count) - 1}, or {VOID_SEGMENT} for pixels without "
            f"truth. Received: {_show(segments[index])} at (row, column) {index[1:]} of image {index[0]}"
        ),
    )
    rows = ops.arange(count, dtype="int32")[:, None, None]
    return labels, segments[:, None] == rows, poison


def read_labels(labels, logits, ignore_label=IGNORED_LABEL, num_classes=None):
    """Returns checked label maps, and what to add to the loss.

    Args:
        labels: (batch, height, width) or (batch, height, width, 1), integers, or floats that are whole.
        logits: (batch, height, width, classes).
        ignore_label: the label of pixels without truth.
        num_classes: number of classes, if it is not the length of the logits' last axis.

    Returns:
        (labels, poison): int32 (batch, height, width), with `ignore_label` instead of labels that are not a
        class; and 0, or NaN if there are any: see `poison_faults`.

    Raises:
        ValueError: for other shapes or dtypes, and, outside of graphs, for a label that is not a class.
    """
    if labels is None or keras.tree.is_nested(labels):
        received = "None" if labels is None else f"a {type(labels).__name__}"
        raise ValueError(f"labels must be one array (batch, height, width). Received: {received}")
    labels = ops.convert_to_tensor(labels)
    *size, num_logits = logits.shape
    num_classes = num_logits if num_classes is None else num_classes
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


def poison_faults(faults, describe):
    """Raises at the first fault of the targets if values are known; else returns a NaN for the loss.

    Inside a graph, no error can be raised on every backend, but a NaN loss shows in the logs, and callbacks
    stop at it. It has no gradient and does not affect the weights.

    Args:
        faults: bool, any shape; a NumPy array is known in graphs, too.
        describe: function of a fault's index, a tuple, that returns the error's message.

    Returns:
        float32 scalar: NaN if there is a fault, else 0.

    Raises:
        ValueError: for a fault, outside of graphs.
    """
    faulty = faults.any() if isinstance(faults, np.ndarray) else ops.any(faults)
    try:
        raises = bool(faulty)
    except (TypeError, RuntimeError):  # a graph's tensor, on TensorFlow and JAX or on PyTorch
        raises = False
    if raises:
        raise ValueError(describe(tuple(np.argwhere(ops.convert_to_numpy(faults))[0].tolist())))
    return ops.where(faulty, float("nan"), ops.zeros((), "float32"))
