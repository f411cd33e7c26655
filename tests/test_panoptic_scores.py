"""Panoptic quality against a loop by COCO's rules, and by hand."""

import keras
import numpy as np
import pytest

from heads.data import PanopticShapes, panoptic_evaluation_batches
from heads.metrics import (
    PanopticCounts,
    PanopticScores,
    count_panoptic,
    evaluate_panoptic,
    format_panoptic_scores,
    score_panoptic,
)


def count_slowly(truth, found, num_classes):
    """Scores by the rules of COCO's panoptic evaluator, pair by pair."""
    iou, matched, wrong, missed = (np.zeros(num_classes) for _ in range(4))
    true, ours = truth["segments"], found["segments"]
    used_truth, used = set(), set()
    for row, label in enumerate(truth["labels"]):
        for place, ours_label in enumerate(found["labels"]):
            if label != ours_label or truth["is_crowd"][row]:
                continue
            shared = ((true == row) & (ours == place)).sum()
            union = ((true == row) | (ours == place)).sum() - ((true == -1) & (ours == place)).sum()
            if union and shared / union > 0.5:
                iou[label] += shared / union
                matched[label] += 1
                used_truth.add(row)
                used.add(place)
    for row, label in enumerate(truth["labels"]):
        if row not in used_truth and not truth["is_crowd"][row] and (true == row).any():
            missed[label] += 1
    for place, label in enumerate(found["labels"]):
        area = (ours == place).sum()
        if label < 0 or place in used or not area:
            continue
        crowds = [
            row for row, other in enumerate(truth["labels"]) if other == label and truth["is_crowd"][row]
        ]
        forgiven = ((ours == place) & ((true == -1) | np.isin(true, crowds))).sum()
        if forgiven / area <= 0.5:
            wrong[label] += 1
    return iou, matched, wrong, missed


def make_segments(generator, size=(24, 30), num_classes=4):
    """Returns overlapping rectangles, the last ones on top, and void between them."""
    segments, labels = np.full(size, -1), []
    for _ in range(generator.integers(1, 8)):
        top, left = generator.integers(0, size[0] - 4), generator.integers(0, size[1] - 4)
        height, width = generator.integers(3, 16, 2)
        segments[top : top + height, left : left + width] = len(labels)
        labels.append(generator.integers(0, num_classes))
    return {"segments": segments, "labels": np.array(labels), "is_crowd": generator.random(len(labels)) < 0.3}


@pytest.mark.parametrize("seed", range(10))
def test_counts_equal_loop(seed):
    generator = np.random.default_rng(seed)
    truth = make_segments(generator)
    found = {"segments": truth["segments"].copy(), "labels": truth["labels"].copy()}
    # Some segments are right, some shifted, some of another class.
    found["segments"] = np.roll(found["segments"], generator.integers(0, 4), axis=1)
    other = make_segments(generator)
    part = (slice(None), slice(0, 12))
    found["segments"][part] = np.where(other["segments"] < 0, -1, other["segments"] + len(truth["labels"]))[
        part
    ]
    found["labels"] = np.concatenate([found["labels"], other["labels"], [-1]])
    counts = count_panoptic(truth, found, 4)
    for ours, expected in zip(counts, count_slowly(truth, found, 4), strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-12)


def count(truth, found, truth_labels, found_labels, is_crowd=None):
    """Counts segments of one row of pixels, for three classes."""
    crowds = {} if is_crowd is None else {"is_crowd": np.array(is_crowd)}
    truth = {"segments": np.array([truth]), "labels": np.array(truth_labels), **crowds}
    found = {"segments": np.array([found]), "labels": np.array(found_labels)}
    return [values.tolist() for values in count_panoptic(truth, found, 3)]


def test_half_is_no_match():
    iou, matched, wrong, missed = count([0, 0, 0, 0], [0, 0, -1, -1], [1], [1])
    assert (iou, matched, wrong, missed) == ([0, 0, 0], [0, 0, 0], [0, 1, 0], [0, 1, 0])
    iou, matched, wrong, missed = count([0, 0, 0, 0], [0, 0, 0, -1], [1], [1])
    assert (iou, matched, wrong, missed) == ([0, 0.75, 0], [0, 1, 0], [0, 0, 0], [0, 0, 0])


def test_another_class_is_wrong_and_missed():
    _, matched, wrong, missed = count([0, 0, 0, 0], [0, 0, 0, 0], [1], [2])
    assert (matched, wrong, missed) == ([0, 0, 0], [0, 0, 1], [0, 1, 0])


def test_pixels_without_truth_are_left_out_of_the_union():
    iou, matched, *_ = count([-1, -1, 0, 0], [0, 0, 0, 0], [0], [0])
    assert (iou[0], matched[0]) == (1.0, 1)


def test_segments_without_truth_count_nowhere():
    for found, wrong in (
        ([0, 0, 0, -1], [0, 0, 0]),
        ([0, 0, -1, -1], [0, 0, 0]),
        ([-1, 0, 0, -1], [1, 0, 0]),
    ):
        # Exactly half is not more than half.
        assert count([-1, -1, 0, 0], found, [1], [0])[2] == wrong


def test_crowds_are_never_missed_and_forgive_their_class():
    args = ([0, 0, 0, 0], [0, 0, 0, -1], [1])
    assert count(*args, [1], [True])[1:] == [[0, 0, 0]] * 3
    assert count(*args, [2], [True])[1:] == [[0, 0, 0], [0, 0, 1], [0, 0, 0]]


def test_scores_by_hand():
    counts = PanopticCounts(
        np.array([1.5, 0.0, 0.9, 0.0]), np.array([2, 0, 1, 0]), np.array([1, 0, 0, 0]), np.array([1, 2, 0, 0])
    )
    scores = score_panoptic(counts, num_things=2)
    np.testing.assert_allclose(scores["per_class_PQ"], [0.5, 0.0, 0.9, np.nan])
    np.testing.assert_allclose(scores["per_class_SQ"], [0.75, 0.0, 0.9, np.nan])
    np.testing.assert_allclose(scores["per_class_RQ"], [2 / 3, 0.0, 1.0, np.nan])
    assert scores["PQ"] == pytest.approx(1.4 / 3)
    assert scores["PQ_things"] == pytest.approx(0.25)
    assert scores["PQ_stuff"] == pytest.approx(0.9)
    table = format_panoptic_scores(scores, ["cat", "dog", "sea", "sky"]).splitlines()
    assert table[1].split() == ["cat", "50.00", "75.00", "66.67"]
    assert table[4].split() == ["sky", "-", "-", "-"]
    assert table[5].split()[0] == "all"
    nothing = score_panoptic(PanopticCounts.zeros(4), 2)
    assert np.isnan(nothing["PQ"])
    with pytest.raises(ValueError, match=r"class_names must have 4 names.*Received: 1"):
        format_panoptic_scores(scores, ["cat"])


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ({"segments": np.zeros((2, 2), int), "labels": [0]}, r"of the truth, \(1, 4\). Received: \(2, 2\)"),
        ({"segments": np.zeros((1, 4)), "labels": [0]}, "segments, integers"),
        (
            {"segments": np.ones((1, 4), int), "labels": [0]},
            "must be rows of its 1 labels, or -1. Received: 1",
        ),
        ({"segments": np.zeros((1, 4), int), "labels": [7]}, r"must be 0 .. 2, or -1 for none. Received: 7"),
    ],
)
def test_what_does_not_fit_is_refused(found, message):
    with pytest.raises(ValueError, match=message):
        count_panoptic({"segments": np.zeros((1, 4), int), "labels": [1]}, found, 3)


class Oracle(keras.Model):
    """Predicts the truth, or nothing."""

    def __init__(self, source, is_right=True):
        super().__init__()
        self.source, self.is_right, self.index = source, is_right, 0

    def predict_resized(self, images, image_sizes, original_sizes):
        results = []
        for size in original_sizes:
            truth = self.source.load_segments(self.index % len(self.source))
            self.index += 1
            assert truth["segments"].shape == tuple(size)
            segments = truth["segments"] if self.is_right else np.full(tuple(size), -1)
            results.append({"segments": segments, "labels": truth["labels"]})
        return results


def test_truth_as_prediction_is_perfect():
    source = PanopticShapes(5, (32, 48))
    dataset = panoptic_evaluation_batches(source, 2, (64, 64))
    scores = evaluate_panoptic(Oracle(source), dataset, source)
    assert scores["PQ"] == scores["SQ"] == scores["RQ"] == scores["PQ_things"] == scores["PQ_stuff"] == 1.0
    scores = evaluate_panoptic(Oracle(source, is_right=False), dataset, source)
    assert scores["PQ"] == scores["RQ"] == 0.0
    with pytest.raises(ValueError, match=r"the 5 pictures of the source, once each\. Received: 4 pictures"):
        evaluate_panoptic(Oracle(source), dataset.take(2), source)


def test_the_callback_logs_every_other_epoch(capsys):
    source = PanopticShapes(2, (32, 32))
    callback = PanopticScores(panoptic_evaluation_batches(source), source, every=2)
    callback.set_model(Oracle(source))
    callback.set_params({"verbose": 1})
    callback.on_train_begin()
    for epoch, is_right in enumerate((True, False, False)):
        callback.model.is_right = is_right
        logs = {"loss": 1.0}
        callback.on_epoch_end(epoch, logs)
        assert logs["val_PQ"] == (1.0 if epoch == 0 else 0.0)
    assert capsys.readouterr().out.count("PQ_things") == 2
    with pytest.raises(ValueError, match=r"every must be at least 1\. Received: 0"):
        PanopticScores([], source, every=0)
