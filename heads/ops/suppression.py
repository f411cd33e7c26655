"""Non-maximum suppression: of boxes that overlap much, only the best stays."""

from keras import ops

from heads.ops.boxes import intersect_corners, measure_areas, split_corners

# How many boxes are compared with each other at once: a loop's step costs more than thousands of comparisons.
BLOCK_SIZE = 128


def suppress_boxes(boxes, scores, labels, iou_threshold: float, max_detections: int):
    """Returns the best boxes that do not overlap a better one of the same label.

    Greedy non-maximum suppression, exact. The sorted boxes are processed in blocks, in all images at once,
    until enough are picked: from a block, first the boxes picked earlier remove boxes, then its own do.

    Args:
        boxes: (batch, n, 4), pixels.
        scores: (batch, n); slots of 0 and below are empty.
        labels: (batch, n) integers.
        iou_threshold: boxes go whose IoU with a better one is above it.
        max_detections: how many boxes are wanted per image.

    Returns:
        (batch, max_detections) int32: indices by falling score, equal scores by index; -1 where none is left.

    Raises:
        ValueError: if iou_threshold is not in [0, 1] or max_detections is not positive.
    """
    _check_threshold(iou_threshold)
    if max_detections < 1:
        raise ValueError(f"max_detections must be 1 or more. Received: {max_detections}")
    rows, order, counts = _sort_boxes(boxes, scores, labels)
    batch, num_slots = ops.shape(order)
    first_rows = num_slots * ops.expand_dims(ops.arange(batch, dtype="int32"), 1)
    places = ops.arange(BLOCK_SIZE, dtype="int32")
    slots = ops.arange(1, max_detections + 1, dtype="int32")

    def look_up(indices):
        # One look-up for all values of some boxes, each (batch, indices, 1).
        return ops.split(ops.take(rows, first_rows + indices, axis=0), 6, axis=2)

    def find_rivals(boxes, others):
        *boxes, labels = boxes
        *others, other_labels = (ops.transpose(values, (0, 2, 1)) for values in others)
        return ops.logical_and(_overlap(boxes, others, iou_threshold), ops.equal(labels, other_labels))

    def pick_block(start, picked, num_picked):
        indices = ops.take(order, start + places, axis=1)
        block, earlier = look_up(indices), look_up(ops.maximum(picked, 0))
        losers = ops.logical_and(find_rivals(block, earlier), ops.expand_dims(picked >= 0, 1))
        valid = ops.expand_dims(start + places, 0) < ops.expand_dims(counts, 1)
        valid = ops.logical_and(valid, ops.logical_not(ops.any(losers, axis=2)))
        keep = _settle(find_rivals(block, block), valid)
        ranks = ops.expand_dims(num_picked, 1) + ops.cast(ops.cumsum(keep, axis=1), "int32")
        # (batch, block, slots): each box that stays goes to the slot of its rank, if there is one.
        goes = ops.equal(ops.expand_dims(ops.where(keep > 0, ranks, 0), 2), slots)
        picked = ops.maximum(picked, ops.max(ops.where(goes, ops.expand_dims(indices, 2), -1), axis=1))
        return start + BLOCK_SIZE, picked, ranks[:, -1]

    picked = ops.full((batch, max_detections), -1, dtype="int32")
    return ops.while_loop(
        lambda start, picked, num_picked: ops.any(
            ops.logical_and(num_picked < max_detections, start < counts)
        ),
        pick_block,
        (ops.zeros((), dtype="int32"), picked, ops.zeros_like(counts)),
    )[1]


def _sort_boxes(boxes, scores, labels):
    """Returns boxes as one table, and the order in which they are looked at.

    Returns:
        - float32 (batch * slots, 6): corners, area and label of each. The slots of an image are its boxes and
          a block of empty ones, as the last block may reach beyond the end.
        - int32 (batch, slots): the slots of an image by falling score, equal scores by index.
        - int32 (batch,): the number of boxes with a score.
    """
    # JAX cannot differentiate loops of unknown length, and no gradient is needed here.
    boxes, scores = (ops.stop_gradient(ops.cast(x, "float32")) for x in (boxes, scores))
    corners = split_corners(ops.pad(boxes, ((0, 0), (0, BLOCK_SIZE), (0, 0))))
    labels = ops.pad(ops.cast(labels, "float32"), ((0, 0), (0, BLOCK_SIZE)))  # exact up to 2**24
    scores = ops.pad(ops.where(scores > 0, scores, 0.0), ((0, 0), (0, BLOCK_SIZE)))
    rows = ops.stack([*corners, _measure_nonzero(corners), labels], axis=-1)
    order = ops.cast(ops.argsort(-scores, axis=1), "int32")
    return ops.reshape(rows, (-1, 6)), order, ops.sum(ops.cast(scores > 0, "int32"), axis=1)


def suppress_sorted_boxes(boxes, valid, iou_threshold: float):
    """Returns which boxes of a sorted list do not overlap a better one that stays.

    Greedy non-maximum suppression, exact, for up to some thousand boxes of which many stay. An n x n table
    tells which boxes would remove which.

    Args:
        boxes: (batch, n, 4), pixels, the best first.
        valid: (batch, n) bool; the others do not stay and remove nothing.
        iou_threshold: boxes go whose IoU with a better one is above it.

    Returns:
        (batch, n) bool.

    Raises:
        ValueError: if iou_threshold is not in [0, 1].
    """
    _check_threshold(iou_threshold)
    corners = split_corners(ops.stop_gradient(ops.cast(boxes, "float32")))
    corners = [*corners, _measure_nonzero(corners)]
    # Not `c[:, :, None]`, which LiteRT does not support for sides of unknown length.
    rows, columns = [ops.expand_dims(c, 2) for c in corners], [ops.expand_dims(c, 1) for c in corners]
    return _settle(_overlap(rows, columns, iou_threshold), valid) > 0


def _overlap(boxes, others, iou_threshold):
    """Returns which boxes have an IoU above the threshold, from lists of corners and areas that broadcast."""
    overlaps = intersect_corners(boxes[:4], others[:4])
    return overlaps / (boxes[4] + others[4] - overlaps) > iou_threshold


def _settle(rivals, valid):
    """Returns which boxes of a sorted list stay.

    Each round keeps the boxes that no kept box of the round before removes, until nothing changes: after k
    rounds, all boxes at the end of chains of up to k boxes are settled.

    Args:
        rivals: bool (batch, n, n), symmetric.
        valid: bool (batch, n).

    Returns:
        float32 (batch, n), 1 where a box stays, otherwise 0.
    """
    positions = ops.arange(ops.shape(rivals)[1], dtype="int32")
    is_better = positions[:, None] > positions[None, :]
    removes = ops.cast(ops.logical_and(rivals, is_better), "float32")
    valid = ops.cast(valid, "float32")

    def settle(keep, _):
        hits = ops.reshape(ops.matmul(removes, ops.expand_dims(keep, 2)), ops.shape(valid))
        return ops.where(hits > 0, 0.0, valid), keep

    return ops.while_loop(
        lambda keep, previous: ops.any(ops.not_equal(keep, previous)),
        settle,
        (valid, ops.zeros_like(valid)),
    )[0]


def _measure_nonzero(corners):
    # So that the IoU of two boxes without an area is 0 / 1e-30 and not 0 / 0.
    return ops.maximum(measure_areas(corners), 1e-30)


def _check_threshold(iou_threshold):
    if not 0 <= iou_threshold <= 1:
        raise ValueError(f"iou_threshold must be between 0 and 1. Received: {iou_threshold}")
