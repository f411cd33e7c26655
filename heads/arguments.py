"""Checks of arguments that several files share: `read_...` returns the value in the form that is used."""

import math
import numbers

LARGEST_SEED = 2**31 - 1


def read_count(name: str, value, smallest: int = 1) -> int:
    """Returns a whole number of at least `smallest`."""
    if not _is_whole(value):
        raise ValueError(f"{name} must be a whole number, at least {smallest}. Received: {value!r}")
    if value < smallest:
        raise ValueError(f"{name} must be at least {smallest}. Received: {value!r}")
    return int(value)


def read_counts(name: str, value) -> tuple[int, ...]:
    """Returns one or more positive whole numbers; a single one needs no sequence."""
    counts = _as_sequence(value)
    if not counts or not all(_is_whole(count) and count > 0 for count in counts):
        raise ValueError(f"{name} must be positive whole numbers. Received: {name}={value!r}")
    return tuple(map(int, counts))


def read_seed(value) -> int:
    """Returns a seed that fits TensorFlow (int32) and NumPy (not negative)."""
    if not _is_whole(value) or not 0 <= value <= LARGEST_SEED:
        raise ValueError(f"seed must be a whole number, 0 to {LARGEST_SEED}. Received: {value!r}")
    return int(value)


def read_flag(name: str, value) -> bool:
    """Returns True or False; a probability or a word is not taken for either."""
    if value not in (True, False) or isinstance(value, float):
        raise ValueError(f"{name} must be True or False. Received: {value!r}")
    return bool(value)


def read_size(name: str, value, smallest: int = 1) -> tuple[int, int]:
    """Returns (height, width); a whole number stands for a square."""
    sides = _as_sequence(value)
    sides = sides * 2 if _is_whole(value) else sides
    if len(sides) != 2 or not all(_is_whole(side) and side >= smallest for side in sides):
        raise ValueError(
            f"{name} must be (height, width), or a whole number for a square, at least {smallest} on each "
            f"side. Received: {value!r}"
        )
    return int(sides[0]), int(sides[1])


def read_range(name: str, value) -> tuple[float, float]:
    """Returns (lowest, highest), finite and above 0."""
    ends = _as_sequence(value)
    if len(ends) != 2 or not all(_is_number(end) for end in ends) or not 0 < ends[0] <= ends[1]:
        raise ValueError(f"{name} must be (lowest, highest), above 0. Received: {value!r}")
    return tuple(ends)


def read_pairs(name: str, value, count: int, only_once: bool = False) -> list[list[int]] | None:
    """Returns pairs of different numbers 0 .. count - 1; None if there are none.

    With `only_once`, no number may be in two pairs.
    """
    if value is None:
        return None
    pairs = [_as_sequence(pair) for pair in _as_sequence(value)]
    numbers_in_pairs = [number for pair in pairs for number in pair]
    are_numbers = all(_is_whole(number) and 0 <= number < count for number in numbers_in_pairs)
    is_right = are_numbers and all(len(pair) == 2 and pair[0] != pair[1] for pair in pairs)
    if not is_right or (only_once and len(set(numbers_in_pairs)) < len(numbers_in_pairs)):
        limit = ", each in one pair at most" * only_once
        raise ValueError(
            f"{name} must be pairs of different numbers 0 .. {count - 1}{limit}. Received: {value!r}"
        )
    return [list(map(int, pair)) for pair in pairs]


def read_share(name: str, value) -> float:
    """Returns a number above 0 and at most 1."""
    if not _is_number(value) or not 0 < value <= 1:
        raise ValueError(f"{name} must be above 0 and at most 1. Received: {value!r}")
    return float(value)


def check_counts(least=1, **counts):
    """Raises a ValueError that names the first argument that is not a whole number of at least `least`."""
    for name, value in counts.items():
        read_count(name, value, least)


def check_shares(with_one=False, **shares):
    """Raises a ValueError that names the first argument that is not from 0 to below 1, or to 1 `with_one`."""
    for name, value in shares.items():
        if not isinstance(value, numbers.Real) or not 0 <= value <= 1 or (value == 1 and not with_one):
            limit = "to 1" if with_one else "to below 1"
            raise ValueError(f"{name} must be a number from 0 {limit}. Received: {value!r}")


def check_detector(num_classes, channels, score_threshold, iou_threshold, max_detections):
    """Raises a ValueError that names the first argument of a detector that is out of range.

    `iou_threshold` is None for a detector that suppresses nothing.
    """
    check_counts(num_classes=num_classes, channels=channels, max_detections=max_detections)
    check_shares(score_threshold=score_threshold)
    if iou_threshold is not None:
        check_shares(with_one=True, iou_threshold=iou_threshold)


def _as_sequence(value):
    """Returns a tuple, with one entry if the value is not a sequence (a text does not count as one)."""
    return tuple(value) if hasattr(value, "__iter__") and not isinstance(value, str | bytes) else (value,)


def _is_whole(value):
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def _is_number(value):
    return isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)
