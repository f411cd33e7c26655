"""Scores as plain text tables."""

import numpy as np


def to_percent(value) -> str:
    """A score as text; "-" for NaN."""
    return "-" if np.isnan(value) else f"{100 * value:.2f}"


def align_rows(rows) -> list[str]:
    """Lines of a table: the first column is aligned left, the others right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for name, *cells in rows:
        cells = [cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True)]
        lines.append("  ".join([name.ljust(widths[0]), *cells]))
    return lines
