import keras
import numpy as np
import pytest

from heads.ops.points import choose_uncertain_points, sample_maps, sample_truth


def sample_slowly(maps, points):
    """Returns bilinear values one by one, with zeros outside of a map."""
    count, height, width, channels = maps.shape
    result = np.zeros((*points.shape[:2], channels))
    for image in range(count):
        for index, (x, y) in enumerate(points[image].astype("float64") * [width, height] - 0.5):
            left, top = int(np.floor(x)), int(np.floor(y))
            for column, row in ((left, top), (left + 1, top), (left, top + 1), (left + 1, top + 1)):
                if 0 <= row < height and 0 <= column < width:
                    weight = (1 - abs(x - column)) * (1 - abs(y - row))
                    result[image, index] += weight * maps[image, row, column]
    return result


@pytest.mark.parametrize("size", [(4, 6), (1, 5), (1, 1)])
def test_samples_equal_loop(size):
    generator = np.random.default_rng(0)
    maps = generator.normal(size=(2, *size, 3)).astype("float32")
    points = generator.uniform(-0.3, 1.3, (2, 40, 2)).astype("float32")
    points[0, :4] = [[0, 0], [1, 1], [0.5, 0.5], [-5, 9]]
    np.testing.assert_allclose(sample_maps(maps, points), sample_slowly(maps, points), atol=1e-5)


def test_masks_of_whole_numbers_are_sampled_as_floats():
    masks = (np.arange(12).reshape(1, 3, 4, 1) % 3 == 0).astype("uint8")
    points = np.random.default_rng(0).uniform(size=(1, 20, 2)).astype("float32")
    for kind in ("uint8", "bool", "float32"):
        samples = sample_maps(masks.astype(kind), points)
        assert keras.backend.standardize_dtype(samples.dtype) == "float32"
        np.testing.assert_allclose(samples, sample_slowly(masks.astype("float32"), points), atol=1e-6)


def test_the_most_uncertain_points_are_chosen():
    logits = np.array([[[5.0, -0.1, 3.0, 0.2]]], "float32")  # one mask of 1 x 4
    candidates = np.array([[[0.125, 0.5], [0.375, 0.5], [0.625, 0.5], [0.875, 0.5]]], "float32")
    chosen = np.asarray(choose_uncertain_points(logits, candidates, 2))
    np.testing.assert_array_equal(chosen, candidates[:, [1, 3]])


def test_each_segment_is_sampled_at_its_own_points():
    generator = np.random.default_rng(0)
    masks = (generator.uniform(size=(2, 3, 6, 5)) < 0.5).astype("uint8")
    points = generator.uniform(size=(2, 4, 3, 7, 2)).astype("float32")
    truth = np.asarray(sample_truth(masks, points))
    assert truth.shape == (2, 4, 3, 7)
    for image, layer, segment in np.ndindex(2, 4, 3):
        expected = sample_slowly(masks[image, segment, None, ..., None], points[image, layer, segment, None])
        np.testing.assert_allclose(truth[image, layer, segment], expected[0, :, 0], atol=1e-5)
