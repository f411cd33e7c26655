"""From scores to results, against loops."""

import numpy as np
import pytest
import tensorflow as tf

from heads.ops.selection import (
    label_pixels,
    restore_boxes,
    select_best,
    select_detections,
    select_each_level,
    select_pairs,
    take_rows,
)

SCORES = np.random.default_rng(0).permutation(2 * 30 * 4).reshape(2, 30, 4).astype("float32")


def list_pairs(scores, num_best):
    """Returns the best (score, box, class) of one image, from all pairs, sorted."""
    pairs = [
        (scores[box, label], box, label) for box in range(len(scores)) for label in range(scores.shape[1])
    ]
    return sorted(pairs, reverse=True)[:num_best]


@pytest.mark.parametrize("num_best", [1, 7, 30, 119, 120])
def test_pairs_equal_loop(num_best):
    best, boxes, labels = map(np.asarray, select_pairs(SCORES, num_best))
    for image in range(2):
        expected = list_pairs(SCORES[image], num_best)
        assert list(zip(best[image], boxes[image], labels[image], strict=True)) == expected


def test_fewer_pairs_than_asked_for():
    best, boxes, labels = select_pairs(SCORES, 500)
    assert best.shape == boxes.shape == labels.shape == (2, 120)
    assert select_best(SCORES[:, :, 0], 500)[0].shape == (2, 30)


def test_pairs_in_a_graph_of_unknown_sizes():
    run = tf.function(
        select_pairs, input_signature=[tf.TensorSpec((None, None, None)), tf.TensorSpec((), "int32")]
    )
    for ours, theirs in zip(run(SCORES, 7), select_pairs(SCORES, 7), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_levels_are_selected_one_by_one_and_counted_over_all():
    levels = [np.zeros((20, 4)), np.zeros((9, 4)), np.zeros((1, 4))]
    selected = select_each_level(SCORES, levels, 6)
    start = 0
    for level, (best, rows, labels) in zip(levels, selected, strict=True):
        count = min(6, 4 * len(level))
        assert best.shape == (2, count)
        for image in range(2):
            expected = list_pairs(SCORES[image, start : start + len(level)], count)
            found = zip(*(np.asarray(values)[image].tolist() for values in (best, rows, labels)), strict=True)
            assert list(found) == [(score, start + box, label) for score, box, label in expected]
        start += len(level)


def test_rows_of_each_image():
    values = np.arange(2 * 5 * 3).reshape(2, 5, 3)
    rows = np.array([[4, 0], [2, 2]])
    np.testing.assert_array_equal(take_rows(values, rows), [values[0, [4, 0]], values[1, [2, 2]]])
    np.testing.assert_array_equal(
        take_rows(values[:, :, 0], rows), [values[0, [4, 0], 0], values[1, [2, 2], 0]]
    )


def test_detections_by_hand():
    """Duplicates of a class are removed, boxes clipped, and those without an area or a score left out."""
    boxes = np.array(
        [[[0, 0, 10, 10], [1, 0, 11, 10], [1, 0, 11, 10], [-5, -5, 5, 5], [90, 0, 99, 9]]], "float32"
    )
    scores = np.array([[0.9, 0.8, 0.7, 0.6, 0.5]], "float32")
    labels = np.array([[1, 1, 0, 2, 2]], "int32")
    sizes = np.array([[20.0, 30.0]], "float32")
    detections = {
        k: np.asarray(v)[0] for k, v in select_detections(boxes, scores, labels, sizes, 0.5, 5).items()
    }
    assert detections["labels"].tolist() == [1, 0, 2, -1, -1]
    np.testing.assert_allclose(detections["scores"], [0.9, 0.7, 0.6, 0, 0])
    np.testing.assert_array_equal(
        detections["boxes"], [[0, 0, 10, 10], [1, 0, 11, 10], [0, 0, 5, 5], [0, 0, 0, 0], [0, 0, 0, 0]]
    )


def test_boxes_are_restored_where_the_original_size_is_known():
    detections = {"boxes": np.array([[[10.0, 20.0, 30.0, 40.0]]]), "labels": np.array([[1]])}
    sizes = np.array([[100, 200]])
    assert restore_boxes(detections, sizes) is detections
    restored = restore_boxes(detections, sizes, np.array([[50, 400]]))
    np.testing.assert_allclose(restored["boxes"], [[[20, 10, 60, 20]]])
    assert restored["labels"] is detections["labels"]


def test_likeliest_classes():
    np.testing.assert_array_equal(label_pixels(SCORES[None]), SCORES.argmax(-1)[None])
