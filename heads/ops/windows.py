"""Windows that cover a length: of slices and tiles of pictures."""

import itertools

import numpy as np


def place_windows(length: int, window: int, step: int) -> list[tuple[int, int]]:
    """Returns (start, end) of windows that cover a length; the last one is shifted back to fit.

    Args:
        length: the length to cover.
        window: length of a window; if it exceeds `length`, a single window covers everything.
        step: distance from one window to the next, at most `window`.
    """
    num_windows = max(0, -(-(length - window) // step)) + 1
    ends = [min(index * step + window, length) for index in range(num_windows)]
    return [(max(0, end - window), end) for end in ends]


def find_step(window: int, overlap: float) -> int:
    """Returns the step of windows that share at least `overlap` of their length with the next one."""
    return max(1, int(window * (1 - overlap)))


def trim_windows(windows: list[tuple[int, int]], overlap: int) -> list[tuple[int, int]]:
    """Returns the parts of windows that count: each shares at most `overlap` places with the next one.

    The last window of `place_windows` may overlap the one before much more. Both are trimmed equally, so that
    the parts that count are far from their ends.
    """
    parts = [list(window) for window in windows]
    for before, after in itertools.pairwise(parts):
        excess = max(0, before[1] - after[0] - overlap)
        before[1] -= excess // 2
        after[0] += excess - excess // 2
    return [tuple(part) for part in parts]


def fade_windows(windows: list[tuple[int, int]]) -> list[np.ndarray]:
    """Returns the weight of each place of each window, so that windows fade into each other.

    A window weighs less towards ends at which it overlaps another. At every place, the weights of all windows
    sum up to 1.

    Args:
        windows: from `place_windows` or `trim_windows`.

    Returns:
        A list of float32 (end - start,), above 0.
    """
    last = windows[-1][1]
    weights = []
    for number, (start, end) in enumerate(windows):
        places = np.arange(start, end) + 0.5
        weight = np.ones(end - start)
        if start > 0:
            weight = np.minimum(weight, (places - start) / max(1, windows[number - 1][1] - start))
        if end < last:
            weight = np.minimum(weight, (end - places) / max(1, end - windows[number + 1][0]))
        weights.append(weight)
    total = np.zeros(last)
    for (start, end), weight in zip(windows, weights, strict=True):
        total[start:end] += weight
    return [
        (weight / total[start:end]).astype("float32")
        for (start, end), weight in zip(windows, weights, strict=True)
    ]
