import numpy as np
import pytest

from heads.drawing import draw_panoptic_comparison, draw_segments
from heads.drawing.palette import class_palette
from heads.drawing.segments import separate_segments

NAMES = ("cat", "dog", "sky")


def make_case():
    image = np.full((120, 160, 3), 128, np.uint8)
    segments = np.full((120, 160), -1)
    segments[:40], segments[50:110, 10:70], segments[50:110, 70:130] = 2, 0, 3
    return image, {
        "segments": segments,
        "labels": np.array([0, -1, 2, 0]),
        "scores": np.array([0.9, 0, 1, 0.8]),
    }


def test_segments_become_objects():
    image, found = make_case()
    objects = separate_segments(image, found)
    np.testing.assert_array_equal(objects["labels"], [0, 2, 0])
    np.testing.assert_array_equal(objects["boxes"], [[10, 50, 70, 110], [0, 0, 160, 40], [70, 50, 130, 110]])
    assert objects["masks"].sum() == (found["segments"] >= 0).sum()


def test_each_segment_has_its_colour_and_void_has_none():
    image, found = make_case()
    picture = draw_segments(image, found, NAMES, factor=1, legend=False)
    assert picture.shape == image.shape
    palette = class_palette(3).astype(float)

    def mix(colour):
        return 0.6 * 128 + 0.4 * colour

    np.testing.assert_allclose(picture[30, 120], mix(palette[2]), atol=3)
    np.testing.assert_allclose(picture[90, 40], mix(palette[0]), atol=3)
    assert (picture[90, 120] != picture[90, 40]).any()  # another shade for the neighbour of the same class
    np.testing.assert_array_equal(picture[115, 80], 128)
    assert len(draw_segments(image, found, NAMES, factor=1)) > len(picture)


def test_a_page_of_examples():
    image, found = make_case()
    page = draw_panoptic_comparison([image] * 2, [found] * 2, [found] * 2, NAMES)
    assert page.dtype == np.uint8
    assert page.shape[1] > 3 * 160


@pytest.mark.parametrize(
    ("segments", "received"),
    [
        (np.zeros((3, 4), int), r"\(3, 4\)"),
        (np.zeros((120, 160)), "float64"),
        (np.full((120, 160), 9), "9 of 1"),
    ],
)
def test_what_does_not_fit_is_refused(segments, received):
    image, _ = make_case()
    with pytest.raises(ValueError, match=f"segments must be rows of labels.*Received: .*{received}"):
        draw_segments(image, {"segments": segments, "labels": np.array([0])}, NAMES)
