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
NUMBER_SIZE = 12
LINE_COLOUR = (225, 225, 225)
DARK_BLUE = np.array([20.0, 60.0, 130.0])


def draw_confusion(confusion, class_names: Sequence[str], in_percent: bool = False) -> np.ndarray:
    """Draws a confusion matrix: a row per true class, a column per predicted one.

    The larger a cell's share of its row, the darker it is. Names, and counts or shares, are shown for up to
    40 classes.

    Args:
        confusion: Counts, integers (classes, classes): see `heads.metrics.count_confusion`.
        class_names: Name of each class.
        in_percent: Whether cells show their share of the row in whole percent instead of counts, for pixels.

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
    grid = Image.fromarray(np.pad(pages.enlarge_picture(colours, cell), ((0, 1), (0, 1), (0, 0))))
    pen = ImageDraw.Draw(grid)
    for line in range(0, count * cell + 1, cell):
        pen.line([(line, 0), (line, grid.height)], LINE_COLOUR)
        pen.line([(0, line), (grid.width, line)], LINE_COLOUR)
    if is_named:
        font = pages.text_font(NUMBER_SIZE)
        for row, column in np.argwhere(confusion):
            centre = ((column + 0.5) * cell, (row + 0.5) * cell)
            ink = contrasting_ink(colours[row, column])
            text = _format_share(shares[row, column]) if in_percent else str(confusion[row, column])
            pen.text(centre, text, ink, font, anchor="mm")
        grid = _add_names(grid, [_shorten(str(name)) for name in class_names])
    unit = ", percent of a row" if in_percent else ""
    page = pages.label_picture(np.array(grid), f"rows: truth, columns: prediction{unit}")
    return pages.tile_pictures([[page]])


def _format_share(share):
    """Returns a share in whole percent; "<1" and ">99" for shares that would round to nothing or all."""
    text = f"{100 * share:.0f}"
    return {"0": "<1", "100": ">99" if share < 1 else "100"}.get(text, text)


def _add_names(grid, names):
    """Returns a page with the names to the left of a grid, and turned above it."""
    font = pages.text_font(pages.TEXT_SIZE)
    room = int(max(map(font.getlength, names))) + 2 * pages.MARGIN
    page = Image.new("RGB", (room + grid.width, room + grid.height), "white")
    page.paste(grid, (room, room))
    for index, name in enumerate(names):
        strip = Image.new("RGB", (room, CELL), "white")
        ImageDraw.Draw(strip).text((room - pages.MARGIN, CELL / 2), name, "black", font, anchor="rm")
        page.paste(strip, (0, room + index * CELL))
        strip = Image.new("RGB", (room, CELL), "white")
        ImageDraw.Draw(strip).text((pages.MARGIN, CELL / 2), name, "black", font, anchor="lm")
        page.paste(strip.transpose(Image.Transpose.ROTATE_90), (room + index * CELL, 0))
    return page


def _shorten(name):
    """Returns a name that fits, with its end cut off if it is too long."""
    font, end = pages.text_font(pages.TEXT_SIZE), ""
    while font.getlength(name + end) > MOST_NAME_PIXELS:
        name, end = name[:-1], "..."
    return name + end
