"""Box geometry: overlaps, the box coder, clipping and rescaling.

Boxes are (x1, y1, x2, y2) in pixels, continuous: a box from 0 to 10 is 10 wide.
"""

import math

from keras import ops

# Sec. 3.1 of Fast R-CNN's code: a box is at most 1000 / 16 times as large or as small as its anchor.
MAX_LOG_RATIO = abs(math.log(16 / 1000))


def compute_iou(boxes1, boxes2):
    """Returns the intersection over union of every pair of boxes.

    Args:
        boxes1: (..., n, 4), pixels.
        boxes2: (..., m, 4), pixels, with leading dimensions that broadcast.

    Returns:
        (..., n, m) float32; 0 where neither box has an area.

    Raises:
        ValueError: if the last dimension is not 4.
    """
    # keras.utils.bounding_boxes.compute_iou adds `keras.config.epsilon()` to every union, a global setting,
    # which moves the last bits of small boxes; mmdetection only keeps the union from being 0. It also takes
    # no more than one leading dimension.
    overlaps, areas1, areas2 = _compare_all(boxes1, boxes2)
    return overlaps / ops.maximum(areas1 + areas2 - overlaps, 1e-6)


def compute_coverage(boxes, regions):
    """Returns the share of each box's area that lies in each region (mmdetection's "iof").

    Args:
        boxes: (..., n, 4), pixels.
        regions: (..., m, 4), pixels, with leading dimensions that broadcast.

    Returns:
        (..., n, m) float32 in [0, 1]; 0 for boxes without an area.

    Raises:
        ValueError: if the last dimension is not 4.
    """
    overlaps, areas, _ = _compare_all(boxes, regions)
    return overlaps / ops.maximum(areas, 1e-6)


def compare_pairs(boxes1, boxes2):
    """Returns the IoU and the generalised IoU of boxes, pair by pair.

    The generalised IoU (arXiv 1902.09630) is the IoU minus the share of the box around both that neither
    covers. It goes on falling below 0 for boxes that do not meet.

    Args:
        boxes1: (..., 4), pixels or any other unit.
        boxes2: (..., 4) in the same unit, of a shape that broadcasts with that of `boxes1`.

    Returns:
        (iou, giou), each float32 of the broadcast shape without the last dimension, 0 .. 1 and -1 .. 1.

    Raises:
        ValueError: if the last dimension is not 4.
    """
    corners1, corners2 = split_corners(boxes1), split_corners(boxes2)
    overlaps = intersect_corners(corners1, corners2)
    unions = ops.maximum(measure_areas(corners1) + measure_areas(corners2) - overlaps, 1e-6)
    left1, top1, right1, bottom1 = corners1
    left2, top2, right2, bottom2 = corners2
    width = ops.maximum(right1, right2) - ops.minimum(left1, left2)
    height = ops.maximum(bottom1, bottom2) - ops.minimum(top1, top2)
    hulls = ops.maximum(width * height, 1e-6)
    iou = overlaps / unions
    return iou, iou - (hulls - unions) / hulls


def _compare_all(boxes1, boxes2):
    """Returns the pairwise overlaps (..., n, m) and both areas, (..., n, 1) and (..., 1, m)."""
    corners1 = [ops.expand_dims(corner, -1) for corner in split_corners(boxes1)]
    corners2 = [ops.expand_dims(corner, -2) for corner in split_corners(boxes2)]
    return intersect_corners(corners1, corners2), measure_areas(corners1), measure_areas(corners2)


def split_corners(boxes):
    """Returns the four coordinates x1, y1, x2, y2 of boxes, each (...) float32.

    Args:
        boxes: (..., 4).

    Returns:
        A list of four tensors.

    Raises:
        ValueError: if the last dimension is not 4.
    """
    if boxes.shape[-1] not in (4, None):
        raise ValueError(
            f"boxes must have the shape (..., 4): x1, y1, x2, y2. Received: {tuple(boxes.shape)}"
        )
    return ops.unstack(ops.cast(boxes, "float32"), 4, axis=-1)


def intersect_corners(corners1, corners2):
    """Returns the areas that boxes share, from their coordinates.

    Works on single coordinates, as arrays with a last dimension of 4 are slow for hundreds of thousands of
    boxes.

    Args:
        corners1: x1, y1, x2, y2 as `split_corners` returns them.
        corners2: the same, of shapes that broadcast with those of `corners1`.

    Returns:
        Areas in pixels of the broadcast shape.
    """
    left1, top1, right1, bottom1 = corners1
    left2, top2, right2, bottom2 = corners2
    width = ops.relu(ops.minimum(right1, right2) - ops.maximum(left1, left2))
    return width * ops.relu(ops.minimum(bottom1, bottom2) - ops.maximum(top1, top2))


def measure_areas(corners):
    """Returns the areas of boxes, from their coordinates x1, y1, x2, y2 as from `split_corners`."""
    left, top, right, bottom = corners
    return (right - left) * (bottom - top)


def encode_boxes(boxes, anchors, deviations=(1.0, 1.0, 1.0, 1.0)):
    """Returns the deltas that turn anchors into boxes.

    R-CNN (arXiv 1311.2524, appendix C): the shift of the centre in units of the anchor's sides and the
    logarithm of the ratio of the sides, each divided by its deviation.

    Args:
        boxes: (..., 4), pixels.
        anchors: (..., 4), pixels, of a shape that broadcasts.
        deviations: four positive numbers, the usual size of dx, dy, dw, dh.

    Returns:
        (..., 4) float32: dx, dy, dw, dh. Finite also for boxes and anchors without an area.
    """
    centers, sides = find_centers(boxes)
    anchor_centers, anchor_sides = find_centers(anchors)
    # Padding boxes are zeros: their deltas do not count, but infinity times 0 would be NaN.
    sides, anchor_sides = ops.maximum(sides, 1e-6), ops.maximum(anchor_sides, 1e-6)
    shifts = (centers - anchor_centers) / anchor_sides
    deltas = ops.concatenate([shifts, ops.log(sides / anchor_sides)], axis=-1)
    return deltas / ops.convert_to_tensor(deviations, dtype="float32")


def decode_boxes(deltas, anchors, deviations=(1.0, 1.0, 1.0, 1.0)):
    """Returns anchors shifted by deltas: the inverse of `encode_boxes`.

    The sides change by at most a factor of 1000 / 16 = 62.5, in both directions. Nothing is clipped to the
    image.

    Args:
        deltas: (..., 4): dx, dy, dw, dh, of any float dtype.
        anchors: (..., 4), pixels, of a shape that broadcasts.
        deviations: those of `encode_boxes`.

    Returns:
        (..., 4) float32, pixels.
    """
    deltas = ops.cast(deltas, "float32") * ops.convert_to_tensor(deviations, dtype="float32")
    centers, sides = find_centers(anchors)
    centers = centers + deltas[..., :2] * sides
    halves = 0.5 * sides * ops.exp(ops.clip(deltas[..., 2:], -MAX_LOG_RATIO, MAX_LOG_RATIO))
    return ops.concatenate([centers - halves, centers + halves], axis=-1)


def encode_distances(boxes, centers):
    """Returns how far the sides of boxes are from points inside them.

    FCOS (arXiv 1904.01355, equation 1).

    Args:
        boxes: (..., 4), pixels.
        centers: (..., 2), x and y in pixels, of a shape that broadcasts.

    Returns:
        (..., 4) float32, pixels to the left, top, right and bottom; below 0 where the point lies outside.
    """
    boxes = ops.cast(boxes, "float32")
    return ops.concatenate([centers - boxes[..., :2], boxes[..., 2:] - centers], axis=-1)


def decode_distances(distances, centers):
    """Returns the boxes whose sides have given distances from points: the inverse of `encode_distances`.

    Args:
        distances: (..., 4), pixels to the left, top, right and bottom.
        centers: (..., 2), x and y in pixels, of a shape that broadcasts.

    Returns:
        (..., 4) float32, pixels.
    """
    distances = ops.cast(distances, "float32")
    return ops.concatenate([centers - distances[..., :2], centers + distances[..., 2:]], axis=-1)


def find_centers(boxes):
    """Returns the centres and the sides of boxes, each float32 (..., 2): x, y."""
    boxes = ops.cast(boxes, "float32")
    starts, ends = boxes[..., :2], boxes[..., 2:]
    return 0.5 * (starts + ends), ends - starts


def clip_boxes(boxes, image_sizes):
    """Returns boxes cut off at the borders of their image.

    Args:
        boxes: (batch, n, 4), pixels.
        image_sizes: (batch, 2), (height, width) in pixels.

    Returns:
        (batch, n, 4) float32 within [0, width] x [0, height].
    """
    limits = ops.flip(ops.cast(image_sizes, "float32"), axis=-1)  # (batch, 2): width, height
    limits = ops.expand_dims(ops.concatenate([limits, limits], axis=-1), 1)
    return ops.minimum(ops.maximum(ops.cast(boxes, "float32"), 0.0), limits)


def rescale_boxes(boxes, image_sizes, original_sizes):
    """Returns boxes of a resized image in the pixels of the original.

    Args:
        boxes: (batch, n, 4), pixels of the resized image.
        image_sizes: (batch, 2), (height, width) of the resized image, without padding.
        original_sizes: (batch, 2), (height, width) of the original.

    Returns:
        (batch, n, 4) float32.
    """
    ratios = ops.cast(original_sizes, "float32") / ops.cast(image_sizes, "float32")
    ratios = ops.flip(ratios, axis=-1)  # (batch, 2): x, y
    return ops.cast(boxes, "float32") * ops.expand_dims(ops.concatenate([ratios, ratios], axis=-1), 1)
