"""The objects of COCO's annotations, as tools write them, checked and brought into one form.

Boxes are xywh in continuous pixels, as in the files; a size is (height, width).
"""

import math
from collections.abc import Collection
from typing import NamedTuple

import numpy as np

from heads.coco.entries import KnownIds, is_id, is_number, show
from heads.coco.keypoints import read_points
from heads.coco.segmentations import check_place, read_segmentation

SMALLEST_BOX_SIDE = 1.0
FLAGS = {None: False, 0: False, 1: True, "0": False, "1": True}


class Annotation(NamedTuple):
    """An entry of "annotations", checked.

    Attributes:
        key: Its id.
        image_id: The id of its image.
        category_id: The id of its category.
        box_xywh: (x, y, width, height), floats, not clipped; None where it was neither wanted nor there.
        area: As in the file, 0 or more; None where the file has none.
        is_crowd: Whether it is a region of many objects ("iscrowd").
        is_ignored: Whether it is neither an object nor background ("ignore").
        segmentation: See `read_segmentation`; None where it was not wanted, or is faulty and the object is
            not learned anyway.
        keypoints: float32 (keypoints, 3), see `read_points`; None where they were not wanted.
    """

    key: int | str
    image_id: int | str
    category_id: int | str
    box_xywh: tuple[float, float, float, float] | None
    area: float | None
    is_crowd: bool
    is_ignored: bool
    segmentation: list | dict | None = None
    keypoints: np.ndarray | None = None

    @property
    def has_no_area(self) -> bool:
        """Whether there is nothing to learn from it, as in mmdetection: area 0, or a side under 1 pixel."""
        return self.area == 0 or (self.box_xywh is not None and min(self.box_xywh[2:]) < SMALLEST_BOX_SIDE)


def read_annotations(
    entries,
    image_sizes: dict,
    category_ids: Collection,
    with_boxes: bool = True,
    with_masks: bool = False,
    num_keypoints: int | None = None,
) -> tuple[list[Annotation], list[str]]:
    """The annotations that are right, in their order, and what is wrong with the others.

    If all areas of a file are 0, they count as missing.

    Args:
        entries: The list of "annotations"; None for an empty one.
        image_sizes: (height, width) of each image by its id, or None where the file has no size.
        category_ids: The ids of the categories.
        with_boxes: Whether each annotation must have a box.
        with_masks: Whether to read the segmentations.
        num_keypoints: Keypoints of each object; None where they are not wanted.

    Returns:
        `Annotation`s, and for each entry that is left out a line with its id.

    Raises:
        ValueError: If `entries` is no list.
    """
    entries = [] if entries is None else entries
    if not isinstance(entries, list | tuple):
        raise ValueError(f'"annotations" must be a list. Received: {show(entries)}')
    areas = [entry.get("area") for entry in entries if isinstance(entry, dict)]
    has_areas = any(area is not None and area != 0 for area in areas)
    images, categories = KnownIds("image", image_sizes), KnownIds("category", category_ids)
    annotations, problems, seen = [], [], set()
    for position, entry in enumerate(entries):
        try:
            annotation = _read_entry(entry, image_sizes, images, categories, seen, with_boxes, has_areas)
            image_size = image_sizes[annotation.image_id]
            if with_masks:
                segmentation = _read_mask(annotation, entry.get("segmentation"), image_size)
                annotation = annotation._replace(segmentation=segmentation)
            if num_keypoints is not None:
                points = read_points(entry.get("keypoints"), num_keypoints, image_size)
                annotation = annotation._replace(keypoints=points)
        except ValueError as problem:
            name = show(entry.get("id")) if isinstance(entry, dict) else f"at position {position}"
            problems.append(f"annotation {name}: {problem}")
            continue
        annotations.append(annotation)
    return annotations, problems


def judge_boxes(annotations: list[Annotation], image_sizes: dict) -> list[str]:
    """What is wrong with all boxes together: they are relative, or corners instead of sizes."""
    rows = [
        (*each.box_xywh, *size, math.nan if each.area is None else each.area)
        for each in annotations
        if each.box_xywh is not None and (size := image_sizes[each.image_id]) is not None
    ]
    if not rows:
        return []
    x, y, width, height, image_height, image_width, area = np.array(rows, np.float64).T
    if max(x.max(), y.max(), width.max(), height.max()) <= 1 and width.max() > 0:
        return [
            f"all {len(rows)} boxes lie in 0 .. 1, and must be in pixels: multiply x and width by the width "
            "of the picture, y and height by its height"
        ]
    with np.errstate(over="ignore", invalid="ignore"):
        # Boxes of cut-off objects sometimes reach out a little; corners read as sizes reach out far.
        reaches_out = (x + width - image_width > 0.1 * width) | (y + height - image_height > 0.1 * height)
        is_corner = (width > x) & (height > y) & (width <= image_width + 1) & (height <= image_height + 1)
        is_corner_area = np.abs((width - x) * (height - y) - area) <= 0.01 * area
        is_area = np.abs(width * height - area) <= 0.01 * area
    told = ~np.isnan(area)
    told_by_areas = is_corner_area[told].all() and not is_area[told].all()
    if is_corner.mean() > 0.99 and (told_by_areas or reaches_out.mean() > 0.1):
        return [
            "the boxes look like corners, [x1, y1, x2, y2], and must be [x, y, width, height]: "
            f"{reaches_out.sum()} of {len(rows)} reach far out of their pictures"
            + ", and the areas are those of corners"
            * bool(told_by_areas)
        ]
    return []


def read_box(box_xywh) -> tuple[float, float, float, float]:
    """The four numbers of a box.

    Raises:
        ValueError: If they are not four finite numbers, or a side is negative.
    """
    is_list = isinstance(box_xywh, list | tuple | np.ndarray) and len(box_xywh) == 4
    if not is_list or not all(map(is_number, box_xywh)):
        raise ValueError(f"the box must be [x, y, width, height], numbers. Received: {show(box_xywh)}")
    x, y, width, height = map(float, box_xywh)
    if not all(map(math.isfinite, (x, y, width, height))) or min(width, height) < 0:
        raise ValueError(f"the box must be finite and not negative in size. Received: {show(box_xywh)}")
    return x, y, width, height


def clip_box(box_xywh, image_size) -> tuple[float, float, float, float]:
    """The part of a box inside of its picture, xyxy; its sides are not positive where there is none."""
    x, y, width, height = box_xywh
    return max(x, 0.0), max(y, 0.0), min(x + width, image_size[1]), min(y + height, image_size[0])


def _read_entry(entry, image_sizes, images, categories, seen, with_boxes, has_areas):
    """Returns an annotation without mask and keypoints."""
    if not isinstance(entry, dict):
        raise ValueError(f"must be an object. Received: {show(entry)}")
    annotation = Annotation(
        _check_new(entry.get("id"), seen),
        images.check(entry.get("image_id")),
        categories.check(entry.get("category_id")),
        read_box(entry.get("bbox")) if with_boxes or entry.get("bbox") is not None else None,
        _read_area(entry.get("area")) if has_areas else None,
        _read_flag(entry, "iscrowd"),
        _read_flag(entry, "ignore"),
    )
    _check_inside(annotation, image_sizes[annotation.image_id])
    return annotation


def _check_new(key, seen):
    if not is_id(key) or key in seen:
        raise ValueError(f"the id must be a whole number or text, and unique. Received: {show(key)}")
    seen.add(key)
    return key


def _read_flag(entry, name):
    value = entry.get(name)
    if isinstance(value, list | dict) or value not in FLAGS:
        raise ValueError(f"{name} must be 0 or 1. Received: {show(value)}")
    return FLAGS[value]


def _read_area(area):
    if area is None:
        return None
    if not is_number(area) or not 0 <= area < math.inf:
        raise ValueError(f"the area must be a number, 0 or more. Received: {show(area)}")
    return float(area)


def _check_inside(annotation, image_size):
    if annotation.has_no_area or annotation.box_xywh is None or image_size is None:
        return
    x1, y1, x2, y2 = clip_box(annotation.box_xywh, image_size)
    if x2 <= x1 or y2 <= y1:
        box = ", ".join(f"{number:g}" for number in annotation.box_xywh)
        raise ValueError(f"the box [{box}] lies outside of the picture, (height, width) {image_size}")


def _read_mask(annotation, segmentation, image_size):
    """Returns the mask, which must lie in its box; None where it is faulty and nothing is learned from it."""
    if annotation.has_no_area or (annotation.is_ignored and not segmentation):
        try:
            return read_segmentation(segmentation, image_size)
        except ValueError:
            return None
    mask = read_segmentation(segmentation, image_size)
    if annotation.box_xywh is not None and not annotation.is_crowd:
        check_place(mask, clip_box(annotation.box_xywh, image_size))
    return mask
