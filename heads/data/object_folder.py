"""Folders of pictures with objects in any known format, which is found by looking at the files."""

import os
import pathlib
import types
from typing import NamedTuple

from heads.coco.entries import list_briefly
from heads.data.coco import CocoDataset
from heads.data.formats import coco_layouts, labelme, pascal_voc, yolo
from heads.data.formats.reading import Reading, list_names
from heads.data.splits import choose_split
from heads.pictures import RGB_CHANNELS, show_path

# If several fit, the first counts: exports for YOLO often keep COCO's file.
FORMATS = (coco_layouts, yolo, pascal_voc, labelme)


class ObjectFolder(CocoDataset):
    """The objects of a folder in a format other than COCO's, as a `CocoDataset`.

    Nothing is converted on the disk: `to_coco` returns what COCO's file would hold, so that training and
    scoring read the same objects. `open_detection_folder` makes it.

    Args:
        reading: The pictures and objects that were read.
        with_masks: Whether to keep the masks.
        num_channels: See `CocoDataset`.

    Raises:
        ValueError: If no picture could be read, or masks are wanted and no object has one.
    """

    def __init__(self, reading: Reading, with_masks: bool = False, num_channels: int | None = RGB_CHANNELS):
        self.path, self.format, self._reading = reading.path, reading.format, reading
        self.num_channels = num_channels
        if not reading.images:
            problems = list_briefly(reading.problems) or ["there is none"]
            raise ValueError(
                f"{show_path(self.path)} must hold pictures with {self.format}'s labels:\n"
                + "\n".join(problems)
            )
        self._read_content(reading.to_coco(), reading.folder, with_masks)
        self._problems = [*reading.problems, *self._problems]

    def _load_content(self):
        if self._reading.problems:
            problems = "\n".join(list_briefly(self._reading.problems))
            raise ValueError(f"{show_path(self.path)} has faulty files or annotations:\n{problems}")
        return self._reading.to_coco()

    def _remark(self, counts, num_turned):
        yield from self._reading.remarks
        yield from super()._remark(counts, num_turned)


def open_detection_folder(
    path: str | os.PathLike,
    split: str | None = None,
    with_masks: bool = False,
    num_channels: int | None = RGB_CHANNELS,
) -> CocoDataset:
    """The objects of a folder in COCO's, YOLO's, Pascal VOC's or labelme's format, whichever it is.

    The attribute `format` of the result tells which. `docs/data.md` shows the layouts.

    Args:
        path: The folder.
        split: Name of a split; "train", "val" and "test" also find "training", "valid", "validation",
            "train2017" and the like. None: a folder without splits, the only split, or else "train".
        with_masks: Whether to read the masks.
        num_channels: Channels of the pictures: see `CocoDataset`.

    Returns:
        A `CocoDataset`, or an `ObjectFolder`, which is one. Nothing is checked yet: see `CocoDataset.check`.

    Raises:
        ValueError: If the folder is missing, in no known format (the message lists what was looked for), or
            has no such split.
    """
    path = pathlib.Path(path)
    if not path.is_dir():
        raise ValueError(f"path must be a folder that exists. Received: {show_path(path)}")
    found = find_format(path)
    if found is None:
        raise ValueError(
            f"{show_path(path)} holds no objects in a known format. Looked for:\n{list_layouts()}\n"
            f"Received: {list_names(path)}"
        )
    place = found.splits[
        choose_split(path, split, found.splits, f"those of the {found.module.FORMAT} data in")
    ]
    if found.module is coco_layouts:
        return CocoDataset(*place, with_masks, num_channels)
    return ObjectFolder(found.module.read_split(path, place, with_masks), with_masks, num_channels)


class FoundFormat(NamedTuple):
    """The format of a folder: the module of `heads.data.formats` that reads it, and its splits."""

    module: types.ModuleType
    splits: dict


def find_format(path: pathlib.Path) -> FoundFormat | None:
    """The first format that a folder is in, or None."""
    found = (FoundFormat(each, each.list_splits(path)) for each in FORMATS)
    return next((each for each in found if each.splits), None)


def list_layouts() -> str:
    """The formats with their layouts, a line each."""
    return "\n".join(f"- {each.FORMAT}: {layout}" for each in FORMATS for layout in each.LAYOUTS)
