"""Pictures of people: lines in the colour of the person, dots in the colours of the keypoints."""

import numpy as np
from PIL import Image, ImageDraw

import heads.drawing.pages as pages
from heads.arguments import read_count
from heads.drawing.objects import SIDE_PER_LINE, choose_factor
from heads.drawing.pages import require
from heads.drawing.palette import class_palette, contrasting_ink

SCORE_THRESHOLD = 0.3
MOST_COLOURS = 12  # the palette's first, which are chosen by hand


def draw_pose_comparison(
    images, truths, predictions, skeleton, keypoint_names, score_threshold: float = SCORE_THRESHOLD
) -> np.ndarray:
    """Draws one row "image | truth | prediction" for each image, and a legend of the keypoints.

    Args:
        images: A list of images (h, w, 3), uint8 or float 0 .. 255, or one array of them.
        truths: A list of the true people of each image, see `draw_skeletons`.
        predictions: A list of the found people of each image.
        skeleton: Pairs of keypoints that lines connect.
        keypoint_names: A text for each keypoint.
        score_threshold: Keypoints with lower scores are left out.

    Returns:
        One picture, uint8 (height, width, 3).

    Raises:
        ValueError: If the three differ in length, are empty, or do not fit each other.
    """
    rows, num_keypoints = [], len(keypoint_names)
    for image, *both in pages.zip_examples(images, truths, predictions):
        image = pages.check_picture(image)
        both = [_select_people(each, skeleton, score_threshold, num_keypoints) for each in both]
        # Three pictures side by side: each may be smaller than one alone.
        factor = max(choose_factor(image, _find_boxes(*each), 0.6) for each in both)
        pictures = [_draw_people(image, *each, skeleton, factor) for each in both]
        captions = ("image", *(f"{name}: {len(each[0])}" for name, each in zip(NAMES, both, strict=True)))
        rows.append(map(pages.label_picture, (pages.enlarge_picture(image, factor), *pictures), captions))
    return pages.add_legend(pages.tile_pictures(rows), np.arange(num_keypoints), keypoint_names)


def draw_skeletons(
    image, people: dict, skeleton, score_threshold: float = SCORE_THRESHOLD, factor: int | None = None
) -> np.ndarray:
    """Draws the keypoints of people on an image, and the lines between them.

    Args:
        image: (h, w, 3), uint8 or float 0 .. 255.
        people: "keypoints" (n, keypoints, 2), (x, y) in its pixels, the centre of the first one at (0, 0);
            and optionally "scores" (n, keypoints). The truth has weights or visibilities instead of scores.
        skeleton: Pairs of keypoints that lines connect; empty or None for dots alone.
        score_threshold: Keypoints with lower scores are left out, and the lines to them.
        factor: By how much the picture is enlarged. Default: chosen by the sizes of image and people.

    Returns:
        uint8 (h * factor, w * factor, 3).

    Raises:
        ValueError: If the arrays do not fit each other, or the skeleton does not fit them.
    """
    image = pages.check_picture(image)
    keypoints, shown = _select_people(people, skeleton, score_threshold)
    if factor is None:
        factor = choose_factor(image, _find_boxes(keypoints, shown))
    factor = read_count("factor", factor)
    return _draw_people(image, keypoints, shown, skeleton, factor)


NAMES = ("truth", "prediction")


def _select_people(people, skeleton, score_threshold, num_keypoints=None):
    """Returns the keypoints of people, and which of them are drawn, bool (n, keypoints)."""
    keypoints = np.asarray(people["keypoints"], np.float64)
    fits = keypoints.ndim == 3 and keypoints.shape[2] == 2 and num_keypoints in (None, keypoints.shape[1])
    count = "keypoints" if num_keypoints is None else num_keypoints
    require(fits, f"people must have keypoints (n, {count}, 2)", f"shape {keypoints.shape}")
    scores = people.get("scores")
    scores = np.full(keypoints.shape[:2], np.inf) if scores is None else np.asarray(scores)
    require(scores.shape == keypoints.shape[:2], f"scores must be {keypoints.shape[:2]}", scores.shape)
    ends = [end for pair in skeleton or () for end in pair]
    fits = all(0 <= end < keypoints.shape[1] for end in ends)
    require(fits, f"skeleton must be pairs of numbers below {keypoints.shape[1]}", skeleton)
    return keypoints, (scores >= score_threshold) & np.isfinite(keypoints).all(axis=2)


def _find_boxes(keypoints, shown):
    """Returns the boxes, (n, 4), around people with at least two drawn keypoints."""
    parts = [points[row] for points, row in zip(keypoints, shown, strict=True) if row.sum() > 1]
    return np.array([(*part.min(axis=0), *part.max(axis=0)) for part in parts]).reshape(-1, 4)


def _draw_people(image, keypoints, shown, skeleton, factor):
    picture = Image.fromarray(pages.enlarge_picture(image, factor))
    pen = ImageDraw.Draw(picture)
    line = max(1, round(max(picture.size) / SIDE_PER_LINE))
    points = (keypoints + 0.5) * factor - 0.5
    colours = class_palette(max(MOST_COLOURS, keypoints.shape[1]))
    people = [tuple(map(int, colours[number % MOST_COLOURS])) for number in range(len(points))]
    for (places, row), colour in zip(zip(points, shown, strict=True), people, strict=True):
        for first, second in skeleton or ():
            if row[first] and row[second]:
                ends = [tuple(places[first]), tuple(places[second])]
                pen.line(ends, contrasting_ink(colour), 5 * line)
                pen.line(ends, colour, 3 * line)
    for places, row in zip(points, shown, strict=True):
        for number in np.flatnonzero(row):
            colour = tuple(map(int, colours[number]))
            pen.circle(tuple(places[number]), 4 * line, colour, contrasting_ink(colour), line)
    return np.array(picture)
