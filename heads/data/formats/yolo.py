"""YOLO's label files: a line per object, with its class and a box or a polygon as shares of the sides."""

import math
import os
import pathlib

import numpy as np
import yaml

from heads.coco.entries import show
from heads.data.formats.reading import (
    CLASS_FILES,
    PICTURE_SUFFIXES,
    Reading,
    find_class_list,
    find_first,
    list_folder,
    walk_files,
)
from heads.data.label_folders import read_text
from heads.data.splits import SPLIT_NAMES, list_split_folders
from heads.pictures import show_path

FORMAT = "YOLO"
LAYOUTS = (
    "data.yaml with train, val and names",
    "images/<split>/ and labels/<split>/*.txt, or <split>/images/ and <split>/labels/*.txt, with classes.txt",
    "images/ and labels/*.txt, or pictures with .txt files beside them, in <split>/ or not, with classes.txt",
    "obj.names and obj_<split>_data/ with pictures and .txt files",
)
# Rounded positions may be this far outside of a picture, as a share of its side.
LARGEST_EXCESS = 0.01


def list_splits(path: pathlib.Path) -> dict:
    """Split (None for the only one) -> what holds its pictures; empty if the folder is not YOLO's."""
    settings = find_settings(path)
    if settings is not None:
        yaml_path, content = settings
        names = (name for names in SPLIT_NAMES.values() for name in names)
        return {name: (yaml_path, content[name]) for name in names if content.get(name)}
    images, labels = path / "images", path / "labels"
    if images.is_dir() and labels.is_dir() and find_first(labels, ".txt", CLASS_FILES):
        folders = list_split_folders(images)
        return {name: folder for name, folder in folders.items() if (labels / name).is_dir()} or {
            None: images
        }
    splits = {}
    for name, folder in list_split_folders(path).items():
        if (folder / "images").is_dir() and (folder / "labels").is_dir():
            if find_first(folder / "labels", ".txt"):
                splits[name] = folder / "images"
        elif _is_flat(folder):
            splits[name] = folder
    darknet = {each.name[4:-5]: each for each in sorted(path.glob("obj_*_data")) if each.is_dir()}  # CVAT's
    return splits or darknet or ({None: path} if _is_flat(path) else {})


def read_split(path: pathlib.Path, place, with_masks: bool = False) -> Reading:
    """The pictures and objects of a split.

    A picture's labels are in a .txt file of the same name, in the folder with `labels` instead of `images` in
    the path, or beside it. A picture without this file has no objects. A line is "class x y width height",
    the centre and the size, or "class x y x y x y ...", all as shares of the sides of the picture, upright by
    its EXIF orientation. With "kpt_shape" in the settings, only the boxes are read.

    Args:
        path: The folder.
        place: From `list_splits`.
        with_masks: Not used: polygons are read anyway.

    Raises:
        ValueError: If there are no names of the classes, or no pictures or labels at all.
    """
    content = {}
    if isinstance(place, tuple):
        yaml_path, entries = place
        content = find_settings(path)[1]
        names = _read_names(content.get("names"), yaml_path)
        pictures, lacking = _find_listed(path, yaml_path, content.get("path"), entries)
    else:
        pictures, lacking = [each for each in walk_files(place, PICTURE_SUFFIXES) if _is_picture(each)], []
        names = find_class_list([path, path / "labels", place, place.parent, place.parent / "labels"])
    if names is None:
        raise ValueError(
            f"YOLO's label files hold numbers only: write the names of the classes, one a line, the first "
            f"for number 0, into {show_path(path / 'classes.txt')}. Received: no such file, and no data.yaml"
        )
    reading = Reading(FORMAT, path, path, names)
    reading.problems += lacking
    missing = []
    for picture in pictures:
        label_path = find_label_path(picture)
        if label_path.is_file():
            _read_labels(reading, picture, label_path, has_keypoints="kpt_shape" in content)
        else:
            missing.append(picture)
            _add_picture(reading, picture)
    if not pictures or len(missing) == len(pictures):
        received = f"no pictures in {place if isinstance(place, tuple) else show_path(place)}"
        if pictures:
            received = (
                f"{len(missing)} pictures, and not one label file such as {find_label_path(missing[0])}"
            )
        raise ValueError(f"{show_path(path)} must hold pictures and YOLO's label files. Received: {received}")
    reading.remark_files(missing, "pictures have no label file, and count as pictures without objects")
    return reading


def find_settings(path: pathlib.Path) -> tuple[pathlib.Path, dict] | None:
    """The YAML file in a folder that has class names and a training split, and its content, or None.

    Raises:
        ValueError: If data.yaml is not YAML.
    """
    for file in (each for each in list_folder(path) if each.suffix.lower() in (".yaml", ".yml")):
        try:
            content = yaml.safe_load(file.read_bytes())
        except (yaml.YAMLError, ValueError) as error:
            if file.stem == "data":
                raise ValueError(f"{show_path(file)} must be a YAML file. Received: {error}") from error
            continue
        if isinstance(content, dict) and "names" in content and {"train", "val"} & content.keys():
            return file, content
    return None


def find_label_path(picture: pathlib.Path) -> pathlib.Path:
    """The label file of a picture: the last folder `images` in its path becomes `labels`."""
    parts = list(picture.with_suffix(".txt").parts)
    if "images" in parts:
        parts[len(parts) - 1 - parts[::-1].index("images")] = "labels"
    return pathlib.Path(*parts)


def read_line(line: str, num_classes: int, has_keypoints: bool = False) -> tuple[int, np.ndarray]:
    """The class of an object and its shape in shares: a box as (4,), a polygon as (points, 2).

    Raises:
        ValueError: If the line has another form.
    """
    words = line.split()
    try:
        label, *values = map(float, words)
    except ValueError:
        raise ValueError(f"must be numbers. Received: {show(line)}") from None
    if not (math.isfinite(label) and label == int(label) and 0 <= label < num_classes):
        raise ValueError(f"the class must be 0 .. {num_classes - 1}. Received: {words[0]}")
    values = values[:4] if has_keypoints else values
    if len(values) != 4 and (len(values) < 6 or len(values) % 2):
        hint = "; is the last one a score?" if len(values) == 5 else ""
        raise ValueError(
            "must be class x y width height, or class x y x y x y ... with three points or more. "
            f"Received: {len(words)} numbers{hint}"
        )
    numbers = np.array(values)
    if not ((numbers >= -LARGEST_EXCESS) & (numbers <= 1 + LARGEST_EXCESS)).all():  # NaN too
        hint = " (are they pixels?)" if np.nanmax(numbers) > 2 else ""
        raise ValueError(
            f"coordinates must be shares of the picture's sides, 0 .. 1{hint}. Received: {show(line)}"
        )
    return int(label), numbers if len(numbers) == 4 else numbers.reshape(-1, 2)


def _read_labels(reading, picture, label_path, has_keypoints):
    """Adds a picture with its objects."""
    entry = _add_picture(reading, picture)
    name = reading.name(label_path)
    try:
        lines = label_path.read_bytes().decode("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reading.problems.append(f"{name}: cannot be read ({error})")
        return
    for number, line in enumerate(lines, 1):
        if entry is None or not line.strip():
            continue
        key = f"{name} line {number}"
        try:
            label, shares = read_line(line, len(reading.class_names), has_keypoints)
        except ValueError as problem:
            reading.problems.append(f"{key}: {problem}")
            continue
        sides = np.array([entry["width"], entry["height"]])
        if shares.ndim == 2:
            points = shares * sides
            box, polygon = [*points.min(0), *points.max(0)], [points.ravel().tolist()]
        else:
            centre, size = shares[:2] * sides, shares[2:] * sides
            box, polygon = [*(centre - size / 2), *(centre + size / 2)], None
        reading.add_object(key, entry, label, box, polygon)


def _add_picture(reading, picture):
    """Adds a picture and returns its entry; None, and a problem, where its size cannot be read."""
    try:
        return reading.add_picture(picture)
    except ValueError as problem:
        reading.problems.append(str(problem))
        return None


def _find_listed(path, yaml_path, root, entries):
    """Returns the pictures of a split of data.yaml, and a list of what is missing.

    Entries are folders, text files with a picture per line, or pictures. They may start from "path", which is
    often a folder on another machine, and exported files have "../train/images" for "train/images".
    """
    pictures, problems = [], []
    starts = [path / str(root), path] if root else [path]
    for entry in entries if isinstance(entries, list) else [entries]:
        found = _find_place(starts, str(entry))
        if found is None:
            problems.append(f"{show_path(yaml_path)}: {show(entry)} is neither a folder nor a file")
        elif found.is_dir():
            pictures += walk_files(found, PICTURE_SUFFIXES)
        elif found.suffix.lower() == ".txt":
            for number, line in enumerate(read_text(found, "a split of data.yaml").splitlines(), 1):
                picture = _find_place([found.parent, *starts], line.strip()) if line.strip() else None
                if picture is not None:
                    pictures.append(picture)
                elif line.strip():
                    problems.append(f"{show_path(found)} line {number}: there is no picture {show(line)}")
        else:
            pictures.append(found)
    return pictures, problems


def _find_place(starts, entry):
    entry = entry.replace("\\", "/")
    names = [entry, entry.removeprefix("../"), entry.removeprefix("./")]
    places = (start / name for name in names for start in starts)
    found = next((place for place in places if os.path.exists(place)), None)
    return None if found is None else pathlib.Path(os.path.normpath(found))


def _read_names(names, yaml_path):
    """Returns the names of data.yaml: a list, or a dict of class -> name."""
    if isinstance(names, dict) and sorted(names, key=str) == sorted(range(len(names)), key=str):
        names = [names[label] for label in range(len(names))]
    if not isinstance(names, list) or not names or not all(isinstance(each, str | int) for each in names):
        raise ValueError(
            f"{show_path(yaml_path)}: names must be a list of names, or name by number from 0 without gaps. "
            f"Received: {show(names)}"
        )
    return [str(name) for name in names]


def _is_flat(folder):
    """Whether a folder holds a picture with labels beside it, and it or its parent a list of classes."""
    pictures = (each for each in list_folder(folder) if _is_picture(each))
    has_labels = any(each.with_suffix(".txt").is_file() for each in pictures)
    return has_labels and find_class_list([folder, folder.parent]) is not None


def _is_picture(path):
    return path.suffix.lower() in PICTURE_SUFFIXES
