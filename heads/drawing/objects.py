"""Pictures of objects: their boxes, masks and labels on an image.

The colour tells the class, its brightness tells neighbours of one class apart; if there is only one class,
each object has its own colour. The lower the score, the fainter the box. Where objects are too small or too
crowded for text, the legend still names their class.
"""

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageOps

import heads.drawing.pages as pages
from heads.arguments import read_count
from heads.drawing.pages import require
from heads.drawing.palette import class_palette, contrasting_ink
from heads.ops.masks import paste_masks

# Pictures with a longer side below this are enlarged by a whole factor, those with small objects even more.
COMFORTABLE_SIDE = 640
COMFORTABLE_OBJECT = 24
LARGEST_SIDE = 1600
# Lines and text suit pictures up to this side, in pixels; on larger ones they grow by a whole factor.
SIDE_PER_LINE = 1200
TAG_TEXT_SIZE = 12
# How much a tag may cover: the sum of the covered shares of all objects under it.
TOLERATED_COVER = 0.25
# If more than this many objects are smaller than this area, they get no text, which would bury them.
MOST_SMALL_OBJECTS = 40
SMALL_AREA = 2000
# Shades of a class's colour: a factor, and how much white is added.
SHADES = np.array([(1.0, 0), (0.6, 102), (0.65, 0), (0.8, 51)])
NUM_HUES = 7  # of the objects of a single class
NEAR = 6  # pixels between neighbours
FAINTEST = 0.35  # opacity of the box of a score of 0


def draw_detections(
    image,
    detections: dict,
    class_names,
    score_threshold: float = 0.3,
    factor: int | None = None,
    show_boxes: bool | None = None,
    legend: bool = True,
) -> np.ndarray:
    """Draws boxes, masks and labels of objects on an image, and a legend that counts each class.

    Args:
        image: (h, w, 3), uint8 or float 0 .. 255.
        detections: Those of this image: "boxes" (n, 4) xyxy in its pixels, "labels" (n,) integers, of which
            -1 and -2 are skipped, and optionally "scores" (n,) and "masks": float scores within the box (n,
            28, 28), or bool or 0 / 1 (n, h, w). The truth has the same form, without scores.
        class_names: The names of all classes.
        score_threshold: Detections below it are left out.
        factor: By how much the picture is enlarged. Default: chosen by the sizes of image and objects.
        show_boxes: Whether to draw the boxes. Default: only if there are no masks.
        legend: Whether to put the legend below.

    Returns:
        uint8 (h * factor + legend, w * factor, 3); wider than the image if the legend needs it.

    Raises:
        ValueError: If the arrays do not fit each other, the image or the class names.
    """
    image = pages.check_picture(image)
    objects = select_objects(detections, image, class_names, score_threshold)
    if factor is None:
        factor = choose_factor(image, objects["boxes"])
    factor = read_count("factor", factor)
    picture = draw_objects(image, objects, class_names, factor, show_boxes=show_boxes)
    if not legend:
        return picture
    return pages.add_legend(
        picture, objects["labels"], class_names, True, find_line_width(Image.fromarray(picture))
    )


def select_objects(detections, image, class_names, score_threshold):
    """Returns the objects to draw as a dict of arrays, the largest box first; masks become bool (n, h, w)."""
    given = {"boxes", "labels", "scores", "masks"} & detections.keys()
    arrays = {name: np.asarray(detections[name]) for name in given if detections[name] is not None}
    in_box = "masks" in arrays and np.issubdtype(arrays["masks"].dtype, np.floating)
    _check_objects(arrays, in_box, image.shape[:2], len(class_names))
    sizes = np.maximum(arrays["boxes"][:, 2:] - arrays["boxes"][:, :2], 0)
    order = np.argsort(-sizes.prod(axis=1), kind="stable")
    keep = (arrays["labels"] >= 0) & (arrays.get("scores", np.inf) >= score_threshold)
    objects = {name: array[order[keep[order]]] for name, array in arrays.items()}
    if in_box:
        objects["masks"] = paste_masks(objects["masks"], objects["boxes"], image.shape[:2])
    return objects


def _check_objects(arrays, in_box, image_size, num_classes):
    require({"boxes", "labels"} <= arrays.keys(), 'detections must have "boxes" and "labels"', sorted(arrays))
    labels, shapes = arrays["labels"], {name: array.shape for name, array in arrays.items()}
    ends = {"boxes": (4,), "masks": shapes["masks"][-2:] if in_box else image_size}
    fit = all(shape == (labels.size, *ends.get(name, ())) for name, shape in shapes.items())
    rule = "boxes (n, 4), labels and scores (n,), masks float (n, 28, 28) or bool (n, {}, {})"
    require(fit, "detections must be those of one image: " + rule.format(*image_size), shapes)
    fit = np.issubdtype(labels.dtype, np.integer) and labels.max(initial=-1) < num_classes
    rule = f"labels must be integers below {num_classes}, the number of names"
    require(fit, rule, f"{labels.dtype} up to {labels.max(initial=-1)}")


def choose_factor(image, boxes, share=1.0):
    """Returns the whole factor by which a picture is enlarged.

    Args:
        image: (h, w, 3).
        boxes: (n, 4), xyxy, of the objects that must be visible.
        share: Share of the usual size that is enough.
    """
    side = max(image.shape[:2])
    factor = -(-int(share * COMFORTABLE_SIDE) // side)
    if len(boxes):
        small = np.quantile((boxes[:, 2:] - boxes[:, :2]).min(axis=1), 0.25)
        factor = max(factor, round(COMFORTABLE_OBJECT / max(small, 1)))
    return max(1, min(factor, int(share * LARGEST_SIDE) // side))


def draw_objects(image, objects, class_names, factor, colours=None, is_right=None, show_boxes=None):
    """Draws objects of `select_objects`; boxes of those that are not right are dashed.

    Args:
        image: uint8 (h, w, 3).
        objects: From `select_objects`.
        class_names: The names of all classes.
        factor: By how much the picture is enlarged.
        colours: Colours of the objects; see `choose_colours`.
        is_right: Bool (n,); all by default.
        show_boxes: See `draw_detections`.

    Returns:
        uint8 (h * factor, w * factor, 3).
    """
    picture = Image.fromarray(pages.enlarge_picture(image, factor))
    line = find_line_width(picture)
    boxes = scale_boxes(objects["boxes"], factor, picture.size)
    colours = choose_colours(objects, class_names) if colours is None else colours
    is_right = np.ones(len(boxes), bool) if is_right is None else is_right
    # Where tags touch their objects: the corners of boxes, or the ends of masks.
    ends = list(boxes[:, [0, 1, 2, 1, 0, 3, 2, 3]].reshape(-1, 4, 2))
    show_boxes = "masks" not in objects if show_boxes is None else show_boxes
    for index, mask in enumerate(objects.get("masks", ())):
        _draw_mask(picture, mask, factor, colours[index], line)
        if mask.any() and not show_boxes:
            ends[index] = _find_ends(mask) * factor
    # Masks need no boxes, except those of false detections, whose boxes are drawn for their dashes.
    drawn = np.ones(len(boxes), bool) if show_boxes else ~is_right
    opacities = FAINTEST + (1 - FAINTEST) * np.clip(objects.get("scores", np.ones(len(boxes))), 0, 1)
    for row in np.flatnonzero(drawn):
        _draw_box(picture, boxes[row], colours[row], line, opacities[row], is_right[row])
    _draw_tags(picture, objects, class_names, boxes, ends, colours, line)
    return np.array(picture)


def find_line_width(picture):
    """Returns the width of a thin line on a picture, in pixels."""
    return max(1, round(max(picture.size) / SIDE_PER_LINE))


def scale_boxes(boxes, factor, size):
    """Returns the first and last pixels of boxes on an enlarged picture of a (width, height), int (n, 4)."""
    boxes = (boxes * factor - (0, 0, 1, 1)).clip(0, np.tile(size, 2) - 1).round().astype(int)
    boxes[:, 2:] = np.maximum(boxes[:, :2], boxes[:, 2:])
    return boxes


def choose_colours(objects, class_names):
    """Returns each object's colour, the one that its neighbours of the same class use least.

    With several classes it is a shade of the class's colour; with a single class any colour of the palette,
    since colours need not tell classes apart.
    """
    boxes, labels = objects["boxes"], objects["labels"]
    choices = SHADES if len(class_names) > 1 else class_palette(NUM_HUES)
    chosen = np.zeros(len(boxes), int)
    for index, box in enumerate(boxes):
        others = boxes[:index]
        near = (others[:, :2] - NEAR < box[2:]).all(axis=1) & (box[:2] - NEAR < others[:, 2:]).all(axis=1)
        used = chosen[:index][near & (labels[:index] == labels[index])]
        counts = np.bincount(used, minlength=len(choices))
        if len(class_names) == 1:  # objects that are far from each other differ, too
            counts = counts * len(boxes) + np.bincount(chosen[:index], minlength=len(choices))
        chosen[index] = counts.argmin()
    if len(class_names) == 1:
        return [tuple(map(int, colour)) for colour in choices[chosen]]
    scales, whites = SHADES[chosen].T[:, :, None]
    palette = class_palette(len(class_names))
    return [tuple(map(int, colour)) for colour in palette[labels] * scales + whites]


def _draw_box(picture, box, colour, line, opacity, is_right):
    """Draws a box with an outline: solid, or dashed where it is not right."""
    pen = ImageDraw.Draw(picture, "RGBA")  # mixes colours by their opacity
    width = line if min(box[2:] - box[:2]) < 24 * line else 2 * line
    colour, outline = (*colour, round(255 * opacity)), (*contrasting_ink(colour), round(128 * opacity))
    if is_right:
        outer = box + np.multiply((-1, -1, 1, 1), line)
        pen.rectangle(outer.tolist(), outline=outline, width=width + 2 * line)
        pen.rectangle(box.tolist(), outline=colour, width=width)
    else:
        draw_dashes(picture, box, colour, width, 8 * line, 14 * line)


def draw_dashes(picture, box, colour, width, length, period):
    """Draws a box of dashes onto a picture.

    Args:
        picture: A PIL image.
        box: Its first and last pixels, integers (4,).
        colour: (r, g, b), or with an opacity.
        width: Width of the line, inwards.
        length: Length of a dash.
        period: Distance from one dash to the next.
    """
    pen = ImageDraw.Draw(picture, "RGBA")
    left, top, right, bottom = map(int, box)
    for start in range(left, right + 1, period):
        end = min(start + length - 1, right)
        pen.rectangle((start, top, end, min(top + width - 1, bottom)), colour)
        pen.rectangle((start, max(bottom - width + 1, top), end, bottom), colour)
    for start in range(top, bottom + 1, period):
        end = min(start + length - 1, bottom)
        pen.rectangle((left, start, min(left + width - 1, right), end), colour)
        pen.rectangle((max(right - width + 1, left), start, right, end), colour)


def _draw_mask(picture, mask, factor, colour, line):
    """Fills a mask, with a line inside of its border and an outline around it."""
    image = Image.fromarray(mask.astype(bool)).convert("L")
    left, top, right, bottom = image.getbbox() or (0, 0, 0, 0)
    image = image.crop((left - line, top - line, right + line, bottom + line))
    image = ImageOps.scale(image, factor, Image.Resampling.BILINEAR)
    inside = np.asarray(image) > 127
    # 255 inside and 0 outside, except near the border.
    blurred = np.asarray(Image.fromarray(inside).convert("L").filter(ImageFilter.BoxBlur(line)))
    fill = np.where(blurred < 255, 255, 102) * inside
    outline = np.where(blurred > 0, 128, 0) * ~inside
    corner = (left - line) * factor, (top - line) * factor
    for ink, opacity in ((contrasting_ink(colour), outline), (colour, fill)):
        picture.paste(ink, corner, Image.fromarray(opacity.astype(np.uint8)))


def _find_ends(mask):
    """Returns the (x, y) of pixels at the top, bottom, right, left and in the middle of a mask."""
    pixels = np.argwhere(mask)[:, ::-1]
    return pixels[[0, -1, pixels[:, 0].argmax(), pixels[:, 0].argmin(), len(pixels) // 2]]


def _draw_tags(picture, objects, class_names, boxes, ends, colours, line):
    """Puts a corner of each tag at the end of its object where the tag covers the objects least."""
    areas = (boxes[:, 2:] + 1 - boxes[:, :2]).prod(axis=1)
    cover = np.zeros(picture.size[::-1])
    for (left, top, right, bottom), area in zip(boxes, areas, strict=True):
        cover[top : bottom + 1, left : right + 1] += 1 / area
    labels, small = objects["labels"], areas < SMALL_AREA * line**2
    # Text for all small objects of a class or for none: a few with text would look more important.
    crowded = labels[small] if small.sum() > MOST_SMALL_OBJECTS else ()
    # Small objects have the fewest places to choose from, so they come first.
    for index in reversed(np.flatnonzero(~np.isin(labels, crowded))):
        name = str(class_names[labels[index]]) if len(class_names) > 1 else ""  # it is in the legend
        score = f"{objects['scores'][index]:.2f}" if "scores" in objects else ""
        _draw_tag(picture, f"{name} {score}".strip(), ends[index], colours[index], cover, line)


def _draw_tag(picture, text, ends, colour, cover, line):
    font, height = pages.text_font(TAG_TEXT_SIZE * line), (TAG_TEXT_SIZE + 3) * line
    width = int(font.getlength(text)) + 5 * line
    corners = np.array([(0, -height), (1 - width, -height), (0, 1), (1 - width, 1)])
    room = np.maximum(np.subtract(picture.size, (width, height)), 0)
    places = (ends + corners[:, None]).reshape(-1, 2).clip(0, room).tolist()
    parts = [cover[y : y + height, x : x + width] for x, y in places]
    best = np.argmin([part.sum().round(1) for part in parts])  # the first of similar ones
    if text and parts[best].sum() < TOLERATED_COVER:
        parts[best][:] = 1
        x, y = places[best]
        pen = ImageDraw.Draw(picture)
        pen.rectangle((x, y, x + width - 1, y + height - 1), colour)
        pen.text((x + 2 * line, y + height // 2), text, contrasting_ink(colour), font, anchor="lm")
