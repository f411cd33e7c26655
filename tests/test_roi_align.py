import os
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from golden_reference import check, load

from heads.layers import roi_align as module
from heads.layers.roi_align import align_regions, assign_levels, roi_align

ROOT = pathlib.Path(__file__).resolve().parents[1]

# On a map of 9 x 12 cells.
AWKWARD_BOXES = (
    (2.0, 3.0, 5.5, 7.25),
    (0.0, 0.0, 12.0, 9.0),
    (-3.0, -2.5, 4.0, 20.0),  # beyond the map on two sides
    (-9.0, -7.0, 40.0, 30.0),  # around the map
    (-8.0, 2.0, -1.5, 5.0),  # left of the map
    (3.0, 12.0, 7.0, 15.0),  # below it
    (-0.9, 8.4, 0.2, 9.9),  # in the half cell around the border
    (4.0, 4.0, 4.0, 4.0),  # a point
    (4.0, 2.0, 4.0, 6.0),  # a line
    (5.0, 6.0, 3.0, 2.0),  # inside out
    (6.3, 1.1, 6.35, 1.12),  # tiny
    (0.1, 3.9, 11.9, 4.6),  # long
    (1.25, 1.25, 8.25, 8.25),  # 7 x 7 cells: whole bins
)


def make_features(shape=(2, 9, 12, 3), seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def make_boxes(num_boxes, height, width, seed=1):
    """Returns boxes of all sizes, from far below a cell to about the whole map, some partly outside."""
    random = np.random.default_rng(seed)
    sides = np.exp(random.uniform(np.log(0.3), 0, (num_boxes, 2))) ** 3 * [width, height]
    starts = random.uniform(-0.2, 1.0, (num_boxes, 2)) * [width, height]
    return np.concatenate([starts, starts + sides], -1).astype("float32")


def sample_by_loop(feature, y, x):
    height, width, channels = feature.shape
    if y < -1 or y > height or x < -1 or x > width:
        return np.zeros(channels)
    y, x = min(max(y, 0.0), height - 1.0), min(max(x, 0.0), width - 1.0)
    top, left = int(y), int(x)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    upper = feature[top, left] * (1 - (x - left)) + feature[top, right] * (x - left)
    lower = feature[bottom, left] * (1 - (x - left)) + feature[bottom, right] * (x - left)
    return upper * (1 - (y - top)) + lower * (y - top)


def align_by_loop(features, boxes, batch_indices, output_size, scale=1.0, sampling_ratio=0, aligned=True):
    features = features.astype("float64")
    output = np.zeros((len(boxes), output_size, output_size, features.shape[-1]))
    for box, index, bins in zip(boxes.astype("float64"), batch_indices, output, strict=True):
        x1, y1, x2, y2 = box * scale - (0.5 if aligned else 0.0)
        width, height = (max(side, 0.0 if aligned else 1.0) for side in (x2 - x1, y2 - y1))
        bin_height, bin_width = height / output_size, width / output_size
        num_rows = sampling_ratio or int(np.ceil(bin_height))
        num_columns = sampling_ratio or int(np.ceil(bin_width))
        for i in range(output_size):
            for j in range(output_size):
                for row in range(num_rows):
                    for column in range(num_columns):
                        y = y1 + i * bin_height + (row + 0.5) * bin_height / num_rows
                        x = x1 + j * bin_width + (column + 0.5) * bin_width / num_columns
                        bins[i, j] += sample_by_loop(features[index], y, x) / (num_rows * num_columns)
    return output


def in_graph(function, *arguments, jit_compile=False):
    """Runs in a graph that knows only the number of channels."""
    arguments = [tf.convert_to_tensor(argument) for argument in arguments]
    signature = [
        tf.TensorSpec(
            (None,) * (argument.ndim - 1) + (argument.shape[-1] if argument.ndim > 1 else None,),
            argument.dtype,
        )
        for argument in arguments
    ]
    return tf.function(function, input_signature=signature, jit_compile=jit_compile)(*arguments)


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize(("output_size", "sampling_ratio"), [(3, 0), (7, 0), (1, 0), (3, 2), (2, 5)])
def test_equals_loop(output_size, sampling_ratio, aligned):
    features, boxes = make_features(), np.array(AWKWARD_BOXES, "float32")
    indices = np.arange(len(boxes), dtype="int32") % 2
    expected = align_by_loop(features, boxes, indices, output_size, 1.0, sampling_ratio, aligned)
    pooled = roi_align(features, boxes, indices, output_size, 1.0, sampling_ratio, aligned)
    np.testing.assert_allclose(pooled, expected, rtol=0, atol=5e-6)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_many_boxes_on_a_large_map(jit_compile):
    # More boxes than fit into a group, and windows of many tiles.
    height, width = 31, 37
    features, boxes = make_features((3, height, width, 2)), make_boxes(70, height, width)
    assert len(boxes) > 2 * module.GROUP_SIZE
    assert height * width > 5 * module.TILE_SIZE
    indices = np.random.default_rng(0).integers(0, 3, len(boxes)).astype("int32")
    expected = align_by_loop(features, 8 * boxes, indices, 2, 0.125)
    pooled = in_graph(
        lambda features, boxes, indices: roi_align(features, boxes, indices, 2, 0.125),
        *(features, 8 * boxes, indices),
        jit_compile=jit_compile,
    )
    np.testing.assert_allclose(pooled, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 1, 1, 2), (1, 1, 7, 2), (1, 6, 1, 2), (2, 2, 2, 1)])
def test_tiny_maps(shape):
    features = make_features(shape)
    boxes = np.concatenate([make_boxes(6, *shape[1:3]), [[0, 0, shape[2], shape[1]]]]).astype("float32")
    indices = np.zeros(len(boxes), "int32")
    for sampling_ratio in (0, 2):
        expected = align_by_loop(features, boxes, indices, 2, 1.0, sampling_ratio)
        pooled = roi_align(features, boxes, indices, 2, 1.0, sampling_ratio)
        np.testing.assert_allclose(pooled, expected, rtol=0, atol=5e-6)


@pytest.mark.parametrize("mode", ["eager", pytest.param("graph", marks=pytest.mark.slow), "jit"])
def test_gradient_is_the_transpose(mode):
    # <align(a), b> = <a, gradient for b> for every a, since RoIAlign is linear in its features.
    shape = (2, 13, 17, 2)
    boxes = np.concatenate([make_boxes(34, 13, 17), AWKWARD_BOXES]).astype("float32")
    indices = np.arange(len(boxes), dtype="int32") % 2
    factors = np.random.default_rng(5).normal(size=(len(boxes), 3, 3, 2)).astype("float32")

    def compute_gradients(features, boxes, indices):
        with tf.GradientTape() as tape:
            tape.watch([features, boxes])
            total = tf.reduce_sum(roi_align(features, boxes, indices, 3) * factors)
        gradients = tape.gradient(total, [features, boxes])
        assert gradients[1] is None
        return gradients[0]

    arguments = make_features(shape), boxes, indices
    if mode == "eager":
        gradient = compute_gradients(*(tf.constant(argument) for argument in arguments))
    else:
        gradient = in_graph(compute_gradients, *arguments, jit_compile=mode == "jit")
    for seed in range(3):
        features = make_features(shape, seed)
        expected = np.sum(align_by_loop(features, boxes, indices, 3) * factors)
        assert np.sum(gradient * features) == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_summed_in_full(dtype):
    features = tf.cast(make_features((1, 40, 40, 2)), dtype)
    boxes, indices = np.array([[1, 2, 38, 35], [3, 3, 9, 9]], "float32"), np.zeros(2, "int32")
    with tf.GradientTape() as tape:
        tape.watch(features)
        pooled = roi_align(features, boxes, indices, 2)
    gradient = tape.gradient(pooled, features)
    assert pooled.dtype == gradient.dtype == features.dtype
    expected = align_by_loop(tf.cast(features, "float32").numpy(), boxes, indices, 2)
    error = 2.0**-8 if dtype == "bfloat16" else 2.0**-11
    np.testing.assert_allclose(tf.cast(pooled, "float32"), expected, rtol=error, atol=1e-6)
    assert np.sum(tf.cast(gradient, "float32")) == pytest.approx(2 * 2 * 2 * 2, rel=4 * error)


def test_no_boxes():
    features = make_features()
    boxes, indices = np.zeros((0, 4), "float32"), np.zeros(0, "int32")
    assert roi_align(features, boxes, indices, 7).shape == (0, 7, 7, 3)
    for jit_compile in (False, True):
        pooled = in_graph(
            lambda *arguments: roi_align(*arguments, 7), features, boxes, indices, jit_compile=jit_compile
        )
        assert pooled.shape == (0, 7, 7, 3)
    assert align_regions([features], np.zeros((2, 0, 4), "float32"), 7, (4,)).shape == (2, 0, 7, 7, 3)


def test_levels_by_hand():
    sides = np.array([0.0, 1.0, 56.0, 111.9, 112.0, 223.9, 224.0, 447.9, 448.0, 5000.0], "float32")
    boxes = np.stack([3 + 0 * sides, 5 + 0 * sides, 3 + sides, 5 + sides], -1)
    expected = [0, 0, 0, 0, 1, 1, 2, 2, 3, 3]
    levels = assign_levels(boxes, 4)
    np.testing.assert_array_equal(levels, expected)
    assert levels.dtype == "int32"
    np.testing.assert_array_equal(assign_levels(boxes[None], 2), [np.minimum(expected, 1)])
    coarser = [0, 0, 0, 0, 0, 0, 1, 1, 2, 3]
    np.testing.assert_array_equal(assign_levels(boxes, 4, finest_size=112), coarser)
    # The reference adds 1e-6 to the ratio, so that a side just below 112 counts as 112.
    assert assign_levels(np.array([0, 0, 111.99998, 111.99998], "float32"), 4) == 1
    inside_out = np.array([[9.0, 0.0, 3.0, 500.0]], "float32")
    np.testing.assert_array_equal(assign_levels(inside_out, 4), [0])


def make_pyramid(height=101, width=150, channels=2):
    strides = (4, 8, 16, 32)
    sizes = [(-(-height // stride), -(-width // stride)) for stride in strides]
    return [make_features((2, *size, channels), seed) for seed, size in enumerate(sizes)], strides


def make_regions():
    """Returns boxes of every level, in mixed order, two pictures of 101 x 150 pixels."""
    random = np.random.default_rng(3)
    sides = np.array([8, 30, 60, 100, 130, 180, 200, 250, 400, 500, 900])
    sides = np.stack([random.permutation(sides) for _ in range(2)])
    stretch = random.uniform(0.6, 1.6, sides.shape)
    sides = np.stack([sides * stretch, sides / stretch], -1)
    starts = random.uniform(-20, 80, (2, 11, 2))
    return np.concatenate([starts, starts + sides], -1).astype("float32")


@pytest.mark.parametrize(("mode", "sampling_ratio"), [("eager", 0), ("eager", 2), ("graph", 0), ("jit", 0)])
def test_regions_come_from_their_levels(mode, sampling_ratio):
    pyramid, strides = make_pyramid()
    boxes = make_regions()
    levels = np.asarray(assign_levels(boxes, 4))
    assert set(levels.ravel()) == {0, 1, 2, 3}
    expected = np.zeros((2, 11, 3, 3, 2))
    for i in range(2):
        for j in range(11):
            level, stride = pyramid[levels[i, j]], strides[levels[i, j]]
            expected[i, j] = align_by_loop(level, boxes[i, j : j + 1], [i], 3, 1 / stride, sampling_ratio)[0]

    def run(boxes, *pyramid):
        pooled = align_regions(pyramid, boxes, 3, strides, sampling_ratio)
        assert pooled.shape[2:] == (3, 3, 2)  # a dense layer on top needs to know it
        return pooled

    if mode == "eager":
        pooled = run(boxes, *pyramid)
    else:
        pooled = in_graph(run, boxes, *pyramid, jit_compile=mode == "jit")
    np.testing.assert_allclose(pooled, expected, rtol=0, atol=1e-5)


def test_every_level_gets_its_gradient():
    pyramid, strides = make_pyramid()
    pyramid = [tf.constant(level) for level in pyramid]
    boxes = make_regions()
    with tf.GradientTape() as tape:
        tape.watch(pyramid)
        pooled = align_regions(pyramid, boxes, 3, strides)
    gradients = tape.gradient(pooled, pyramid)
    for index, gradient in enumerate(gradients):
        # Each bin within the map distributes a weight of 1 for each channel.
        assert gradient.shape == pyramid[index].shape
        ones = [tf.cast(tf.fill(level.shape, k == index), "float32") for k, level in enumerate(pyramid)]
        assert np.sum(gradient) == pytest.approx(np.sum(align_regions(ones, boxes, 3, strides)), rel=1e-5)
        assert np.sum(gradient) > 1.0


def test_refuses_what_makes_no_sense():
    features, boxes = make_features(), np.zeros((1, 4), "float32")
    with pytest.raises(ValueError, match=r"output_size must be at least 1\. Received: 0"):
        roi_align(features, boxes, [0], 0)
    with pytest.raises(ValueError, match=r"sampling_ratio.*Received: -1"):
        align_regions([features], boxes[None], 7, (4,), sampling_ratio=-1)
    with pytest.raises(ValueError, match=r"Received: 1 levels and strides=\(4, 8, 16, 32\)"):
        align_regions([features], boxes[None], 7)
    with pytest.raises(ValueError, match="Received: 0 levels"):
        align_regions([], boxes[None], 7, ())


@pytest.mark.parametrize("aligned", [1, 0])
@pytest.mark.parametrize("sampling_ratio", [0, 2])
@pytest.mark.parametrize("output_size", [7, 14])
def test_equals_mmcv(output_size, sampling_ratio, aligned):
    reference = load("ops/roi_align.npz")
    features, rois = reference["feat"].transpose(0, 2, 3, 1), reference["rois"]
    pooled = roi_align(features, rois[:, 1:], rois[:, 0], output_size, 0.125, sampling_ratio, bool(aligned))
    expected = reference[f"out{output_size}_sr{sampling_ratio}_aligned{aligned}"]
    check(expected, np.asarray(pooled).transpose(0, 3, 1, 2), 1e-5)


def test_gradient_equals_mmcv():
    reference = load("ops/roi_align.npz")
    rois = reference["rois"]

    def compute_gradient(features, boxes, indices):
        with tf.GradientTape() as tape:
            tape.watch(features)
            total = tf.reduce_sum(roi_align(features, boxes, indices, 7, 0.125) ** 2)
        return tape.gradient(total, features)

    features = reference["feat"].transpose(0, 2, 3, 1)
    gradient = in_graph(compute_gradient, features, rois[:, 1:], rois[:, 0])
    check(reference["grad_feat_sum_sq_out7_sr0_aligned1"], gradient.numpy().transpose(0, 3, 1, 2), 2e-6)


def test_levels_equal_mmdetection():
    reference = load("ops/resample.npz")
    for jit_compile in (False, True):
        assign = tf.function(lambda boxes: assign_levels(boxes, 4), jit_compile=jit_compile)
        np.testing.assert_array_equal(assign(reference["level_rois"][:, 1:]), reference["levels"])


# Pools on another backend, with boxes that depend on the features as proposals do.
BACKEND_SCRIPT = """
import sys
import keras
import numpy as np
from heads.layers.roi_align import align_regions, roi_align

arrays = np.load(sys.argv[1])
boxes, regions, indices = arrays["boxes"], arrays["regions"], arrays["indices"]
pyramid = [arrays[f"level_{index}"] for index in range(4)]

def compute_loss(pyramid):
    shift = keras.ops.mean(pyramid[0]) * 0.0
    pooled = roi_align(pyramid[0], keras.ops.add(boxes, shift), indices, 3, 0.25)
    more = align_regions(pyramid, keras.ops.add(regions, shift), 2)
    empty = roi_align(pyramid[0], boxes[:0], indices[:0], 3)
    return keras.ops.sum(pooled**2) + keras.ops.sum(more**2), (more, empty)

if keras.backend.backend() == "jax":
    import jax
    gradients, (pooled, empty) = jax.jit(jax.grad(compute_loss, has_aux=True))(pyramid)
else:
    import torch
    pyramid = [torch.tensor(level, requires_grad=True) for level in pyramid]
    loss, (pooled, empty) = compute_loss(pyramid)
    gradients = torch.autograd.grad(loss, pyramid)
results = {f"gradient_{index}": np.asarray(gradient) for index, gradient in enumerate(gradients)}
np.savez(sys.argv[2], pooled=keras.ops.convert_to_numpy(pooled), empty=empty.shape, **results)
"""


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_other_backends(tmp_path, backend):
    pytest.importorskip(backend)
    pyramid, _ = make_pyramid()
    regions = make_regions()
    boxes, indices = 4 * make_boxes(40, 26, 38), np.arange(40, dtype="int32") % 2
    levels = {f"level_{index}": level for index, level in enumerate(pyramid)}
    np.savez(tmp_path / "arrays.npz", boxes=boxes, regions=regions, indices=indices, **levels)
    run = subprocess.run(
        [sys.executable, "-c", BACKEND_SCRIPT, tmp_path / "arrays.npz", tmp_path / "results.npz"],
        cwd=ROOT,
        env={**os.environ, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "2"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr[-4000:]
    results = np.load(tmp_path / "results.npz")
    pyramid = [tf.constant(level) for level in pyramid]
    with tf.GradientTape() as tape:
        tape.watch(pyramid)
        total = tf.reduce_sum(roi_align(pyramid[0], boxes, indices, 3, 0.25) ** 2)
        pooled = align_regions(pyramid, regions, 2)
        total = total + tf.reduce_sum(pooled**2)
    np.testing.assert_allclose(results["pooled"], pooled, rtol=0, atol=1e-5)
    for index, expected in enumerate(tape.gradient(total, pyramid)):
        gradient = results[f"gradient_{index}"]
        np.testing.assert_allclose(gradient, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    assert tuple(results["empty"]) == (0, 3, 3, 2)


def test_symbolic_shapes():
    pyramid = [keras.Input((None, None, 8)) for _ in range(2)]
    boxes = keras.Input((None, 4))
    pool = keras.layers.Lambda(lambda inputs: align_regions(inputs[1:], inputs[0], 7, (4, 8)))
    assert pool([boxes, *pyramid]).shape[2:] == (7, 7, 8)
