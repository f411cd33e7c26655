"""Pictures of confusion matrices: which classes are taken for which."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

import heads.drawing.pages as pages
from heads.drawing.pages import require
from heads.drawing.palette import contrasting_ink

CELL, SMALL_CELL = 36, 8
MOST_NAMED_CLASSES = 40  # more classes get cells without names and numbers
MOST_NAME_PIXELS = 160
DARK_BLUE = np.array([20.0, 60.0, 130.0])


def draw_confusion(confusion, class_names: Sequence[str]) -> np.ndarray:
    """Draws a confusion matrix: a row per true class, a column per predicted one.

    A cell is as dark as its share of the row. Up to 40 classes have their names and the counts.

    Args:
        confusion: Counts, integers (classes, classes): see `heads.metrics.count_confusion`.
        class_names: Name of each class.

    Returns:
        uint8 (height, width, 3).

    Raises:
        ValueError: If the matrix is not square, or has another number of classes than there are names.
    """
    confusion = np.asarray(confusion)
    count = len(class_names)
    rule = f"confusion must be ({count}, {count}), a row and a column for each of {count} class names"
    require(confusion.shape == (count, count) and count, rule, f"shape {confusion.shape}")
    shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    colours = (255 + shares[..., None] * (DARK_BLUE - 255)).round().astype(np.uint8)
    is_named = count <= MOST_NAMED_CLASSES
    cell = CELL if is_named else SMALL_CELL
    grid = Image.fromarray(pages.enlarge_picture(colours, cell))
    pen = ImageDraw.Draw(grid)
    for line in range(0, count * cell, cell):
        pen.line([(line, 0), (line, grid.height)], (225, 225, 225))
        pen.line([(0, line), (grid.width, line)], (225, 225, 225))
    if not is_named:
        return pages.label_picture(np.array(grid), "rows: truth, columns: prediction")
    font = pages.text_font(12)
    for row, column in np.argwhere(confusion):
        centre = ((column + 0.5) * cell, (row + 0.5) * cell)
        ink = contrasting_ink(colours[row, column])
        pen.text(centre, str(confusion[row, column]), ink, font, anchor="mm")
    return _add_names(grid, [str(name) for name in class_names], cell)


def _add_names(grid, names, cell):
    """Returns a page with the names to the left of a grid, and upright above it."""
    font = pages.text_font(pages.TEXT_SIZE)
    room = int(min(max(map(font.getlength, names)), MOST_NAME_PIXELS)) + 2 * pages.MARGIN
    names_beside = Image.new("RGB", (room, grid.height), "white")
    pen = ImageDraw.Draw(names_beside)
    for index, name in enumerate(names):
        pen.text((room - pages.MARGIN, (index + 0.5) * cell), name, "black", font, anchor="rm")
    names_above = Image.new("RGB", (grid.width, room), "white")
    for index, name in enumerate(names):
        strip = Image.new("RGB", (room, cell), "white")
        ImageDraw.Draw(strip).text((pages.MARGIN, cell / 2), name, "black", font, anchor="lm")
        names_above.paste(strip.transpose(Image.Transpose.ROTATE_90), (index * cell, 0))
    page = Image.new("RGB", (room + grid.width + 1, room + grid.height + 1), "white")
    page.paste(names_beside, (0, room))
    page.paste(names_above, (room, 0))
    page.paste(grid, (room, room))
    return pages.label_picture(np.array(page), "rows: truth, columns: prediction")
