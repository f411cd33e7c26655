"""Pictures of objects: their boxes, masks and labels on an image.

The colour tells the class, its brightness tells neighbours of one class apart. Where objects are too small or
too crowded for text, the legend still names their class.
"""

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageOps

import heads.drawing.pages as pages
from heads.drawing.pages import require
from heads.drawing.palette import class_palette, contrasting_ink
from heads.ops.masks import paste_masks

# Pictures with a longer side below this are enlarged by a whole factor, those with small objects further.
COMFORTABLE_SIDE = 640
COMFORTABLE_OBJECT = 24
LARGEST_SIDE = 1600
# Lines and text are made for pictures up to this side; on larger ones they grow by a whole factor.
SIDE_PER_LINE = 1200
TAG_TEXT_SIZE = 12
# A tag may cover this much: the sum of the shares of all objects that lie under it.
TOLERATED_COVER = 0.25
# Where more than this many objects have less than this area, text would bury them: they get none.
MOST_SMALL_OBJECTS = 40
SMALL_AREA = 2000
# What a class's colour is multiplied by, and how much white is added.
SHADES = np.array([(1.0, 0), (0.6, 102), (0.65, 0), (0.8, 51)])


def draw_detection_comparison(images, truths, detections, class_names, score_threshold=0.3) -> np.ndarray:
    """Draws one row "image | truth | detections" for each image, and a legend of the classes that occur.

    Args:
        images: A list of images (h, w, 3), uint8 or float 0 .. 255, or one array of them.
        truths: A list of the true objects of each image, see `draw_detections`.
        detections: A list of the found objects of each image.
        class_names: The names of all classes.
        score_threshold: Detections below it are left out.

    Returns:
        One picture, uint8 (height, width, 3).

    Raises:
        ValueError: If the three differ in length, are empty, or do not fit each other.
    """
    rows, labels = [], []
    for image, *both in pages.zip_examples(images, truths, detections):
        image = pages.check_picture(image)
        both = [_select_objects(each, image, class_names, score_threshold) for each in both]
        # Three pictures side by side: each may be smaller than one alone.
        factor = max(choose_factor(image, each["boxes"], 0.6) for each in both)
        pictures = [_draw_objects(image, each, class_names, factor) for each in both]
        labels += [each["labels"] for each in both]
        captions = ("image", f"truth: {len(labels[-2])}", f"detections: {len(labels[-1])}")
        rows.append(map(pages.label_picture, (pages.enlarge_picture(image, factor), *pictures), captions))
    return pages.add_legend(pages.tile_pictures(rows), np.concatenate(labels), class_names)


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
        detections: Of this image: "boxes" (n, 4) xyxy in its pixels, "labels" (n,) integers, -1 and -2 are
            skipped, and optionally "scores" (n,) and "masks": float scores within the box (n, 28, 28), or
            bool or 0 / 1 (n, h, w). The truth has the same form, without scores.
        class_names: The names of all classes.
        score_threshold: Detections below it are left out.
        factor: By which the picture is enlarged. Chosen by the sizes of image and objects by default.
        show_boxes: Whether to draw the boxes. By default only where there are no masks.
        legend: Whether to put the legend below.

    Returns:
        uint8 (h * factor + legend, w * factor, 3); wider than the image if the legend needs it.

    Raises:
        ValueError: If the arrays do not fit each other, the image or the class names.
    """
    image = pages.check_picture(image)
    objects = _select_objects(detections, image, class_names, score_threshold)
    factor = choose_factor(image, objects["boxes"]) if factor is None else factor
    require(factor >= 1, "factor must be a whole number from 1 on", factor)
    return _draw_objects(image, objects, class_names, factor, show_boxes, legend)


def _select_objects(detections, image, class_names, score_threshold):
    """Returns what is to be drawn as a dict of arrays, the largest box first; masks become bool (n, h, w)."""
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
        boxes: (n, 4), xyxy, of what must be seen.
        share: Of the usual size that is enough.
    """
    side = max(image.shape[:2])
    factor = -(-int(share * COMFORTABLE_SIDE) // side)
    if len(boxes):
        small = np.quantile((boxes[:, 2:] - boxes[:, :2]).min(axis=1), 0.25)
        factor = max(factor, round(COMFORTABLE_OBJECT / max(small, 1)))
    return max(1, min(factor, int(share * LARGEST_SIDE) // side))


def _draw_objects(image, objects, class_names, factor, show_boxes=None, legend=False):
    picture = Image.fromarray(pages.enlarge_picture(image, factor))
    line = max(1, round(max(picture.size) / SIDE_PER_LINE))  # the width of a thin line in pixels
    boxes = objects["boxes"] * factor - (0, 0, 1, 1)  # the first and the last pixels
    boxes = boxes.clip(0, np.tile(picture.size, 2) - 1).round().astype(int)
    boxes[:, 2:] = np.maximum(boxes[:, :2], boxes[:, 2:])
    colours = _choose_colours(boxes, objects["labels"], class_palette(len(class_names)))
    # Where tags touch their objects: the corners of boxes, or the ends of masks.
    ends = list(boxes[:, [0, 1, 2, 1, 0, 3, 2, 3]].reshape(-1, 4, 2))
    show_boxes = "masks" not in objects if show_boxes is None else show_boxes
    for index, mask in enumerate(objects.get("masks", ())):
        _draw_mask(picture, mask, factor, colours[index], line)
        if mask.any() and not show_boxes:
            ends[index] = _find_ends(mask) * factor
    if show_boxes:
        _draw_boxes(picture, boxes, colours, line)
    _draw_tags(picture, objects, class_names, boxes, ends, colours, line)
    picture = np.array(picture)
    return pages.add_legend(picture, objects["labels"], class_names, True, line) if legend else picture


def _choose_colours(boxes, labels, palette):
    """Returns each object's class colour, in the shade that its neighbours of the class use least."""
    shades = np.zeros(len(boxes), int)
    for index, box in enumerate(boxes):
        others = boxes[:index]
        near = (others[:, :2] - 6 < box[2:]).all(axis=1) & (box[:2] - 6 < others[:, 2:]).all(axis=1)
        used = shades[:index][near & (labels[:index] == labels[index])]
        shades[index] = np.bincount(used, minlength=len(SHADES)).argmin()
    scales, whites = SHADES[shades].T[:, :, None]
    return [tuple(map(int, colour)) for colour in palette[labels] * scales + whites]


def _draw_boxes(picture, boxes, colours, line):
    pen = ImageDraw.Draw(picture, "RGBA")  # mixes colours by their opacity
    for box, colour in zip(boxes, colours, strict=True):
        width = line if min(box[2:] - box[:2]) < 24 * line else 2 * line
        outer = box + np.multiply((-1, -1, 1, 1), line)
        pen.rectangle(outer.tolist(), outline=(*contrasting_ink(colour), 128), width=width + 2 * line)
        pen.rectangle(box.tolist(), outline=colour, width=width)


def _draw_mask(picture, mask, factor, colour, line):
    """Fills a mask, with a line inside of its border and an outline around it."""
    image = Image.fromarray(mask.astype(bool)).convert("L")
    left, top, right, bottom = image.getbbox() or (0, 0, 0, 0)
    image = image.crop((left - line, top - line, right + line, bottom + line))
    image = ImageOps.scale(image, factor, Image.Resampling.BILINEAR)
    inside = np.asarray(image) > 127
    # 255 inside and 0 outside, but for what is near to the border.
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
    """Puts a corner of each tag to that end of its object where it covers least of all objects."""
    areas = (boxes[:, 2:] + 1 - boxes[:, :2]).prod(axis=1)
    cover = np.zeros(picture.size[::-1])
    for (left, top, right, bottom), area in zip(boxes, areas, strict=True):
        cover[top : bottom + 1, left : right + 1] += 1 / area
    labels, small = objects["labels"], areas < SMALL_AREA * line**2
    # All of a class or none of it: the few with text would look like the important ones.
    crowded = labels[small] if small.sum() > MOST_SMALL_OBJECTS else ()
    # Small objects have the fewest places to choose from, so they come first.
    for index in reversed(np.flatnonzero(~np.isin(labels, crowded))):
        name = str(class_names[labels[index]]) if len(class_names) > 1 else ""  # or it is in the legend
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
