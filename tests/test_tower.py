"""Towers of convolutions."""

import keras
import numpy as np
import pytest

from heads.layers.tower import Tower


def test_tower_without_convolutions_gives_the_map():
    inputs = np.random.default_rng(0).normal(size=(1, 3, 4, 2)).astype("float32")
    np.testing.assert_array_equal(Tower(2, 0)(inputs), inputs)


@pytest.mark.parametrize("num_groups", [None, 2])
def test_tower_equals_its_layers_by_hand(num_groups):
    keras.utils.set_random_seed(0)
    tower = Tower(4, 2, num_groups)
    inputs = np.random.default_rng(0).normal(size=(2, 5, 6, 3)).astype("float32")
    tower.build(inputs.shape)
    for variable in tower.weights:
        variable.assign(np.random.default_rng(1).normal(size=variable.shape))
    expected = inputs
    for index in range(2):
        conv = tower.convs[index]
        expected = np.asarray(keras.ops.conv(expected, conv.kernel, padding="same"))
        if num_groups is None:
            expected = expected + np.asarray(conv.bias)
        else:
            groups = expected.reshape(2, 5, 6, 2, 2)
            mean, variance = groups.mean((1, 2, 4), keepdims=True), groups.var((1, 2, 4), keepdims=True)
            expected = ((groups - mean) / np.sqrt(variance + 1e-5)).reshape(expected.shape)
            expected = expected * np.asarray(tower.norms[index].gamma) + np.asarray(tower.norms[index].beta)
        expected = np.maximum(expected, 0.0)
    np.testing.assert_allclose(tower(inputs), expected, rtol=1e-4, atol=1e-4)
    assert tower.compute_output_shape(inputs.shape) == expected.shape


def test_config_and_names():
    tower = Tower(8, 3, num_groups=4, dtype=keras.dtype_policies.get("mixed_bfloat16"), name="cls")
    copy = Tower.from_config(tower.get_config())
    assert copy.get_config() == tower.get_config()
    assert copy.compute_dtype == "bfloat16"
    assert list(tower.reference_layers()) == ["0.conv", "1.conv", "2.conv", "0.gn", "1.gn", "2.gn"]
