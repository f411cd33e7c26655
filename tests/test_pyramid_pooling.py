import types

import keras
import numpy as np
import pytest
import tensorflow as tf
from golden_reference import check, checkpoint, load

from heads import PyramidPooling
from heads.ops.resizing import pool_adaptively
from van_backbones import VANBackbone
from van_backbones.checkpoints.loading import load_state_dict


def make_maps(shape=(2, 7, 9, 3), seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def make_layer(channels=4, pool_sizes=(1, 2, 3, 6), width=3):
    keras.utils.set_random_seed(0)
    layer = PyramidPooling(channels, pool_sizes)
    layer.build((None, None, None, width))
    generator = np.random.default_rng(1)
    for block in (*layer.pool_blocks, layer.bottleneck):
        for variable in block.norm.variables:
            variable.assign(generator.uniform(0.5, 1.5, variable.shape))
    return layer


def convolve_block(block, maps):
    """Returns convolution, batch norm and ReLU at inference, one position after the other."""
    kernel = block.conv.kernel.numpy()
    side, margin = kernel.shape[0], kernel.shape[0] // 2
    padded = np.pad(maps, ((0, 0), (margin, margin), (margin, margin), (0, 0)))
    outputs = np.zeros((*maps.shape[:3], kernel.shape[-1]))
    for y in range(maps.shape[1]):
        for x in range(maps.shape[2]):
            outputs[:, y, x] = np.tensordot(padded[:, y : y + side, x : x + side], kernel, 3)
    gamma, beta, mean, variance = [variable.numpy() for variable in block.norm.variables]
    return np.maximum((outputs - mean) / np.sqrt(variance + 1e-5) * gamma + beta, 0.0)


def pool_by_loop(maps, num_bins):
    height, width = maps.shape[1:3]
    pooled = np.zeros((len(maps), num_bins, num_bins, maps.shape[-1]))
    for i in range(num_bins):
        for j in range(num_bins):
            rows = slice(i * height // num_bins, -(-(i + 1) * height // num_bins))
            columns = slice(j * width // num_bins, -(-(j + 1) * width // num_bins))
            pooled[:, i, j] = maps[:, rows, columns].mean((1, 2))
    return pooled


def interpolation_matrix(old, new):
    position = np.maximum((np.arange(new) + 0.5) * old / new - 0.5, 0.0)
    lower = position.astype(int)
    matrix = np.zeros((new, old))
    for row in range(new):
        matrix[row, lower[row]] += 1.0 - (position[row] - lower[row])
        matrix[row, min(lower[row] + 1, old - 1)] += position[row] - lower[row]
    return matrix


def pool_pyramid_by_loop(layer, maps):
    parts = [maps]
    for num_bins, block in zip(layer.pool_sizes, layer.pool_blocks, strict=True):
        cells = convolve_block(block, pool_by_loop(maps, num_bins))
        rows = interpolation_matrix(num_bins, maps.shape[1])
        columns = interpolation_matrix(num_bins, maps.shape[2])
        parts.append(np.einsum("yi,bijc,xj->byxc", rows, cells, columns))
    return convolve_block(layer.bottleneck, np.concatenate(parts, axis=-1))


@pytest.mark.parametrize("shape", [(2, 7, 9, 3), (1, 2, 1, 3), (1, 12, 6, 3)])
def test_pyramid_pooling_equals_loop(shape):
    layer, maps = make_layer(), make_maps(shape)
    expected = pool_pyramid_by_loop(layer, maps)
    assert 0.05 < np.mean(expected == 0.0) < 0.95
    np.testing.assert_allclose(layer(maps), expected, rtol=0, atol=1e-5)


def test_pyramid_pooling_in_a_graph_without_sizes():
    layer = make_layer()
    run = tf.function(lambda maps: layer(maps), input_signature=[tf.TensorSpec((None, None, None, 3))])
    for shape in ((2, 7, 9, 3), (1, 2, 1, 3), (3, 12, 6, 3)):
        maps = make_maps(shape)
        np.testing.assert_allclose(run(maps), layer(maps), rtol=0, atol=1e-5)


def test_pyramid_pooling_trains_its_norms():
    layer = make_layer(pool_sizes=(1, 2))
    before = [block.norm.moving_mean.numpy() for block in (*layer.pool_blocks, layer.bottleneck)]
    layer(make_maps(), training=True)
    for old, block in zip(before, (*layer.pool_blocks, layer.bottleneck), strict=True):
        assert np.abs(block.norm.moving_mean - old).max() > 1e-3


def test_pyramid_pooling_config_and_shapes():
    layer = PyramidPooling(5, pool_sizes=[1, 4], name="pooling", dtype="mixed_bfloat16")
    copy = PyramidPooling.from_config(layer.get_config())
    assert copy.get_config() == layer.get_config()
    assert copy(keras.Input((None, 8, 3))).shape == (None, None, 8, 5)
    assert [block.conv.kernel.shape for block in copy.pool_blocks] == [(1, 1, 3, 5)] * 2
    assert copy.bottleneck.conv.kernel.shape == (3, 3, 3 + 2 * 5, 5)
    assert keras.backend.standardize_dtype(copy(make_maps()).dtype) == "bfloat16"


@pytest.mark.parametrize("case", ["forward", "forward_odd"])
def test_pyramid_pooling_equals_mmsegmentation(case):
    reference = load(f"upernet_b0/{case}.npz")
    arrays = checkpoint("upernet_b0")
    backbone = VANBackbone("b0", normalization=None, layer_norm_epsilon=1e-5)
    layer = PyramidPooling(512)
    layer.build((None, None, None, 256))
    blocks = {f"psp_modules.{index}.1.": block for index, block in enumerate(layer.pool_blocks)}
    blocks["bottleneck."] = layer.bottleneck
    names = {}
    for prefix, block in blocks.items():
        names |= {prefix + name: part for name, part in block.reference_layers().items()}
    fill(backbone, arrays, "backbone.")
    prefixes = tuple(f"decode_head.{prefix}" for prefix in blocks)
    arrays = {name: array for name, array in arrays.items() if name.startswith(prefixes)}
    fill(types.SimpleNamespace(name="pooling", reference_layers=lambda: names), arrays, "decode_head.")

    maps = backbone(reference["input"].transpose(0, 2, 3, 1), training=False)["P5"]
    for index, (num_bins, block) in enumerate(zip(layer.pool_sizes, layer.pool_blocks, strict=True)):
        cells = block(pool_adaptively(maps, num_bins), training=False)
        check(reference[f"ppm_{index}"], np.asarray(cells).transpose(0, 3, 1, 2))
    check(reference["psp_out"], np.asarray(layer(maps)).transpose(0, 3, 1, 2))


def fill(part, arrays, prefix):
    load_state_dict(part, {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)})
