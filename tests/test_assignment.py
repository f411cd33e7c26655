"""Optimal assignment, against an exhaustive search."""

import itertools

import numpy as np
import pytest
import tensorflow as tf

from heads.ops.assignment import assign_optimally


def assign_by_trying(costs):
    """Returns the smallest sum of costs over all assignments."""
    rows, columns = costs.shape
    if rows < columns:
        return assign_by_trying(costs.T)
    return min(
        sum(costs[row, column] for column, row in enumerate(chosen))
        for chosen in itertools.permutations(range(rows), columns)
    )


@pytest.mark.parametrize(("rows", "columns"), itertools.product(range(1, 7), range(7)))
def test_assignment_equals_trying_all(rows, columns):
    generator = np.random.default_rng(7 * rows + columns)
    costs = generator.normal(size=(2, rows, columns)).astype("float32")
    matches = np.asarray(assign_optimally(costs, np.ones((2, columns), bool)))
    assert matches.dtype == np.int32
    for table, own in zip(costs, matches, strict=True):
        chosen = own[own >= 0]
        assert len(chosen) == len(set(chosen)) == min(rows, columns)
        total = sum(table[row, column] for row, column in enumerate(own) if column >= 0)
        assert total == pytest.approx(assign_by_trying(table), abs=1e-5)


def test_padding_is_assigned_to_nothing():
    costs = np.array([[[0.0, np.nan, 3.0], [1.0, -np.inf, 9.0]]], "float32")
    exists = np.array([[True, False, True]])
    np.testing.assert_array_equal(assign_optimally(costs, exists), [[2, 0]])
    np.testing.assert_array_equal(assign_optimally(costs, np.zeros((1, 3), bool)), [[-1, -1]])


def test_leading_dimensions_and_no_batch():
    costs = np.random.default_rng(0).normal(size=(2, 3, 5, 4)).astype("float32")
    exists = np.ones((2, 3, 4), bool)
    matches = np.asarray(assign_optimally(costs, exists))
    assert matches.shape == (2, 3, 5)
    np.testing.assert_array_equal(matches[1], assign_optimally(costs[1], exists[1]))
    assert assign_optimally(costs[:0], exists[:0]).shape == (0, 3, 5)


def test_ties_are_settled_the_same_way_each_time():
    costs, exists = np.zeros((1, 6, 4), "float32"), np.ones((1, 4), bool)
    first = np.asarray(assign_optimally(costs, exists))
    for _ in range(3):
        np.testing.assert_array_equal(assign_optimally(costs, exists), first)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_costs_that_are_not_finite_are_refused(value):
    costs = np.zeros((2, 3, 4), "float32")
    costs[1, 2, 3] = value
    exists = np.ones((2, 4), bool)
    text = rf"costs must be finite\. Received: {value} for prediction 2 and object 3 of problem 1"
    with pytest.raises(Exception, match=text):  # eagerly TensorFlow has its own class for it
        assign_optimally(costs, exists)
    with pytest.raises(tf.errors.OpError, match=text):
        tf.function(assign_optimally)(costs, exists)


def test_unknown_sizes_in_a_graph():
    shapes = [tf.TensorSpec((None, None, None)), tf.TensorSpec((None, None), tf.bool)]
    assign = tf.function(assign_optimally, input_signature=shapes)
    costs = np.random.default_rng(0).normal(size=(2, 5, 3)).astype("float32")
    exists = np.array([[True, True, False], [False, False, False]])
    np.testing.assert_array_equal(assign(costs, exists), assign_optimally(costs, exists))


def test_it_has_no_gradient():
    costs = tf.Variable(np.random.default_rng(0).normal(size=(1, 3, 3)).astype("float32"))
    with tf.GradientTape() as tape:
        matches = assign_optimally(costs, np.ones((1, 3), bool))
        total = tf.reduce_sum(tf.cast(matches, "float32")) + 0.0 * tf.reduce_sum(costs)
    assert not np.any(tape.gradient(total, costs))
