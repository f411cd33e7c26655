import numpy as np
import pytest
import tensorflow as tf
from detection_reference import RULES, read_truth
from golden_reference import check, load

from heads.ops.anchors import make_anchors, mark_inside
from heads.ops.matching import compare_masks, match_adaptively, match_boxes


def make_batch(num_boxes=10, batch=3, seed=0):
    """Returns anchors on a grid and boxes, some of them exactly between anchors, and labels from -2."""
    random = np.random.default_rng(seed)
    anchors = np.concatenate(make_anchors([(8, 10), (4, 5)], (8, 16), (3.0,), (0.5, 1.0, 2.0)))
    centers, sides = (
        random.uniform(0, 80, (batch, num_boxes, 2)),
        random.uniform(3, 50, (batch, num_boxes, 2)),
    )
    centers[:, ::2] = np.round(centers[:, ::2] / 8) * 8 + 4
    boxes = np.concatenate([centers - sides / 2, centers + sides / 2], -1).astype("float32")
    return anchors, boxes, random.integers(-2, 4, (batch, num_boxes)).astype("int32")


def overlap_of(anchor, box):
    width = min(anchor[2], box[2]) - max(anchor[0], box[0])
    height = min(anchor[3], box[3]) - max(anchor[1], box[1])
    return max(width, np.float32(0)) * max(height, np.float32(0))


def area_of(box):
    return (box[2] - box[0]) * (box[3] - box[1])


def match_by_loop(anchors, boxes, labels, positive, negative, min_positive, low_quality, inside=None):
    """Matches one image, in float32, as exact ties matter."""
    matches = np.full(len(anchors), -1)
    overlaps = np.array([[overlap_of(a, b) for b in boxes] for a in anchors])
    ious = np.zeros_like(overlaps)
    for i, a in enumerate(anchors):
        for j, b in enumerate(boxes):
            ious[i, j] = overlaps[i, j] / max(area_of(a) + area_of(b) - overlaps[i, j], np.float32(1e-6))
    used = [i for i in range(len(anchors)) if inside is None or inside[i]]
    objects = [j for j in range(len(boxes)) if labels[j] >= 0]
    for i in used:
        best = max(objects, key=lambda j: ious[i, j], default=None)
        iou = 0.0 if best is None else ious[i, best]
        in_crowd = any(
            overlaps[i, j] > 0.5 * area_of(anchors[i]) for j in range(len(boxes)) if labels[j] == -2
        )
        if iou >= positive:
            matches[i] = best
        elif iou >= negative or in_crowd:
            matches[i] = -2
    for j in objects if low_quality and used else []:
        best = max(ious[i, j] for i in used)
        if best >= min_positive and best > 0:
            matches[[i for i in used if ious[i, j] == best]] = j
    if inside is not None:
        matches[~inside] = -2
    return matches


@pytest.mark.parametrize("with_inside", [False, True])
@pytest.mark.parametrize("rule", RULES)
def test_match_equals_loop(rule, with_inside):
    anchors, boxes, labels = make_batch()
    inside = np.random.default_rng(1).random((3, len(anchors))) < 0.7 if with_inside else None
    expected = [
        match_by_loop(anchors, boxes[i], labels[i], *RULES[rule], None if inside is None else inside[i])
        for i in range(3)
    ]
    assert {-2, -1} < set(np.ravel(expected))
    matches = match_boxes(anchors, boxes, labels, *RULES[rule], inside=inside)
    np.testing.assert_array_equal(matches, expected)
    assert matches.dtype == "int32"

    unknown = [
        tf.TensorSpec((None, 4)),
        tf.TensorSpec((None, None, 4)),
        tf.TensorSpec((None, None), tf.int32),
    ]
    graph = tf.function(lambda *inputs: match_boxes(*inputs, *RULES[rule], inside), input_signature=unknown)
    np.testing.assert_array_equal(graph(anchors, boxes, labels), expected)


def test_anchors_of_each_image():
    _, boxes, labels = make_batch()
    shifts = np.random.default_rng(1).uniform(-1.4, 1.4, (2, *boxes.shape)).astype("float32")
    proposals = np.concatenate(boxes + shifts, axis=1)
    expected = [match_by_loop(proposals[i], boxes[i], labels[i], *RULES["rcnn"]) for i in range(3)]
    np.testing.assert_array_equal(match_boxes(proposals, boxes, labels, *RULES["rcnn"]), expected)
    assert {-2, -1, 3} < set(np.ravel(expected))


def match_one(anchors, boxes, labels, *rule, **options):
    anchors, boxes = (np.array(x, "float32").reshape(-1, 4) for x in (anchors, boxes))
    return (
        match_boxes(anchors, boxes[None], np.array([labels], "int32"), *rule, **options)[0].numpy().tolist()
    )


def test_all_anchors_of_the_best_iou_match_and_later_boxes_win():
    anchors = [[0, 0, 10, 10], [10, 0, 20, 10], [40, 0, 50, 10]]
    between = [5, 0, 15, 10]  # IoU 1/3 with the first two
    assert match_one(anchors, [between], [0], *RULES["rpn"]) == [0, 0, -1]
    assert match_one(anchors, [between, between], [0, 3], *RULES["rpn"]) == [1, 1, -1]
    assert match_one(anchors, [between], [0], 0.7, 0.3, 0.3, False) == [-2, -2, -1]
    assert match_one(anchors, [between], [0], 0.7, 0.3, 0.4, True) == [-2, -2, -1]
    # The best match of another box is overwritten as well.
    assert match_one(anchors, [anchors[0], between], [0, 3], *RULES["rpn"]) == [1, 1, -1]


def test_earlier_boxes_win_above_the_threshold():
    box = [0, 0, 10, 10]
    assert match_one([box], [box, box], [0, 3], *RULES["cascade2"]) == [0]
    assert match_one([box], [box, box], [0, 3], *RULES["rcnn"]) == [1]


def test_a_box_far_from_all_anchors_takes_none():
    # Unlike mmdetection's, which gives it all anchors with threshold zero.
    anchors, far = [[0, 0, 10, 10], [10, 0, 20, 10]], [100, 100, 110, 110]
    assert match_one(anchors, [far], [0], *RULES["retina"]) == [-1, -1]
    assert match_one(anchors, [[5, 0, 5, 10], anchors[1]], [0, 1], *RULES["retina"]) == [-1, 1]
    assert match_one(anchors, [far], [0], *RULES["rpn"]) == [-1, -1]
    # Padding, crowds and boxes after it do not.
    assert match_one(anchors, [far, [0, 0, 0, 0]], [-2, -1], *RULES["retina"]) == [-1, -1]
    assert match_one(anchors, [far, [0, 0, 10, 10]], [0, 1], *RULES["retina"]) == [1, -1]
    inside = np.array([[True, False]])
    assert match_one(anchors, [far], [0], *RULES["retina"], inside=inside) == [-1, -2]


def test_best_anchor_outside_leaves_the_next_best():
    anchors, box = [[0, 0, 10, 10], [5, 0, 15, 10]], [0, 0, 10, 10]
    assert match_one(anchors, [box], [0], *RULES["rpn"]) == [0, -2]
    assert match_one(anchors, [box], [0], *RULES["rpn"], inside=np.array([[False, True]])) == [-2, 0]


def test_crowds_are_no_background():
    anchors = [[0, 0, 10, 10], [0, 0, 10, 20], [0, 0, 10, 21], [30, 0, 40, 10]]
    crowd = [0, 0, 50, 10]
    # Covered wholly, by a half, by less, wholly.
    assert match_one(anchors, [crowd], [-2], *RULES["rpn"]) == [-2, -1, -1, -2]
    assert match_one(anchors, [crowd, anchors[3]], [-2, 7], *RULES["rpn"]) == [-2, -1, -1, 1]
    assert match_one(anchors, [anchors[3], [0, 0, 0, 0], crowd], [7, -1, -2], *RULES["rpn"]) == [
        -2,
        -1,
        -1,
        0,
    ]


def test_images_without_boxes_are_background():
    anchors, boxes, labels = make_batch()
    background = np.full((3, len(anchors)), -1)
    np.testing.assert_array_equal(match_boxes(anchors, boxes, 0 * labels - 1, 0.5, 0.4), background)
    np.testing.assert_array_equal(match_boxes(anchors, boxes[:, :0], labels[:, :0], 0.5, 0.4), background)
    assert match_boxes(anchors[:0], boxes, labels, 0.5, 0.4).shape == (3, 0)


def test_boxes_without_area_give_no_nan():
    anchors = [[0, 0, 0, 0], [5, 5, 5, 9], [0, 0, 10, 10]]
    assert match_one(anchors, [[5, 5, 5, 9], [0, 0, 9, 10]], [0, 0], *RULES["rcnn"]) == [-1, -1, 1]


@pytest.mark.parametrize("rule", RULES)
def test_match_equals_reference(rule):
    reference = load("ops/assigners.npz")
    expected = reference[f"{rule}_gt_inds"] - 1  # theirs: 0 background, -1 ignored
    expected = np.where(expected == -2, -2, expected)
    matches = match_boxes(
        reference["priors"], reference["gt"][None], reference["gt_labels"][None], *RULES[rule]
    )
    np.testing.assert_array_equal(matches[0], expected)
    empty = match_boxes(reference["priors"], np.zeros((1, 1, 4)), np.array([[-1]]), *RULES[rule])
    np.testing.assert_array_equal(empty[0], reference[f"{rule}_empty_gt_inds"] - 1)


def test_targets_equal_those_of_retinanet():
    reference = load("retinanet_b0/loss_eval.npz")
    boxes, labels, image_sizes = read_truth(reference)
    sizes, strides = [(32, 40), (16, 20), (8, 10), (4, 5), (2, 3)], (8, 16, 32, 64, 128)
    anchors = make_anchors(sizes, strides, [4 * 2 ** (i / 3) for i in range(3)], (0.5, 1.0, 2.0))
    inside = mark_inside(np.concatenate(anchors), image_sizes)
    matches = match_boxes(np.concatenate(anchors), boxes, labels, *RULES["retina"], inside=inside)
    targets = np.where(matches >= 0, np.take_along_axis(labels, np.maximum(matches, 0), 1), 80)
    ends = np.cumsum([len(level) for level in anchors])[:-1]
    for level, part in enumerate(np.split(targets, ends, axis=1)):
        check(reference[f"t_labels_{level}"], part, 0.0)
    for level, part in enumerate(np.split(np.asarray(matches) != -2, ends, axis=1)):
        check(reference[f"t_label_weights_{level}"], part, 0.0)


@pytest.mark.parametrize(
    ("thresholds", "message"),
    [
        ((0.4, 0.5), "positive_threshold=0.4, negative_threshold=0.5"),
        ((0.0, 0.0), "positive_threshold=0.0"),
        ((70, 30), "positive_threshold=70"),
        ((0.7, 0.3, -1.0), "min_positive_iou must be 0 or more. Received: -1.0"),
    ],
)
def test_match_refuses_wrong_thresholds(thresholds, message):
    with pytest.raises(ValueError, match=message):
        match_boxes(*make_batch(), *thresholds)


# ATSS.


def match_adaptively_by_loop(levels, boxes, labels, inside, num_candidates):
    """Matches one image."""
    anchors = np.concatenate(levels)
    centers = (anchors[:, :2] + anchors[:, 2:]) / 2
    best, matches = np.full(len(anchors), -1.0), np.full(len(anchors), -1)
    for index, (box, label) in enumerate(zip(boxes, labels, strict=True)):
        if label < 0:
            continue
        candidates, start = [], 0
        for level in levels:
            rows = [row for row in range(start, start + len(level)) if inside[row]]
            shifts = centers[rows] - (box[:2] + box[2:]) / 2
            order = np.argsort(np.sqrt((shifts**2).sum(axis=1)), kind="stable")
            candidates += [rows[place] for place in order[:num_candidates]]
            start += len(level)
        ious = np.array([iou_of(anchors[row], box) for row in candidates], "float32")
        threshold = ious.mean() + (ious.std(ddof=1) if len(ious) > 1 else 0.0)
        for row, iou in zip(candidates, ious, strict=True):
            margin = min(*(centers[row] - box[:2]), *(box[2:] - centers[row]))
            if iou >= threshold and margin > 0.01 and iou > best[row]:
                best[row], matches[row] = iou, index
    for row, anchor in enumerate(anchors):
        in_crowd = any(
            overlap_of(anchor, box) > 0.5 * area_of(anchor)
            for box, label in zip(boxes, labels, strict=True)
            if label == -2
        )
        if matches[row] < 0 and in_crowd:
            matches[row] = -2
    matches[~inside] = -2
    return matches


def iou_of(anchor, box):
    overlap = overlap_of(anchor, box)
    return overlap / max(area_of(anchor) + area_of(box) - overlap, np.float32(1e-6))


@pytest.mark.parametrize("num_candidates", [1, 3, 9])
@pytest.mark.parametrize("with_inside", [False, True])
def test_adaptive_matches_equal_loop(with_inside, num_candidates):
    levels = make_anchors([(8, 10), (4, 5), (2, 3)], (8, 16, 32), (4.0,), (1.0,))
    # Not on the grid, where the order of the candidates would decide between equal distances.
    generator = np.random.default_rng(num_candidates)
    centers, sides = generator.uniform(0, 80, (3, 12, 2)), generator.uniform(5, 60, (3, 12, 2))
    boxes = np.concatenate([centers - sides / 2, centers + sides / 2], -1).astype("float32")
    labels = generator.integers(-2, 4, (3, 12)).astype("int32")
    inside = np.ones((3, 106), bool)
    if with_inside:
        inside = generator.random((3, 106)) < 0.7
    arrays = [np.asarray(level) for level in levels]
    expected = [
        match_adaptively_by_loop(arrays, *each, num_candidates)
        for each in zip(boxes, labels, inside, strict=True)
    ]
    matches = match_adaptively(levels, boxes, labels, inside if with_inside else None, num_candidates)
    assert {-2, -1, 0} <= set(np.ravel(expected)) | {0}
    assert (np.array(expected) >= 0).sum() > 10
    np.testing.assert_array_equal(matches, expected)
    assert matches.dtype == "int32"


def test_adaptive_matches_equal_reference():
    reference = load("ops/assigners.npz")
    priors = reference["atss_priors"]
    sides = priors[:, 2] - priors[:, 0]
    levels = [priors[sides == side] for side in np.unique(sides)]
    np.testing.assert_array_equal(np.concatenate(levels), priors)
    matches = match_adaptively(levels, reference["gt"][None], reference["gt_labels"][None])
    np.testing.assert_array_equal(matches[0], reference["atss_gt_inds"] - 1)


def test_adaptive_matches_without_boxes_and_in_unknown_sizes():
    levels = make_anchors([(4, 5), (2, 3)], (8, 16), (4.0,), (1.0,))
    nothing = match_adaptively(levels, np.zeros((2, 0, 4)), np.zeros((2, 0), "int32"))
    np.testing.assert_array_equal(nothing, np.full((2, 26), -1))
    padding = match_adaptively(levels, np.zeros((2, 3, 4)), np.full((2, 3), -1))
    np.testing.assert_array_equal(padding, np.full((2, 26), -1))
    unknown = [[tf.TensorSpec((None, 4))] * 2, tf.TensorSpec((None, None, 4)), tf.TensorSpec((None, None))]
    match = tf.function(lambda *arguments: match_adaptively(*arguments), input_signature=unknown)
    boxes, labels = np.array([[[3, 4, 25, 30]]], "float32"), np.array([[1.0]], "float32")
    expected = match_adaptively(levels, boxes, labels)
    assert (np.asarray(expected) == 0).any()
    np.testing.assert_array_equal(match(levels, boxes, labels), expected)


def test_masks_are_compared_as_in_a_loop():
    generator = np.random.default_rng(0)
    truth = (generator.uniform(size=(2, 7, 3)) < 0.5).astype("float32")  # (batch, points, objects)
    logits = generator.normal(size=(2, 7, 4)).astype("float32")
    entropies, losses = (np.asarray(values) for values in compare_masks(truth, logits))
    assert entropies.shape == losses.shape == (2, 4, 3)
    for image, query, row in np.ndindex(2, 4, 3):
        t, p = truth[image, :, row], 1 / (1 + np.exp(-logits[image, :, query].astype("float64")))
        expected = -np.mean(t * np.log(p) + (1 - t) * np.log(1 - p))
        assert entropies[image, query, row] == pytest.approx(expected, rel=1e-4)
        expected = 1 - (2 * (t * p).sum() + 1) / (t.sum() + p.sum() + 1)
        assert losses[image, query, row] == pytest.approx(expected, rel=1e-4)
