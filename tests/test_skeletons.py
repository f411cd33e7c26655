import numpy as np
import pytest

from heads.drawing import class_palette, draw_pose_comparison, draw_skeletons

SKELETON = [(0, 1), (1, 2)]
PEOPLE = {
    "keypoints": np.array([[[20, 20], [60, 20], [60, 60.0]], [[100, 90], [130, 90], [130, 70.0]]]),
    "scores": np.array([[1.0, 0.9, 0.2], [0.8, 0.8, 0.8]]),
}


def pixel(picture, x, y, factor):
    return tuple(picture[int((y + 0.5) * factor), int((x + 0.5) * factor)].tolist())


def test_dots_have_the_colours_of_keypoints_and_lines_those_of_people():
    image = np.full((120, 160, 3), 128, "uint8")
    picture = draw_skeletons(image, PEOPLE, SKELETON, factor=3)
    assert picture.shape == (360, 480, 3)
    palette = class_palette(12)
    assert pixel(picture, 20, 20, 3) == tuple(palette[0])
    assert pixel(picture, 60, 20, 3) == tuple(palette[1])
    assert pixel(picture, 130, 70, 3) == tuple(palette[2])
    assert pixel(picture, 40, 20, 3) == tuple(palette[0])  # the first person's line
    assert pixel(picture, 115, 90, 3) == tuple(palette[1])
    # Below the threshold: no dot, and no line to it.
    assert pixel(picture, 60, 60, 3) == pixel(picture, 60, 40, 3) == (128, 128, 128)
    np.testing.assert_array_equal(image, 128)
    everything = draw_skeletons(image, PEOPLE, SKELETON, 0.1, factor=3)
    assert pixel(everything, 60, 60, 3) == tuple(palette[2])


def test_people_outside_and_nobody():
    image = np.full((120, 160, 3), 128.0)
    outside = {"keypoints": np.array([[[-50, 20], [900, 20], [np.nan, 5]]])}
    assert draw_skeletons(image, outside, SKELETON, factor=1).shape == (120, 160, 3)
    nobody = {"keypoints": np.zeros((0, 3, 2)), "scores": np.zeros((0, 3))}
    assert (draw_skeletons(image, nobody, None) == 128).all()


def test_comparison():
    images = [np.full((120, 160, 3), 128, "uint8"), np.full((50, 40, 3), 90, "uint8")]
    nobody = {"keypoints": np.zeros((0, 3, 2))}
    page = draw_pose_comparison(images, [PEOPLE, nobody], [PEOPLE, PEOPLE], SKELETON, ["a", "b", "c"])
    assert page.dtype == np.uint8
    assert page.shape[1] > 3 * 160
    for colour in class_palette(3):
        assert (page == colour).all(-1).sum() > 100


@pytest.mark.parametrize(
    ("people", "skeleton", "message"),
    [
        ({"keypoints": np.zeros((2, 3))}, SKELETON, r"people must have keypoints \(n, keypoints, 2\)"),
        ({"keypoints": np.zeros((2, 3, 3))}, SKELETON, r"Received: shape \(2, 3, 3\)"),
        ({"keypoints": np.zeros((1, 3, 2)), "scores": np.zeros(3)}, SKELETON, r"scores must be \(1, 3\)"),
        ({"keypoints": np.zeros((1, 3, 2))}, [(0, 3)], "skeleton must be pairs of numbers below 3"),
    ],
)
def test_what_does_not_fit_is_refused(people, skeleton, message):
    with pytest.raises(ValueError, match=message):
        draw_skeletons(np.zeros((40, 40, 3), "uint8"), people, skeleton)


def test_comparison_refuses():
    images = [np.zeros((40, 40, 3), "uint8")]
    with pytest.raises(ValueError, match=r"keypoints \(n, 2, 2\)"):
        draw_pose_comparison(images, [PEOPLE], [PEOPLE], [(0, 1)], ["a", "b"])
    with pytest.raises(ValueError, match="equally many images"):
        draw_pose_comparison(images, [], [PEOPLE], SKELETON, ["a", "b", "c"])
    for factor in (0, 1.5):
        with pytest.raises(ValueError, match=f"factor must be .*at least 1. Received: {factor}"):
            draw_skeletons(images[0], PEOPLE, SKELETON, factor=factor)
