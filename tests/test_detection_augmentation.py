import numpy as np
import pytest
import tensorflow as tf

from heads.data.detection_moves import DetectionAugmentation, fit_size


def augment_often(augment, size, count=24):
    image = np.zeros((*size, 3), np.uint8)
    compiled = tf.function(augment)
    return [compiled(image, tf.constant([5, step])) for step in range(count)]


@pytest.mark.parametrize("size", [(20, 31), (31, 20), (10, 60)])
def test_short_sides_keep_the_ratio(size):
    allowed = set()
    for short in (16, 24, 33):
        scale = min(50 / max(size), short / min(size))  # mmdetection's rescale_size
        allowed.add(tuple(int(side * scale + 0.5) for side in size))
    results = augment_often(DetectionAugmentation((16, 24, 33), long_side=50), size)
    assert {image.shape[:2] for image, _ in results} == allowed
    assert {bool(move.flip) for _, move in results} == {True, False}
    for image, move in results:
        assert tuple(move.original_size.numpy()) == size
        assert tuple(move.size.numpy()) == tuple(move.resized_size.numpy()) == image.shape[:2]


def test_default_short_sides():
    assert DetectionAugmentation().short_sides == (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800)
    assert DetectionAugmentation().long_side == 1333


def test_jitter_crops_and_leaves_room():
    augment = DetectionAugmentation(image_size=(24, 32), scale_range=(0.5, 2.0), flip=False)
    results = augment_often(augment, (20, 20), 60)
    heights = np.array([move.resized_size[0] for _, move in results])
    assert heights.min() < 18  # 20 x 20 fits into 24 x 32 as 24 x 24
    assert heights.max() > 40
    assert heights.min() >= 12
    assert heights.max() <= 48
    places = []
    for image, move in results:
        height, width = move.resized_size.numpy()
        assert height == width
        assert image.shape == (min(height, 24), min(width, 32), 3)
        assert not move.flip
        if height > 30:
            places.append(float(move.offset[0]) / float(height - 24))
        assert np.all(move.offset + move.size <= move.resized_size)
    assert min(places) < 0.2
    assert max(places) > 0.8


def test_fixed_size_without_jitter():
    augment = DetectionAugmentation(image_size=(24, 32), flip=False)
    for size, expected in (((12, 12), (24, 24)), ((100, 200), (16, 32)), ((1, 100), (1, 32))):
        image, _ = augment(np.zeros((*size, 3), np.uint8), tf.constant([0, 0]))
        assert image.shape[:2] == expected


def test_fit_size_stays_inside():
    random = np.random.default_rng(0)
    for size in random.integers(1, 900, (50, 2)):
        fitted = fit_size(tf.constant(size), (320, 256), 1.0).numpy()
        assert np.all(fitted <= (320, 256))
        assert np.any(fitted == (320, 256))


def test_one_seed_gives_one_result():
    augment = DetectionAugmentation(image_size=(24, 24), scale_range=(0.5, 2.0), photometric=True)
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)

    def result(seed):
        moved, move = augment(image, tf.constant([0, seed]))
        return moved.numpy().tobytes(), *(field.numpy().tobytes() for field in move)

    assert result(1) == result(1)
    assert len({result(seed) for seed in range(8)}) == 8


def test_photometric_keeps_the_range():
    augment = DetectionAugmentation((20,), photometric=True, flip=False)
    image = np.random.default_rng(0).integers(0, 256, (20, 20, 3), np.uint8)
    plain = DetectionAugmentation((20,), flip=False)(image, tf.constant([0, 1]))[0]
    np.testing.assert_array_equal(plain, image)
    results = [augment(image, tf.constant([0, seed]))[0].numpy() for seed in range(6)]
    assert all(result.min() >= 0 and result.max() <= 255 for result in results)
    assert max(np.abs(result - image).max() for result in results) > 20


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"short_sides": (800,), "image_size": (64, 64)},
            r"short_sides must be None .*image_size=\(64, 64\)",
        ),
        ({"short_sides": ()}, r"short_sides must be positive .*Received: short_sides=\(\)"),
        ({"short_sides": (0, 5)}, "short_sides must be positive"),
        ({"short_sides": (800,), "long_side": 700}, "not above long_side.*long_side=700"),
        ({"scale_range": (0.5, 2)}, r"scale_range needs image_size.*\(0.5, 2\)"),
        ({"image_size": (8, 8), "scale_range": (2, 0.5)}, r"scale_range must be.*Received: \(2, 0.5\)"),
        ({"image_size": (8, 8), "scale_range": (0, 0.5)}, "scale_range must be"),
        ({"image_size": (8, 0)}, r"image_size must be .*Received: \(8, 0\)"),
        ({"image_size": (8,)}, "image_size must be"),
    ],
)
def test_bad_augmentations(arguments, message):
    with pytest.raises(ValueError, match=message):
        DetectionAugmentation(**arguments)
