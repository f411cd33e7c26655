import numpy as np
import pytest
import tensorflow as tf

from heads.ops.bilinear import place_samples, weigh_cells

# Starts and ends: inside, over the border on either side, within a cell, without length, far away.
INTERVALS = [(2.3, 17.9), (-4.2, 6.1), (5.5, 26.0), (3.1, 3.4), (7.25, 7.25), (-9.0, -3.0), (40.0, 44.0)]


def weigh_by_loop(start, end, num_cells, num_bins, sampling_ratio, aligned):
    """Sums the weight of each cell in each sample, in float64."""
    weights = np.zeros((num_bins, num_cells))
    size = max(end - start, 0.0 if aligned else 1.0) / num_bins
    count = sampling_ratio or int(np.ceil(size))
    for row in range(num_bins):
        for sample in range(count):
            place = start + row * size + (sample + 0.5) * size / count
            if -1 <= place <= num_cells:
                place = min(max(place, 0.0), num_cells - 1.0)
                for cell in range(num_cells):
                    weights[row, cell] += max(1 - abs(place - cell), 0.0)
    return weights


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("sampling_ratio", [0, 2])
@pytest.mark.parametrize("num_cells", [1, 2, 23])
def test_weights_equal_loop(num_cells, sampling_ratio, aligned):
    starts, ends = np.float32(INTERVALS).T
    sizes = np.full(len(starts), num_cells, "int32")
    samples = place_samples(starts, ends, sizes, 4, sampling_ratio, aligned)
    cells = np.arange(num_cells, dtype="int32")
    weights = np.asarray(weigh_cells(samples, cells[None], 4))
    for row, (start, end) in enumerate(np.float32(INTERVALS).astype("float64")):
        expected = weigh_by_loop(start, end, num_cells, 4, sampling_ratio, aligned)
        first, count = (int(field[row]) for field in (samples.window_starts, samples.window_sizes))
        inside = (cells >= first) & (cells < first + count)
        # Only cells of the window are compared: the true weights of the others must be zero.
        np.testing.assert_allclose(weights[row][:, inside], expected[:, inside], rtol=1e-4, atol=1e-4)
        assert not expected[:, ~inside].any()


def test_whole_bins_take_no_extra_sample_when_compiled():
    # XLA multiplies with the inverse of a constant instead of dividing, which rounds differently.
    lengths = np.arange(1, 200, dtype="float32")
    for num_bins in (7, 14, 28):
        place = tf.function(
            lambda starts, ends, num_bins=num_bins: (
                place_samples(starts, ends, tf.fill([199], 50), num_bins).counts
            ),
            jit_compile=True,
        )
        starts = np.full(199, 3.25, "float32")
        np.testing.assert_array_equal(place(starts, starts + lengths * num_bins), lengths)


def test_weights_of_inner_bins_sum_to_the_samples():
    samples = place_samples(np.float32([2.3, 4.0]), np.float32([17.9, 4.5]), np.int32([30, 30]), 4)
    weights = np.asarray(weigh_cells(samples, np.arange(30, dtype="int32")[None], 4))
    assert weights.shape == (2, 4, 30)
    assert weights.min() == 0.0
    np.testing.assert_allclose(weights.sum(-1), [[4.0] * 4, [1.0] * 4], rtol=1e-5)
    for box in range(2):
        touched = np.flatnonzero(weights[box].any(0))
        start, size = (int(field[box]) for field in (samples.window_starts, samples.window_sizes))
        assert start <= touched[0] <= touched[-1] < start + size <= touched[-1] + 2
