"""How much there is of each class, as a table."""

from collections.abc import Sequence

import numpy as np

RARE = 0.05  # share below which a class is called rare


def format_class_counts(counts: dict, class_names: Sequence[str], unit: str) -> str:
    """The counts of `check()` as a plain text table: how much there is of each class, and its share.

    Args:
        counts: Name of a split -> what its `check()` returns, one count for each class.
        class_names: Name of each class.
        unit: What is counted: "pixels", "objects" ...

    Returns:
        Lines: a header, then one per class. Classes with less than 5 % of the first split are called rare: a
        short training hardly learns them. What does not occur at all is called missing.

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


def _find_word(shares):
    """Returns what is to be said of a class that has these shares of the splits."""
    if not all(shares):
        return "missing"
    return "rare" if shares[0] < RARE else ""
