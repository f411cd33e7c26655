"""Heatmaps against loops; test_simple_baseline.py compares them with mmpose's."""

import numpy as np
import pytest

from heads.ops.heatmaps import draw_heatmaps, find_peaks, mirror_heatmaps


def draw_slowly(points, weights, size, deviation):
    heatmaps = np.zeros((*weights.shape, *size))
    weights = weights.copy()
    radius = int(3 * deviation)
    for index in np.ndindex(*weights.shape):
        x, y = (int(value + 0.5) for value in points[index])
        outside = x - radius >= size[1] or y - radius >= size[0] or x + radius + 1 < 0 or y + radius + 1 < 0
        if outside:
            weights[index] = 0
        if weights[index] == 0:
            continue
        for row, column in np.ndindex(*size):
            if abs(row - y) <= radius and abs(column - x) <= radius:
                distance = (row - y) ** 2 + (column - x) ** 2
                heatmaps[index][row, column] = np.exp(-distance / (2 * deviation**2))
    return heatmaps.transpose(0, 2, 3, 1), weights


@pytest.mark.parametrize("deviation", [1.0, 2.0])
def test_heatmaps_equal_a_loop(deviation):
    random = np.random.default_rng(0)
    points = random.uniform(-9, 21, (5, 6, 2))
    points[0, :3] = [(-0.7, 3.0), (2.5, -0.4), (40.0, 2.0)]
    weights = random.integers(0, 2, (5, 6)).astype("float64")
    weights[0] = 1.0
    heatmaps, found = draw_heatmaps(points, weights, (9, 12), deviation)
    expected, expected_weights = draw_slowly(points, weights, (9, 12), deviation)
    np.testing.assert_allclose(heatmaps, expected, atol=1e-6)
    np.testing.assert_array_equal(found, expected_weights)


def test_weights_are_kept():
    _, weights = draw_heatmaps(np.zeros((1, 2, 2)), np.array([[0.25, 0.0]]), (4, 4))
    np.testing.assert_array_equal(weights, [[0.25, 0.0]])


def find_slowly(heatmap):
    height, width = heatmap.shape
    y, x = np.unravel_index(heatmap.argmax(), heatmap.shape)
    if heatmap[y, x] <= 0:
        return -1.0, -1.0
    dx = np.sign(heatmap[y, x + 1] - heatmap[y, x - 1]) if 1 < x < width - 1 and y > 0 else 0.0
    dy = np.sign(heatmap[y + 1, x] - heatmap[y - 1, x]) if 1 < y < height - 1 and x > 0 else 0.0
    return x + 0.25 * dx, y + 0.25 * dy


@pytest.mark.parametrize("size", [(5, 4), (1, 3), (3, 1)])
def test_peaks_equal_a_loop(size):
    random = np.random.default_rng(0)
    heatmaps = random.normal(size=(40, *size, 3)).astype("float32")
    heatmaps[0] = -1.0
    points, scores = find_peaks(heatmaps)
    for image, keypoint in np.ndindex(40, 3):
        expected = find_slowly(heatmaps[image, :, :, keypoint])
        np.testing.assert_allclose(points[image, keypoint], expected)
    np.testing.assert_allclose(scores, heatmaps.max((1, 2)))


def test_a_mirrored_peak_comes_back():
    """A peak at pixel x of 16 is at 15 - x in the mirror image; mirrored back, it is a cell to the right."""
    heatmaps, _ = draw_heatmaps(np.array([[[1.0, 2.0], [3.0, 1.0]]]), np.ones((1, 2)), (4, 8), 0.5)
    mirrored, _ = draw_heatmaps(np.array([[[5.0, 1.0], [7.0, 2.0]]]), np.ones((1, 2)), (4, 8), 0.5)
    back = mirror_heatmaps(mirrored, [1, 0])
    np.testing.assert_allclose(back[:, :, 1:], heatmaps[:, :, 1:], atol=1e-6)
