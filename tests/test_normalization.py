"""The normalisations against PyTorch's rules and slow formulas."""

import keras
import numpy as np
import pytest
from slow_layers import assert_close, randomize, slow_norm, weights_of

from van_backbones.normalization import BatchNormalization, ImageNormalization


@pytest.fixture
def random():
    return np.random.default_rng(0)


def test_batch_normalization_keeps_the_unbiased_variance(random):
    layer = BatchNormalization()
    x = random.normal(2.0, 3.0, size=(2, 3, 2, 4)).astype("float32")
    layer.build(x.shape)
    randomize(layer, random)
    gamma, beta, mean, variance = weights_of(layer)
    outputs = layer(x, training=True)
    values = x.reshape(12, 4).astype("float64")
    biased = sum((values - values.mean(0)) ** 2) / 12
    assert_close(outputs, (x - values.mean(0)) / np.sqrt(biased + 1e-5) * gamma + beta)
    _, _, new_mean, new_variance = weights_of(layer)
    assert_close(new_mean, 0.9 * mean + 0.1 * values.mean(0), 1e-6)
    assert_close(new_variance, 0.9 * variance + 0.1 * biased * 12 / 11, 1e-6)


def test_batch_normalization_in_a_graph_of_unknown_size(random):
    inputs = keras.Input((None, None, 4))
    layer = BatchNormalization()
    model = keras.Model(inputs, layer(inputs))
    model.compile(optimizer=keras.optimizers.SGD(0.0), loss="mse")
    x = random.normal(2.0, 3.0, size=(2, 3, 2, 4)).astype("float32")
    model.train_on_batch(x, x)
    assert_close(layer.moving_variance, 0.9 + 0.1 * x.reshape(12, 4).var(0, ddof=1), 1e-6)


@pytest.mark.parametrize("dtype", ["float32", "float64", "mixed_bfloat16", "bfloat16", "float16"])
def test_batch_normalizations_outputs_and_gradients_in_training(random, dtype):
    tf = pytest.importorskip("tensorflow")
    layer = BatchNormalization(dtype=dtype)
    layer.build((None, 3, 5, 4))
    randomize(layer, random)
    # As exact as half precision can be.
    x = tf.cast(random.normal(2.0, 3.0, size=(2, 3, 5, 4)), layer.compute_dtype)
    weights = tf.cast(random.normal(size=x.shape), layer.compute_dtype)
    gamma, beta = (np.asarray(tf.cast(value, "float64")) for value in (layer.gamma, layer.beta))
    with tf.GradientTape() as tape:
        tape.watch(x)
        outputs = layer(x, training=True)
        loss = tf.reduce_sum(tf.cast(outputs * weights, "float64"))
    gradients = tape.gradient(loss, [x, layer.gamma.value, layer.beta.value])
    assert outputs.dtype == layer.compute_dtype

    values, slopes = (np.asarray(tf.cast(array, "float64")).reshape(30, 4) for array in (x, weights))
    deviation = np.sqrt(values.var(0) + 1e-5)
    normed = (values - values.mean(0)) / deviation
    by_inputs = slopes - slopes.mean(0) - normed * (slopes * normed).mean(0)
    expected = [normed * gamma + beta, by_inputs * gamma / deviation, (slopes * normed).sum(0), slopes.sum(0)]
    tolerance = {"float32": 1e-5, "float64": 1e-12, "float16": 4e-3}.get(dtype, 3e-2)
    for found, wanted in zip([outputs, *gradients], expected, strict=True):
        found = np.asarray(tf.cast(found, "float64")).reshape(wanted.shape)
        assert np.abs(found - wanted).max() <= tolerance * np.abs(wanted).max()


def test_frozen_batch_normalization_uses_and_keeps_its_statistics(random):
    layer = BatchNormalization(trainable=False)
    layer.build((None, 3, 2, 4))
    randomize(layer, random)
    before = layer.get_weights()
    x = random.normal(size=(2, 3, 2, 4)).astype("float32")
    assert_close(layer(x, training=True), slow_norm(layer, x.astype("float64")))
    assert_close(layer(x, training=False), slow_norm(layer, x.astype("float64")))
    for old, new in zip(before, layer.get_weights(), strict=True):
        np.testing.assert_array_equal(new, old)


def test_inference_leaves_batch_normalization_as_it_was(random):
    layer = BatchNormalization()
    layer.build((None, 3, 2, 4))
    randomize(layer, random)
    before = layer.get_weights()
    x = random.normal(size=(2, 3, 2, 4)).astype("float32")
    assert_close(layer(x), slow_norm(layer, x.astype("float64")))
    for old, new in zip(before, layer.get_weights(), strict=True):
        np.testing.assert_array_equal(new, old)


def test_batch_normalization_of_a_single_value_stays_finite():
    layer = BatchNormalization()
    x = np.full((1, 1, 1, 2), 5.0, "float32")
    np.testing.assert_array_equal(layer(x, training=True), np.zeros_like(x))
    np.testing.assert_allclose(layer.moving_mean, [0.5, 0.5], rtol=1e-6)
    np.testing.assert_allclose(layer.moving_variance, [0.9, 0.9], rtol=1e-6)


def test_batch_normalization_says_what_it_applies(random):
    layer = BatchNormalization()
    layer.build((None, 3, 2, 4))
    randomize(layer, random)
    x = random.normal(size=(2, 3, 2, 4)).astype("float32")
    scale, shift = layer.scale_and_shift()
    assert scale.shape == shift.shape == (4,)
    assert_close(x * scale + shift, slow_norm(layer, x.astype("float64")))


def test_image_normalization_takes_bytes():
    layer = ImageNormalization((1.0, 2.0, 3.0), (2.0, 4.0, 8.0))
    images = np.array([[[[0, 128, 255]]]], "uint8")
    np.testing.assert_array_equal(layer(images), [[[[-0.5, 31.5, 31.5]]]])
    assert keras.backend.standardize_dtype(layer(images).dtype) == "float32"


@pytest.mark.parametrize("dtype", ["bfloat16", "mixed_bfloat16", "mixed_float16"])
def test_image_normalization_rounds_once(dtype):
    # 200.3 in bfloat16 is 200: rounding before the subtraction would show.
    images = np.linspace(0, 255, 3 * 999).reshape(1, 333, 3, 3).astype("float32")
    mean, deviation = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
    layer = ImageNormalization(mean, deviation, dtype=dtype)
    outputs = layer(images)
    expected = (images - np.array(mean, "float32")) / np.array(deviation, "float32")
    expected = keras.ops.cast(expected, layer.compute_dtype)
    assert keras.backend.standardize_dtype(outputs.dtype) == layer.compute_dtype
    np.testing.assert_array_equal(np.asarray(outputs == expected), True)
    symbolic = layer(keras.Input((None, None, 3)))
    assert (symbolic.dtype, symbolic.shape) == (layer.compute_dtype, (None, None, None, 3))


def test_image_normalization_works_in_float64_where_asked():
    layer = ImageNormalization((0.1, 0.2, 0.3), (3.0, 7.0, 9.0), dtype="float64")
    images = np.full((1, 1, 1, 3), 1 / 3)
    expected = (images - [0.1, 0.2, 0.3]) / [3.0, 7.0, 9.0]
    np.testing.assert_allclose(layer(images), expected, rtol=1e-15)
