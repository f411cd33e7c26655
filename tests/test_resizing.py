import keras
import numpy as np
import pytest
import tensorflow as tf
from golden_reference import check, load

from heads.ops.resizing import convolve_resized, pool_adaptively, resize_bilinear, resize_nearest

SIZES = ((9, 13), (18, 26), (17, 25), (5, 7), (36, 52), (9, 26), (1, 1), (1, 30))


def make_maps(shape=(2, 9, 13, 3), seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def resize_bilinear_by_loop(maps, size):
    batch, old_height, old_width, channels = maps.shape
    resized = np.zeros((batch, *size, channels))
    for i in range(size[0]):
        for j in range(size[1]):
            y = max((i + 0.5) * old_height / size[0] - 0.5, 0.0)
            x = max((j + 0.5) * old_width / size[1] - 0.5, 0.0)
            top, left = int(y), int(x)
            bottom, right = min(top + 1, old_height - 1), min(left + 1, old_width - 1)
            upper = maps[:, top, left] * (1 - (x - left)) + maps[:, top, right] * (x - left)
            lower = maps[:, bottom, left] * (1 - (x - left)) + maps[:, bottom, right] * (x - left)
            resized[:, i, j] = upper * (1 - (y - top)) + lower * (y - top)
    return resized


def resize_nearest_by_loop(maps, size):
    resized = np.zeros((len(maps), *size, maps.shape[-1]))
    for i in range(size[0]):
        for j in range(size[1]):
            resized[:, i, j] = maps[:, i * maps.shape[1] // size[0], j * maps.shape[2] // size[1]]
    return resized


def pool_by_loop(maps, num_bins):
    _, height, width, _ = maps.shape
    pooled = np.zeros((len(maps), num_bins, num_bins, maps.shape[-1]))
    for i in range(num_bins):
        for j in range(num_bins):
            rows = slice(int(np.floor(i * height / num_bins)), int(np.ceil((i + 1) * height / num_bins)))
            columns = slice(int(np.floor(j * width / num_bins)), int(np.ceil((j + 1) * width / num_bins)))
            pooled[:, i, j] = maps[:, rows, columns].mean((1, 2))
    return pooled


def resize_in_graph(resize, maps_shape):
    """Resizes to the size of a second argument, in a graph that only knows `maps_shape`."""
    signature = [tf.TensorSpec(maps_shape), tf.TensorSpec((None, None, None, 1))]

    @tf.function(input_signature=signature)
    def run(maps, template):
        return resize(maps, keras.ops.shape(template)[1:3])

    return lambda maps, size: run(maps, np.zeros((1, *size, 1), "float32")).numpy()


@pytest.mark.parametrize("size", SIZES)
def test_bilinear_equals_loop(size):
    maps = make_maps()
    np.testing.assert_allclose(
        resize_bilinear(maps, size), resize_bilinear_by_loop(maps, size), rtol=0, atol=5e-6
    )


@pytest.mark.parametrize("maps_shape", [(None, None, None, 3), (None, 9, None, 3), (2, 9, 13, 3)])
def test_bilinear_in_a_graph_without_sizes(maps_shape):
    run = resize_in_graph(resize_bilinear, maps_shape)
    maps = make_maps()
    for size in SIZES:
        resized = run(maps, size)
        assert resized.shape == (2, *size, 3)
        np.testing.assert_allclose(resized, resize_bilinear(maps, size), rtol=0, atol=5e-6)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("sides", [(3, 3), (1, 1), (5, 3)])
def test_convolution_of_resized_maps_equals_loops(size, sides):
    maps, kernel = make_maps(), make_maps((*sides, 3, 2), seed=1)
    margins = [(0, 0), *((side // 2, side // 2) for side in sides), (0, 0)]
    padded = np.pad(resize_bilinear_by_loop(maps, size), margins)
    expected = np.zeros((len(maps), *size, 2))
    for i in range(size[0]):
        for j in range(size[1]):
            expected[:, i, j] = np.tensordot(padded[:, i : i + sides[0], j : j + sides[1]], kernel, 3)
    found = convolve_resized(maps, kernel, size)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_convolution_of_resized_maps_in_a_graph_without_sizes():
    kernel = make_maps((3, 3, 3, 2), seed=1)
    run = resize_in_graph(lambda maps, size: convolve_resized(maps, kernel, size), (None, None, None, 3))
    maps = make_maps()
    for size in SIZES:
        np.testing.assert_allclose(run(maps, size), convolve_resized(maps, kernel, size), rtol=0, atol=1e-5)


def test_bilinear_of_one_position_repeats_it():
    maps = make_maps((2, 1, 1, 3))
    expected = np.broadcast_to(maps, (2, 4, 5, 3))
    np.testing.assert_array_equal(resize_bilinear(maps, (4, 5)), expected)
    run = resize_in_graph(resize_bilinear, (None, None, None, 3))
    np.testing.assert_array_equal(run(maps, (4, 5)), expected)


def test_bilinear_has_one_gradient_on_both_paths():
    maps, factors = make_maps((1, 5, 6, 2)), make_maps((1, 9, 4, 2), seed=1)
    signature = [tf.TensorSpec((None, None, None, 2)), tf.TensorSpec((None, None, None, 2))]

    def gradient(maps, factors):
        with tf.GradientTape() as tape:
            tape.watch(maps)
            total = tf.reduce_sum(resize_bilinear(maps, keras.ops.shape(factors)[1:3]) * factors)
        return tape.gradient(total, maps)

    static = gradient(tf.constant(maps), tf.constant(factors))
    dynamic = tf.function(gradient, input_signature=signature)(maps, factors)
    np.testing.assert_allclose(static, dynamic, rtol=0, atol=5e-6)
    np.testing.assert_allclose(np.sum(static), factors.sum(), rtol=1e-4)


@pytest.mark.parametrize("resize", [resize_bilinear, resize_nearest])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64"])
def test_resizing_keeps_the_dtype(resize, dtype):
    maps = keras.ops.cast(make_maps(), dtype)
    assert keras.backend.standardize_dtype(resize(maps, (5, 20)).dtype) == dtype
    run = tf.function(
        lambda maps, template: resize(maps, keras.ops.shape(template)[1:3]),
        input_signature=[tf.TensorSpec((None, None, None, 3), dtype), tf.TensorSpec((None, None, None, 1))],
    )
    resized = run(maps, np.zeros((1, 5, 20, 1), "float32"))
    assert keras.backend.standardize_dtype(resized.dtype) == dtype
    expected = resize(make_maps(), (5, 20))
    tolerance = 0.05 if dtype == "bfloat16" else 0.01
    np.testing.assert_allclose(keras.ops.cast(resized, "float32"), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("size", [*SIZES, (10, 40)])
def test_nearest_equals_loop(size):
    maps = make_maps()
    expected = resize_nearest_by_loop(maps, size).astype("float32")
    np.testing.assert_array_equal(resize_nearest(maps, size), expected)
    run = resize_in_graph(resize_nearest, (None, None, None, 3))
    np.testing.assert_array_equal(run(maps, size), expected)


def test_nearest_by_hand():
    row = np.arange(3, dtype="float32").reshape(1, 1, 3, 1)
    np.testing.assert_array_equal(np.ravel(resize_nearest(row, (1, 5))), [0, 0, 1, 1, 2])
    np.testing.assert_array_equal(np.ravel(resize_nearest(row, (1, 6))), [0, 0, 1, 1, 2, 2])


@pytest.mark.parametrize("num_bins", [1, 2, 3, 6, 20])
@pytest.mark.parametrize("shape", [(2, 9, 13, 3), (1, 6, 7, 2), (2, 1, 2, 3)])
def test_pooling_equals_loop(num_bins, shape):
    maps = make_maps(shape)
    expected = pool_by_loop(maps, num_bins)
    np.testing.assert_allclose(pool_adaptively(maps, num_bins), expected, rtol=0, atol=1e-6)
    run = tf.function(
        lambda maps: pool_adaptively(maps, num_bins),
        input_signature=[tf.TensorSpec((None, None, None, shape[-1]))],
    )
    np.testing.assert_allclose(run(maps), expected, rtol=0, atol=1e-6)


def test_pooling_keeps_the_dtype():
    pooled = pool_adaptively(keras.ops.cast(make_maps(), "bfloat16"), 3)
    assert keras.backend.standardize_dtype(pooled.dtype) == "bfloat16"
    np.testing.assert_allclose(
        keras.ops.cast(pooled, "float32"), pool_by_loop(make_maps(), 3), rtol=0, atol=0.02
    )


@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
@pytest.mark.parametrize("size", [(18, 26), (17, 25), (5, 7), (36, 52), (9, 26)])
def test_resizing_equals_pytorch(mode, size):
    reference = load("ops/resample.npz")
    resize = {"bilinear": resize_bilinear, "nearest": resize_nearest}[mode]
    maps = reference["img"].transpose(0, 2, 3, 1)
    expected = reference[f"{mode}_{size[0]}x{size[1]}"]
    run = resize_in_graph(resize, (None, None, None, 2))
    for resized in (np.asarray(resize(maps, size)), run(maps, size)):
        check(expected, resized.transpose(0, 3, 1, 2), 1e-6)


@pytest.mark.parametrize("num_bins", [1, 2, 3, 6])
def test_pooling_equals_pytorch(num_bins):
    reference = load("ops/resample.npz")
    pooled = pool_adaptively(reference["img"].transpose(0, 2, 3, 1), num_bins)
    check(reference[f"adaptive_avg_{num_bins}"], np.asarray(pooled).transpose(0, 3, 1, 2), 1e-6)
