import numpy as np
import pytest
import tensorflow as tf
from golden_reference import load

from heads.ops.anchors import make_anchors, mark_contained, mark_inside

LEVEL_SIZES = [(7, 9), (4, 5), (2, 3), (1, 2), (1, 1)]
OCTAVES = tuple(4 * 2 ** (i / 3) for i in range(3))
# name of the reference: strides, scales, ratios
KINDS = {
    "retina": ((8, 16, 32, 64, 128), OCTAVES, (0.5, 1.0, 2.0)),
    "rpn": ((4, 8, 16, 32, 64), (8,), (0.5, 1.0, 2.0)),
    "atss": ((8, 16, 32, 64, 128), (8,), (1.0,)),
}


def anchors_by_loop(size, stride, scales, ratios):
    anchors = []
    for row in range(size[0]):
        for column in range(size[1]):
            for ratio in ratios:
                for scale in scales:
                    half_x = scale * stride / ratio**0.5 / 2
                    half_y = scale * stride * ratio**0.5 / 2
                    x, y = column * stride, row * stride
                    anchors.append([x - half_x, y - half_y, x + half_x, y + half_y])
    return np.array(anchors)


def inside_by_loop(size, stride, num_anchors, image_size, divisor):
    """Marks the cells as mmdetection does: those below ceil(padded side / stride)."""
    used = [-(-(side + -side % divisor) // stride) for side in image_size]
    inside = []
    for row in range(size[0]):
        for column in range(size[1]):
            inside += [row < used[0] and column < used[1]] * num_anchors
    return np.array(inside)


@pytest.mark.parametrize("kind", KINDS)
def test_anchors_equal_loop(kind):
    strides, scales, ratios = KINDS[kind]
    levels = make_anchors(LEVEL_SIZES, strides, scales, ratios)
    for anchors, size, stride in zip(levels, LEVEL_SIZES, strides, strict=True):
        np.testing.assert_allclose(
            anchors, anchors_by_loop(size, stride, scales, ratios), rtol=1e-6, atol=1e-4
        )


def test_ratio_is_height_by_width():
    ((x1, y1, x2, y2),) = make_anchors([(1, 1)], [16], [1], [4.0])[0].numpy()
    assert (x1, y1, x2, y2) == (-4, -16, 4, 16)


@pytest.mark.parametrize("kind", KINDS)
def test_anchors_equal_reference_to_the_bit(kind):
    reference = load("ops/anchors.npz")
    for level, anchors in enumerate(make_anchors(LEVEL_SIZES, *KINDS[kind])):
        np.testing.assert_array_equal(anchors, reference[f"{kind}_grid_{level}"])


@pytest.mark.parametrize("divisor", [1, 32])
@pytest.mark.parametrize("kind", KINDS)
def test_inside_equals_loop(kind, divisor):
    # Sizes exactly at a cell's border, and one pixel off it.
    image_sizes = np.array([[50, 70], [33, 64], [32, 1], [7, 65], [16, 17]], "int32")
    strides, scales, ratios = KINDS[kind]
    for anchors, size, stride in zip(
        make_anchors(LEVEL_SIZES, *KINDS[kind]), LEVEL_SIZES, strides, strict=True
    ):
        num_anchors = len(scales) * len(ratios)
        expected = [inside_by_loop(size, stride, num_anchors, side, divisor) for side in image_sizes]
        np.testing.assert_array_equal(mark_inside(anchors, image_sizes, divisor), expected)


def test_inside_withstands_rounding_far_from_the_corner():
    # The centres of the largest anchors are a little off.
    size, stride, image_sizes = (43, 43), 31, np.array([[1312, 1303], [31 * 42, 31 * 42 + 1]], "int32")
    anchors = make_anchors([size], [stride], KINDS["retina"][1], (0.3, 1.0, 2.7))[0]
    expected = [inside_by_loop(size, stride, 9, side, 1) for side in image_sizes]
    np.testing.assert_array_equal(mark_inside(anchors, image_sizes, 1), expected)


def test_inside_equals_reference():
    reference = load("retinanet_b0/loss_eval.npz")
    image_sizes = np.stack([reference["img0_shape"], reference["img1_shape"]])
    sizes = [(32, 40), (16, 20), (8, 10), (4, 5), (2, 3)]
    for level, anchors in enumerate(make_anchors(sizes, *KINDS["retina"])):
        inside = mark_inside(anchors, image_sizes)
        for image in range(2):
            np.testing.assert_array_equal(inside[image], reference[f"valid_flags_img{image}_{level}"])
        # The second image leaves cells of the finest level to the padding.
        assert level > 0 or not np.all(inside[1])


def test_contained_anchors_by_hand():
    anchors = np.array(
        [[0, 0, 9, 9], [-1, 0, 5, 5], [0, 0, 10, 5], [0, -0.5, 5, 5], [0, 0, 5, 20]], "float32"
    )
    contained = mark_contained(anchors, np.array([[20, 10], [21, 11]]))
    expected = [[True, False, False, False, False], [True, False, True, False, True]]
    np.testing.assert_array_equal(contained, expected)


def test_unknown_sizes():
    @tf.function(input_signature=[tf.TensorSpec((None, None, None, 1)), tf.TensorSpec((None, 2), tf.int32)])
    def make(features, image_sizes):
        sizes = [(tf.shape(features)[1], tf.shape(features)[2])]
        anchors = make_anchors(sizes, [8], [4.0], [0.5, 2.0])[0]
        return anchors, mark_inside(anchors, image_sizes)

    image_sizes = np.array([[20, 30], [70, 60]], "int32")
    for size in ((7, 9), (3, 1), (0, 4)):
        anchors, inside = make(np.zeros((2, *size, 1), "float32"), image_sizes)
        np.testing.assert_array_equal(anchors, make_anchors([size], [8], [4.0], [0.5, 2.0])[0])
        assert anchors.shape == (size[0] * size[1] * 2, 4)
        np.testing.assert_array_equal(inside, [inside_by_loop(size, 8, 2, side, 32) for side in image_sizes])


def test_needs_a_stride_per_level():
    with pytest.raises(ValueError, match=r"5 sizes and strides=\(8, 16\)"):
        make_anchors(LEVEL_SIZES, (8, 16), [4.0], [1.0])
