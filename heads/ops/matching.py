"""Which anchor or proposal learns which object."""

from keras import ops

from heads.ops.boxes import (
    compare_pairs,
    compute_coverage,
    encode_distances,
    find_centers,
    intersect_corners,
    measure_areas,
    split_corners,
)
from heads.ops.labels import BACKGROUND_MATCH, CROWD_LABEL, IGNORED_MATCH, PADDING_LABEL
from heads.ops.selection import select_best, take_rows


def match_boxes(
    anchors,
    boxes,
    labels,
    positive_threshold: float,
    negative_threshold: float,
    min_positive_iou: float = 0.0,
    match_low_quality: bool = True,
    inside=None,
):
    """Returns for each anchor the box that it learns.

    Faster R-CNN (arXiv 1506.01497, Sec. 3.1.2) as in mmdetection's MaxIoUAssigner. An anchor learns the box
    that it overlaps most, if their IoU reaches `positive_threshold`; it is background if its best IoU is
    below `negative_threshold`, and ignored in between. With `match_low_quality`, each box also takes all
    anchors that reach its own best IoU exactly, if that is at least `min_positive_iou`, whatever they had
    learned otherwise; later boxes win. A box that touches no anchor takes none; mmdetection gives it all of
    them where `min_positive_iou` is 0.

    Crowd regions (label -2) are not objects. An anchor that would be background but has more than half of its
    area in one of them is ignored.

    Args:
        anchors: (n, 4) or (batch, n, 4), pixels.
        boxes: (batch, m, 4), pixels.
        labels: (batch, m) integers: -1 is padding, -2 a crowd region.
        positive_threshold: smallest IoU of a match.
        negative_threshold: IoU below which an anchor is background.
        min_positive_iou: smallest best IoU with which a box takes its best anchors.
        match_low_quality: whether boxes take their best anchors, however low the IoU.
        inside: bool (batch, n) or (n,), or None for all; other anchors are ignored and cannot be a box's
            best.

    Returns:
        (batch, n) int32: the index of a box, -1 background, -2 ignored. All background without boxes.

    Raises:
        ValueError: unless 0 <= negative_threshold <= positive_threshold <= 1, positive_threshold > 0 and
            min_positive_iou >= 0.
    """
    if not 0 <= negative_threshold <= positive_threshold <= 1 or not positive_threshold > 0:
        raise ValueError(
            "positive_threshold and negative_threshold must be IoUs, the negative one not the higher. "
            f"Received: positive_threshold={positive_threshold}, negative_threshold={negative_threshold}"
        )
    if not min_positive_iou >= 0:
        raise ValueError(f"min_positive_iou must be 0 or more. Received: {min_positive_iou}")
    if inside is not None:
        inside = ops.cast(inside, "bool")
    best, match, forced, crowd = _compare_one_by_one(
        anchors, boxes, labels, inside, min_positive_iou if match_low_quality else None
    )
    is_ignored = ops.logical_or(best >= negative_threshold, crowd)
    unmatched = ops.where(is_ignored, IGNORED_MATCH, BACKGROUND_MATCH)
    matches = ops.where(best >= positive_threshold, match, unmatched)
    matches = ops.where(forced >= 0, forced, matches)
    return matches if inside is None else ops.where(inside, matches, IGNORED_MATCH)


def mark_classes(labels, matches, num_classes: int):
    """Returns the classes that anchors or proposals learn: bool (batch, n, classes), none for background.

    Args:
        labels: int32 (batch, m), the classes of the boxes.
        matches: int32 (batch, n), the index of a box, or below 0.
        num_classes: number of classes.
    """
    classes = take_rows(labels, ops.maximum(matches, 0))[..., None]
    return (classes == ops.arange(num_classes, dtype="int32")) & (matches >= 0)[..., None]


def count_matches(matches):
    """Returns how many anchors of a batch learn an object, float32.

    Like mmdetection, counts an image without objects as one with a single anchor.

    Args:
        matches: int32 (batch, n), the index of a box, or below 0.
    """
    return ops.sum(ops.maximum(ops.sum(ops.cast(matches >= 0, "float32"), axis=1), 1.0))


def match_adaptively(levels, boxes, labels, inside=None, num_candidates: int = 9):
    """Returns for each anchor the box that it learns, by thresholds that adapt to each box.

    ATSS (arXiv 1912.02424, algorithm 1) as in mmdetection's ATSSAssigner. On each level, the anchors whose
    centres are nearest to a box's are its candidates (of equally near ones, those that the backend's `top_k`
    takes). A candidate learns the box if its IoU reaches the mean plus the standard deviation of all the
    box's candidates, and its centre lies inside the box. An anchor that several boxes would take learns the
    one that it overlaps most, the first of equal ones. All others are background, except those with more than
    half of their area in a crowd region, which are ignored.

    Args:
        levels: a list with an array (anchors of the level, 4) per level, pixels.
        boxes: (batch, m, 4), pixels.
        labels: (batch, m) integers: -1 is padding, -2 a crowd region.
        inside: bool (batch, n), n anchors of all levels, or None for all; the others are ignored and cannot
            be candidates.
        num_candidates: candidates of a box on each level.

    Returns:
        (batch, n) int32: the index of a box, -1 background, -2 ignored. All background without boxes.
    """
    boxes, labels = ops.stop_gradient(ops.cast(boxes, "float32")), ops.cast(labels, "int32")
    anchors = ops.stop_gradient(ops.concatenate(levels, axis=0))
    centers, _ = find_centers(anchors)
    box_centers, _ = find_centers(boxes)
    batch, num_boxes = ops.shape(labels)
    num_anchors = ops.shape(anchors)[0]
    nearest, rows, start = [], [], 0
    for level in levels:
        end = start + ops.shape(level)[0]
        shifts = [box_centers[:, :, None, axis] - centers[start:end, axis] for axis in (0, 1)]
        distances = ops.sqrt(shifts[0] ** 2 + shifts[1] ** 2)  # (batch, m, anchors of the level)
        if inside is not None:
            distances = ops.where(inside[:, None, start:end], distances, float("inf"))
        negated, of_level = select_best(-distances, num_candidates)
        nearest.append(negated)
        rows.append(ops.cast(of_level, "int32") + start)
        start = end
    # Each (batch, m, candidates).
    exists, rows = ops.concatenate(nearest, axis=2) > -float("inf"), ops.concatenate(rows, axis=2)
    iou, _ = compare_pairs(ops.take(anchors, rows, axis=0), boxes[:, :, None])
    count = ops.sum(ops.cast(exists, "float32"), axis=2, keepdims=True)
    mean = ops.sum(ops.where(exists, iou, 0.0), axis=2, keepdims=True) / ops.maximum(count, 1.0)
    squares = ops.sum(ops.where(exists, (iou - mean) ** 2, 0.0), axis=2, keepdims=True)
    threshold = mean + ops.sqrt(squares / ops.maximum(count - 1.0, 1.0))
    margins = encode_distances(boxes[:, :, None], ops.take(centers, rows, axis=0))
    takes = (
        exists
        & (labels >= 0)[..., None]
        & (iou >= threshold)
        & (ops.min(margins, axis=-1, initial=float("inf")) > 0.01)
    )

    # Writes twice into one flat list of all images' anchors: the best IoU, then the box that has it.
    places = rows + num_anchors * ops.arange(batch, dtype="int32")[:, None, None]
    iou, takes, places = (ops.reshape(values, (-1,)) for values in (iou, takes, places))
    best = ops.scatter_update(
        -ops.ones((batch * num_anchors,)), places[:, None], ops.where(takes, iou, -1.0), reduction="max"
    )
    takes = takes & ops.equal(iou, ops.take(best, places, axis=0))
    owners = ops.reshape(
        ops.broadcast_to(ops.arange(num_boxes, dtype="int32")[:, None], ops.shape(rows)), (-1,)
    )
    none = num_boxes * ops.ones((batch * num_anchors,), dtype="int32")
    matches = ops.scatter_update(none, places[:, None], ops.where(takes, owners, num_boxes), reduction="min")
    matches = ops.reshape(matches, (batch, num_anchors))
    in_crowd = (compute_coverage(anchors, boxes) > 0.5) & ops.equal(labels, CROWD_LABEL)[:, None]
    unmatched = ops.where(ops.any(in_crowd, axis=-1), IGNORED_MATCH, BACKGROUND_MATCH)
    matches = ops.where(matches < num_boxes, matches, unmatched)
    return matches if inside is None else ops.where(inside, matches, IGNORED_MATCH)


def _compare_one_by_one(anchors, boxes, labels, inside, min_positive_iou):
    """Goes through the boxes, each against all anchors.

    The whole table of 200,000 anchors and 100 boxes would not fit into any cache; this loop needs only a few
    rows of it, and spends no time on the padding at the end of `boxes`.

    Returns:
        Four tensors (batch, n): an anchor's best IoU, the box that has it, the last box whose own best IoU
        the anchor reaches (-1: none), and whether more than half of the anchor lies in a crowd region.
    """
    # JAX cannot differentiate loops of unknown length, and no gradient is needed here.
    boxes, labels = ops.stop_gradient(ops.cast(boxes, "float32")), ops.cast(labels, "int32")
    anchors = ops.stop_gradient(ops.cast(anchors, "float32"))
    corners = split_corners(anchors if len(anchors.shape) == 3 else anchors[None])
    if inside is not None:
        # Boxes without an area overlap nothing.
        corners = [ops.where(inside, corner, 0.0) for corner in corners]
    # This minimum replaces mmdetection's max(union, 1e-6), for all boxes at once.
    areas = ops.maximum(measure_areas(corners), 1e-6)
    shape = (ops.shape(boxes)[0], ops.shape(anchors)[-2])
    positions = ops.arange(ops.shape(labels)[1], dtype="int32")
    num_boxes = ops.max(ops.where(ops.not_equal(labels, PADDING_LABEL), positions + 1, 0), initial=0)

    def compare_one(index, best, match, forced, crowd_overlap):
        box = split_corners(ops.take(boxes, index, axis=1)[:, None])  # each (batch, 1)
        label = ops.take(labels, index, axis=1)[:, None]
        overlap = intersect_corners(corners, box)  # (batch, n)
        # Only objects have an IoU above 0.
        box_area = ops.where(label >= 0, measure_areas(box), float("inf"))
        iou = overlap / (areas + box_area - overlap)
        if min_positive_iou is not None:
            own_best = ops.max(iou, axis=1, keepdims=True, initial=0.0)
            takes = (label >= 0) & (own_best >= min_positive_iou) & (own_best > 0.0)
            forced = ops.where(ops.equal(iou, ops.where(takes, own_best, -1.0)), index, forced)
        match = ops.where(iou > best, index, match)
        crowd_overlap = ops.maximum(crowd_overlap, ops.where(ops.equal(label, CROWD_LABEL), overlap, 0.0))
        state = (ops.maximum(best, iou), match, forced, crowd_overlap)
        return index + 1, *(ops.reshape(part, shape) for part in state)

    zeros = ops.zeros(shape, dtype="float32")
    indices = ops.zeros(shape, dtype="int32")
    state = (ops.zeros((), dtype="int32"), zeros, indices, indices - 1, zeros)
    _, best, match, forced, crowd_overlap = ops.while_loop(
        lambda index, *_: index < num_boxes, compare_one, state
    )
    return best, match, forced, crowd_overlap > 0.5 * areas


def compare_masks(truth, logits):
    """Returns the cross-entropy and the Dice loss of every predicted mask with every true one.

    Both are sums of products over the points, that is, matrix products.

    Args:
        truth: (..., points, objects), 0 .. 1.
        logits: (..., points, queries).

    Returns:
        Two arrays (..., queries, objects): the mean cross-entropy, and 1 - the smoothed Dice
        coefficient: see `heads.ops.losses.dice_loss`.
    """
    if_object, if_none = ops.softplus(-logits), ops.softplus(logits)
    entropies = ops.matmul(ops.swapaxes(if_object - if_none, -1, -2), truth)
    entropies = entropies + ops.sum(if_none, axis=-2)[..., None]
    scores = ops.sigmoid(logits)
    shared = ops.matmul(ops.swapaxes(scores, -1, -2), truth)
    sums = ops.sum(scores, axis=-2)[..., None] + ops.sum(truth, axis=-2)[..., None, :]
    return entropies / logits.shape[-2], 1.0 - (2.0 * shared + 1.0) / (sums + 1.0)
