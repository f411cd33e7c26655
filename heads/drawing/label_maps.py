"""Pictures of what a head was told and what it said: arrays in, arrays out; nothing is shown or saved.

Every picture is uint8 (height, width, 3), RGB. Label maps are integer (height, width); 255 is ignored and
drawn as a dark hatch.
"""

import functools

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from heads.ops.labels import IGNORED_LABEL

MARGIN = 6
TEXT_SIZE = 14
# Pictures with a longer side below this are enlarged by a whole factor, so that each pixel stays a square.
COMFORTABLE_SIDE = 256
FIRST_COLOURS = (
    *((70, 130, 220), (110, 175, 80), (30, 160, 165), (225, 60, 60), (150, 95, 55), (250, 215, 70)),
    *((235, 120, 200), (25, 95, 60), (245, 145, 45), (125, 70, 190), (45, 55, 120), (185, 185, 190)),
)


def draw_comparison(images, truths, predictions, class_names) -> np.ndarray:
    """Draws one row "image | truth | prediction" for each image, and a legend of the classes that occur.

    Args:
        images: A list of images (h, w, 3), uint8 or float 0 .. 255, or one array of them.
        truths: The label maps (h, w), 255 is ignored.
        predictions: The predicted label maps (h, w).
        class_names: The names of all classes.

    Returns:
        One picture, uint8 (height, width, 3).

    Raises:
        ValueError: If the three differ in number, are empty, or do not fit each other.
    """
    counts = len(images), len(truths), len(predictions)
    if len(set(counts)) > 1 or not counts[0]:
        raise ValueError(
            "images, truths and predictions must be equally many, at least one. "
            f"Received: {counts[0]}, {counts[1]} and {counts[2]}"
        )
    rows = [
        draw_segmentation(image, truth, prediction, class_names)
        for image, truth, prediction in zip(images, truths, predictions, strict=True)
    ]
    occurring = np.unique(np.concatenate([np.ravel(label_map) for label_map in (*truths, *predictions)]))
    occurring = occurring[occurring != IGNORED_LABEL]
    names = [class_names[label] for label in occurring]
    width = max(row.shape[1] for row in rows)
    legend = draw_legend(names, width, class_palette(len(class_names))[occurring])
    return tile_pictures([*([row] for row in rows), [legend]], margin=0)


def draw_segmentation(image, truth, prediction, class_names) -> np.ndarray:
    """Draws one row "image | truth | prediction"; the last caption tells the share of right pixels.

    Args:
        image: (h, w, 3), uint8 or float 0 .. 255.
        truth: The label map (h, w), 255 is ignored.
        prediction: The predicted label map (h, w).
        class_names: The names of all classes.

    Returns:
        One picture, uint8 (height, width, 3), enlarged if the image is small.

    Raises:
        ValueError: If the label maps do not fit the image or the class names.
    """
    image, truth, prediction = check_picture(image), _checked_labels(truth), _checked_labels(prediction)
    factor = max(1, -(-COMFORTABLE_SIDE // max(image.shape[:2])))
    palette = class_palette(len(class_names))
    pictures = [enlarge_picture(image, factor)]
    for label_map in (truth, prediction):
        _check_same_size(image, label_map)
        pictures.append(overlay_label_map(pictures[0], enlarge_picture(label_map, factor), 0.75, palette))
    counted = truth != IGNORED_LABEL
    right = f": {np.mean((truth == prediction)[counted]):.1%} right" if counted.any() else ""
    captions = ("image", "truth", "prediction" + right)
    return tile_pictures([[label_picture(*pair) for pair in zip(pictures, captions, strict=True)]])


def draw_label_map(label_map, palette=None, num_classes: int | None = None) -> np.ndarray:
    """Draws a label map in the classes' colours, ignored pixels as a dark hatch.

    Args:
        label_map: Integer (h, w); 255 is ignored.
        palette: uint8 (classes, 3). `class_palette(num_classes)` by default.
        num_classes: The number of classes; the largest label plus one by default. The colour of a class does
            not depend on it.

    Returns:
        uint8 (h, w, 3).

    Raises:
        ValueError: If a label is outside of the palette.
    """
    label_map = _checked_labels(label_map)
    ignored = label_map == IGNORED_LABEL
    highest = int(label_map.max(initial=0, where=~ignored))
    if palette is None:
        palette = class_palette(num_classes or highest + 1)
    palette = np.asarray(palette)
    if palette.ndim != 2 or palette.shape[1] != 3 or palette.dtype != np.uint8:
        raise ValueError(f"palette must be uint8 (classes, 3). Received: {palette.dtype} {palette.shape}")
    if highest >= len(palette) or label_map.min(initial=0) < 0:
        raise ValueError(
            f"label_map must hold 0 .. {len(palette) - 1} or {IGNORED_LABEL} (ignored). "
            f"Received: {label_map.min()} .. {highest}; pass a larger num_classes or palette"
        )
    picture = palette[np.where(ignored, 0, label_map)]
    y, x = np.indices(label_map.shape, sparse=True)
    hatch = np.where((x + y) // 3 % 2, 70, 20).astype(np.uint8)
    return np.where(ignored[:, :, None], hatch[:, :, None], picture)


def overlay_label_map(image, label_map, opacity: float = 0.5, palette=None) -> np.ndarray:
    """Lays the colours of a label map over its image, with a thin dark border around each segment.

    Args:
        image: (h, w, 3), uint8 or float 0 .. 255.
        label_map: Integer (h, w); 255 is ignored.
        opacity: Of the colours: 0 shows the image, 1 the label map.
        palette: uint8 (classes, 3). Made for the labels that occur by default.

    Returns:
        uint8 (h, w, 3).

    Raises:
        ValueError: If the sizes differ or `opacity` is outside of 0 .. 1.
    """
    image, label_map = check_picture(image), _checked_labels(label_map)
    _check_same_size(image, label_map)
    if not 0 <= opacity <= 1:
        raise ValueError(f"opacity must be in 0 .. 1. Received: {opacity!r}")
    picture = image * (1 - opacity) + draw_label_map(label_map, palette) * opacity
    border = np.zeros(label_map.shape, bool)
    border[:, 1:] = label_map[:, 1:] != label_map[:, :-1]
    border[1:] |= label_map[1:] != label_map[:-1]
    picture[border] *= 0.35
    return np.rint(picture).astype(np.uint8)


@functools.cache
def class_palette(num_classes: int) -> np.ndarray:
    """Gives well separated colours, uint8 (num_classes, 3), always the same.

    The first twelve are chosen by hand. Each further colour is the one farthest from all before it, and from
    black and white, as the eye sees it (CIE 1976 L*a*b*, white point D65). So the colour of a class does not
    depend on `num_classes`.

    Raises:
        ValueError: If `num_classes` is not in 1 .. 1000.
    """
    if not 1 <= num_classes <= 1000:
        raise ValueError(f"num_classes must be in 1 .. 1000. Received: {num_classes!r}")
    levels = np.linspace(0, 255, 14).round().astype(np.uint8)
    candidates = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), axis=-1).reshape(-1, 3)
    positions = _to_lab(candidates)
    palette = list(np.array(FIRST_COLOURS, np.uint8))
    taken = _to_lab(np.array([(0, 0, 0), (255, 255, 255), *FIRST_COLOURS]))
    distance = np.linalg.norm(positions[:, None] - taken, axis=2).min(axis=1)
    while len(palette) < num_classes:
        # Rounded, because equal distances must not be told apart by the last bit of one machine.
        farthest = int(np.argmax(distance.round(3)))
        palette.append(candidates[farthest])
        distance = np.minimum(distance, np.linalg.norm(positions - positions[farthest], axis=1))
    palette = np.stack(palette[:num_classes])
    palette.flags.writeable = False
    return palette


def draw_legend(class_names, width: int, palette=None) -> np.ndarray:
    """Draws a white strip with one coloured square and one name per class.

    Args:
        class_names: The names.
        width: Of the picture in pixels; names go on in a new row where it ends.
        palette: uint8 (classes, 3). `class_palette(len(class_names))` by default.

    Returns:
        uint8 (height, width, 3).

    Raises:
        ValueError: If there are fewer colours than names or `width` is too small for a square.
    """
    names = [str(name) for name in class_names]
    if palette is None:
        palette = class_palette(len(names)) if names else np.zeros((0, 3), np.uint8)
    if len(palette) < len(names):
        raise ValueError(
            f"palette must have a colour for each of {len(names)} names. Received: {len(palette)}"
        )
    line = TEXT_SIZE + 6
    if width < 3 * line:
        raise ValueError(f"width must be at least {3 * line} pixels. Received: {width!r}")
    names = [shorten_text(name, width - line - 2 * MARGIN) for name in names]
    column = line + max(map(measure_text, names), default=0) + 2 * MARGIN
    columns = max(1, (width - MARGIN) // column)
    rows = -(-len(names) // columns)
    page = Image.new("RGB", (width, rows * line + 2 * MARGIN), "white")
    pen = ImageDraw.Draw(page)
    for index, (name, colour) in enumerate(zip(names, palette, strict=False)):
        x, y = MARGIN + index % columns * column, MARGIN + index // columns * line
        square = (x, y + 2, x + TEXT_SIZE, y + 2 + TEXT_SIZE)
        pen.rectangle(square, fill=tuple(map(int, colour)), outline="black")
        pen.text((x + line, y + line // 2), name, "black", text_font(), anchor="lm")
    return np.asarray(page).copy()


def label_picture(picture, text: str) -> np.ndarray:
    """Puts a white strip with a caption above a picture; a text that is too long is cut.

    Args:
        picture: uint8 or float 0 .. 255 (h, w, 3).
        text: The caption.

    Returns:
        uint8 (h + strip, w, 3).
    """
    picture = check_picture(picture)
    strip = Image.new("RGB", (picture.shape[1], TEXT_SIZE + 8), "white")
    text = shorten_text(text, picture.shape[1])
    ImageDraw.Draw(strip).text((1, TEXT_SIZE // 2 + 3), text, "black", text_font(), anchor="lm")
    return np.concatenate([np.asarray(strip), picture])


def tile_pictures(rows, margin: int = MARGIN) -> np.ndarray:
    """Lays pictures of any sizes out on one white page.

    Args:
        rows: A list of rows, each a list of pictures (h, w, 3), from left to right.
        margin: White pixels around each picture.

    Returns:
        uint8 (height, width, 3). Rows start at the left, pictures of a row at the same height.

    Raises:
        ValueError: If there is no picture.
    """
    rows = [[check_picture(picture) for picture in row] for row in rows]
    if not rows or not all(rows):
        raise ValueError("rows must hold at least one row, and each row at least one picture.")
    width = max(sum(picture.shape[1] + margin for picture in row) for row in rows) + margin
    height = sum(max(picture.shape[0] for picture in row) + margin for row in rows) + margin
    page = np.full((height, width, 3), 255, np.uint8)
    y = margin
    for row in rows:
        x = margin
        for picture in row:
            page[y : y + picture.shape[0], x : x + picture.shape[1]] = picture
            x += picture.shape[1] + margin
        y += max(picture.shape[0] for picture in row) + margin
    return page


def check_picture(picture) -> np.ndarray:
    """Gives the picture as uint8.

    Args:
        picture: uint8 or float 0 .. 255 (h, w, 3).

    Raises:
        ValueError: For another shape or dtype.
    """
    picture = np.asarray(picture)
    if picture.ndim != 3 or picture.shape[2] != 3:
        raise ValueError(f"a picture must be (height, width, 3), RGB. Received shape: {picture.shape}")
    if picture.dtype == np.uint8:
        return picture
    if not np.issubdtype(picture.dtype, np.floating):
        raise ValueError(f"a picture must be uint8 or float 0 .. 255. Received dtype: {picture.dtype}")
    return np.clip(np.rint(picture), 0, 255).astype(np.uint8)


def enlarge_picture(picture, factor: int) -> np.ndarray:
    """Gives an array (h, w, ...) with each pixel as a square of `factor` x `factor`."""
    return picture.repeat(factor, axis=0).repeat(factor, axis=1)


@functools.cache
def text_font(size: int = TEXT_SIZE):
    """Gives Pillow's built-in font; `size` in pixels."""
    return ImageFont.load_default(size)


def measure_text(text: str, size: int = TEXT_SIZE) -> int:
    """Gives the width of a text in pixels."""
    return int(np.ceil(text_font(size).getlength(text)))


def shorten_text(text: str, width: int) -> str:
    """Gives the text, cut with an ellipsis where it is wider than `width` pixels; empty if nothing fits."""
    if measure_text(text) <= width:
        return text
    while text and measure_text(text + "...") > width:
        text = text[:-1]
    return text + "..." if text else ""


def _checked_labels(label_map):
    label_map = np.asarray(label_map)
    if label_map.ndim != 2 or not np.issubdtype(label_map.dtype, np.integer):
        raise ValueError(
            "a label map must be (height, width) of integers. "
            f"Received: {label_map.dtype} of shape {label_map.shape}"
        )
    return label_map


def _check_same_size(image, label_map):
    if image.shape[:2] != label_map.shape:
        raise ValueError(
            "image and label map must have the same height and width. "
            f"Received: {image.shape[:2]} and {label_map.shape}"
        )


def _to_lab(rgb):
    """Gives CIE L*a*b* of sRGB colours, uint8 (n, 3) -> float64 (n, 3)."""
    share = rgb / 255
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = linear @ to_xyz.T / to_xyz.sum(axis=1)
    x, y, z = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz * (29 / 6) ** 2 / 3 + 4 / 29).T
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=1)
