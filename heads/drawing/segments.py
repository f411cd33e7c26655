"""Pictures of panoptic segments: each with its colour, its contour and the name of its class."""

import numpy as np

import heads.drawing.pages as pages
from heads.drawing.comparison import draw_detection_comparison
from heads.drawing.objects import draw_detections
from heads.drawing.pages import require
from heads.ops.labels import VOID_SEGMENT


def draw_segments(image, found: dict, class_names, factor: int | None = None, legend: bool = True):
    """Draws the segments of an image, and a legend that counts those of each class.

    Args:
        image: (h, w, 3), uint8 or float 0 .. 255.
        found: The segments of this image: "segments", int (h, w), rows of "labels", int (n,), -1 for none;
            and optionally "scores" (n,). The truth has the same form.
        class_names: The names of all classes.
        factor: By how much the picture is enlarged. Default: chosen by the sizes of image and segments.
        legend: Whether to put the legend below.

    Returns:
        uint8 (h * factor + legend, w * factor, 3); wider than the image if the legend needs it.

    Raises:
        ValueError: If the arrays do not fit each other, the image or the class names.
    """
    return draw_detections(image, separate_segments(image, found), class_names, 0.0, factor, legend=legend)


def draw_panoptic_comparison(images, truths, predictions, class_names) -> np.ndarray:
    """Draws one row "image | truth | detections" for each image, and a legend of the classes that occur.

    Args:
        images: A list of images (h, w, 3), uint8 or float 0 .. 255, or one array of them.
        truths: A list of the true segments of each image, see `draw_segments`.
        predictions: A list of the found segments of each image.
        class_names: The names of all classes.

    Returns:
        One picture, uint8 (height, width, 3).

    Raises:
        ValueError: If the three differ in length, are empty, or do not fit each other.
    """
    examples = list(pages.zip_examples(images, truths, predictions))
    separated = [[separate_segments(image, each) for each in both] for image, *both in examples]
    return draw_detection_comparison(images, *map(list, zip(*separated, strict=True)), class_names, 0.0)


def separate_segments(image, found) -> dict:
    """Returns the segments of an image as objects with boxes and masks: see `draw_detections`."""
    segments, labels = np.asarray(found["segments"]), np.asarray(found["labels"])
    size = np.shape(image)[:2]
    rule = "segments must be rows of labels, integers (height, width) of the image's size"
    fits = segments.shape == size and np.issubdtype(segments.dtype, np.integer)
    require(fits, rule, f"{segments.dtype} of shape {segments.shape} for an image of {size}")
    require(segments.max(initial=-1) < len(labels), rule, f"rows up to {segments.max()} of {len(labels)}")
    rows = [row for row in np.unique(segments) if row != VOID_SEGMENT]
    boxes, masks = np.zeros((len(rows), 4), np.float32), np.zeros((len(rows), *size), bool)
    for place, row in enumerate(rows):
        masks[place] = segments == row
        y, x = np.nonzero(masks[place])
        boxes[place] = x.min(), y.min(), x.max() + 1, y.max() + 1
    separated = {"boxes": boxes, "labels": labels[rows].astype(int), "masks": masks}
    if found.get("scores") is not None:
        separated["scores"] = np.asarray(found["scores"])[rows]
    return separated
