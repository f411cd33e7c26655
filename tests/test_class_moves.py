import numpy as np
import pytest
import tensorflow as tf

from heads.data import ClassAugmentation


def make_ramp(size=(60, 80)):
    """Returns a picture whose red is the row and whose green is the column."""
    y, x = np.indices(size)
    return np.stack([2 * y, 2 * x, 0 * x], -1).astype("uint8")


def find_window(image, side):
    """Returns the (top, bottom, left, right) of the part that was resized, in pixels of the ramp."""
    spans = []
    for axis, channel in ((0, 0), (1, 1)):
        ends = image[..., channel].mean(1 - axis)[[2, -3]] / 2
        step = (ends[1] - ends[0]) / (side - 5)
        spans += [ends[0] - 2.5 * step, ends[1] + 2.5 * step]
    return spans


def test_parts_have_the_areas_and_ratios_that_are_asked_for():
    augment = ClassAugmentation(32, (0.25, 0.5), (0.8, 1.25), flip=False)
    areas, ratios = [], []
    for number in range(30):
        image, label = augment(make_ramp(), tf.constant(3), tf.constant([0, number]))
        assert image.shape == (32, 32, 3)
        assert int(label) == 3
        assert 0 <= image.numpy().min() <= image.numpy().max() <= 255
        top, bottom, left, right = find_window(image.numpy(), 32)
        areas.append((bottom - top) * (right - left) / 4800)
        ratios.append((right - left) / (bottom - top))
    assert 0.2 < min(areas) < 0.3
    assert 0.45 < max(areas) < 0.55
    assert 0.7 < min(ratios) < 1 < max(ratios) < 1.35


def test_half_are_mirrored_and_seeds_decide():
    augment = ClassAugmentation(16, (1.0, 1.0), (1.3, 1.4))
    directions = []
    for number in range(40):
        seed = tf.constant([5, number])
        image = augment(make_ramp(), tf.constant(0), seed)[0].numpy()
        np.testing.assert_array_equal(image, augment(make_ramp(), tf.constant(0), seed)[0])
        directions.append(image[:, 0, 1].mean() < image[:, -1, 1].mean())
    assert 10 < sum(directions) < 30


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 0}, "image_size must be at least 1. Received: 0"),
        (
            {"area_range": (0.5, 1.5)},
            r"area_range must be shares of the area, at most 1. Received: \(0.5, 1.5\)",
        ),
        ({"area_range": (0.5, 0.2)}, r"area_range must be \(lowest, highest\)"),
        ({"ratio_range": (0, 1)}, r"ratio_range must be \(lowest, highest\), above 0"),
        ({"flip": 2}, "flip must be True or False. Received: 2"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ClassAugmentation(**options)
