"""Windows that cover a length, and how they fade into each other."""

import itertools

import numpy as np
import pytest

from heads.ops.windows import fade_windows, find_step, place_windows, trim_windows


@pytest.mark.parametrize(
    ("length", "window", "step", "expected"),
    [
        (10, 4, 3, [(0, 4), (3, 7), (6, 10)]),
        (11, 4, 3, [(0, 4), (3, 7), (6, 10), (7, 11)]),
        (9, 4, 4, [(0, 4), (4, 8), (5, 9)]),
        (8, 4, 4, [(0, 4), (4, 8)]),
        (4, 4, 3, [(0, 4)]),
        (3, 4, 3, [(0, 3)]),
        (5, 4, 1, [(0, 4), (1, 5)]),
        (1, 1, 1, [(0, 1)]),
    ],
)
def test_windows_by_hand(length, window, step, expected):
    assert place_windows(length, window, step) == expected


def test_windows_cover_everything():
    for length in range(1, 20):
        for window in range(1, 8):
            for step in range(1, window + 1):
                windows = place_windows(length, window, step)
                assert len(set(windows)) == len(windows)
                covered = {place for start, end in windows for place in range(start, end)}
                assert covered == set(range(length))
                assert {end - start for start, end in windows} == {min(window, length)}


def test_steps_keep_the_overlap():
    assert find_step(512, 0.25) == 384
    assert find_step(10, 0) == 10
    assert find_step(3, 0.99) == 1
    for window in range(1, 30):
        for overlap in (0, 0.1, 0.2, 0.5, 0.9):
            assert 1 <= find_step(window, overlap) <= max(1, window * (1 - overlap))


@pytest.mark.parametrize(
    "size", [(10, 4, 3), (11, 4, 3), (9, 4, 4), (4, 4, 3), (3, 4, 3), (50, 20, 8), (23, 9, 2)]
)
def test_weights_sum_to_one(size):
    windows = place_windows(*size)
    weights, total = fade_windows(windows), np.zeros(size[0])
    for (start, end), weight in zip(windows, weights, strict=True):
        assert weight.shape == (end - start,)
        assert (weight > 0).all()
        total[start:end] += weight
    np.testing.assert_allclose(total, 1, rtol=1e-6)


def test_what_counts_of_windows():
    assert trim_windows([(0, 4), (3, 7), (6, 10)], 1) == [(0, 4), (3, 7), (6, 10)]
    assert trim_windows([(0, 512), (384, 896), (388, 900)], 128) == [(0, 512), (384, 706), (578, 900)]
    assert trim_windows([(0, 4), (4, 8), (5, 9)], 0) == [(0, 4), (4, 7), (7, 9)]
    assert trim_windows([(0, 10), (1, 11)], 3) == [(0, 7), (4, 11)]
    assert trim_windows([(0, 3)], 1) == [(0, 3)]
    for length in range(1, 40):
        for window in range(1, 12):
            for step in range(1, window + 1):
                windows = place_windows(length, window, step)
                parts = trim_windows(windows, window - step)
                assert (parts[0][0], parts[-1][1]) == (0, length)
                for (start, end), (first, last) in zip(windows, parts, strict=True):
                    assert start <= first < last <= end
                for before, after in itertools.pairwise(parts):
                    assert 0 <= before[1] - after[0] <= window - step
                    assert before[0] < after[0]
                    assert before[1] < after[1]
                np.testing.assert_allclose(sum_weights(parts), 1, rtol=1e-6)


def sum_weights(windows):
    total = np.zeros(windows[-1][1])
    for (start, end), weight in zip(windows, fade_windows(windows), strict=True):
        total[start:end] += weight
    return total


def test_weights_by_hand():
    first, second = fade_windows([(0, 6), (2, 8)])
    np.testing.assert_allclose(first, [1, 1, 0.875, 0.625, 0.375, 0.125])
    np.testing.assert_allclose(second, first[::-1])
