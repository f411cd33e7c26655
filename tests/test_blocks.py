import keras
import numpy as np
import pytest
import tensorflow as tf

from heads.layers.blocks import BatchNormalization, ConvolutionBlock, JoiningConvolution, PixelClassifier
from heads.ops.resizing import resize_bilinear


def make_maps(shape=(2, 5, 4, 3), seed=0):
    return np.random.default_rng(seed).normal(1.0, 2.0, shape).astype("float32")


def convolve_by_loop(maps, kernel):
    """Returns a convolution with stride 1 and zero padding."""
    side, margin = kernel.shape[0], kernel.shape[0] // 2
    padded = np.pad(maps.astype("float64"), ((0, 0), (margin, margin), (margin, margin), (0, 0)))
    outputs = np.zeros((*maps.shape[:3], kernel.shape[-1]))
    for y in range(maps.shape[1]):
        for x in range(maps.shape[2]):
            patch = padded[:, y : y + side, x : x + side]
            outputs[:, y, x] = np.tensordot(patch, kernel, 3)
    return outputs


def randomize(layer, seed=0):
    """Gives every weight a value of its own: positive, so that variances can be among them."""
    generator = np.random.default_rng(seed)
    for variable in layer.variables:
        if variable.dtype == "float32":
            variable.assign(generator.uniform(0.5, 1.5, variable.shape))


def test_batch_norm_keeps_the_unbiased_variance():
    layer = BatchNormalization()
    maps = make_maps()
    outputs = layer(maps, training=True)
    mean, variance = maps.mean((0, 1, 2)), maps.var((0, 1, 2))
    np.testing.assert_allclose(outputs, (maps - mean) / np.sqrt(variance + 1e-5), atol=1e-5)
    np.testing.assert_allclose(layer.moving_mean, 0.1 * mean, rtol=1e-5)
    np.testing.assert_allclose(layer.moving_variance, 0.9 + 0.1 * maps.var((0, 1, 2), ddof=1), rtol=1e-5)


@pytest.mark.parametrize("momentum", [0.0, 0.9, 0.99])
def test_batch_norm_twice(momentum):
    layer = BatchNormalization(momentum=momentum)
    expected = np.ones(3)
    for seed in range(2):
        maps = make_maps((4, 2, 1, 3), seed)
        layer(maps, training=True)
        expected = momentum * expected + (1 - momentum) * maps.var((0, 1, 2), ddof=1)
    np.testing.assert_allclose(layer.moving_variance, expected, rtol=1e-5)


def test_batch_norm_of_one_position():
    layer = BatchNormalization()
    maps = make_maps((2, 1, 1, 3))
    layer(maps, training=True)
    # With two values the unbiased variance is twice the biased one.
    expected = 0.9 + 0.1 * (maps[0] - maps[1]).ravel() ** 2 / 2
    np.testing.assert_allclose(layer.moving_variance, expected, rtol=1e-5)


def test_batch_norm_of_a_single_value_stays_finite():
    layer = BatchNormalization()
    outputs = layer(make_maps((1, 1, 1, 3)), training=True)
    np.testing.assert_allclose(outputs, np.zeros((1, 1, 1, 3)), atol=1e-6)
    np.testing.assert_allclose(layer.moving_variance, np.full(3, 0.9), rtol=1e-6)


def test_batch_norm_changes_nothing_when_frozen_or_at_inference():
    layer = BatchNormalization()
    layer.build((None, None, None, 3))
    randomize(layer)
    before = [variable.numpy() for variable in layer.variables]
    at_inference = layer(make_maps(), training=False)
    layer.trainable = False
    frozen = layer(make_maps(), training=True)
    np.testing.assert_array_equal(frozen, at_inference)
    gamma, beta, mean, variance = before
    expected = (make_maps() - mean) / np.sqrt(variance + 1e-5) * gamma + beta
    np.testing.assert_allclose(frozen, expected, atol=1e-5)
    for old, variable in zip(before, layer.variables, strict=True):
        np.testing.assert_array_equal(variable, old)


def test_batch_norm_in_mixed_precision_keeps_float32_statistics():
    layer = BatchNormalization(dtype="mixed_bfloat16")
    maps = make_maps((4, 8, 8, 3))
    outputs = layer(maps, training=True)
    assert keras.backend.standardize_dtype(outputs.dtype) == "bfloat16"
    assert layer.moving_variance.dtype == "float32"
    expected = 0.9 + 0.1 * maps.var((0, 1, 2), ddof=1)
    np.testing.assert_allclose(layer.moving_variance, expected, rtol=0.02)


@pytest.mark.parametrize("shape", [(2, 5, 4, 3), (3, 1, 1, 3), (6, 3)])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [("float32", 1e-5), ("float64", 1e-12), ("mixed_bfloat16", 0.02)]
)
def test_batch_norm_of_all_positions_is_that_of_a_mask_without_gaps(shape, dtype, tolerance):
    """The first may be one operation, the second never is."""
    slopes = make_maps(shape, seed=1)
    results = []
    for mask in (None, np.ones((shape[0], *[1] * (len(shape) - 2)), bool)):
        layer = BatchNormalization(dtype=dtype)
        layer.build(shape)
        randomize(layer)
        maps = tf.cast(make_maps(shape), layer.compute_dtype)
        with tf.GradientTape() as tape:
            tape.watch(maps)
            outputs = layer(maps, training=True, mask=mask)
            loss = tf.reduce_sum(tf.cast(outputs, "float64") * slopes)
        assert outputs.dtype == layer.compute_dtype
        gradients = tape.gradient(loss, [maps, layer.gamma.value, layer.beta.value])
        results.append([outputs, *gradients, layer.moving_mean, layer.moving_variance])
    for found, wanted in zip(*results, strict=True):
        found, wanted = (np.asarray(tf.cast(value, "float64")) for value in (found, wanted))
        assert np.abs(found - wanted).max() <= tolerance * np.abs(wanted).max()


@pytest.mark.parametrize("kernel_size", [1, 3])
def test_block_equals_loop(kernel_size):
    block = ConvolutionBlock(4, kernel_size)
    block.build((None, None, None, 3))
    randomize(block)
    block.conv.kernel.assign(make_maps(block.conv.kernel.shape, seed=1))
    maps = make_maps()
    gamma, beta, mean, variance = [variable.numpy() for variable in block.norm.variables]
    convolved = convolve_by_loop(maps, block.conv.kernel.numpy())

    expected = np.maximum((convolved - mean) / np.sqrt(variance + 1e-5) * gamma + beta, 0.0)
    np.testing.assert_allclose(block(maps), expected, rtol=1e-5, atol=1e-4)
    assert 0.1 < np.mean(expected == 0.0) < 0.9

    normed = (convolved - convolved.mean((0, 1, 2))) / np.sqrt(convolved.var((0, 1, 2)) + 1e-5)
    expected = np.maximum(normed * gamma + beta, 0.0)
    np.testing.assert_allclose(block(maps, training=True), expected, rtol=1e-4, atol=1e-4)
    expected = 0.9 * variance + 0.1 * convolved.var((0, 1, 2), ddof=1)
    np.testing.assert_allclose(block.norm.moving_variance, expected, rtol=1e-4)


def test_block_has_no_bias():
    block = ConvolutionBlock(4, 3)
    block.build((None, None, None, 3))
    assert [tuple(variable.shape) for variable in block.trainable_variables] == [(3, 3, 3, 4), (4,), (4,)]
    assert list(block.reference_layers()) == ["conv", "bn"]


@pytest.mark.parametrize("kernel_size", [1, 3])
def test_block_starts_as_kaiming_normal_over_the_fan_out(kernel_size):
    block = ConvolutionBlock(96, kernel_size)
    block.build((None, None, None, 200))
    kernel = block.conv.kernel.numpy()
    deviation = np.sqrt(2.0 / (kernel_size**2 * 96))
    assert kernel.std() == pytest.approx(deviation, rel=0.03)
    assert abs(kernel.mean()) < 0.05 * deviation
    # A truncated normal distribution would end at two deviations.
    assert np.abs(kernel).max() > 3 * deviation
    np.testing.assert_array_equal(block.norm.gamma, np.ones(96))
    np.testing.assert_array_equal(block.norm.beta, np.zeros(96))


def test_blocks_start_different_but_reproducibly():
    def start():
        keras.utils.set_random_seed(3)
        blocks = [ConvolutionBlock(8, 3), ConvolutionBlock(8, 3)]
        for block in blocks:
            block.build((None, None, None, 8))
        return [block.conv.kernel.numpy() for block in blocks]

    first, second = start()
    assert np.abs(first - second).max() > 0.01
    np.testing.assert_array_equal(start(), [first, second])


def test_classifier_is_a_dense_layer_per_position():
    classifier = PixelClassifier(6)
    classifier.build((None, None, None, 3))
    randomize(classifier)
    maps = make_maps()
    kernel, bias = classifier.conv.kernel.numpy(), classifier.conv.bias.numpy()
    expected = maps @ kernel[0, 0] + bias
    np.testing.assert_allclose(classifier(maps), expected, rtol=1e-5)
    np.testing.assert_allclose(classifier(maps, training=False), expected, rtol=1e-5)


def test_classifier_drops_whole_channels():
    channels = 200
    classifier = PixelClassifier(channels, dropout_rate=0.25)
    classifier.build((None, None, None, channels))
    classifier.conv.kernel.assign(np.eye(channels)[None, None])
    maps = make_maps((2, 3, 4, channels))
    outputs = np.asarray(classifier(maps, training=True))
    dropped = (outputs == 0.0).all((1, 2))
    kept = ~(outputs == 0.0).any((1, 2))
    assert (dropped | kept).all()
    assert 0.15 < dropped.mean() < 0.35
    assert (dropped[0] != dropped[1]).any()
    expected = np.where(dropped[:, None, None], 0.0, maps / 0.75)
    np.testing.assert_allclose(outputs, expected, rtol=1e-5)


def test_classifier_starts_small():
    classifier = PixelClassifier(150)
    classifier.build((None, None, None, 128))
    assert classifier.conv.kernel.numpy().std() == pytest.approx(0.01, rel=0.03)
    np.testing.assert_array_equal(classifier.conv.bias, np.zeros(150))


@pytest.mark.parametrize(
    "layer",
    [
        BatchNormalization(momentum=0.8, epsilon=1e-3, name="norm"),
        ConvolutionBlock(5, 3, name="block", dtype="mixed_bfloat16"),
        PixelClassifier(5, 0.3, name="classifier"),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_config_round_trip(layer):
    config = layer.get_config()
    copy = type(layer).from_config(config)
    assert copy.get_config() == config
    restored = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(layer))
    assert type(restored) is type(layer)
    shape = (None, 7, None, 3)
    assert copy.compute_output_shape(shape) == layer.compute_output_shape(shape)
    outputs = copy(make_maps())
    assert outputs.shape[1:] == copy.compute_output_shape((2, 5, 4, 3))[1:]
    assert keras.backend.standardize_dtype(outputs.dtype) == layer.compute_dtype


SHAPES = ((2, 9, 13, 3), (2, 5, 7, 4), (2, 1, 2, 5))


@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize("kernel_size", [1, 3])
def test_joining_convolution_equals_that_of_the_concatenated_maps(kernel_size, use_bias):
    maps = [make_maps(shape, seed) for seed, shape in enumerate(SHAPES)]
    layer = JoiningConvolution(6, kernel_size, use_bias=use_bias, padding="same")
    outputs = layer(maps)
    assert layer.kernel.shape == (kernel_size, kernel_size, 3 + 4 + 5, 6)
    randomize(layer)
    joined = np.concatenate([resize_bilinear(each, (9, 13)) for each in maps], axis=-1)
    stock = keras.layers.Conv2D(6, kernel_size, use_bias=use_bias, padding="same")
    stock.build(joined.shape)
    stock.set_weights(layer.get_weights())
    assert outputs.shape == layer.compute_output_shape([each.shape for each in maps]) == (2, 9, 13, 6)
    np.testing.assert_allclose(layer(maps), stock(joined), rtol=1e-5, atol=1e-5 * np.abs(stock(joined)).max())


def test_gradients_of_a_joining_convolution():
    maps = [tf.constant(make_maps(shape, seed)) for seed, shape in enumerate(SHAPES)]
    layer = JoiningConvolution(6, 3, padding="same")
    layer(maps)
    noise = make_maps((2, 9, 13, 6), seed=9)
    with tf.GradientTape() as tape:
        tape.watch(maps)
        loss = tf.reduce_sum(layer(maps) * noise)
    found = tape.gradient(loss, [layer.kernel.value, *maps])
    with tf.GradientTape() as tape:
        tape.watch(maps)
        joined = tf.concat([resize_bilinear(each, (9, 13)) for each in maps], axis=-1)
        loss = tf.reduce_sum(tf.nn.conv2d(joined, layer.kernel.value, 1, "SAME") * noise)
    expected = tape.gradient(loss, [layer.kernel.value, *maps])
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-5 * np.abs(other).max())


def test_joining_convolution_in_a_functional_model():
    inputs = [keras.Input(shape[1:]) for shape in SHAPES]
    model = keras.Model(inputs, ConvolutionBlock(6, 3, joins_maps=True)(inputs))
    maps = [make_maps(shape, seed) for seed, shape in enumerate(SHAPES)]
    assert model.output_shape == (None, 9, 13, 6)
    clone = keras.Model.from_config(model.get_config())
    clone.set_weights(model.get_weights())
    np.testing.assert_allclose(clone(maps), model(maps), rtol=1e-6)


def test_joining_convolution_applies_its_activation():
    maps = [make_maps(shape, seed) for seed, shape in enumerate(SHAPES)]
    plain, layer = (JoiningConvolution(6, 3, padding="same", activation=name) for name in (None, "relu"))
    outputs = plain(maps)
    layer(maps)
    layer.set_weights(plain.get_weights())
    assert np.min(outputs) < 0
    np.testing.assert_allclose(layer(maps), np.maximum(outputs, 0), rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dilation_rate": 2}, r"dilation_rate must be \(1, 1\). Received: \(2, 2\)"),
        ({"strides": 2}, r"strides must be \(1, 1\). Received: \(2, 2\)"),
        ({"groups": 2}, "groups must be 1. Received: 2"),
        ({"padding": "valid"}, "padding must be 'same'. Received: 'valid'"),
        (
            {"data_format": "channels_first"},
            "data_format must be 'channels_last'. Received: 'channels_first'",
        ),
        ({"kernel_size": 2}, r"must be odd. Received: kernel_size=\(2, 2\)"),
    ],
)
def test_joining_convolution_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        JoiningConvolution(**{"filters": 6, "kernel_size": 3, "padding": "same", **options})


def test_block_of_joined_maps_refuses_dilation():
    with pytest.raises(ValueError, match="dilation_rate must be"):
        ConvolutionBlock(6, 3, dilation_rate=2, joins_maps=True)
