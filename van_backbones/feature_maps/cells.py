"""Parts of the pages: maps in colours, captions, colour bars. Pictures are uint8 (height, width, 3)."""

import textwrap

import numpy as np
from PIL import Image, ImageDraw, ImageFont

MARGIN = 6
TEXT_SIZE = 13
LINE_HEIGHT = TEXT_SIZE + 8
BAR_HEIGHT = LINE_HEIGHT + 10
# Images with a longer side below the first are enlarged by a whole factor, above the second shrunk.
COMFORTABLE_SIDE, MOST_SIDE = 192, 320
OVERLAY_SHARE = 0.6
WARNING_COLOUR = (200, 0, 0)


def choose_cell_size(image_size):
    """Returns the (height, width) at which an image and its maps are drawn."""
    longest = max(image_size)
    if longest > MOST_SIDE:
        return tuple(max(1, round(side * MOST_SIDE / longest)) for side in image_size)
    factor = max(1, -(-COMFORTABLE_SIDE // longest))
    return tuple(side * factor for side in image_size)


def tint(values, colours, limits):
    """Returns a map (h, w) in false colours; values beyond the limits have the colours of the ends."""
    from matplotlib import colormaps  # costs a second; only pictures need it

    low, high = limits
    shares = np.clip((np.asarray(values, "float64") - low) / (high - low), 0.0, 1.0)
    return colormaps[colours](shares, bytes=True)[:, :, :3]


def resize(picture, size):
    """Returns a picture of another size, whose pixels stay visible as cells where it is larger."""
    is_smaller = picture.shape[0] > size[0]
    method = Image.Resampling.BOX if is_smaller else Image.Resampling.NEAREST
    return np.asarray(Image.fromarray(picture).resize(size[::-1], method))


def overlay(picture, colours):
    """Returns a picture in grey below one in colours."""
    grey = np.asarray(Image.fromarray(picture).convert("L"))[:, :, None]
    return np.rint((1 - OVERLAY_SHARE) * grey + OVERLAY_SHARE * colours).astype("uint8")


def mark_point(picture, point, image_size):
    """Returns a picture with a cross at a point (x, y) in the pixels of an image of another size."""
    if point is None:
        return picture
    page = Image.fromarray(picture)
    pen = ImageDraw.Draw(page)
    y, x = (
        (place + 0.5) * drawn / side
        for place, drawn, side in zip(point[::-1], picture.shape[:2], image_size, strict=True)
    )
    for colour, width in (("black", 5), ("white", 2)):
        pen.line((x - 7, y, x + 7, y), colour, width)
        pen.line((x, y - 7, x, y + 7), colour, width)
    return np.asarray(page)


def draw_bar(colours, width, ends, is_overlay=False):
    """Returns a colour map from left to right, as it is or over grey, with labels below its ends."""
    page = Image.new("RGB", (width, BAR_HEIGHT), "white")
    strip = tint(np.linspace(0, 1, width)[None].repeat(10, axis=0), colours, (0.0, 1.0))
    strip = overlay(np.full_like(strip, 128), strip) if is_overlay else strip
    page.paste(Image.fromarray(strip), (0, 0))
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(TEXT_SIZE)
    for x, text, anchor in ((1, ends[0], "lt"), (width - 1, ends[1], "rt")):
        pen.text((x, 14), text, "black", font, anchor=anchor)
    return np.asarray(page)


def caption(picture, text):
    """Puts a caption above a picture; what is too long is cut at the right."""
    page = Image.new("RGB", (picture.shape[1], LINE_HEIGHT + len(picture)), "white")
    ImageDraw.Draw(page).text((1, 2), text, "black", ImageFont.load_default(TEXT_SIZE))
    page.paste(Image.fromarray(picture), (0, LINE_HEIGHT))
    return np.asarray(page)


def write(lines, width, warning=None):
    """Returns a white picture with lines of text, broken to its width; a warning stands above them in red."""
    font = ImageFont.load_default(TEXT_SIZE)
    most = max(10, int(width / font.getlength("n")))
    found = [(line, WARNING_COLOUR) for line in textwrap.wrap(warning or "", most)]
    for text in lines:
        found += [(line, "black") for line in textwrap.wrap(text, most, subsequent_indent="  ")]
    page = Image.new("RGB", (max(width, 1), len(found) * LINE_HEIGHT + 4), "white")
    pen = ImageDraw.Draw(page)
    for index, (line, colour) in enumerate(found):
        pen.text((1, 2 + index * LINE_HEIGHT), line, colour, font)
    return np.asarray(page)


def tile(rows):
    """Lays rows of pictures out on a white page."""
    heights = [max(picture.shape[0] for picture in row) + MARGIN for row in rows]
    width = max(sum(picture.shape[1] + MARGIN for picture in row) for row in rows) + MARGIN
    page = np.full((sum(heights) + MARGIN, width, 3), 255, np.uint8)
    y = MARGIN
    for row, height in zip(rows, heights, strict=True):
        x = MARGIN
        for picture in row:
            page[y : y + picture.shape[0], x : x + picture.shape[1]] = picture
            x += picture.shape[1] + MARGIN
        y += height
    return page
