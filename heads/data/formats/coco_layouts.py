"""Where COCO's JSON files and their pictures lie in the folders of different tools."""

import pathlib

from heads.coco.entries import read_json
from heads.data.splits import list_split_folders

FORMAT = "COCO"
LAYOUTS = (
    "annotations/instances_<split>.json with images/<split>/ or <split>/",
    "<split>/_annotations.coco.json beside its pictures, or <split>/labels.json with <split>/data/",
    "instances.json, annotations.json, _annotations.coco.json, result.json, labels.json or coco.json with "
    "pictures in images/, in data/ or beside it",
)
FILE_NAMES = (
    *("instances.json", "annotations.json", "_annotations.coco.json", "result.json", "labels.json"),
    *("coco.json", "annotations/instances.json", "annotations/annotations.json"),
)
PREFIX = "instances_"


def list_splits(path: pathlib.Path) -> dict:
    """Split (None for the only one) -> (JSON file, folder of the pictures); empty if there is none."""
    files = sorted((path / "annotations").glob(f"{PREFIX}*.json"))
    if files:
        return {
            name: (file, _find_folder(path, name)) for file in files if (name := file.stem[len(PREFIX) :])
        }
    splits = {}
    for name, folder in list_split_folders(path).items():
        if place := _find_alone(folder):
            splits[name] = place
    place = None if splits else _find_alone(path)
    return {None: place} if place else splits


def _find_folder(path, split):
    """Returns the folder of the pictures of a split."""
    places = [path / "images" / split, path / split, path / "images"]
    return next((place for place in places if place.is_dir()), places[0])


def _find_alone(folder):
    """Returns the one JSON file of a folder with objects, and its pictures' folder, or None."""
    for file in (folder / name for name in FILE_NAMES):
        if not file.is_file():
            continue
        try:
            content = read_json(file, "annotations")
        except ValueError:
            return file, folder  # whatever opens it says what is wrong
        if isinstance(content, dict) and "images" in content and "categories" in content:
            return file, _find_pictures(folder, content["images"])
    return None


def _find_pictures(folder, entries):
    """Returns the folder that the first picture's name leads from."""
    first = entries[0] if isinstance(entries, list) and entries else None
    name = first.get("file_name") if isinstance(first, dict) else None
    places = [folder, folder / "images", folder / "data"]
    if isinstance(name, str):
        name = name.replace("\\", "/")
        return next((place for place in places if (place / name).is_file()), folder)
    return folder
