import numpy as np
import pytest

from van_backbones.feature_maps.cells import (
    caption,
    choose_cell_size,
    draw_bar,
    mark_point,
    overlay,
    resize,
    tile,
    tint,
    write,
)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((192, 100), (192, 100)),
        ((64, 48), (192, 144)),
        ((1, 1), (192, 192)),
        ((640, 320), (320, 160)),
        ((2, 4000), (1, 320)),
    ],
)
def test_sizes_that_fit_a_page(size, expected):
    assert choose_cell_size(size) == expected


def test_values_beyond_the_limits_have_the_colours_of_the_ends():
    colours = tint(np.array([[-9.0, -1.0, 0.0, 1.0, 9.0]]), "RdBu_r", (-1.0, 1.0))
    assert colours.dtype == np.uint8
    assert (colours[0, 0] == colours[0, 1]).all()
    assert (colours[0, 3] == colours[0, 4]).all()
    assert colours[0, 2].min() > 240  # white in the middle
    assert colours[0, 0, 2] > colours[0, 0, 0]  # blue below
    assert colours[0, 4, 0] > colours[0, 4, 2]  # red above


def test_cells_stay_visible_and_large_maps_are_averaged():
    picture = np.arange(12, dtype="uint8").reshape(2, 2, 3)
    np.testing.assert_array_equal(resize(picture, (6, 4)), picture.repeat(3, axis=0).repeat(2, axis=1))
    assert resize(np.array([[[0] * 3, [200] * 3]] * 2, "uint8"), (1, 1)).tolist() == [[[100] * 3]]


def test_overlays_show_the_picture_below():
    picture = np.zeros((2, 2, 3), "uint8")
    picture[0] = 200
    found = overlay(picture, np.full((2, 2, 3), (100, 0, 50), "uint8"))
    assert found[0, 0].tolist() == [140, 80, 110]
    assert found[1, 0].tolist() == [60, 0, 30]


def test_a_point_is_marked_in_its_own_pixel():
    picture = np.full((40, 80, 3), 90, "uint8")
    assert mark_point(picture, None, (20, 40)) is picture
    marked = mark_point(picture, (10, 5), (20, 40))  # drawn twice as large
    assert (marked[11, 21] == 255).all()
    changed = np.argwhere((marked != picture).any(axis=-1))
    assert np.abs(changed - (11, 21)).max() <= 9


def test_bars_go_from_end_to_end():
    bar = draw_bar("viridis", 200, ("low", "high"))
    expected = tint(np.array([[0.0, 1.0]]), "viridis", (0.0, 1.0))[0]
    np.testing.assert_array_equal(bar[3, [0, 199]], expected)
    assert (bar[14:] < 128).any()  # what is written
    over = draw_bar("viridis", 200, ("low", "high"), is_overlay=True)
    np.testing.assert_array_equal(over[3, 0], np.rint(0.4 * 128 + 0.6 * expected[0]))


def test_texts_are_broken_and_warnings_are_red():
    one, two = write(["word " * 3], 400), write(["word " * 60], 400)
    assert one.shape[1] == two.shape[1] == 400
    assert len(two) > len(one)
    assert not (one == (200, 0, 0)).all(axis=-1).any()
    assert (write(["word"], 400, "RANDOM") == (200, 0, 0)).all(axis=-1).any()
    assert write([], 0).shape[1] == 1


def test_pages():
    picture = np.zeros((10, 20, 3), "uint8")
    page = tile([[picture, picture], [caption(picture, "a text that is far too long for it")]])
    assert page.shape == (6 + 10 + 6 + 31 + 6 + 6 - 6 + 0, 6 + 2 * 26, 3)
    assert (page[6:16, 6:26] == 0).all()
    assert (page[16:22] == 255).all()
