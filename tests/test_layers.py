"""The layers against slow loops over positions and kernel taps, in float64."""

import math

import keras
import numpy as np
import pytest
from slow_layers import assert_close, randomize, slow_norm, weights_of

from van_backbones.cpu_kernels import fused_gelu, gelu
from van_backbones.layers import (
    ConvolutionalFeedForward,
    LargeKernelAttention,
    OverlapPatchEmbedding,
    VANBlock,
    drop_path,
)
from van_backbones.normalization import BatchNormalization, ImageNormalization


@pytest.fixture
def random():
    return np.random.default_rng(0)


def convolve(image, kernel, bias, strides=1, padding=0, dilation=1, depthwise=False):
    """Convolves one (height, width, channels) image with zero padding, tap by tap."""
    height, width, _ = image.shape
    rows, columns = kernel.shape[:2]
    out_height = (height + 2 * padding - dilation * (rows - 1) - 1) // strides + 1
    out_width = (width + 2 * padding - dilation * (columns - 1) - 1) // strides + 1
    outputs = np.zeros((out_height, out_width, len(bias)))
    for y in range(out_height):
        for x in range(out_width):
            outputs[y, x] = bias
            for i in range(rows):
                for j in range(columns):
                    row, column = y * strides - padding + i * dilation, x * strides - padding + j * dilation
                    if not (0 <= row < height and 0 <= column < width):
                        continue
                    pixel = image[row, column]
                    outputs[y, x] += pixel * kernel[i, j, :, 0] if depthwise else pixel @ kernel[i, j]
    return outputs


def slow_gelu(x):
    return np.vectorize(lambda value: value * 0.5 * (1 + math.erf(value / math.sqrt(2))))(x)


def slow_attention(layer, image):
    gated = slow_gelu(convolve(image, *weights_of(layer.proj_1)))
    attention = convolve(gated, *weights_of(layer.conv0), padding=2, depthwise=True)
    attention = convolve(attention, *weights_of(layer.conv_spatial), padding=9, dilation=3, depthwise=True)
    attention = convolve(attention, *weights_of(layer.conv1))
    return convolve(gated * attention, *weights_of(layer.proj_2)) + image


def slow_feed_forward(layer, image):
    hidden = convolve(image, *weights_of(layer.fc1))
    hidden = convolve(hidden, *weights_of(layer.dwconv), padding=1, depthwise=True)
    return convolve(slow_gelu(hidden), *weights_of(layer.fc2))


def test_gelu_is_the_exact_one(random):
    x = np.concatenate([random.normal(size=200) * 3, [0.0, -0.0, 20.0, -20.0]]).astype("float32")
    np.testing.assert_allclose(gelu(x), slow_gelu(x.astype("float64")), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(gelu(x), keras.activations.gelu(x, approximate=False), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_gelu_keeps_the_dtype(dtype):
    x = keras.ops.cast(np.linspace(-4, 4, 33), dtype)
    y = gelu(x)
    assert keras.backend.standardize_dtype(y.dtype) == dtype
    tolerance = {"float16": 2e-3, "bfloat16": 2e-2, "float64": 1e-12}[dtype]
    exact = slow_gelu(np.asarray(keras.ops.cast(x, "float64")))
    np.testing.assert_allclose(keras.ops.cast(y, "float64"), exact, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
@pytest.mark.parametrize("known", [(2, 3, 40), (None, 3, 40), (None, None, 40)])
def test_fused_gelus_gradients(dtype, known):
    tf = pytest.importorskip("tensorflow")
    x = tf.reshape(tf.cast(np.linspace(-6.0, 6.0, 240), dtype), (2, 3, 40))
    weights = tf.reshape(tf.cast(np.cos(np.arange(240.0)), dtype), x.shape)

    def differentiate(x, weights):
        with tf.GradientTape() as outer:
            outer.watch(x)
            with tf.GradientTape() as tape:
                tape.watch(x)
                outputs = fused_gelu(x)
            gradient = tape.gradient(outputs, x, output_gradients=weights)
        return gradient, outer.gradient(gradient, x)

    compiled = tf.function(differentiate, input_signature=[tf.TensorSpec(known, dtype)] * 2)
    operations = compiled.get_concrete_function().graph.get_operations()
    marks = {"_XlaCompile" in each.node_def.attr for each in operations if each.type == "Erf"}
    assert marks == {None not in known[1:]}

    values, factors = (np.asarray(tf.cast(array, "float64")) for array in (x, weights))
    density = np.exp(-0.5 * values**2) / math.sqrt(2 * math.pi)
    first = slow_gelu(values + 1e-30) / (values + 1e-30) + values * density
    expected = [first * factors, (2.0 - values**2) * density * factors]
    tolerance = {"float32": 1e-6, "float64": 1e-12, "bfloat16": 1e-2}[dtype]
    # TensorFlow compiles it at the second call.
    for results in (differentiate(x, weights), *(compiled(x, weights) for _ in range(3))):
        for found, wanted in zip(results, expected, strict=True):
            assert found.dtype == dtype
            np.testing.assert_allclose(tf.cast(found, "float64"), wanted, rtol=0, atol=tolerance)


@pytest.mark.parametrize("size", [(11, 9), (8, 12), (5, 7), (1, 1), (33, 2)])
@pytest.mark.parametrize(("kernel_size", "strides"), [(7, 4), (3, 2)])
def test_patch_embedding_pads_on_all_sides(random, size, kernel_size, strides):
    layer = OverlapPatchEmbedding(5, kernel_size, strides)
    layer.build((None, *size, 3))
    randomize(layer, random)
    images = random.normal(size=(2, *size, 3)).astype("float32")
    expected = [
        slow_norm(layer.norm, convolve(image, *weights_of(layer.proj), strides, kernel_size // 2))
        for image in images.astype("float64")
    ]
    outputs = layer(images, training=False)
    assert outputs.shape[1:3] == (math.ceil(size[0] / strides), math.ceil(size[1] / strides))
    assert layer.compute_output_shape(images.shape) == tuple(outputs.shape)
    assert_close(outputs, expected)


def test_patch_embedding_keeps_unknown_sizes_unknown():
    layer = OverlapPatchEmbedding(5, 3, 2)
    assert layer.compute_output_shape((None, None, 7, 3)) == (None, None, 4, 5)
    assert layer(keras.Input((None, 7, 3))).shape == (None, None, 4, 5)


def test_attention_is_the_decomposed_large_kernel(random):
    layer = LargeKernelAttention()
    layer.build((None, 12, 11, 4))
    randomize(layer, random)
    images = random.normal(size=(2, 12, 11, 4)).astype("float32")
    assert_close(layer(images), [slow_attention(layer, image) for image in images.astype("float64")])


def test_attention_reaches_21_pixels_and_no_further(random):
    layer = LargeKernelAttention()
    layer.build((None, 1, 51, 1))
    randomize(layer, random)
    images = np.zeros((1, 1, 51, 1), "float32")
    touched = images.copy()
    touched[0, 0, 25] = 1.0
    gates = [layer.attention_map(gelu(layer.proj_1(x))) for x in (images, touched)]
    reached = np.flatnonzero(np.asarray(gates[1] - gates[0]).ravel())
    # The dilated kernel's outermost taps are 9 away, the first kernel adds 2: together they cover 23 pixels.
    assert reached.min() == 25 - 11
    assert reached.max() == 25 + 11


def test_feed_forward_convolves_between_two_projections(random):
    layer = ConvolutionalFeedForward(expansion_ratio=3)
    layer.build((None, 6, 5, 4))
    randomize(layer, random)
    assert layer.fc1.kernel.shape == (1, 1, 4, 12)
    images = random.normal(size=(2, 6, 5, 4)).astype("float32")
    assert_close(layer(images), [slow_feed_forward(layer, image) for image in images.astype("float64")])


def make_block(random, **kwargs):
    block = VANBlock(expansion_ratio=2, **kwargs)
    block.build((None, 7, 6, 4))
    randomize(block, random)
    return block


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("float64", 1e-14)])
def test_block_at_inference_is_the_papers_formula(random, dtype, tolerance):
    block = make_block(random, dtype=dtype)
    images = random.normal(size=(2, 7, 6, 4)).astype(dtype)
    scale_1, scale_2 = (np.asarray(s, "float64") for s in (block.layer_scale_1, block.layer_scale_2))
    expected = []
    for x in images.astype("float64"):
        x = x + scale_1 * slow_attention(block.attention, slow_norm(block.norm1, x))
        expected.append(x + scale_2 * slow_feed_forward(block.feed_forward, slow_norm(block.norm2, x)))
    assert_close(block(images, training=False), expected, tolerance)
    assert_close(block(images), expected, tolerance)


def test_block_at_inference_is_its_sublayers_one_after_another(random):
    block = make_block(random, drop_path_rate=0.5)
    images = random.normal(size=(2, 7, 6, 4)).astype("float32")
    x = images + block.attention(block.norm1(images, training=False)) * block.layer_scale_1
    x = x + block.feed_forward(block.norm2(x, training=False)) * block.layer_scale_2
    assert_close(block(images, training=False), x, 2e-6)


def test_block_in_training_equals_inference_where_the_statistics_agree(random):
    block = make_block(random)
    images = random.normal(size=(2, 7, 6, 4)).astype("float32")
    block.norm1.moving_mean.assign(images.mean((0, 1, 2)))
    block.norm1.moving_variance.assign(images.var((0, 1, 2)))
    x = np.asarray(images + block.attention(block.norm1(images, training=False)) * block.layer_scale_1)
    block.norm2.moving_mean.assign(x.mean((0, 1, 2)))
    block.norm2.moving_variance.assign(x.var((0, 1, 2)))
    inference = np.asarray(block(images, training=False))
    assert_close(block(images, training=True), inference)


def test_block_gives_its_attention_map(random):
    block = make_block(random)
    images = random.normal(size=(1, 7, 6, 4)).astype("float32")
    layer = block.attention
    gated = slow_gelu(
        convolve(slow_norm(block.norm1, images[0].astype("float64")), *weights_of(layer.proj_1))
    )
    expected = convolve(gated, *weights_of(layer.conv0), padding=2, depthwise=True)
    expected = convolve(expected, *weights_of(layer.conv_spatial), padding=9, dilation=3, depthwise=True)
    assert_close(block.attention_map(images)[0], convolve(expected, *weights_of(layer.conv1)))


@pytest.mark.parametrize("dtype", ["mixed_float16", "mixed_bfloat16", "bfloat16"])
def test_block_in_half_precision_stays_near_float32(random, dtype):
    images = random.normal(size=(2, 7, 6, 4)).astype("float32")
    block = make_block(np.random.default_rng(1), dtype=dtype)
    exact = make_block(np.random.default_rng(1))
    outputs = block(images, training=False)
    assert keras.backend.standardize_dtype(outputs.dtype) == block.compute_dtype
    # A few roundings of relative size 2^-9 (bfloat16) or 2^-11 each.
    tolerance = 5e-3 if "float16" in dtype and "bfloat16" not in dtype else 3e-2
    assert_close(keras.ops.cast(outputs, "float32"), exact(images, training=False), tolerance)


def test_blocks_dropped_samples_are_left_as_they_were(random):
    keras.utils.set_random_seed(0)
    block = make_block(random, drop_path_rate=0.5)
    images = random.normal(size=(400, 2, 2, 4)).astype("float32")
    outputs = np.asarray(block(images, training=True))
    unchanged = (outputs == images).reshape(400, -1)
    assert (unchanged.all(1) == unchanged.any(1)).all()
    # Both branches are dropped independently: a quarter, 100 of 400, with a deviation of 8.7.
    assert 65 <= unchanged.all(1).sum() <= 135


@pytest.mark.parametrize("rate", [0.1, 0.3, 0.75])
def test_drop_path_drops_whole_samples_and_keeps_the_expectation(rate):
    keras.utils.set_random_seed(0)
    layer = drop_path(rate)
    branch = np.ones((4000, 3, 2, 5), "float32")
    outputs = np.asarray(layer(branch, training=True)).reshape(4000, -1)
    assert (outputs == outputs[:, :1]).all()
    kept = outputs[:, 0] > 0
    np.testing.assert_allclose(outputs[kept], 1 / (1 - rate), rtol=1e-6)
    deviation = math.sqrt(rate * (1 - rate) / 4000)
    assert abs(kept.mean() - (1 - rate)) < 5 * deviation
    assert abs(outputs.mean() - 1) < 5 * deviation / (1 - rate)


def test_drop_path_does_nothing_at_inference_or_with_rate_zero(random):
    branch = random.normal(size=(50, 3, 2, 5)).astype("float32")
    np.testing.assert_array_equal(drop_path(0.9)(branch, training=False), branch)
    np.testing.assert_array_equal(drop_path(0.9)(branch), branch)
    np.testing.assert_array_equal(drop_path(0.0)(branch, training=True), branch)


@pytest.mark.parametrize(
    "layer",
    [
        BatchNormalization(momentum=0.7, epsilon=1e-3, name="a"),
        ImageNormalization((1.0, 2.0, 3.0), (4.0, 5.0, 6.0), name="b", dtype="mixed_bfloat16"),
        OverlapPatchEmbedding(6, 3, 2, name="c", dtype="mixed_bfloat16"),
        LargeKernelAttention(name="d", trainable=False),
        ConvolutionalFeedForward(3, name="e"),
        VANBlock(3, drop_path_rate=0.2, layer_scale=0.5, name="f", dtype="mixed_float16"),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_layers_come_back_from_their_config(layer):
    config = keras.saving.serialize_keras_object(layer)
    again = keras.saving.deserialize_keras_object(config)
    assert type(again) is type(layer)
    assert again.get_config() == layer.get_config()
    assert again.dtype_policy.name == layer.dtype_policy.name


def test_block_starts_its_layer_scales_where_told():
    for start in (1e-2, 0.5):
        block = VANBlock(2, layer_scale=start)
        block.build((None, 7, 6, 4))
        np.testing.assert_allclose(block.layer_scale_1, [start] * 4)
        np.testing.assert_allclose(block.layer_scale_2, [start] * 4)
