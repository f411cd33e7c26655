"""Pictures of objects: boxes, masks and labels on an image; arrays in, arrays out, nothing is shown or saved.

Every picture is uint8 (height, width, 3), RGB. The colour tells the class, its brightness tells neighbours of
one class apart. Where objects are too small or too crowded for text, the legend still names their class.
"""

import functools

import numpy as np
from PIL import Image, ImageDraw

from heads.drawing.label_maps import (
    check_picture,
    class_palette,
    draw_legend,
    enlarge_picture,
    label_picture,
    measure_text,
    text_font,
    tile_pictures,
)
from heads.ops.masks import paste_masks

# Pictures with a longer side below this are enlarged by a whole factor, those with small objects further.
COMFORTABLE_SIDE = 640
COMFORTABLE_OBJECT = 24
LARGEST_SIDE = 1600
# Text and lines are made for pictures up to this side; on larger ones they grow by a whole factor.
SIDE_PER_LINE = 1200
TAG_TEXT_SIZE = 12
TAG_HEIGHT = 15
# A tag may cover this much: the sum of the shares of all objects that lie under it.
TOLERATED_COVER = 0.25
# Where more objects than this are smaller than four tags, text would bury them: they get none.
MOST_SMALL_TAGS = 40
# Of a class's colour, mixed with white above 0 and with black below.
SHADES = (0.0, 0.4, -0.35, 0.2)


def draw_detection_comparison(
    images, truths, detections, class_names, score_threshold: float = 0.3
) -> np.ndarray:
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
        ValueError: If the three differ in number, are empty, or do not fit each other.
    """
    counts = len(images), len(truths), len(detections)
    if len(set(counts)) > 1 or not counts[0]:
        raise ValueError(
            "images, truths and detections must be equally many, at least one. "
            f"Received: {counts[0]}, {counts[1]} and {counts[2]}"
        )
    rows, labels = [], []
    for image, *pair in zip(images, truths, detections, strict=True):
        image = check_picture(image)
        chosen = [_select_objects(each, image, class_names, score_threshold) for each in pair]
        # Three pictures side by side: each may be smaller than one alone.
        factor = max(_choose_factor(image, each["boxes"], 0.6) for each in chosen)
        pictures = [_draw_objects(image, each, class_names, factor) for each in chosen]
        numbers = [len(each["labels"]) for each in chosen]
        captions = ("image", f"truth: {numbers[0]}", f"detections: {numbers[1]}")
        pictures = [enlarge_picture(image, factor), *pictures]
        rows.append([label_picture(*each) for each in zip(pictures, captions, strict=True)])
        labels += [each["labels"] for each in chosen]
    page = tile_pictures(rows)
    legend = _draw_counts(np.concatenate(labels), class_names, page.shape[1], counted=False)
    return tile_pictures([[page], [legend]], margin=0)


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
        show_boxes: Whether to draw the boxes. Where there are no masks by default.
        legend: Whether to put the legend below.

    Returns:
        uint8 (h * factor + legend, w * factor, 3); wider than the image if the legend needs it.

    Raises:
        ValueError: If the arrays do not fit each other, the image or the class names.
    """
    image = check_picture(image)
    objects = _select_objects(detections, image, class_names, score_threshold)
    if factor is not None and factor < 1:
        raise ValueError(f"factor must be a whole number from 1 on. Received: {factor!r}")
    factor = factor or _choose_factor(image, objects["boxes"])
    picture = _draw_objects(image, objects, class_names, factor, show_boxes)
    if not legend:
        return picture
    line = _choose_line(picture)
    strip = _draw_counts(objects["labels"], class_names, picture.shape[1] // line, counted=True)
    return tile_pictures([[picture], [enlarge_picture(strip, line)]], margin=0)


def _select_objects(detections, image, class_names, score_threshold):
    """Gives what is to be drawn as a dict of arrays, the largest box first."""
    arrays = {name: np.asarray(value) for name, value in detections.items() if value is not None}
    _check_objects(arrays, image.shape[:2], len(class_names))
    keep = arrays["labels"] >= 0
    if "scores" in arrays:
        keep &= arrays["scores"] >= score_threshold
    sizes = np.maximum(arrays["boxes"][:, 2:] - arrays["boxes"][:, :2], 0)
    order = np.argsort(-sizes.prod(axis=1), kind="stable")
    order = order[keep[order]]
    return {name: arrays[name][order] for name in ("boxes", "labels", "scores", "masks") if name in arrays}


def _check_objects(arrays, image_size, num_classes):
    shapes = {name: array.shape for name, array in arrays.items()}
    if "boxes" not in arrays or "labels" not in arrays:
        raise ValueError(f'detections must have "boxes" and "labels". Received: {sorted(shapes)}')
    num_objects = shapes["labels"][:1]
    expected = {"labels": num_objects, "boxes": (*num_objects, 4), "scores": num_objects}
    if "masks" in arrays:
        in_box = np.issubdtype(arrays["masks"].dtype, np.floating)
        expected["masks"] = (*num_objects, *(shapes["masks"][1:3] if in_box else image_size))
    wrong = {name: shapes[name] for name in expected if name in shapes and shapes[name] != expected[name]}
    if wrong or len(num_objects) != 1 or len(expected.get("masks", (0, 0, 0))) != 3:
        raise ValueError(
            "detections must be those of one image: boxes (n, 4), labels and scores (n,), masks float "
            f"(n, 28, 28) or bool (n, {image_size[0]}, {image_size[1]}). Received: {shapes}"
        )
    labels = arrays["labels"]
    if not np.issubdtype(labels.dtype, np.integer) or labels.max(initial=-1) >= num_classes:
        raise ValueError(
            f"labels must be integers below {num_classes}, the number of names. "
            f"Received: {labels.dtype} up to {labels.max(initial=-1)}"
        )


def _choose_factor(image, boxes, share=1.0):
    """Gives the whole factor of enlargement; `share` of the usual size is enough."""
    side = max(image.shape[:2])
    factor = -(-int(share * COMFORTABLE_SIDE) // side)
    if len(boxes):
        small = np.quantile((boxes[:, 2:] - boxes[:, :2]).min(axis=1), 0.25)
        factor = max(factor, round(COMFORTABLE_OBJECT / max(small, 1)))
    return max(1, min(factor, int(share * LARGEST_SIDE) // side))


def _choose_line(picture):
    """Gives the width of a thin line in pixels."""
    return max(1, round(max(picture.shape[:2]) / SIDE_PER_LINE))


def _draw_counts(labels, class_names, width, counted):
    occurring, counts = np.unique(labels, return_counts=True)
    names = [str(class_names[label]) for label in occurring]
    if counted:
        names = [f"{name} ({count})" for name, count in zip(names, counts, strict=True)]
    return draw_legend(names, max(width, 160), class_palette(len(class_names))[occurring])


def _draw_objects(image, objects, class_names, factor, show_boxes=None):
    canvas = enlarge_picture(image, factor).astype("float32")
    line = _choose_line(canvas)
    colours = _choose_colours(objects["boxes"] * factor, objects["labels"], len(class_names))
    regions = [_to_region(box * factor, canvas.shape) for box in objects["boxes"]]
    masks = objects.get("masks")
    show_boxes = masks is None if show_boxes is None else show_boxes
    # What a tag would hide: the sum over a part is the share of each object that lies in it, summed.
    cover = np.zeros(canvas.shape[:2], "float32")
    places = [functools.partial(_list_places_at_box, region) for region in regions]
    for index, (left, top, right, bottom) in enumerate(regions):
        window = slice(top, bottom + 1), slice(left, right + 1)
        shape = np.ones((bottom - top + 1, right - left + 1), bool)
        if masks is not None:
            window, shape = _locate_mask(masks[index], objects["boxes"][index], factor, canvas.shape, line)
            _draw_mask(canvas[window], shape, colours[index], line)
            if not show_boxes and shape.any():
                places[index] = functools.partial(_list_places_at_mask, _find_points(shape, window))
        cover[window] += shape / max(shape.sum(), 1)
    if show_boxes:
        _draw_boxes(canvas, regions, colours, line)
    picture = Image.fromarray(np.rint(canvas).astype("uint8"))
    texts = _list_texts(objects, regions, class_names, line)
    _draw_tags(picture, texts, places, colours, cover, line)
    return np.asarray(picture).copy()


def _choose_colours(boxes, labels, num_classes):
    """Gives each object its class's colour, in the shade that its neighbours of the class use least."""
    palette = class_palette(num_classes).astype("float32")
    grown = boxes + np.array([-6, -6, 6, 6])
    shades = np.zeros(len(boxes), int)
    for index in range(1, len(boxes)):
        near = (grown[:index, :2] < boxes[index, 2:]).all(axis=1)
        near &= (grown[:index, 2:] > boxes[index, :2]).all(axis=1)
        near &= labels[:index] == labels[index]
        shades[index] = np.bincount(shades[:index][near], minlength=len(SHADES)).argmin()
    amounts = np.array(SHADES, "float32")[shades][:, None]
    return palette[labels] * (1 - np.abs(amounts)) + 255 * np.maximum(amounts, 0)


def _contrasting(colour):
    """Gives black or white, whichever stands out more from a colour (WCAG 2, relative luminance)."""
    linear = ((np.asarray(colour) / 255 + 0.055) / 1.055) ** 2.4
    return 0 if linear @ np.array([0.2126, 0.7152, 0.0722]) > 0.179 else 255


def _to_region(box, shape):
    """Gives the outermost pixels of a box, inside of the canvas: left, top, right, bottom."""
    last = np.array([shape[1] - 1, shape[0] - 1])
    first = np.clip(np.rint(box[:2]), 0, last)
    return (*first.astype(int).tolist(), *np.clip(np.rint(box[2:]) - 1, first, last).astype(int).tolist())


def _draw_boxes(canvas, regions, colours, line):
    sides = [min(right - left, bottom - top) for left, top, right, bottom in regions]
    widths = [line if side < 24 * line else 2 * line for side in sides]
    # All outlines lie below all lines, so that no neighbour's outline cuts a line.
    for region, colour, width in zip(regions, colours, widths, strict=True):
        _draw_frame(canvas, region, -line, width + line, _contrasting(colour), 0.5)
    for region, colour, width in zip(regions, colours, widths, strict=True):
        _draw_frame(canvas, region, 0, width, colour, 1.0)


def _draw_frame(canvas, region, start, stop, colour, opacity):
    """Draws the rings of pixels from `start` to before `stop`, counted inwards from the region's border."""
    left, top, right, bottom = region
    outer, inner = (
        (slice(max(top + i, 0), max(bottom - i + 1, 0)), slice(max(left + i, 0), max(right - i + 1, 0)))
        for i in (start, stop)
    )
    inside = canvas[inner].copy()
    canvas[outer] += (colour - canvas[outer]) * opacity
    canvas[inner] = inside


def _locate_mask(mask, box, factor, shape, margin):
    """Gives the part of the canvas around a mask, as slices, and the mask there with a margin around it."""
    in_box = np.issubdtype(mask.dtype, np.floating)
    if in_box:
        left, top = np.floor(box[:2] * factor)
        right, bottom = np.ceil(box[2:] * factor)
    else:
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        ends = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1) if len(rows) else (0, 0, 0, 0)
        left, top, right, bottom = (end * factor for end in ends)
    left, right = np.clip((left - margin, right + margin), 0, shape[1]).astype(int)
    top, bottom = np.clip((top - margin, bottom + margin), 0, shape[0]).astype(int)
    window = slice(top, bottom), slice(left, right)
    if left >= right or top >= bottom:
        return window, np.zeros((max(bottom - top, 0), max(right - left, 0)), bool)
    if in_box:
        # On the enlarged picture, so that its outline is smooth.
        local = box * factor - np.array([left, top, left, top])
        return window, paste_masks(mask[None], local[None], (bottom - top, right - left))[0]
    rows, columns = np.arange(top, bottom) // factor, np.arange(left, right) // factor
    return window, mask[rows[:, None], columns].astype(bool)


def _draw_mask(canvas, mask, colour, line):
    core, grown = mask, mask
    for _ in range(line):
        core, grown = ~_grow(~core), _grow(grown)
    canvas[mask] += (colour - canvas[mask]) * 0.4
    outline = grown & ~mask
    canvas[outline] += (_contrasting(colour) - canvas[outline]) * 0.5
    canvas[mask & ~core] = colour


def _grow(mask):
    """Gives a mask and the pixels beside it."""
    grown = mask.copy()
    grown[1:] |= mask[:-1]
    grown[:-1] |= mask[1:]
    grown[:, 1:] |= mask[:, :-1]
    grown[:, :-1] |= mask[:, 1:]
    return grown


def _list_texts(objects, regions, class_names, line):
    """Gives for each object the texts to try, the longest first; none where text would bury the objects."""
    # A single class is in the legend.
    names = [str(class_names[label]) if len(class_names) > 1 else "" for label in objects["labels"]]
    scores = [f"{score:.2f}" for score in objects["scores"]] if "scores" in objects else [""] * len(names)
    texts = [
        [text for text in dict.fromkeys((f"{name} {score}".strip(), score)) if text]
        for name, score in zip(names, scores, strict=True)
    ]
    areas = [(right - left + 1) * (bottom - top + 1) for left, top, right, bottom in regions]
    small = [
        bool(each) and area < 4 * _measure_tag(each[-1], line).prod()
        for each, area in zip(texts, areas, strict=True)
    ]
    if sum(small) <= MOST_SMALL_TAGS:
        return texts
    # All of a class or none of it: the few with text would look like the important ones.
    crowded = set(objects["labels"][small].tolist())
    return [
        [] if label in crowded else each
        for label, each in zip(objects["labels"].tolist(), texts, strict=True)
    ]


def _draw_tags(picture, texts, places, colours, cover, line):
    pen = ImageDraw.Draw(picture)
    font = text_font(TAG_TEXT_SIZE * line)
    taken = np.zeros(cover.shape, bool)
    # Small objects have the fewest places to choose from, so they come first.
    for index in reversed(range(len(texts))):
        for text in texts[index]:
            width, height = _measure_tag(text, line).tolist()
            place = _find_place(places[index](width, height), width, height, cover, taken)
            if place is not None:
                left, top = place
                taken[top : top + height, left : left + width] = True
                fill = tuple(int(value) for value in colours[index])
                pen.rectangle((left, top, left + width - 1, top + height - 1), fill=fill)
                ink = (_contrasting(colours[index]),) * 3
                pen.text((left + 2 * line, top + height // 2), text, ink, font, anchor="lm")
                break


def _measure_tag(text, line):
    """Gives (width, height)."""
    return np.array([measure_text(text, TAG_TEXT_SIZE * line) + 4 * line, TAG_HEIGHT * line])


def _list_places_at_box(region, width, height):
    """Gives the (left, top) of tags at the corners of a box, the preferred first."""
    left, top, right, bottom = region
    beside = (left, right - width + 1)
    places = [(x, y) for y in (top - height, bottom + 1) for x in beside]
    places += [(x, y) for x in (right + 1, left - width) for y in (top, bottom - height + 1)]
    return places + [(x, y) for y in (top, bottom - height + 1) for x in beside]


def _list_places_at_mask(points, width, height):
    """Gives the (left, top) of tags around a mask and in its middle, the preferred first."""
    top, bottom, left, right, middle = points
    places = [(x - width // 2, y) for x, y in ((top[0], top[1] - height - 1), (bottom[0], bottom[1] + 2))]
    places += [(right[0] + 2, right[1] - height // 2), (left[0] - width - 1, left[1] - height // 2)]
    return [*places, (middle[0] - width // 2, middle[1] - height // 2)]


def _find_points(mask, window):
    """Gives (x, y) on the canvas of a mask's top, bottom, left and right end and of its middle."""
    rows, columns = np.nonzero(mask)
    ends = (rows == rows.min(), rows == rows.max(), columns == columns.min(), columns == columns.max())
    # In the middle of a straight side, such as the upper edge of a window.
    indices = [np.flatnonzero(end)[end.sum() // 2] for end in ends]
    indices.append(np.argmin((rows - rows.mean()) ** 2 + (columns - columns.mean()) ** 2))
    return [(int(columns[i]) + window[1].start, int(rows[i]) + window[0].start) for i in indices]


def _find_place(places, width, height, cover, taken):
    """Gives the (left, top) where a tag covers least, or None if it covers too much everywhere."""
    best, least = None, TOLERATED_COVER
    for preference, (x, y) in enumerate(places):
        # A shift to the side keeps it inside of the picture.
        x = min(max(x, 0), cover.shape[1] - width)
        part = slice(y, y + height), slice(x, x + width)
        if x < 0 or y < 0 or y + height > cover.shape[0] or taken[part].any():
            continue
        cost = cover[part].sum() + 0.002 * preference
        if cost < least:
            best, least = (x, y), cost
    return best
