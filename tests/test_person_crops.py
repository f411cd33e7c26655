import numpy as np
import pytest

from heads.person_crops import (
    cut_out,
    fit_box,
    invert_warp,
    make_warp,
    mirror_warp,
    warp_picture,
    warp_points,
)


def sample_slowly(pixels, warp, crop_size):
    """Crops with a loop over the crop's pixels: each is interpolated at its position in the picture."""
    back = invert_warp(warp)
    crop = np.zeros((*crop_size, 3))
    for row, column in np.ndindex(*crop_size):
        x, y = back @ (column, row, 1.0)
        if not (-0.5 <= x < pixels.shape[1] - 0.5 and -0.5 <= y < pixels.shape[0] - 0.5):
            continue
        left, top = int(np.floor(x)), int(np.floor(y))
        for i, j in ((0, 0), (0, 1), (1, 0), (1, 1)):
            share = (1 - abs(y - top - i)) * (1 - abs(x - left - j))
            source = (np.clip(top + i, 0, len(pixels) - 1), np.clip(left + j, 0, pixels.shape[1] - 1))
            crop[row, column] += share * pixels[source]
    return crop


@pytest.mark.parametrize("rotation", [0.0, 35.0, -80.0])
def test_pixels_are_interpolated(rotation):
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (30, 40, 3)).astype("uint8")
    warp = make_warp((18.3, 12.7), (22.0, 25.0), (32, 24), rotation)
    expected = sample_slowly(pixels, warp, (32, 24))
    crop = warp_picture(pixels, warp, (32, 24))
    assert crop.dtype == np.uint8
    assert crop.shape == (32, 24, 3)
    assert np.mean(np.abs(crop - expected) > 1.0) < 0.005  # a border pixel may be outside because of rounding


def test_a_picture_as_a_whole_stays_as_it_is():
    pixels = np.random.default_rng(0).integers(0, 256, (32, 24, 3)).astype("uint8")
    warp = make_warp((12.0, 16.0), (24.0, 32.0), (32, 24))
    np.testing.assert_allclose(warp, [[1, 0, 0], [0, 1, 0]], atol=1e-12)
    np.testing.assert_array_equal(warp_picture(pixels, warp, (32, 24)), pixels)
    mirrored = warp_picture(pixels, mirror_warp(warp, 24), (32, 24))
    np.testing.assert_array_equal(mirrored, pixels[:, ::-1])


def test_boxes_get_the_ratio_of_the_crop():
    center, size = fit_box((10, 20, 50, 40))
    np.testing.assert_allclose(center, (30, 30))
    np.testing.assert_allclose(size, (50, 25))
    warp = make_warp(center, size, (256, 192))
    # The wide box fills the width.
    np.testing.assert_allclose(warp_points([(5, 30), (55, 30)], warp), [(0, 128), (192, 128)], atol=1e-9)
    # A tall one fills the height.
    warp = make_warp((30, 30), (10, 64), (256, 192))
    np.testing.assert_allclose(warp_points([(30, -2), (30, 62)], warp), [(96, 0), (96, 256)], atol=1e-9)


def test_turns_go_the_way_of_the_reference():
    """A window turned clockwise: what is at its upper edge, to the right of the centre, comes to the top."""
    warp = make_warp((50, 50), (40, 40), (80, 80), rotation=90)
    np.testing.assert_allclose(warp_points([(70, 50), (50, 70)], warp), [(40, 0), (80, 40)], atol=1e-9)


def test_maps_back():
    random = np.random.default_rng(0)
    points = random.uniform(-50, 50, (5, 7, 2))
    warp = mirror_warp(make_warp((3, 4), (20, 30), (64, 48), 33.0), 100)
    np.testing.assert_allclose(warp_points(warp_points(points, warp), invert_warp(warp)), points, atol=1e-9)


def test_cut_out_takes_floats_and_maps_back():
    pixels = np.random.default_rng(0).integers(0, 256, (30, 40, 3)).astype("uint8")
    crop, to_picture = cut_out(pixels, (4, 5, 30, 28), (64, 48))
    from_floats, _ = cut_out(pixels.astype("float32") + 0.3, (4, 5, 30, 28), (64, 48))
    np.testing.assert_array_equal(crop, from_floats)
    assert (crop.dtype, to_picture.dtype) == (np.float32, np.float32)
    np.testing.assert_allclose(to_picture @ (24, 32, 1), (17, 16.5), atol=1e-5)
