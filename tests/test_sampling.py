"""Samples of matched anchors."""

import numpy as np
import pytest
import tensorflow as tf
from detection_reference import RULES, read_truth
from golden_reference import check, load

from heads.ops.anchors import make_anchors, mark_inside
from heads.ops.matching import match_boxes
from heads.ops.sampling import sample_matches


def test_samples_equal_those_of_the_proposal_network():
    # The reference took the first positives and the first of the background.
    reference = load("mask_rcnn_b0/loss_eval.npz")
    boxes, labels, image_sizes = read_truth(reference)
    sizes, strides = [(64, 80), (32, 40), (16, 20), (8, 10), (4, 5)], (4, 8, 16, 32, 64)
    anchors = make_anchors(sizes, strides, (8,), (0.5, 1.0, 2.0))
    inside = mark_inside(np.concatenate(anchors), image_sizes)
    matches = match_boxes(np.concatenate(anchors), boxes, labels, *RULES["rpn"], inside=inside)
    priorities = np.tile(np.arange(matches.shape[1], dtype="float32"), (2, 1))
    indices, kinds = (part.numpy() for part in sample_matches(matches, 256, 0.5, priorities))
    targets, weights = np.ones(matches.shape), np.zeros(matches.shape)
    for image in range(2):
        targets[image, indices[image, kinds[image] == 1]] = 0
        weights[image, indices[image, kinds[image] >= 0]] = 1
    ends = np.cumsum([len(level) for level in anchors])[:-1]
    for level, (target, weight) in enumerate(
        zip(np.split(targets, ends, axis=1), np.split(weights, ends, axis=1), strict=True)
    ):
        check(reference[f"rpn_t_labels_{level}"], target, 0.0)
        check(reference[f"rpn_t_label_weights_{level}"], weight, 0.0)


def sample_by_loop(matches, num_samples, positive_fraction, priorities):
    """Samples one image."""
    order = sorted(range(len(matches)), key=lambda i: priorities[i])
    positives = [i for i in order if matches[i] >= 0][: int(num_samples * positive_fraction)]
    backgrounds = [i for i in order if matches[i] == -1][: num_samples - len(positives)]
    empty = num_samples - len(positives) - len(backgrounds)
    kinds = [1] * len(positives) + [0] * len(backgrounds) + [-1] * empty
    return positives + backgrounds + [0] * empty, kinds


@pytest.mark.parametrize("positive_fraction", [0.0, 0.25, 0.5, 1.0])
@pytest.mark.parametrize(("num_anchors", "num_samples"), [(60, 16), (60, 59), (7, 16), (1, 1), (0, 4)])
def test_sample_equals_loop(num_anchors, num_samples, positive_fraction):
    random = np.random.default_rng(num_anchors)
    matches = random.integers(-2, 4, (4, num_anchors)).astype("int32")
    matches[1], matches[2], matches[3] = -1, 5, -2
    priorities = random.random((4, num_anchors)).astype("float32")
    expected = [
        sample_by_loop(row, num_samples, positive_fraction, ranks)
        for row, ranks in zip(matches, priorities, strict=True)
    ]
    graph = tf.function(
        lambda *inputs: sample_matches(inputs[0], num_samples, positive_fraction, inputs[1]),
        input_signature=[tf.TensorSpec((None, None), tf.int32), tf.TensorSpec((None, None))],
    )
    for indices, kinds in (
        sample_matches(matches, num_samples, positive_fraction, priorities),
        graph(matches, priorities),
    ):
        assert indices.dtype == kinds.dtype == "int32"
        np.testing.assert_array_equal(indices, [row for row, _ in expected])
        np.testing.assert_array_equal(kinds, [row for _, row in expected])


def test_equal_priorities_come_by_index():
    matches = np.array([[-1, 0, -1, 2, -2, -1, 1]], "int32")
    indices, kinds = sample_matches(matches, 5, 0.4, np.zeros((1, 7), "float32"))
    assert indices.numpy().tolist() == [[1, 3, 0, 2, 5]]
    assert kinds.numpy().tolist() == [[1, 1, 0, 0, 0]]


@pytest.mark.parametrize(("num_samples", "positive_fraction"), [(0, 0.5), (16, 25), (16, -0.1)])
def test_sample_refuses_wrong_numbers(num_samples, positive_fraction):
    message = f"num_samples={num_samples}, positive_fraction={positive_fraction}"
    with pytest.raises(ValueError, match=message):
        sample_matches(np.zeros((1, 4), "int32"), num_samples, positive_fraction, np.zeros((1, 4), "float32"))
