"""The second stage of R-CNNs as functions."""

import numpy as np
import pytest
from keras import ops

from heads.ops.losses import giou_loss, smooth_l1_loss
from heads.ops.regions import Stage, compute_region_losses, detect_regions, sample_regions, shift_regions


def take_first(values):
    return ops.cumsum(ops.ones_like(values, "float32"), axis=1)


TARGETS = {
    "boxes": np.array([[[0, 0, 10, 10], [2, 0, 12, 10]]], "float32"),
    "labels": np.array([[3, 5]], "int32"),
}
# IoU with the two objects: 2 / 3 and 1, 0.6 and 0.43 (the best of neither), 0 and 0.
PROPOSALS = np.array([[[2, 0, 12, 10], [0, 0, 10, 6], [30, 30, 40, 40], [0, 0, 0, 0]]], "float32")
EXISTS = np.array([[True, True, True, False]])


def sample(**options):
    stage = Stage(num_samples=8, positive_fraction=0.75, **options)
    samples = sample_regions(stage, TARGETS, PROPOSALS, EXISTS, take_first)
    return {name: np.asarray(values)[0] for name, values in samples.items()}


def test_samples_are_the_truth_then_matched_proposals_then_background():
    samples = sample()
    assert samples["kinds"].tolist() == [1, 1, 1, 1, 0, -1, -1, -1]
    assert samples["matches"][:4].tolist() == [0, 1, 1, 0]
    assert samples["labels"].tolist() == [3, 5, 5, 3, -1, -1, -1, -1]
    assert samples["are_true"].tolist() == [True, True, *[False] * 6]
    np.testing.assert_array_equal(samples["boxes"][:4], [*TARGETS["boxes"][0], *PROPOSALS[0, :2]])
    np.testing.assert_array_equal(samples["boxes"][4:], [PROPOSALS[0, 2], *np.zeros((3, 4))])


def test_low_quality_is_matched_on_demand_only():
    """The only proposal is the best of both objects: the later one, or the one it overlaps most, takes it."""
    targets = {**TARGETS, "boxes": np.array([[[0, 0, 10, 10], [0, 0, 10, 6]]], "float32")}
    proposals, exists = np.array([[[0, 0, 10, 9]]], "float32"), np.ones((1, 1), bool)
    matches = []
    for low_quality in (False, True):
        stage = Stage(num_samples=4, positive_fraction=1.0, match_low_quality=low_quality)
        samples = sample_regions(stage, targets, proposals, exists, take_first)
        matches.append(np.asarray(samples["matches"])[0, 2])
    assert matches == [0, 1]


def test_threshold_of_a_stage():
    assert sample(iou_threshold=0.61)["kinds"].tolist() == [1, 1, 1, 0, 0, -1, -1, -1]


@pytest.mark.parametrize("weight", [1.0, 0.25])
def test_losses_by_hand(weight):
    """Known regions, logits and deltas: cross-entropies count all, distances only objects."""
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(1, 4, 3)).astype("float32")
    deltas = generator.normal(size=(1, 4, 2, 4)).astype("float32")
    regions = np.array([[[0, 0, 10, 20], [5, 5, 15, 15], [30, 30, 60, 40], [0, 0, 0, 0]]], "float32")
    samples = {
        "boxes": regions,
        "kinds": np.array([[1, 1, 0, -1]], "int32"),
        "matches": np.array([[1, 0, 0, 0]], "int32"),
        "labels": np.array([[1, 0, -1, -1]], "int32"),
    }
    targets = {
        "boxes": np.array([[[5, 6, 15, 18], [1, 0, 9, 22]]], "float32"),
        "labels": np.array([[0, 1]], "int32"),
    }
    losses = compute_region_losses(Stage(loss_weight=weight), targets, samples, logits, deltas)
    entropies = np.log(np.exp(logits[0]).sum(1)) - logits[0, np.arange(4), [1, 0, 2, 0]]
    assert float(losses["class_loss"]) == pytest.approx(weight * entropies[:3].sum() / 3, rel=1e-5)
    distance = 0.0
    for row, (match, label) in enumerate(((1, 1), (0, 0))):
        x1, y1, x2, y2 = regions[0, row]
        a1, b1, a2, b2 = targets["boxes"][0, match]
        truth = np.array(
            [
                ((a1 + a2) - (x1 + x2)) / 2 / (x2 - x1) / 0.1,
                ((b1 + b2) - (y1 + y2)) / 2 / (y2 - y1) / 0.1,
                np.log((a2 - a1) / (x2 - x1)) / 0.2,
                np.log((b2 - b1) / (y2 - y1)) / 0.2,
            ]
        )
        distance += np.abs(deltas[0, row, label] - truth).sum()
    assert float(losses["box_loss"]) == pytest.approx(weight * distance / 3, rel=1e-5)


def test_class_agnostic_boxes_and_other_losses():
    stage = Stage(class_agnostic=True, box_loss=lambda truth, deltas: smooth_l1_loss(truth, deltas, 1.0))
    samples = {
        "boxes": np.array([[[0, 0, 10, 10], [0, 0, 4, 4]]], "float32"),
        "kinds": np.array([[1, 0]], "int32"),
        "matches": np.zeros((1, 2), "int32"),
        "labels": np.array([[3, -1]], "int32"),
    }
    logits, deltas = np.zeros((1, 2, 7), "float32"), np.full((1, 2, 1, 4), 0.5, "float32")
    losses = compute_region_losses(stage, TARGETS, samples, logits, deltas)
    assert float(losses["box_loss"]) == pytest.approx(4 * 0.5 * 0.5**2 / 2)
    assert float(losses["class_loss"]) == pytest.approx(np.log(7), rel=1e-5)


def test_losses_that_compare_boxes():
    """The region is in its object and half as wide; the deltas make it as wide as the object."""
    stage = Stage(box_loss=giou_loss, compares_boxes=True, box_weight=4.0, class_agnostic=True)
    samples = {
        "boxes": np.array([[[0, 0, 5, 10], [0, 0, 4, 4]]], "float32"),
        "kinds": np.array([[1, 0]], "int32"),
        "matches": np.zeros((1, 2), "int32"),
        "labels": np.array([[3, -1]], "int32"),
    }
    logits, deltas = np.zeros((1, 2, 7), "float32"), np.zeros((1, 2, 1, 4), "float32")
    assert float(compute_region_losses(stage, TARGETS, samples, logits, deltas)["box_loss"]) == 4.0 * 0.5 / 2
    deltas[0, 0, 0] = (5.0, 0.0, np.log(2) / 0.2, 0.0)
    loss = compute_region_losses(stage, TARGETS, samples, logits, deltas)["box_loss"]
    assert float(loss) == pytest.approx(0.0, abs=1e-6)


def test_regions_are_shifted_by_their_class_and_cut():
    stage = Stage(deviations=(0.1, 0.1, 0.2, 0.2))
    regions = np.array([[[0, 0, 10, 10], [0, 0, 10, 10], [25, 0, 35, 10]]], "float32")
    logits = np.array([[[1, 2, 9], [1, 2, 9], [2, 1, 9]]], "float32")  # the background's is the highest
    deltas = np.zeros((1, 3, 2, 4), "float32")
    deltas[0, :, 0, 0], deltas[0, :, 1, 1] = 8.0, 5.0  # class 0 to the right, class 1 down
    sizes = np.array([[40, 40]], "float32")
    moved = shift_regions(stage, regions, logits, deltas, sizes, np.array([[0, -1, -1]], "int32"))
    np.testing.assert_allclose(moved, [[[8, 0, 18, 10], [0, 5, 10, 15], [33, 0, 40, 10]]], atol=1e-5)
    likeliest = shift_regions(stage, regions, logits, deltas, sizes)
    np.testing.assert_allclose(likeliest[0, 0], [0, 5, 10, 15], atol=1e-5)
    one_box = shift_regions(Stage(class_agnostic=True), regions, logits, deltas[:, :, :1], sizes)
    np.testing.assert_allclose(one_box[0, :2], [[8, 0, 18, 10]] * 2, atol=1e-5)


@pytest.mark.parametrize("class_agnostic", [False, True])
def test_detections_by_hand(class_agnostic):
    logits = np.full((1, 3, 3), -20.0, "float32")
    logits[0, 0, 1] = logits[0, 1, 1] = logits[0, 2, 0] = 20.0
    deltas = np.zeros((1, 3, 1 if class_agnostic else 2, 4), "float32")
    deltas[0, 0, -1, 0] = 1.0  # a tenth of the width to the right
    predictions = {
        "proposals": np.array([[[0, 0, 10, 10], [1, 0, 11, 10], [20, 20, 30, 30]]], "float32"),
        "proposal_scores": np.array([[0.9, 0.8, -1.0]], "float32"),
        "class_logits": logits,
        "box_deltas": deltas,
        "image_sizes": np.array([[40.0, 40.0]], "float32"),
    }
    detections = detect_regions(Stage(class_agnostic=class_agnostic), predictions, 0.05, 0.5, 4)
    assert np.asarray(detections["labels"]).tolist() == [[1, -1, -1, -1]]
    np.testing.assert_allclose(detections["boxes"][0, 0], [1, 0, 11, 10], atol=1e-5)
