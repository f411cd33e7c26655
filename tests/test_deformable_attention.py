import keras
import numpy as np
import pytest
from golden_reference import check, checkpoint, load

from heads.layers import deformable_attention
from heads.layers.deformable_attention import DeformableAttention, spread_offsets
from heads.ops.points import sample_maps
from van_backbones.checkpoints.layouts import to_keras


def test_the_start():
    offsets = spread_offsets(8, 2, 3)
    assert offsets.shape == (8, 2, 3, 2)
    # To the right, right and down, down ..., at a distance of one, two and three positions.
    np.testing.assert_allclose(offsets[0, 1], [[1, 0], [2, 0], [3, 0]], atol=1e-12)
    np.testing.assert_allclose(offsets[1, 0], [[1, 1], [2, 2], [3, 3]], atol=1e-12)
    np.testing.assert_allclose(offsets[2, 0, 0], [0, 1], atol=1e-12)
    layer = DeformableAttention(16, 2, num_heads=8, num_points=3)
    np.testing.assert_allclose(layer.offset_dense.bias, offsets.ravel(), atol=1e-6)
    assert not np.any(layer.offset_dense.kernel)
    assert not np.any(layer.weight_dense.kernel)


def test_points_are_positions():
    keras.utils.set_random_seed(0)
    layer = DeformableAttention(2, num_levels=1, num_heads=1, num_points=2)
    for dense in (layer.value_dense, layer.output_dense):
        dense.kernel.assign(np.eye(2))
    layer.offset_dense.bias.assign([1.0, 0.0] * 2)  # both points one position to the right
    values = np.arange(12, dtype="float32").reshape(1, 6, 2)  # a map of 2 x 3
    points = np.array([[0.5 / 3, 0.25], [1.5 / 3, 0.75], [2.5 / 3, 0.75]], "float32")
    outputs = layer(np.zeros((1, 3, 2), "float32"), values, points, sizes=[(2, 3)])
    np.testing.assert_allclose(outputs[0], [[2, 3], [10, 11], [0, 0]], atol=1e-5)


def test_the_numbers_are_mmcvs():
    reference = load("mask2former_b0/msdeform_attn.npz")
    weights = checkpoint("mask2former_b0")
    layer = DeformableAttention(256, num_levels=3)
    for name, dense in layer.reference_layers().items():
        for suffix, variable in (("weight", dense.kernel), ("bias", dense.bias)):
            array = weights[f"panoptic_head.pixel_decoder.encoder.layers.0.self_attn.{name}.{suffix}"]
            variable.assign(to_keras(array, dense))
    query, position = reference["query"][:, 0], reference["query_pos"][:, 0]
    sizes = [tuple(size) for size in reference["spatial_shapes"].tolist()]
    points = np.concatenate(
        [
            np.stack(np.meshgrid((np.arange(w) + 0.5) / w, (np.arange(h) + 0.5) / h), -1).reshape(-1, 2)
            for h, w in sizes
        ]
    ).astype("float32")
    outputs = layer(query + position, query, points, sizes=sizes)
    check(reference["output"], np.asarray(outputs) + query)


def test_places_keep_float32_in_half_precision():
    places = []

    def spy(level_map, points):
        places.append(points)
        return sample_maps(level_map, points)

    layer = DeformableAttention(8, num_levels=1, num_heads=2, num_points=2, dtype="mixed_bfloat16")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(deformable_attention, "sample_maps", spy)
        points = np.array([[1001 / 2000, 0.5]], "float32")
        layer(np.zeros((1, 1, 8), "float16"), np.zeros((1, 12, 8), "float16"), points, sizes=[(3, 4)])
    assert keras.backend.standardize_dtype(places[0].dtype) == "float32"
    np.testing.assert_allclose(np.asarray(places[0])[0, 0], [1001 / 2000 + 1 / 4, 0.5], rtol=1e-6)
