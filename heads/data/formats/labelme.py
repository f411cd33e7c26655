"""labelme's JSON files, one for each picture: polygons, rectangles, circles and masks."""

import base64
import binascii
import io
import itertools
import math
import pathlib

import numpy as np
from PIL import Image

from heads.coco.entries import is_number, is_side, read_json, show
from heads.coco.segmentations import encode_mask
from heads.data.formats.reading import (
    NO_OBJECTS,
    PICTURE_SUFFIXES,
    Reading,
    find_class_list,
    find_first,
    walk_files,
)
from heads.data.splits import list_split_folders
from heads.pictures import show_path

FORMAT = "labelme"
LAYOUTS = ("labelme's .json files beside their pictures, in <split>/ or in the folder itself",)
# Circles become polygons with this many corners.
CIRCLE_CORNERS = 64
# At most so many files are checked: other tools' JSON may lie in the folder too.
MOST_LOOKED_AT = 10
# Shapes without an area are not objects.
FLAT_SHAPES = ("point", "points", "line", "linestrip")


def list_splits(path: pathlib.Path) -> dict:
    """Split (None for the only one) -> its folder; empty if the folder is not labelme's."""
    files = itertools.islice(walk_files(path, [".json"]), MOST_LOOKED_AT)
    if not any(map(is_labelme, files)):
        return {}
    folders = list_split_folders(path)
    return {name: folder for name, folder in folders.items() if find_first(folder, ".json")} or {None: path}


def read_split(path: pathlib.Path, place: pathlib.Path, with_masks: bool = False) -> Reading:
    """The pictures and objects of a split.

    Shapes of one label and one "group_id" are one object. Points and lines are left out, as are pictures
    without a JSON file. A picture that is neither at "imagePath" nor beside its JSON file is read from that
    file's "imageData". The classes are those of classes.txt or labels.txt, or all labels of the folder.

    Args:
        path: The folder.
        place: From `list_splits`.
        with_masks: Not used: the outlines are read anyway.
    """
    contents, problems, others = {}, {}, []
    for file in walk_files(path, [".json"]):
        try:
            content = _read_file(file)
        except ValueError as problem:
            problems[file] = str(problem)
            continue
        if content is None:
            others.append(file)
        else:
            contents[file] = content
    names = find_class_list([path, place])
    if names is None:
        labels = [shape.get("label") for each in contents.values() for shape in each["shapes"]]
        names = sorted({label for label in labels if isinstance(label, str)} - {*NO_OBJECTS})
    if not names:
        raise ValueError(f"{show_path(path)} must hold labelme's files with labels. Received: none")
    reading = Reading(FORMAT, path, path, names)
    reading.problems += [problem for file, problem in problems.items() if file.is_relative_to(place)]
    flat = []
    for file, content in contents.items():
        if file.is_relative_to(place):
            _read_picture(reading, file, content, flat)
    if flat:
        reading.remarks.append(f"{len(flat)} points and lines are left out, such as {flat[0]}")
    reading.remark_files(others, "JSON files are not labelme's and are left out")
    pictures = walk_files(place, PICTURE_SUFFIXES)
    unlabelled = [each for each in pictures if not each.with_suffix(".json").is_file()]
    known = {picture["file_name"] for picture in reading.images}
    unlabelled = [each for each in unlabelled if reading.name(each) not in known]
    reading.remark_files(unlabelled, "pictures have no JSON file and are left out")
    return reading


def is_labelme(path: pathlib.Path) -> bool:
    """Whether a JSON file is one of labelme's."""
    try:
        content = read_json(path, "path")
    except ValueError:
        return False
    return isinstance(content, dict) and "shapes" in content


def trace_shape(shape: dict) -> np.ndarray | dict | None:
    """The outline of a shape: a polygon's corners (n, 2), a mask with its position, or None without area.

    Raises:
        ValueError: If it is malformed, or of an unknown type.
    """
    kind = shape.get("shape_type") or "polygon"  # early versions have polygons only
    if kind in FLAT_SHAPES:
        return None
    points = _read_points(shape.get("points"))
    if kind == "rectangle" and len(points) == 2:
        (x1, y1), (x2, y2) = points.min(0), points.max(0)
        return np.array([(x1, y1), (x2, y1), (x2, y2), (x1, y2)])
    if kind == "circle" and len(points) == 2:
        radius = math.dist(*points)
        angles = np.arange(CIRCLE_CORNERS) * (2 * math.pi / CIRCLE_CORNERS)
        return points[0] + radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    if kind == "mask" and len(points) == 2:
        return {"mask": _decode_mask(shape.get("mask")), "left_top": np.round(points.min(0)).astype(int)}
    if kind not in ("polygon", "rectangle", "oriented_rectangle") or len(points) < 3:
        raise ValueError(
            "the shape must be a polygon of 3 points or more, or a rectangle, circle or mask of 2. "
            f"Received: {show(kind)} of {len(points)}"
        )
    return points


def _read_file(file):
    """Returns the content of a file, its shapes a list of dicts; None for other tools' JSON."""
    content = read_json(file, "labelme's file")
    if not isinstance(content, dict) or "shapes" not in content:
        return None
    shapes = content["shapes"]
    if not isinstance(shapes, list) or not all(isinstance(shape, dict) for shape in shapes):
        raise ValueError(f'{show_path(file)}: must hold a list of "shapes". Received: {show(shapes)}')
    has_data = bool(content.get("imageData"))
    return {**content, "imageData": has_data}  # the picture itself is read when it is needed


def _read_picture(reading, file, content, flat):
    """Adds a picture with its objects; names those without area in `flat`."""
    sides = content.get("imageHeight"), content.get("imageWidth")
    size = tuple(map(int, sides)) if all(map(is_side, sides)) else None
    path = _find_picture(file, content)
    try:
        picture = reading.add_picture(path, size)
    except ValueError as problem:
        reading.problems.append(f"{reading.name(file)}: its picture: {problem}")
        return
    labels = {name: label for label, name in enumerate(reading.class_names)}
    objects = {}
    for number, shape in enumerate(content["shapes"], 1):
        key = f"{reading.name(file)} shape {number}"
        label, group = shape.get("label"), shape.get("group_id")
        if label in NO_OBJECTS:
            continue
        try:
            if not isinstance(label, str) or label not in labels:
                known = ", ".join(reading.class_names)
                raise ValueError(f"the label must be one of {known:.200}. Received: {show(label)}")
            outline = trace_shape(shape)
        except ValueError as problem:
            reading.problems.append(f"{key}: {problem}")
            continue
        if outline is None:
            flat.append(key)
        else:
            place = (label, str(group)) if group is not None else key
            objects.setdefault(place, (key, labels[label], []))[2].append(outline)
    for key, label, outlines in objects.values():
        box, segmentation = join_outlines(outlines, (picture["height"], picture["width"]))
        reading.add_object(key, picture, label, box, segmentation)


def join_outlines(outlines: list, image_size: tuple[int, int]) -> tuple[list[float], list | dict]:
    """The box, xyxy, and the segmentation of an object of one or more outlines, see `trace_shape`."""
    if not any(isinstance(outline, dict) for outline in outlines):
        points = np.concatenate(outlines)
        return [*points.min(0), *points.max(0)], [outline.ravel().tolist() for outline in outlines]
    from pycocotools import mask as run_lengths

    height, width = image_size
    joined = np.zeros(image_size, bool)
    for outline in outlines:
        if isinstance(outline, dict):
            left, top = outline["left_top"]
            mask = outline["mask"][max(-top, 0) :, max(-left, 0) :]
            part = joined[max(top, 0) :, max(left, 0) :][: mask.shape[0], : mask.shape[1]]
            part |= mask[: part.shape[0], : part.shape[1]]
        else:
            (encoded,) = run_lengths.frPyObjects([outline.ravel().tolist()], height, width)
            joined |= run_lengths.decode(encoded).astype(bool)
    rows, columns = np.flatnonzero(joined.any(1)), np.flatnonzero(joined.any(0))
    if not len(rows):
        return [0.0, 0.0, 0.0, 0.0], encode_mask(joined)
    return [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], encode_mask(joined)


def _find_picture(file, content):
    """Returns the path of a picture, or of the JSON file itself if only that holds the picture."""
    name = content.get("imagePath")
    places = [file.parent / name.replace("\\", "/")] if isinstance(name, str) and name else []
    places += [file.parent / place.name for place in places]  # a folder of another machine
    beside = (file.with_suffix(suffix) for suffix in PICTURE_SUFFIXES)
    found = next((each for each in itertools.chain(places, beside) if each.is_file()), None)
    if found is None and not content["imageData"]:
        return places[0] if places else file.with_suffix(".jpg")
    return found or file


def _read_points(points):
    pairs = points if isinstance(points, list) else [None]
    is_list = all(isinstance(pair, list) and len(pair) == 2 and all(map(is_number, pair)) for pair in pairs)
    if not is_list or not pairs or not np.isfinite(np.array(pairs, np.float64)).all():
        raise ValueError(f"points must be a list of [x, y], finite numbers. Received: {show(points)}")
    return np.array(points, np.float64)


def _decode_mask(text):
    try:
        with Image.open(io.BytesIO(base64.b64decode(text))) as picture:
            return np.asarray(picture.convert("L")) > 0
    except (TypeError, ValueError, binascii.Error, OSError) as error:
        raise ValueError(f"the mask must be a PNG in base64 ({error}). Received: {show(text)}") from error
