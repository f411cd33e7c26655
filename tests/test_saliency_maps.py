import numpy as np
import pytest

from heads.drawing.saliency_maps import draw_saliency_comparison, draw_saliency_map


def test_saliency_map_is_grey():
    picture = draw_saliency_map(np.array([[0.0, 0.5], [0.2, 1.0]]))
    assert picture.dtype == np.uint8
    assert picture[..., 1].tolist() == [[0, 128], [51, 255]]
    assert (picture == picture[..., :1]).all()


@pytest.mark.parametrize("value", [-0.1, 1.1, np.nan])
def test_values_out_of_range_are_refused(value):
    with pytest.raises(ValueError, match=r"must be 0 \.\. 1. Received"):
        draw_saliency_map(np.array([[0.5, value]]))
    with pytest.raises(ValueError, match=r"must be \(height, width\). Received: shape \(2,\)"):
        draw_saliency_map(np.zeros(2))


def test_comparison_shows_image_truth_and_map():
    images = [np.full((20, 30, 3), 90.0), np.full((40, 30, 3), 200, np.uint8)]
    masks = [np.zeros((20, 30), int), np.ones((40, 30), int)]
    masks[1][0, 0] = 255
    maps = [np.zeros((20, 30)), np.full((40, 30), 0.25)]
    page = draw_saliency_comparison(images, masks, maps)
    assert page.dtype == np.uint8
    # Both are enlarged: by 9 to 180 x 270, and by 7 to 280 x 210, three in a row.
    assert page.shape[1] == 3 * 270 + 4 * 6
    assert page.shape[0] == 180 + 280 + 2 * 22 + 3 * 6
    assert page[6 + 22 + 90, 6 + 100].tolist() == [90] * 3
    assert page[6 + 22 + 90, 2 * 6 + 270 + 100].tolist() == [0] * 3
    assert page[-100, 3 * 6 + 2 * 210 + 50].tolist() == [64] * 3


def test_what_does_not_fit_is_refused():
    image, mask = np.zeros((4, 5, 3)), np.zeros((4, 5), int)
    with pytest.raises(ValueError, match=r"one height and width. Received: \(\(4, 5\), \(4, 5\), \(5, 4\)\)"):
        draw_saliency_comparison([image], [mask], [np.zeros((5, 4))])
    with pytest.raises(ValueError, match="equally many"):
        draw_saliency_comparison([image], [mask], [])
