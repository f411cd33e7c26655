"""Three bands as red, green and blue."""

import numpy as np
import pytest

from heads.drawing import draw_bands, draw_result, overlay_label_map
from heads.drawing.palette import class_palette


def test_each_band_is_stretched_on_its_own():
    image = np.zeros((10, 20, 5), "uint16")
    image[..., 4] = np.arange(200).reshape(10, 20) * 50
    image[..., 1] = 7
    image[..., 0] = np.arange(200).reshape(10, 20) % 20
    drawn = draw_bands(image, (4, 1, 0))
    assert drawn.shape == (10, 20, 3)
    assert drawn.dtype == np.uint8
    red = drawn[..., 0].ravel()
    assert red[0] == 0
    assert red[-1] == 255
    assert abs(int(red[100]) - 128) <= 2
    assert (np.diff(red.astype(int)) >= 0).all()
    assert not drawn[..., 1].any()
    np.testing.assert_array_equal(drawn[0, :, 2], drawn[9, :, 2])
    assert drawn[..., 2].max() == 255
    same = draw_bands(image / 1000 - 3, [4, 4, 4])
    np.testing.assert_array_equal(same[..., 0], same[..., 2])
    np.testing.assert_allclose(same[..., 0].ravel().astype(int), red, atol=1)


def test_the_first_bands_are_shown():
    image = np.random.default_rng(0).random((10, 20, 5), "float32")
    np.testing.assert_array_equal(draw_bands(image), draw_bands(image, (0, 1, 2)))
    np.testing.assert_array_equal(draw_bands(image[..., :2]), draw_bands(image, (0, 1, 1)))
    np.testing.assert_array_equal(draw_bands(image[..., :1]), draw_bands(image, (0, 0, 0)))


def test_single_pixels_do_not_darken_the_rest():
    image = np.random.default_rng(0).random((50, 50, 3), "float32")
    image[0, 0] = 1e6
    assert draw_bands(image, (0, 1, 2)).mean() > 100


@pytest.mark.parametrize("bands", [(0, 1), (0, 1, 5), (-1, 0, 1), (0, 1, 2, 3), 3, "012", (0, 1, None)])
def test_bands_that_are_none_are_refused(bands):
    with pytest.raises(ValueError, match=r"bands must be three places in 0 \.\. 4\. Received: "):
        draw_bands(np.zeros((4, 4, 5)), bands)


@pytest.mark.parametrize("shape", [(4, 4), (0, 4, 5), (2, 4, 4, 5)])
def test_images_that_are_none_are_refused(shape):
    with pytest.raises(ValueError, match=r"image must be \(height, width, bands\)\. Received: shape"):
        draw_bands(np.zeros(shape), (0, 1, 2))


def test_results_are_drawn_on_three_bands(tmp_path):
    tifffile = pytest.importorskip("tifffile", reason="pip install 'van-backbones[multispectral]'")
    image = np.random.default_rng(0).integers(0, 3000, (90, 120, 6), "uint16")
    label_map = np.zeros((90, 120), "int32")
    label_map[:, 60:] = 1
    drawn = draw_result(image, {"label_map": label_map}, ("soil", "plants"), bands=(3, 2, 1))
    expected = overlay_label_map(draw_bands(image, (3, 2, 1)), label_map, 0.5, class_palette(2))
    np.testing.assert_array_equal(drawn[:90, :120], expected)
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, image, planarconfig="contig", photometric="minisblack")
    again = draw_result(path, {"label_map": label_map}, ("soil", "plants"), bands=(3, 2, 1))
    np.testing.assert_array_equal(again, drawn)
