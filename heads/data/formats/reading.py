"""What the readers of all formats share: finding pictures and splits, and collecting the objects."""

import os
import pathlib
from collections.abc import Iterable, Sequence

from heads.bands import read_size
from heads.data.label_folders import IMAGE_SUFFIXES, OTHER_SUFFIXES, read_class_names
from heads.pictures import show_path

# `check` names those that are no JPEG or PNG.
PICTURE_SUFFIXES = (*IMAGE_SUFFIXES, *OTHER_SUFFIXES)
CLASS_FILES = ("classes.txt", "labels.txt", "obj.names", "_darknet.labels", "class_names.txt")
# Lines of labelme's lists that are not classes of objects.
NO_OBJECTS = ("__ignore__", "_background_")


class Reading:
    """The pictures and objects of a folder, as COCO's entries.

    Ids are texts that people can look up: a picture's path within the folder, an object's file and line. The
    id of a category is the number of the class, from 0.

    Args:
        format_name: Name of the format.
        path: What was read, for messages.
        folder: The folder that the pictures' paths start from.
        class_names: Names of the classes.

    Attributes:
        images, annotations: The entries.
        problems: What could not be read, with its file and line.
        remarks: What is valid but may surprise.
    """

    def __init__(
        self, format_name: str, path: pathlib.Path, folder: pathlib.Path, class_names: Sequence[str]
    ):
        self.format, self.path, self.folder = format_name, path, folder
        self.class_names = tuple(class_names)
        self.images, self.annotations, self.problems, self.remarks = [], [], [], []

    def name(self, path: pathlib.Path) -> str:
        """The path of a file within the folder, as text that can be printed."""
        return show_path(self.find_place(path))

    def find_place(self, path: pathlib.Path) -> str:
        """The path of a file within the folder, with slashes; the whole path if it lies elsewhere."""
        return (path.relative_to(self.folder) if path.is_relative_to(self.folder) else path).as_posix()

    def add_picture(self, path: pathlib.Path, size: tuple[int, int] | None = None) -> dict:
        """Adds a picture.

        Args:
            path: Path of its file.
            size: (height, width), or None to look it up in the file: upright, as tools show it.

        Returns:
            Its entry.

        Raises:
            ValueError: If the size is to be looked up, and the file cannot be read.
        """
        height, width = size or read_size(path)
        name, place = self.name(path), self.find_place(path)
        entry = {"id": name, "file_name": place, "height": height, "width": width}
        self.images.append(entry)
        return entry

    def add_object(self, key: str, picture: dict, label: int, box_xyxy, segmentation=None, is_region=False):
        """Adds an object.

        Args:
            key: Its file and line.
            picture: The entry of its picture.
            label: The number of its class.
            box_xyxy: In pixels.
            segmentation: As in COCO's files, or None.
            is_region: Whether it is neither an object nor background: a region like a crowd.
        """
        x1, y1, x2, y2 = (float(side) for side in box_xyxy)
        entry = {
            "id": key,
            "image_id": picture["id"],
            "category_id": label,
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "iscrowd": int(is_region),
        }
        if segmentation is not None:
            entry["segmentation"] = segmentation
        self.annotations.append(entry)

    def remark_files(self, paths: Sequence[pathlib.Path], text: str):
        """Adds a remark about files, with their number and the first as an example, if there are any."""
        if paths:
            self.remarks.append(f"{len(paths)} {text}, such as {self.name(paths[0])}")

    def to_coco(self) -> dict:
        """The content of a COCO instances file."""
        categories = [{"id": label, "name": name} for label, name in enumerate(self.class_names)]
        return {"images": self.images, "annotations": self.annotations, "categories": categories}


def list_folder(path: pathlib.Path) -> list[pathlib.Path]:
    """What is in a folder, sorted, without hidden files (macOS writes ._a.png beside a.png)."""
    return sorted(each for each in path.iterdir() if not each.name.startswith("."))


def list_names(path: pathlib.Path, limit: int = 10) -> str:
    """The first names in a folder as text."""
    names = sorted(each.name for each in path.iterdir())
    return ", ".join(names[:limit]) + ", ..." * (len(names) > limit) or "nothing"


def walk_files(path: pathlib.Path, suffixes: Iterable[str]) -> Iterable[pathlib.Path]:
    """The files with one of the suffixes in a folder and its sub-folders, sorted, without hidden ones."""
    suffixes = tuple(suffixes)
    for parent, subfolders, names in os.walk(path, followlinks=True):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        for name in sorted(names):
            if name.lower().endswith(suffixes) and not name.startswith("."):
                yield pathlib.Path(parent, name)


def find_first(path: pathlib.Path, suffix: str, but: Iterable[str] = ()) -> pathlib.Path | None:
    """The first file with a suffix in a folder and its sub-folders, or None."""
    return next((each for each in walk_files(path, [suffix]) if each.name not in but), None)


def find_class_list(folders: Iterable[pathlib.Path]) -> tuple[str, ...] | None:
    """The names in the first list of classes in some folders, without `NO_OBJECTS`, or None."""
    for folder in folders:
        for name in CLASS_FILES:
            if (folder / name).is_file():
                names = read_class_names(folder / name)
                return tuple(each for each in names if each not in NO_OBJECTS)
    return None
