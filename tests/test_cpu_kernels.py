"""The blocks' convolutions, outputs and gradients against loops, on all paths of the backend."""

from functools import partial

import keras
import numpy as np
import pytest

from van_backbones.cpu_kernels import DepthwiseConvolution, PointwiseConvolution

tf = pytest.importorskip("tensorflow")


@pytest.fixture
def random():
    return np.random.default_rng(0)


def make_pointwise(**kwargs):
    return PointwiseConvolution(16, 1, **kwargs)


def make_depthwise(kernel_size, dilation=1, **kwargs):
    return DepthwiseConvolution(kernel_size, padding="same", dilation_rate=dilation, **kwargs)


def convolve_depthwise_slowly(maps, kernel, bias, dilation):
    side = len(kernel)
    margin = dilation * (side // 2)
    padded = np.pad(maps, [(0, 0), (margin, margin), (margin, margin), (0, 0)])
    _, height, width, _ = maps.shape
    outputs = np.zeros_like(maps) + bias
    for row in range(side):
        for column in range(side):
            top, left = row * dilation, column * dilation
            outputs += padded[:, top : top + height, left : left + width] * kernel[row, column, :, 0]
    return outputs


def differentiate_depthwise_slowly(maps, kernel, weights, dilation):
    """Returns the gradients of `sum(weights * outputs)` with respect to the maps, the kernel and the bias."""
    side = len(kernel)
    margin = dilation * (side // 2)
    margins = [(0, 0), (margin, margin), (margin, margin), (0, 0)]
    padded, map_gradient, kernel_gradient = np.pad(maps, margins), np.pad(maps, margins) * 0, kernel * 0
    _, height, width, _ = maps.shape
    for row in range(side):
        for column in range(side):
            top, left = row * dilation, column * dilation
            window = (slice(None), slice(top, top + height), slice(left, left + width))
            kernel_gradient[row, column, :, 0] = (padded[window] * weights).sum((0, 1, 2))
            map_gradient[window] += kernel[row, column, :, 0] * weights
    inner = map_gradient[:, margin : margin + height, margin : margin + width]
    return inner, kernel_gradient, weights.sum((0, 1, 2))


def apply(layer, maps, weights):
    """Returns the outputs, and the gradients of `sum(weights * outputs)` for maps, kernel and bias."""
    maps, weights = tf.convert_to_tensor(maps), tf.convert_to_tensor(weights)
    with tf.GradientTape() as tape:
        tape.watch(maps)
        outputs = layer(maps)
        # Not a plain sum: the gradient should differ from position to position.
        loss = tf.reduce_sum(outputs * weights)
    return outputs, tape.gradient(loss, [maps, *(variable.value for variable in layer.weights)])


def set_random_weights(layer, random):
    for variable in layer.weights:
        variable.assign(random.standard_normal(variable.shape))
    return [keras.ops.convert_to_numpy(variable) for variable in layer.weights]


def check(results, expected, tolerance):
    outputs, gradients = results
    for found, wanted in zip([outputs, *gradients], expected, strict=True):
        assert found.shape == wanted.shape
        np.testing.assert_allclose(found, wanted, rtol=0, atol=tolerance * max(1.0, np.abs(wanted).max()))


SIZES = [(9, 12), (16, 16), (7, 5), (4, 17), (2, 3), (1, 1), (1, 8), (8, 1), (3, 2)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("kernel_size", "dilation"), [(3, 1), (5, 1), (7, 1), (9, 1), (3, 2), (7, 3)])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-12), ("float32", 1e-5)])
def test_depthwise_convolution_and_its_gradients(random, size, kernel_size, dilation, dtype, tolerance):
    layer = make_depthwise(kernel_size, dilation, dtype=dtype)
    maps, weights = random.standard_normal((2, 2, *size, 16)).astype(dtype)
    layer.build(maps.shape)
    kernel, bias = set_random_weights(layer, random)
    expected = [
        convolve_depthwise_slowly(maps, kernel, bias, dilation),
        *differentiate_depthwise_slowly(maps, kernel, weights, dilation),
    ]
    check(apply(layer, maps, weights), expected, tolerance)


@pytest.mark.parametrize("size", [(5, 7), (1, 1)])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-12), ("float32", 1e-5)])
def test_pointwise_convolution_and_its_gradients(random, size, dtype, tolerance):
    layer = PointwiseConvolution(6, 1, dtype=dtype)
    maps = random.standard_normal((2, *size, 4)).astype(dtype)
    weights = random.standard_normal((2, *size, 6)).astype(dtype)
    layer.build(maps.shape)
    kernel, bias = set_random_weights(layer, random)
    matrix = kernel[0, 0]
    expected = [
        maps @ matrix + bias,
        weights @ matrix.T,
        np.einsum("bhwc,bhwd->cd", maps, weights)[None, None],
        weights.sum((0, 1, 2)),
    ]
    check(apply(layer, maps, weights), expected, tolerance)


@pytest.mark.parametrize("known", [(None, None, None, 16), (2, None, 12, 16), (None, 9, 12, 16)])
@pytest.mark.parametrize("make", [make_pointwise, partial(make_depthwise, 5), partial(make_depthwise, 7, 3)])
def test_gradients_in_a_graph_of_unknown_size(random, known, make):
    layer = make()
    layer.build(known)
    set_random_weights(layer, random)
    maps, weights = random.standard_normal((2, 2, 9, 12, 16)).astype("float32")
    specification = tf.TensorSpec(known, tf.float32)
    compiled = tf.function(
        lambda maps, weights: apply(layer, maps, weights), input_signature=[specification] * 2
    )
    outputs, gradients = apply(layer, maps, weights)
    check(compiled(maps, weights), [outputs.numpy(), *(gradient.numpy() for gradient in gradients)], 1e-5)


@pytest.mark.parametrize("make", [make_pointwise, partial(make_depthwise, 7, 3)])
def test_gradients_in_half_precision(random, make):
    layer, half = make(), make(dtype="mixed_bfloat16")
    # Quarters are exact in eight bits, and so are their products.
    maps, weights = (random.integers(-2, 3, (2, 2, 9, 12, 16)) / 4).astype("float32")
    for each in (layer, half):
        each.build(maps.shape)
        values = np.random.default_rng(0)
        each.set_weights([values.integers(-2, 3, variable.shape) / 4 for variable in each.weights])
    expected, expected_gradients = apply(layer, maps, weights)
    outputs, gradients = apply(half, tf.cast(maps, "bfloat16"), tf.cast(weights, "bfloat16"))
    assert outputs.dtype == "bfloat16"
    # Sums are rounded once, and the outputs once more with their bias.
    np.testing.assert_allclose(tf.cast(outputs, "float32"), expected, rtol=2**-7, atol=2**-6)
    for found, wanted in zip(gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(tf.cast(found, "float32"), wanted, rtol=2**-8)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("make", [make_pointwise, partial(make_depthwise, 3)])
def test_biases_sum_large_maps(make, dtype):
    """TensorFlow's own sum in bfloat16 stays at 256, since 257 rounds to 256."""
    layer = make(dtype=dtype)
    maps = tf.ones((1, 32, 64, 16), dtype)
    layer.build(maps.shape)
    _, (_, _, gradient) = apply(layer, maps, tf.ones_like(maps))
    np.testing.assert_array_equal(tf.cast(gradient, "float32"), 2048.0)


def test_gradients_have_gradients(random):
    maps = tf.constant(random.standard_normal((1, 5, 6, 4)))
    layers = make_depthwise(5, dtype="float64"), PointwiseConvolution(4, 1, dtype="float64")
    variables = []
    for layer in layers:
        layer.build(maps.shape)
        set_random_weights(layer, random)
        variables += [variable.value for variable in layer.weights]

    def measure_gradient():
        with tf.GradientTape() as tape:
            outputs = maps
            for layer in layers:
                outputs = layer(outputs)
            loss = tf.reduce_sum(outputs**3)
        return tf.reduce_sum(tape.gradient(loss, variables[0]) ** 2)

    with tf.GradientTape() as tape:
        value = measure_gradient()
    found = tape.gradient(value, variables[2])[0, 0, 1, 2]
    step = np.zeros((1, 1, 4, 4))
    step[0, 0, 1, 2] = 1e-6
    variables[2].assign_add(step)
    difference = (measure_gradient() - value) / 1e-6
    np.testing.assert_allclose(found, difference, rtol=1e-3)
