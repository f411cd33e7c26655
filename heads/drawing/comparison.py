"""Pictures of true objects beside found ones: which of them match, which are false, which were missed."""

from typing import NamedTuple

import numpy as np
from PIL import Image

import heads.drawing.pages as pages
from heads.coco.matches import encode_masks, match_greedily, measure_overlaps_of_shapes
from heads.drawing.objects import (
    choose_colours,
    choose_factor,
    draw_dashes,
    draw_objects,
    find_line_width,
    scale_boxes,
    select_objects,
)

FEWEST_DETECTIONS = 20  # at least this many may be drawn in each picture
BLACK, WHITE = (0, 0, 0), (255, 255, 255)  # of missed objects


def draw_detection_comparison(images, truths, detections, class_names, score_threshold=0.3) -> np.ndarray:
    """Draws one row "image | truth | detections" for each image, and a legend of the classes that occur.

    Detections that match a true object (the same class, an IoU of at least 0.5) have solid boxes, false ones
    dashed boxes, and missed objects thin dotted white ones. The lower the score, the fainter the box. Only
    the detections with the best scores are drawn, at most twice as many as there are true objects, or 20 if
    that is more; the caption tells how many there are.

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
    for image, truth, found in pages.zip_examples(images, truths, detections):
        image = pages.check_picture(image)
        truth, found = (select_objects(each, image, class_names, score_threshold) for each in (truth, found))
        most = max(FEWEST_DETECTIONS, 2 * len(truth["labels"]))
        drawn = keep_best(found, most)
        # Three pictures side by side: each may be smaller than one alone.
        factor = max(choose_factor(image, each["boxes"], 0.6) for each in (truth, drawn))
        matches = match_objects(truth, drawn)
        colours = choose_colours(truth, class_names)
        pictures = [
            draw_objects(image, truth, class_names, factor, colours),
            draw_outcomes(image, truth, drawn, matches, class_names, factor, colours),
        ]
        labels += [truth["labels"], drawn["labels"]]
        captions = ("image", f"truth: {len(truth['labels'])}", describe_outcomes(found, drawn, matches))
        rows.append(map(pages.label_picture, (pages.enlarge_picture(image, factor), *pictures), captions))
    return pages.add_legend(pages.tile_pictures(rows), np.concatenate(labels), class_names)


def describe_outcomes(found, drawn, matches):
    """Returns the caption of the detections."""
    num_right, num_found = int((matches.found >= 0).sum()), len(found["labels"])
    parts = [f"detections: {num_right} right"]
    parts += (
        [f"{len(drawn['labels']) - num_right} false (dashed)"] if num_right < len(drawn["labels"]) else []
    )
    num_missed = int((matches.truth < 0).sum())
    parts += [f"{num_missed} missed (dotted)"] if num_missed else []
    hint = f"; the best {len(drawn['labels'])} of {num_found}" if len(drawn["labels"]) < num_found else ""
    return ", ".join(parts) + hint


def draw_outcomes(image, truth, found, matches, class_names, factor, truth_colours):
    """Draws right and false detections and missed objects; see `draw_detection_comparison`."""
    colours = choose_colours(found, class_names)
    for row, partner in enumerate(matches.found):
        if partner >= 0 and len(class_names) == 1:
            colours[row] = truth_colours[partner]
    picture = Image.fromarray(draw_objects(image, found, class_names, factor, colours, matches.found >= 0))
    line = find_line_width(picture)
    for box in scale_boxes(truth["boxes"][matches.truth < 0], factor, picture.size):
        draw_dashes(picture, box, BLACK, 2 * line, 3 * line, 6 * line)
        draw_dashes(picture, box, WHITE, line, 3 * line, 6 * line)
    return np.array(picture)


class Matches(NamedTuple):
    """Which true object belongs to which detection.

    Attributes:
        truth: For each true object the row of its detection, or -1, int (n,).
        found: For each detection the row of its true object, or -1, int (m,).
    """

    truth: np.ndarray
    found: np.ndarray


def match_objects(truth: dict, found: dict) -> Matches:
    """Matches detections to true objects of their class, the best score first, as COCO does for one IoU.

    Args:
        truth: "boxes" (n, 4), "labels" (n,), and optionally bool "masks" (n, h, w).
        found: The same (m), and optionally "scores" (m,).

    Returns:
        The matches. Where both have masks, these must overlap by half, else the boxes.
    """
    overlaps = _measure_overlaps(truth, found)
    overlaps = np.where(truth["labels"][:, None] == found["labels"], overlaps, 0.0)
    return Matches(*match_greedily(overlaps, found.get("scores", np.zeros(len(found["labels"])))))


def keep_best(objects: dict, most: int) -> dict:
    """Returns the objects with the best scores, in their order."""
    if "scores" not in objects or len(objects["scores"]) <= most:
        return objects
    rows = np.sort(np.argsort(-objects["scores"], kind="stable")[:most])
    return {name: values[rows] for name, values in objects.items()}


def _measure_overlaps(truth, found):
    """Returns the IoU of each true object with each detection, (n, m)."""

    def describe(objects):
        if "masks" in truth and "masks" in found:
            return encode_masks(objects["masks"])
        starts, ends = np.split(np.asarray(objects["boxes"], "float64"), 2, axis=1)
        return np.concatenate([starts, ends - starts], axis=1)

    return measure_overlaps_of_shapes(describe(truth), describe(found))
