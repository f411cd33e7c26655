"""Pages: pictures side by side, with captions and legends, and checks of the arguments.

Every picture is uint8 (height, width, 3), RGB.
"""

import functools

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from heads.drawing.palette import class_palette

MARGIN = 6
TEXT_SIZE = 14
LINE_HEIGHT = 20
CAPTION_HEIGHT = 22
# Pillow's built-in font of a size in pixels.
text_font = functools.cache(ImageFont.load_default)


def tile_pictures(rows, margin: int = MARGIN) -> np.ndarray:
    """Lays out pictures of any size on a white page.

    Args:
        rows: A list of rows, each a list of pictures (h, w, 3), from left to right.
        margin: White pixels around each picture.

    Returns:
        uint8 (height, width, 3). Rows start at the left, the pictures of a row at the same height.

    Raises:
        ValueError: If there is no picture.
    """
    rows = [[check_picture(picture) for picture in row] for row in rows]
    require(rows and all(rows), "rows must hold at least one row, and each row at least one picture", rows)
    width = max(sum(picture.shape[1] + margin for picture in row) for row in rows) + margin
    heights = [max(len(picture) for picture in row) + margin for row in rows]
    page = Image.new("RGB", (width, sum(heights) + margin), "white")
    y = margin
    for row, height in zip(rows, heights, strict=True):
        x = margin
        for picture in row:
            page.paste(Image.fromarray(picture), (x, y))
            x += picture.shape[1] + margin
        y += height
    return np.array(page)


def label_picture(picture, text: str) -> np.ndarray:
    """Puts a white strip with a caption above a picture; a text that is too long is cut.

    Args:
        picture: uint8 or float 0 .. 255 (h, w, 3).
        text: The caption.

    Returns:
        uint8 (h + strip, w, 3).
    """
    picture = Image.fromarray(check_picture(picture))
    page = ImageOps.expand(picture, (0, CAPTION_HEIGHT, 0, 0), "white")
    ImageDraw.Draw(page).text((1, CAPTION_HEIGHT // 2 - 1), text, "black", text_font(TEXT_SIZE), anchor="lm")
    return np.array(page)


def draw_legend(class_names, width: int, palette=None) -> np.ndarray:
    """Draws a white strip with one coloured square and one name per class.

    Args:
        class_names: The names.
        width: Width of the picture in pixels. Names that do not fit into a row start a new one, or are cut.
        palette: uint8 (classes, 3). Default: `class_palette(len(class_names))`.

    Returns:
        uint8 (height, width, 3).

    Raises:
        ValueError: If there are fewer colours than names or `width` is too small for a square.
    """
    require(width >= 3 * LINE_HEIGHT, f"width must be at least {3 * LINE_HEIGHT} pixels", width)
    names = [str(name) for name in class_names]
    palette = class_palette(max(len(names), 1)) if palette is None else palette
    rule = f"palette must have a colour for each of {len(names)} names"
    require(len(palette) >= len(names), rule, len(palette))
    widest = max(map(text_font(TEXT_SIZE).getlength, names), default=0)
    column = LINE_HEIGHT + int(widest) + 2 * MARGIN
    num_columns = max(1, (width - MARGIN) // column)
    num_rows = -(-len(names) // num_columns)
    page = Image.new("RGB", (width, num_rows * LINE_HEIGHT + 2 * MARGIN), "white")
    pen = ImageDraw.Draw(page)
    for index, name in enumerate(names):
        x = MARGIN + index % num_columns * column
        y = MARGIN + index // num_columns * LINE_HEIGHT
        pen.rectangle((x, y + 2, x + TEXT_SIZE, y + 2 + TEXT_SIZE), tuple(map(int, palette[index])), "black")
        pen.text((x + LINE_HEIGHT, y + LINE_HEIGHT // 2), name, "black", text_font(TEXT_SIZE), anchor="lm")
    return np.array(page)


def add_legend(picture, labels, class_names, show_counts: bool = False, factor: int = 1) -> np.ndarray:
    """Puts the legend of the classes that occur in `labels` below a picture, enlarged by a whole factor."""
    occurring, counts = np.unique(labels, return_counts=True)
    names = [str(class_names[label]) for label in occurring]
    if show_counts:
        names = [f"{name} ({count})" for name, count in zip(names, counts, strict=True)]
    width = max(picture.shape[1] // factor, 160)
    legend = draw_legend(names, width, class_palette(len(class_names))[occurring])
    return tile_pictures([[picture], [enlarge_picture(legend, factor)]], margin=0)


def check_picture(picture) -> np.ndarray:
    """Converts a picture (h, w, 3), uint8 or float 0 .. 255, to uint8.

    Raises:
        ValueError: For another shape or dtype.
    """
    picture = np.asarray(picture)
    fits = picture.ndim == 3 and picture.shape[2] == 3
    require(fits, "a picture must be (height, width, 3), RGB", f"shape {picture.shape}")
    if np.issubdtype(picture.dtype, np.floating):
        return picture.round().clip(0, 255).astype(np.uint8)
    require(picture.dtype == np.uint8, "a picture must be uint8 or float 0 .. 255", picture.dtype)
    return picture


def zip_examples(images, truths, predictions):
    """Returns an iterator of (image, truth, prediction).

    Raises:
        ValueError: Unless all three have the same length of at least one.
    """
    lengths = (len(images), len(truths), len(predictions))
    fits = len(set(lengths)) == 1 and lengths[0]
    require(fits, "there must be equally many images, truths and predictions, at least one", lengths)
    return zip(images, truths, predictions, strict=True)


def require(condition, rule: str, received):
    """Raises a ValueError that states the rule and what was received, unless the condition holds."""
    if not condition:
        raise ValueError(f"{rule}. Received: {received}")


def enlarge_picture(picture, factor: int) -> np.ndarray:
    """Returns an array (h, w, ...) with each pixel as a square of `factor` x `factor`."""
    return picture.repeat(factor, axis=0).repeat(factor, axis=1)
