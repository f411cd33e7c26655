"""How much there is of each class, as a table."""

from collections.abc import Sequence

import numpy as np

RARE = 0.05  # share below which a class is called rare
LARGEST_RATIO = 50.0  # of a balanced class weight to the smallest one


def format_class_counts(counts: dict, class_names: Sequence[str], unit: str) -> str:
    """The counts of `check()` as a plain text table: how much there is of each class, and its share.

    Args:
        counts: Name of a split -> what its `check()` returns, one count for each class.
        class_names: Name of each class.
        unit: What is counted: "pixels", "objects" ...

    Returns:
        Lines: a header, then one per class. Classes with less than 5 % of the first split are called rare: a
        short training hardly learns them. A class that does not occur in one of the splits is called missing.

    Raises:
        ValueError: Where the number of counts is not the number of names.
    """
    rows = [["class", *(text for split in counts for text in (f"{split}: {unit}", "share"))]]
    shares = {}
    for split, numbers in counts.items():
        numbers = np.asarray(numbers)
        if numbers.shape != (len(class_names),):
            raise ValueError(
                f"counts must have one number for each of the {len(class_names)} class names. "
                f"Received: shape {numbers.shape} for {split!r}"
            )
        shares[split] = numbers / max(numbers.sum(), 1)
    for label, name in enumerate(class_names):
        cells = [(f"{counts[split][label]:,}", f"{share[label]:.1%}") for split, share in shares.items()]
        rows.append([str(name), *(text for pair in cells for text in pair)])
        word = _find_word([share[label] for share in shares.values()])
        rows[-1].append(word)
    rows[0].append("")
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for name, *numbers, word in rows:
        cells = [text.rjust(width) for text, width in zip(numbers, widths[1:-1], strict=True)]
        lines.append("  ".join([name.ljust(widths[0]), *cells, word]).rstrip())
    return "\n".join(lines)


def balance_classes(counts) -> list[float]:
    """Returns class weights for a loss that favour rare classes: 1 / sqrt(share), within a limit.

    A class then counts in the loss by the square root of its pixels. Weights of 1 / share, as in median
    frequency balancing, would make all classes equal: a class with one pixel in 10,000 would weigh 10,000
    times as much as the rest, a single wrong label of it would outweigh whole pictures, and the model would
    find it everywhere. The square root turns the 10,000 into 100, and no weight is more than 50 times the
    smallest.

    Args:
        counts: How much there is of each class, as `check()` returns it.

    Returns:
        A number for each class; an average pixel has 1. A class that does not occur has the smallest.

    Raises:
        ValueError: Where there is nothing of any class, or a number is negative.
    """
    counts = np.asarray(counts, "float64")
    if counts.ndim != 1 or not counts.sum() > 0 or counts.min() < 0:
        raise ValueError(f"counts must be a number for each class, 0 or more, not all 0. Received: {counts}")
    shares = counts / counts.sum()
    weights = 1 / np.sqrt(np.where(shares, shares, shares.max()))
    weights = np.minimum(weights, LARGEST_RATIO * weights.min())
    return (weights / (weights * shares).sum()).tolist()


def _find_word(shares):
    """Returns the remark on a class with these shares of the splits, or ""."""
    if not all(shares):
        return "missing"
    return "rare" if shares[0] < RARE else ""
