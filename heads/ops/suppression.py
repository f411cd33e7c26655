"""Non-maximum suppression: of boxes that overlap much, only the best stays."""

from keras import ops

from heads.ops.boxes import intersect_corners, measure_areas, split_corners


def suppress_boxes(boxes, scores, labels, iou_threshold: float, max_detections: int):
    """Returns the best boxes that do not overlap a better one of the same label.

    Greedy non-maximum suppression, exact: the best box is picked and its rivals go, at most `max_detections`
    times, in all images at once. Quick where few are wanted of many.

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
    # JAX cannot differentiate loops of unknown length, and nothing is to be learned here.
    boxes, scores = (ops.stop_gradient(ops.cast(x, "float32")) for x in (boxes, scores))
    # One empty slot, as there may be no box at all.
    boxes = ops.pad(boxes, ((0, 0), (0, 1), (0, 0)))
    labels = ops.pad(ops.cast(labels, "float32"), ((0, 0), (0, 1)))  # exact up to 2**24
    remaining = ops.pad(ops.where(scores > 0, scores, 0.0), ((0, 0), (0, 1)))
    corners = split_corners(boxes)
    areas = _measure_nonzero(corners)
    batch, num_slots = ops.shape(remaining)
    rows = ops.reshape(ops.stack([*corners, areas, labels], axis=-1), (-1, 6))
    first_rows = num_slots * ops.arange(batch, dtype="int32")
    positions = ops.arange(num_slots, dtype="int32")[None]
    slots = ops.arange(max_detections, dtype="int32")[None]

    def find_best(remaining):
        # Not `ops.argmax`: on TensorFlow it takes more passes, one of which no exported format has.
        best = ops.max(remaining, axis=1, keepdims=True)
        index = ops.min(ops.where(ops.equal(remaining, best), positions, num_slots), axis=1)
        return index, best[:, 0] > 0

    def pick_best(step, remaining, index, found, picked):
        is_slot = ops.logical_and(ops.equal(slots, step), found[:, None])
        picked = ops.where(is_slot, index[:, None], picked)
        # A single look-up of all that is known of the best boxes, each (batch, 1).
        *best, area, label = ops.split(ops.take(rows, first_rows + index, axis=0), 6, axis=1)
        overlaps = intersect_corners(corners, best)
        rivals = overlaps / (areas + area - overlaps) > iou_threshold
        rivals = ops.logical_and(rivals, ops.equal(labels, label))
        gone = ops.logical_or(rivals, ops.equal(positions, index[:, None]))  # also itself, if without an area
        remaining = ops.reshape(ops.where(gone, 0.0, remaining), (batch, num_slots))
        return step + 1, remaining, *find_best(remaining), picked

    picked = ops.full((batch, max_detections), -1, dtype="int32")
    state = (ops.zeros((), dtype="int32"), remaining, *find_best(remaining), picked)
    return ops.while_loop(
        lambda step, remaining, index, found, picked: ops.logical_and(step < max_detections, ops.any(found)),
        pick_best,
        state,
    )[-1]


def suppress_sorted_boxes(boxes, valid, iou_threshold: float):
    """Returns which boxes of a sorted list do not overlap a better one that stays.

    Greedy non-maximum suppression, exact, for up to some thousand boxes of which many stay. Who would remove
    whom is found out once, in an n x n table. Then all boxes that no staying box removes stay, until that
    changes nothing: after k rounds, all is settled that hangs on chains of up to k boxes.

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
    areas = _measure_nonzero(corners)
    # Not `c[:, :, None]`, which LiteRT does not know for sides of unknown length.
    rows, columns = [ops.expand_dims(c, 2) for c in corners], [ops.expand_dims(c, 1) for c in corners]
    overlaps = intersect_corners(rows, columns)  # (batch, n, n)
    unions = ops.expand_dims(areas, 2) + ops.expand_dims(areas, 1) - overlaps
    positions = ops.arange(ops.shape(boxes)[1], dtype="int32")
    better = positions[:, None] > positions[None, :]
    removes = ops.cast(ops.logical_and(overlaps / unions > iou_threshold, better), "float32")
    valid = ops.cast(valid, "float32")

    def settle(keep, _):
        hits = ops.reshape(ops.matmul(removes, ops.expand_dims(keep, 2)), ops.shape(valid))
        return ops.where(hits > 0, 0.0, valid), keep

    keep, _ = ops.while_loop(
        lambda keep, previous: ops.any(ops.not_equal(keep, previous)),
        settle,
        (valid, ops.zeros_like(valid)),
    )
    return keep > 0


def _measure_nonzero(corners):
    # So that the IoU of two boxes without an area is 0 / 1e-30 and not 0 / 0.
    return ops.maximum(measure_areas(corners), 1e-30)


def _check_threshold(iou_threshold):
    if not 0 <= iou_threshold <= 1:
        raise ValueError(f"iou_threshold must be between 0 and 1. Received: {iou_threshold}")
