import keras
import numpy as np
import pytest
import tensorflow as tf

from heads.ops.moments import measure_moments


@pytest.mark.parametrize("shape", [(3, 4), (2, 3, 5, 4), (1, 1, 1, 4)])
def test_all_positions(shape):
    inputs = np.random.default_rng(0).normal(3.0, 2.0, shape).astype("float32")
    mean, variance, count = measure_moments(keras.ops.convert_to_tensor(inputs))
    values = inputs.reshape(-1, 4).astype("float64")
    np.testing.assert_allclose(mean, values.mean(0), rtol=1e-6)
    np.testing.assert_allclose(variance, values.var(0), rtol=1e-5, atol=1e-7)
    assert float(count) == len(values)


# As for regions: one value per region, or one per position.
@pytest.mark.parametrize("shape", [(4, 1, 1), (4, 3, 2)])
def test_positions_that_count(shape):
    random = np.random.default_rng(0)
    inputs = random.normal(3.0, 2.0, (4, 3, 2, 5)).astype("float32")
    mask = random.random(shape) < 0.6
    inputs[~np.broadcast_to(mask, (4, 3, 2))] = np.nan
    mean, variance, count = measure_moments(keras.ops.convert_to_tensor(inputs), mask)
    values = inputs[np.broadcast_to(mask, (4, 3, 2))].astype("float64")
    np.testing.assert_allclose(mean, values.mean(0), rtol=1e-6)
    np.testing.assert_allclose(variance, values.var(0), rtol=1e-5)
    assert float(count) == pytest.approx(len(values))


def test_what_does_not_count_has_no_gradient():
    inputs = tf.constant([[1.0], [np.nan], [3.0]])
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        mean, variance, _ = measure_moments(inputs, np.array([True, False, True]))
        loss = mean[0] + variance[0]
    np.testing.assert_allclose(tape.gradient(loss, inputs), [[0.5 - 1.0], [0.0], [0.5 + 1.0]])


def test_no_position_counts():
    mean, variance, count = measure_moments(keras.ops.ones((2, 3, 3, 4)), np.zeros((2, 3, 3), bool))
    assert np.asarray(mean).tolist() == np.asarray(variance).tolist() == [0.0] * 4
    assert float(count) == 0
