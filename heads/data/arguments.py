"""The checks of arguments that several files share; each gives the value as it is used."""

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
    """Returns one or more positive whole numbers; one alone needs no sequence."""
    counts = _as_sequence(value)
    if not counts or not all(_is_whole(count) and count > 0 for count in counts):
        raise ValueError(f"{name} must be positive whole numbers. Received: {name}={value!r}")
    return tuple(map(int, counts))


def read_seed(value) -> int:
    """Returns a seed, which TensorFlow takes as int32 and NumPy not below 0."""
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


def read_share(name: str, value) -> float:
    """Returns a number above 0 and at most 1."""
    if not _is_number(value) or not 0 < value <= 1:
        raise ValueError(f"{name} must be above 0 and at most 1. Received: {value!r}")
    return float(value)


def _as_sequence(value):
    """Returns a tuple; of one entry where the value is no sequence (a text is none)."""
    return tuple(value) if hasattr(value, "__iter__") and not isinstance(value, str | bytes) else (value,)


def _is_whole(value):
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def _is_number(value):
    return isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)
