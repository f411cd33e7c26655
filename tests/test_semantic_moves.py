import colorsys

import numpy as np
import pytest
import tensorflow as tf

from heads.data import semantic_moves as augmentation
from heads.data.semantic_moves import (
    SemanticAugmentation,
    add_brightness,
    photometric_distortion,
    random_crop,
    random_flip,
    random_scale,
    resize_keep_ratio,
    resize_pair,
    rotate_hue,
    scale_contrast,
    scale_saturation,
)
from heads.pictures import MEAN_PIXEL


def make_seed(number):
    return tf.constant([7, number], tf.int32)


def draw_coordinates(height, width, axis="x"):
    """Returns an image with x and y in its channels, and a label map with one of them."""
    y, x = np.mgrid[:height, :width]
    image = np.stack([x, y, np.full_like(x, 50)], -1).astype("float32")
    return image, (x if axis == "x" else y).astype("int32")


def draw_picture(height, width, classes=3, seed=0):
    generator = np.random.default_rng(seed)
    image = generator.integers(0, 256, (height, width, 3), dtype="uint8")
    return image, generator.integers(0, classes, (height, width), dtype="int32")


# Resizing


@pytest.mark.parametrize("size", [(5, 7), (3, 4), (9, 20), (5, 3), (1, 1)])
def test_resize_pair_has_half_pixel_centres(size):
    image, label = draw_picture(5, 7, classes=200)
    resized_image, resized_label = resize_pair(image, label, size)
    for row in range(size[0]):
        for column in range(size[1]):
            y, x = (row + 0.5) * 5 / size[0] - 0.5, (column + 0.5) * 7 / size[1] - 0.5
            assert resized_label[row, column] == label[int(np.floor(y + 0.5)), int(np.floor(x + 0.5))]
            y, x = np.clip(y, 0, 4), np.clip(x, 0, 6)
            top, left = int(y), int(x)
            bottom, right = min(top + 1, 4), min(left + 1, 6)
            upper = image[top, left] * (1 - (x - left)) + image[top, right] * (x - left)
            lower = image[bottom, left] * (1 - (x - left)) + image[bottom, right] * (x - left)
            expected = upper * (1 - (y - top)) + lower * (y - top)
            np.testing.assert_allclose(resized_image[row, column], expected, atol=1e-3)


@pytest.mark.parametrize("size", [(512, 683), (683, 512), (256, 256), (200, 1000), (301, 1207), (37, 1)])
@pytest.mark.parametrize("limits", [(2048, 512), (101, 33)])
def test_resize_keep_ratio_sizes(size, limits):
    image, label = draw_coordinates(*size)
    scale = min(limits[0] / max(size), limits[1] / min(size))
    expected = tuple(max(int(side * scale + 0.5), 1) for side in size)
    resized_image, resized_label = resize_keep_ratio(image, label, *limits)
    assert resized_image.shape == (*expected, 3)
    assert resized_label.shape == expected


def test_random_scale_range():
    image, label = draw_picture(100, 60)
    sides = [random_scale(image, label, make_seed(n), (0.5, 2.0))[1].shape for n in range(60)]
    for height, width in sides:
        assert 50 <= height <= 200
        assert abs(width - height * 0.6) <= 1
    heights = [height for height, _ in sides]
    assert min(heights) < 70
    assert max(heights) > 180
    assert random_scale(image, label, make_seed(0), (1.5, 1.5))[1].shape == (150, 90)


def test_random_scale_of_base_size_scales_the_limits():
    image, label = draw_picture(30, 40)
    assert random_scale(image, label, make_seed(0), (0.5, 0.5), (400, 120))[1].shape == (60, 80)
    assert random_scale(image, label, make_seed(0), (0.5, 0.5), (100, 90))[1].shape == (38, 50)


# Cropping


def test_random_crop_is_a_window():
    image, label = draw_coordinates(20, 30)
    corners = set()
    for number in range(200):
        crop_image, crop_label = random_crop(image, label, make_seed(number), (18, 25), max_class_share=1)
        left, top = (int(value) for value in crop_image[0, 0, :2])
        np.testing.assert_array_equal(crop_image, image[top : top + 18, left : left + 25])
        np.testing.assert_array_equal(crop_label, label[top : top + 18, left : left + 25])
        corners.add((top, left))
    assert corners == {(top, left) for top in range(3) for left in range(6)}


@pytest.mark.parametrize(("height", "width"), [(4, 9), (9, 4), (4, 4), (6, 6)])
def test_random_crop_pads_bottom_right(height, width):
    image, label = draw_picture(height, width)
    crop_image, crop_label = random_crop(image, label, make_seed(0), (6, 6))
    assert crop_image.shape == (6, 6, 3)
    assert crop_image.dtype == tf.float32
    kept = min(height, 6), min(width, 6)
    assert (crop_label[: kept[0], : kept[1]].numpy() != 255).all()
    padded = np.ones((6, 6), bool)
    padded[: kept[0], : kept[1]] = False
    assert (crop_label.numpy()[padded] == 255).all()
    np.testing.assert_array_equal(
        crop_image.numpy()[padded], np.broadcast_to(np.float32(MEAN_PIXEL), (padded.sum(), 3))
    )
    assert random_crop(image, label, make_seed(0), (6, 6), pad=False)[1].shape == kept


def largest_share(label):
    counts = np.bincount(label[label != 255], minlength=2)
    return counts.max() / max(counts.sum(), 1)


def test_class_share_rule_rejects_one_sided_crops():
    # One class, except for a block of another; a random 8 x 8 window seldom has half of both.
    label = np.zeros((32, 32), "int32")
    label[12:20, 12:20] = 1
    label[:4] = 255
    image = np.zeros((32, 32, 3), "float32")
    crops = {
        share: [random_crop(image, label, make_seed(n), (8, 8), share)[1].numpy() for n in range(150)]
        for share in (1.0, 0.75)
    }
    free = np.mean([largest_share(crop) < 0.75 for crop in crops[1.0]])
    ruled = np.mean([largest_share(crop) < 0.75 for crop in crops[0.75]])
    # With ten tries, 1 - (1 - p) ** 10 of the crops must pass.
    corners = [(y, x) for y in range(25) for x in range(25)]
    one_try = np.mean([largest_share(label[y : y + 8, x : x + 8]) < 0.75 for y, x in corners])
    assert abs(free - one_try) < 0.12
    assert abs(ruled - (1 - (1 - one_try) ** 10)) < 0.12
    assert 0.03 < one_try < 0.3


@pytest.mark.parametrize("value", [3, 255])
def test_class_share_rule_gives_up_on_a_uniform_picture(value):
    label = np.full((10, 10), value, "int32")
    crop = random_crop(np.zeros((10, 10, 3), "uint8"), label, make_seed(0), (4, 4))[1]
    np.testing.assert_array_equal(crop, np.full((4, 4), value))


def test_share_counts_only_labelled_pixels():
    # Two classes in equal parts between ignored pixels: any window will do, so the first one is kept.
    label = np.full((12, 12), 255, "int32")
    label[:, 5], label[:, 6] = 0, 1
    image, _ = draw_coordinates(12, 12)
    for number in range(20):
        first = random_crop(image, label, make_seed(number), (4, 11), max_class_share=1)[0]
        ruled = random_crop(image, label, make_seed(number), (4, 11), max_class_share=0.51)[0]
        np.testing.assert_array_equal(first, ruled)


# Flipping, and everything together


def test_random_flip_mirrors_half():
    image, label = draw_picture(3, 5)
    flipped = 0
    for number in range(100):
        new_image, new_label = random_flip(image, label, make_seed(number))
        mirrored = not np.array_equal(new_label, label)
        flipped += mirrored
        np.testing.assert_array_equal(new_image, image[:, ::-1] if mirrored else image)
        np.testing.assert_array_equal(new_label, label[:, ::-1] if mirrored else label)
    assert 30 <= flipped <= 70


@pytest.mark.parametrize("base_size", [None, (300, 90)])
@pytest.mark.parametrize("axis", ["x", "y"])
def test_image_and_label_stay_aligned(axis, base_size):
    image, label = draw_coordinates(120, 200, axis)
    augment = tf.function(SemanticAugmentation((96, 128), base_size=base_size, photometric=False))
    channel = 0 if axis == "x" else 1
    directions = set()
    for number in range(25):
        new_image, new_label = (part.numpy() for part in augment(image, label, make_seed(number)))
        inside = new_label != 255
        # Nearest takes the pixel whose centre is at most half a pixel from the bilinear sample.
        difference = np.abs(new_image[..., channel] - new_label)[inside]
        assert difference.max() <= 0.5 + 1e-3
        np.testing.assert_allclose(new_image[..., 2][inside], 50, atol=1e-3)
        np.testing.assert_array_equal(
            new_image[~inside], np.broadcast_to(np.float32(MEAN_PIXEL), ((~inside).sum(), 3))
        )
        directions.add(new_image[0, 0, 0] > new_image[0, 5, 0])
    assert directions == {True, False}


def test_augmentation_in_a_graph_of_unknown_sizes():
    augment = SemanticAugmentation((32, 48), base_size=(80, 40))
    pictures = [draw_picture(*size, seed=number) for number, size in enumerate([(20, 90), (50, 50), (1, 7)])]
    dataset = tf.data.Dataset.from_generator(
        lambda: iter(pictures),
        output_signature=(tf.TensorSpec((None, None, 3), tf.uint8), tf.TensorSpec((None, None), tf.int32)),
    ).map(lambda image, label: augment(image, label, make_seed(1)))
    assert dataset.element_spec == (tf.TensorSpec((32, 48, 3)), tf.TensorSpec((32, 48), tf.int32))
    for (image, label), picture in zip(dataset, pictures, strict=True):
        eager_image, eager_label = augment(*picture, make_seed(1))
        np.testing.assert_allclose(image, eager_image, atol=1e-3)
        np.testing.assert_array_equal(label, eager_label)
        assert 0 <= image.numpy().min() <= image.numpy().max() <= 255


def test_seed_decides():
    picture = draw_picture(60, 80)
    augment = SemanticAugmentation((32, 32))
    first, again, other = (augment(*picture, make_seed(n)) for n in (1, 1, 2))
    np.testing.assert_array_equal(first[0], again[0])
    np.testing.assert_array_equal(first[1], again[1])
    assert not np.array_equal(first[0], other[0])
    assert not np.array_equal(first[1], other[1])


def test_switches():
    image, label = draw_coordinates(40, 50)
    augment = SemanticAugmentation((40, 50), (1.0, 1.0), flip=False, photometric=False)
    for number in range(8):
        new_image, new_label = augment(image, label, make_seed(number))
        np.testing.assert_array_equal(new_image, image)
        np.testing.assert_array_equal(new_label, label)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"crop_size": (0, 4)}, "crop_size"),
        ({"crop_size": (4, 4, 4)}, "crop_size"),
        ({"scale_range": (2.0, 0.5)}, "scale_range"),
        ({"scale_range": (0.0, 1.0)}, "scale_range"),
        ({"base_size": (512, 2048)}, "long side, short side"),
        ({"max_class_share": 0.0}, "max_class_share"),
        ({"max_class_share": 1.5}, "max_class_share"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=f"{message}.*Received"):
        SemanticAugmentation(**{"crop_size": (8, 8), **arguments})


# Colours


def change_hsv(image, change):
    """Changes colours with the obvious loop: each pixel to HSV, `change(h, s, v)`, and back."""
    result = np.zeros(image.shape)
    for position in np.ndindex(image.shape[:2]):
        hsv = colorsys.rgb_to_hsv(*(image[position] / 255.0))
        result[position] = 255.0 * np.array(colorsys.hsv_to_rgb(*change(*hsv)))
    return result


@pytest.mark.parametrize("factor", [0.5, 0.83, 1.5])
def test_scale_saturation(factor):
    image = draw_picture(9, 11)[0].astype("float32")
    expected = change_hsv(image, lambda h, s, v: (h, min(s * factor, 1), v))
    np.testing.assert_allclose(scale_saturation(image, factor), expected, atol=0.02)


@pytest.mark.parametrize("degrees", [-36.0, -5.0, 20.0, 36.0])
def test_rotate_hue(degrees):
    image = draw_picture(9, 11)[0].astype("float32")
    expected = change_hsv(image, lambda h, s, v: ((h + degrees / 360) % 1, s, v))
    np.testing.assert_allclose(rotate_hue(image, degrees), expected, atol=0.02)


def test_brightness_and_contrast_clip():
    image = np.array([[[0.0, 100.0, 250.0]]], "float32")
    np.testing.assert_allclose(add_brightness(image, 20.0), [[[20, 120, 255]]])
    np.testing.assert_allclose(add_brightness(image, -20.0), [[[0, 80, 230]]])
    np.testing.assert_allclose(scale_contrast(image, 1.5), [[[0, 150, 255]]])
    np.testing.assert_allclose(scale_contrast(image, 0.5), [[[0, 50, 125]]])


def test_photometric_distortion_on_grey_is_brightness_and_contrast():
    # Saturation and hue do not change grey: what remains is (v + delta) * factor, each with a chance of 0.5.
    image = np.full((2, 2, 3), 100, "uint8")
    distort = tf.function(photometric_distortion)
    results = np.array([distort(image, make_seed(number)).numpy() for number in range(400)])
    values = results[:, 0, 0, 0]
    np.testing.assert_allclose(
        results, np.broadcast_to(values[:, None, None, None], results.shape), atol=0.01
    )
    assert values.min() >= (100 - 32) * 0.5
    assert values.max() <= (100 + 32) * 1.5
    assert 0.15 < np.mean(values == 100) < 0.35  # neither
    assert values.min() < 60
    assert values.max() > 150


def test_photometric_distortion_stays_in_range():
    image = np.array([[[240, 120, 60], [0, 0, 255], [255, 255, 255], [0, 0, 0]]], "uint8")
    distort = tf.function(photometric_distortion)
    results = [distort(image, make_seed(number)).numpy() for number in range(300)]
    assert 0 <= np.min(results) <= np.max(results) <= 255
    assert any(np.array_equal(result, image) for result in results)  # a chance of 1/16
    assert len({result.tobytes() for result in results}) > 200


def test_photometric_distortion_changes_each_part_half_the_time(monkeypatch):
    calls = []

    def record(name):
        original = getattr(augmentation, name)

        def recorded(image, value):
            calls.append((name, float(value)))
            return original(image, value)

        monkeypatch.setattr(augmentation, name, recorded)

    ranges = {
        "add_brightness": (-32, 32),
        "scale_contrast": (0.5, 1.5),
        "scale_saturation": (0.5, 1.5),
        "rotate_hue": (-36, 36),
    }
    for name in ranges:
        record(name)
    orders = []
    for number in range(200):
        del calls[:]
        photometric_distortion(np.full((1, 1, 3), 80, "float32"), make_seed(number))
        orders.append(list(calls))
    for name, (lowest, highest) in ranges.items():
        values = [value for order in orders for called, value in order if called == name]
        assert 70 <= len(values) <= 130
        assert lowest <= min(values) < lowest + 0.15 * (highest - lowest)
        assert highest - 0.15 * (highest - lowest) < max(values) <= highest
    names = [[called for called, _ in order] for order in orders]
    full = [order for order in names if len(order) == 4]
    middle = ["scale_saturation", "rotate_hue"]
    expected = [
        ["add_brightness", "scale_contrast", *middle],
        ["add_brightness", *middle, "scale_contrast"],
    ]
    assert sorted(map(tuple, expected)) == sorted(set(map(tuple, full)))
