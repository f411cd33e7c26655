"""Coloured label pictures: which class each colour stands for."""

import os
import pathlib
import re
from collections.abc import Mapping

import numpy as np

from heads.coco.entries import show
from heads.data.label_folders import CLASS_FILES, list_briefly, read_text
from heads.data.label_pictures import open_label_picture, refuse_turned
from heads.ops.labels import IGNORED_LABEL
from heads.pictures import named_faults, show_path

# The names that tools use: CVAT, CamVid and its followers, and our own.
TABLE_FILES = ("labelmap.txt", "class_dict.csv", "label_colors.txt", "colours.txt", "colors.txt")
# Rows with these names are not classes: their pixels have no truth.
IGNORED_NAMES = ("void", "ignore", "ignored", "__ignore__", "unlabelled", "unlabeled")
MAX_COLOURS = 5

_NUMBERS = r"(\d{1,3})[\s,;]+(\d{1,3})[\s,;]+(\d{1,3})"
_ROWS = (
    re.compile(rf"(?P<name>[^:]+):{_NUMBERS}:.*"),  # CVAT: name:r,g,b:parts:actions
    re.compile(rf"{_NUMBERS}[\s,;:]+(?P<name>.+)"),
    re.compile(rf"(?P<name>.+?)[\s,;:]+{_NUMBERS}[\s,;:]*"),
)


class ColourTable:
    """The classes of coloured label pictures.

    Args:
        colours: (red, green, blue) of each class by its name, in the order of the labels. Names such as
            "void" or "unlabelled" are not classes: pixels of these colours are ignored.
        source: Where they are from, for messages.

    Attributes:
        class_names: Names of the classes.

    Raises:
        ValueError: For colours that are not three numbers 0 .. 255, or stand for two classes.
    """

    def __init__(self, colours: Mapping[str, tuple[int, int, int]], source: str = "class_colours"):
        problems, names_of = [], {}
        for name, colour in colours.items():
            numbers = list(colour) if hasattr(colour, "__iter__") else []
            if len(numbers) != 3 or not all(number in range(256) for number in numbers):
                problems.append(f"{name}: a colour must be three numbers, 0 .. 255. Received: {show(colour)}")
                continue
            other = names_of.setdefault(tuple(map(int, numbers)), name)
            if other != name:
                problems.append(f"{name}: has the colour of {other}, {tuple(map(int, numbers))}")
        if problems:
            raise ValueError(f"{source} has faulty colours:\n{list_briefly(problems)}")
        self.source = source
        self.class_names = tuple(name for name in colours if name.lower() not in IGNORED_NAMES)
        labels = {name: label for label, name in enumerate(self.class_names)}
        rows = sorted(
            (pack(np.array(colour)), labels.get(name, IGNORED_LABEL)) for colour, name in names_of.items()
        )
        self._codes = np.array([code for code, _ in rows], np.int32)
        self._labels = np.array([label for _, label in rows], np.int32)

    def decode(self, path: str | bytes | os.PathLike) -> np.ndarray:
        """The labels of a coloured PNG; palettes and grey count as the colours that viewers show.

        Args:
            path: Path of the file.

        Returns:
            0 .. classes - 1, or 255; int32 `(height, width)`.

        Raises:
            ValueError: If the file is missing, damaged, no PNG or turned, or has colours that are not in the
                table; the message lists these.
        """
        with named_faults(path):
            picture = open_label_picture(path)
            codes = pack(np.asarray(picture.convert("RGB")))
            refuse_turned(picture)
        places = np.searchsorted(self._codes, codes).clip(max=len(self._codes) - 1)
        unknown = self._codes[places] != codes
        if unknown.any():
            found, counts = np.unique(codes[unknown], return_counts=True)
            order = np.argsort(-counts)[:MAX_COLOURS]
            shown = ", ".join(f"{unpack(found[place])} ({counts[place]} pixels)" for place in order)
            raise ValueError(
                f"{show_path(path)}: the colours must be those of {self.source}; smooth edges and JPEG make "
                f"others. Received {len(found)} others: {shown}{', ...' * (len(found) > MAX_COLOURS)}"
            )
        return self._labels[places]


def read_colour_table(path: str | os.PathLike) -> ColourTable:
    """The table of a text file.

    A line is a name and three numbers, or three numbers and a name, separated by spaces, commas or colons, as
    in CVAT's labelmap.txt or in CSV files, with or without a header. Text after a # is ignored.

    Raises:
        ValueError: Lists the lines that have another form, or repeat a name or a colour.
    """
    colours, problems = {}, []
    for number, line in enumerate(read_text(path, "class_colours").splitlines(), 1):
        text = line.split("#")[0].strip()
        match = next(filter(None, (row.fullmatch(text) for row in _ROWS)), None)
        name = match["name"].strip(" \t\"'") if match else ""
        if not text or (number == 1 and not re.search(r"\d", text)):  # a header
            continue
        if not name or name.isdigit():
            problems.append(f"line {number}: must be a name and three numbers. Received: {show(text)}")
        elif name in colours:
            problems.append(f"line {number}: an earlier line has the name {name}, too")
        else:
            colours[name] = tuple(int(group) for group in match.groups() if group != match["name"])
    if not colours and not problems:
        problems.append("it has no line with a name and three numbers")
    if problems:
        raise ValueError(f"{show_path(path)} is not a table of colours:\n{list_briefly(problems)}")
    return ColourTable(colours, show_path(path))


def find_colours(path: pathlib.Path, class_names, class_colours, reduce_zero_label) -> ColourTable | None:
    """The table of colours that is given, or that of a folder without class names, or None.

    The arguments are those of `SemanticFolder`, some of which exclude each other.
    """
    if class_colours is None:
        has_names = class_names is not None or any((path / name).is_file() for name in CLASS_FILES)
        files = [path / name for name in TABLE_FILES if (path / name).is_file()]
        if has_names or not files:
            return None
        class_colours = files[0]
    if class_names is not None or reduce_zero_label:
        raise ValueError(
            "class_colours names the classes and what is ignored: leave out class_names and "
            f"reduce_zero_label. Received: {show(class_names)}, {reduce_zero_label!r}"
        )
    if isinstance(class_colours, str | os.PathLike):
        return read_colour_table(class_colours)
    return ColourTable(class_colours)


def pack(colours: np.ndarray) -> np.ndarray:
    """One number for each colour, red in front: int32, without the last axis."""
    colours = colours.astype(np.int32)
    return (colours[..., 0] << 16) | (colours[..., 1] << 8) | colours[..., 2]


def unpack(code) -> tuple[int, int, int]:
    """The colour of a number, see `pack`."""
    return int(code) >> 16, int(code) >> 8 & 255, int(code) & 255
