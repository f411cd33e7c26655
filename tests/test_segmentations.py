import numpy as np
import pytest
from pycocotools import mask as coco_mask

from heads.coco.segmentations import check_place, encode_mask, read_segmentation

SIZE = (24, 37)
SQUARE = [14, 3, 20, 3, 20, 8, 14, 8]


def draw_masks():
    random = np.random.default_rng(0)
    shares = [random.uniform(size=SIZE) < share for share in (0.01, 0.5, 0.99)]
    corner = np.zeros(SIZE, bool)
    corner[-1, -1] = True
    return [*shares, corner, np.ones(SIZE, bool)]


def count_runs(mask):
    """Counts along the columns, pixel by pixel, zeros first."""
    runs, value = [0], False
    for pixel in mask.T.ravel():
        if pixel != value:
            runs.append(0)
            value = pixel
        runs[-1] += 1
    return runs


@pytest.mark.parametrize("mask", draw_masks())
def test_run_lengths_go_there_and_back(mask):
    encoded = encode_mask(mask)
    assert encoded["size"] == list(SIZE)
    assert isinstance(encoded["counts"], str)
    np.testing.assert_array_equal(coco_mask.decode(encoded), mask)
    for counts in (encoded["counts"], encoded["counts"].encode(), count_runs(mask)):
        read = read_segmentation({"size": list(SIZE), "counts": counts}, SIZE)
        assert read["counts"].tolist() == count_runs(mask)


def test_polygons_are_read():
    first, second = read_segmentation([SQUARE, [0, 0, 1, 0, 1, 1.5]], SIZE)
    assert first.dtype == second.dtype == np.float64
    assert first.tolist() == SQUARE
    assert second.tolist() == [0, 0, 1, 0, 1, 1.5]


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        (None, "no segmentation. Received: None"),
        ([], r"no segmentation. Received: \[\]"),
        ([[1, 2, 3, 4]], r"a polygon must be \[x, y.*Received: \[1, 2, 3, 4\]"),
        ([[*SQUARE, 1]], r"a polygon must be \[x, y"),
        ([["a"] * 6], "numbers. Received"),
        ([[0, 0, 5, 0, 5, float("nan")]], "a polygon must be finite and near its picture"),
        ([[0, 0, 5, 0, 5, 1e9]], "a polygon must be finite and near its picture"),
        ({"size": [37, 24], "counts": [888]}, r"the mask has .* \[37, 24\], the picture \[24, 37\]"),
        ({"size": [24, 37], "counts": [887]}, "add up to its pixels"),
        ({"size": [24, 37], "counts": [889, -1]}, "add up to its pixels"),
        ({"size": [24, 37], "counts": "8"}, "add up to its pixels"),
        ({"size": [24, 37], "counts": "o"}, "break off"),
        ({"size": [24, 37], "counts": "\x1f"}, "hold '.x1f'"),
    ],
)
def test_what_is_no_segmentation_is_refused(segmentation, message):
    with pytest.raises(ValueError, match=message):
        read_segmentation(segmentation, SIZE)


def draw_square():
    mask = np.zeros(SIZE, bool)
    mask[3:8, 14:20] = True
    return mask


@pytest.mark.parametrize("segmentation", [[SQUARE], encode_mask(draw_square())])
def test_places(segmentation):
    segmentation = read_segmentation(segmentation, SIZE)
    check_place(segmentation, (14, 3, 20, 8))
    check_place(segmentation, (4, 3, 30, 20))  # smaller than its box
    with pytest.raises(ValueError, match=r"must lie in its box \[25.0, 14.0, 30.0, 22.0\].*Received: 0%"):
        check_place(segmentation, (25, 14, 30, 22))


def test_exchanged_axes_are_told():
    with pytest.raises(ValueError, match="x and y exchanged"):
        check_place(read_segmentation([SQUARE], SIZE), (3, 14, 8, 20))
    along_rows = {"size": list(SIZE), "counts": count_runs(draw_square().T)}
    with pytest.raises(ValueError, match="x and y exchanged"):
        check_place(read_segmentation(along_rows, SIZE), (14, 3, 20, 8))


def test_an_empty_mask_has_no_place():
    with pytest.raises(ValueError, match="the mask is empty"):
        check_place({"size": list(SIZE), "counts": np.array([888])}, (0, 0, 9, 9))
    line = read_segmentation([[5, 5, 9, 5, 7, 5]], SIZE)
    with pytest.raises(ValueError, match="the mask is empty"):
        check_place(line, (5, 5, 9, 6))
