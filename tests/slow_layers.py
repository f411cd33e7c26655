"""Weights of layers for slow formulas in float64, and a comparison of their results."""

import numpy as np


def slow_norm(norm, x):
    gamma, beta, mean, variance = (np.asarray(w, "float64") for w in norm.get_weights())
    return (x - mean) / np.sqrt(variance + 1e-5) * gamma + beta


def weights_of(layer):
    return [np.asarray(w, "float64") for w in layer.get_weights()]


def randomize(layer, random):
    """Gives every variable values of its own, so that leaving one out would be noticed."""
    for variable in layer.variables:
        if "seed" in variable.path:
            continue
        values = random.normal(size=variable.shape) * 0.5
        if variable.name in ("moving_variance", "gamma", "layer_scale_1", "layer_scale_2"):
            values = random.uniform(0.5, 2.0, variable.shape)
        variable.assign(values)


def assert_close(array, expected, tolerance=1e-5):
    array, expected = np.asarray(array, "float64"), np.asarray(expected, "float64")
    assert array.shape == expected.shape
    assert np.abs(array - expected).max() <= tolerance * np.abs(expected).max()
