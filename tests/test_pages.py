import numpy as np
import pytest

from heads.drawing.pages import draw_legend, label_picture, tile_pictures
from heads.drawing.palette import class_palette

NAMES = ("sky", "ground", "water")


def test_legend_shows_each_colour_and_breaks_lines():
    wide, narrow = draw_legend(NAMES, 400), draw_legend(NAMES, 100)
    assert wide.shape[1:] == (400, 3)
    assert narrow.shape[1:] == (100, 3)
    assert narrow.shape[0] > wide.shape[0]
    for picture in (wide, narrow):
        assert picture.dtype == np.uint8
        for colour in class_palette(3):
            assert (picture == colour).all(axis=-1).sum() > 100  # the square
    custom = draw_legend(NAMES[:1], 200, np.array([(1, 200, 3)], np.uint8))
    assert (custom == (1, 200, 3)).all(axis=-1).any()


def test_legend_edge_cases():
    assert draw_legend([], 100).min() == 255
    assert draw_legend(["a name that is much too long for one line"] * 2, 90).shape[1] == 90
    with pytest.raises(ValueError, match="width must be at least"):
        draw_legend(NAMES, 20)
    with pytest.raises(ValueError, match="each of 3 names"):
        draw_legend(NAMES, 200, class_palette(2))


def test_caption_is_above_the_picture():
    picture = np.full((10, 60, 3), 7, np.uint8)
    labelled = label_picture(picture, "sky")
    np.testing.assert_array_equal(labelled[-10:], picture)
    strip = labelled[:-10]
    assert 12 <= len(strip) <= 30
    assert strip.min() < 50  # ink
    assert (strip[:, -5:] == 255).all()
    assert (label_picture(picture, "")[:-10] == 255).all()


def test_long_caption_is_cut_at_the_pictures_width():
    for width in (1, 9, 40):
        picture = np.zeros((4, width, 3), np.uint8)
        assert label_picture(picture, "a very long caption").shape[1] == width


def test_tiles_lie_where_they_should():
    rows = [[np.full((2, 3, 3), 10, np.uint8), np.full((4, 1, 3), 20, np.uint8)], [np.full((1, 2, 3), 30.0)]]
    page = tile_pictures(rows, margin=1)
    expected = np.full((8, 7), 255)
    expected[1:3, 1:4] = 10
    expected[1:5, 5] = 20
    expected[6, 1:3] = 30
    np.testing.assert_array_equal(page, np.repeat(expected[:, :, None], 3, axis=2))
    assert page.dtype == np.uint8


@pytest.mark.parametrize("rows", [[], [[]], [[np.zeros((2, 2, 3), np.uint8)], []]])
def test_nothing_to_tile_is_refused(rows):
    with pytest.raises(ValueError, match="at least one"):
        tile_pictures(rows)


@pytest.mark.parametrize("shape", [(4, 4), (4, 4, 1), (1, 4, 4, 3)])
def test_pictures_of_a_wrong_shape_are_refused(shape):
    with pytest.raises(ValueError, match=rf"RGB. Received: shape \({shape[0]}, 4"):
        tile_pictures([[np.zeros(shape, np.uint8)]])
