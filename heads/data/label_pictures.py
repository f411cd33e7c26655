"""Label pictures -> the class numbers that are stored in them."""

import os
import typing

import numpy as np

from heads.ops.labels import IGNORED_LABEL
from heads.pictures import named_faults, open_picture, read_orientation, show_path

MAX_NUMBERS = 20
# Pillow stretches grey of 2 and 4 bits to 0 .. 255.
GREY_STEPS = {"L;2": 85, "L;4": 17}


class LabelPicture(typing.NamedTuple):
    """The numbers of a label picture, int32 `(height, width)`, and its colours, `(n, 3)` uint8, or None."""

    numbers: np.ndarray
    palette: np.ndarray | None


def decode_label(path: str | bytes | os.PathLike) -> np.ndarray:
    """The numbers of a label picture, int32 `(height, width)`. See `decode_label_picture`."""
    return decode_label_picture(path).numbers


def decode_label_picture(path: str | bytes | os.PathLike) -> LabelPicture:
    """The numbers of a one-channel picture as they are stored, and the colours of its palette.

    Args:
        path: PNG file of 1, 2, 4, 8 or 16 bits grey, or with a palette, whose indices are the numbers. The
            content counts, not the suffix.

    Returns:
        A `LabelPicture`.

    Raises:
        ValueError: If the file is missing, damaged, no PNG, has colour channels or is turned by an EXIF
            orientation. The message starts with the path.
    """
    with named_faults(path):
        picture = open_label_picture(path)
        if len(picture.getbands()) != 1:
            raise ValueError(
                f"the label picture must have one channel or a palette; map its colours to classes by "
                f"class_colours, a table of them. Received: mode {picture.mode!r}"
            )
        grey_step = GREY_STEPS.get(picture.tile[0][3], 1)
        numbers = np.asarray(picture).astype("int32") // grey_step
        refuse_turned(picture)
        palette = picture.getpalette("RGB") if picture.mode == "P" else None
    return LabelPicture(numbers, None if palette is None else np.array(palette, "uint8").reshape(-1, 3))


def open_label_picture(path: str | bytes | os.PathLike):
    """Opens a label picture without decoding it; a ValueError if it is not PNG. See `open_picture`."""
    picture = open_picture(path)
    if picture.format != "PNG":
        blurs = "; JPEG blurs class numbers" if picture.format in ("JPEG", "MPO") else ""
        raise ValueError(f"the label picture must be PNG by content{blurs}. Received: {picture.format}")
    return picture


def refuse_turned(picture):
    """Raises a ValueError if a decoded label picture is turned by an EXIF orientation."""
    if (orientation := read_orientation(picture)) != 1:
        raise ValueError(
            f"the label picture must have no EXIF orientation; save it upright, without. "
            f"Received: orientation {orientation}"
        )


def shift_zero_label(label: np.ndarray) -> np.ndarray:
    """Labels in which unlabelled pixels are 255 instead of 0: k becomes k - 1, 255 stays."""
    return np.where((label == 0) | (label == IGNORED_LABEL), IGNORED_LABEL, label - 1).astype("int32")


def map_numbers(numbers: np.ndarray, num_classes: int, reduce_zero_label: bool, path) -> np.ndarray:
    """The labels of a label picture's numbers.

    Args:
        numbers: int32 `(height, width)`.
        num_classes: Number of classes.
        reduce_zero_label: See `SemanticFolder`.
        path: Path of the picture, for the message.

    Returns:
        Labels 0 .. num_classes - 1, or 255; int32 `(height, width)`.

    Raises:
        ValueError: If a number is neither a class nor 255.
    """
    last = num_classes if reduce_zero_label else num_classes - 1
    faulty = np.unique(numbers[(numbers > last) & (numbers != IGNORED_LABEL)]).tolist()
    if faulty:
        shown = ", ".join(map(str, faulty[:MAX_NUMBERS])) + (", ..." if len(faulty) > MAX_NUMBERS else "")
        raise ValueError(
            f"{show_path(path)}: labels must be 0 .. {last} or {IGNORED_LABEL}. Received: {shown}"
        )
    return shift_zero_label(numbers) if reduce_zero_label else numbers


def find_other_order(palettes: dict) -> tuple | None:
    """Two label pictures in which one colour stands for two numbers.

    Args:
        palettes: (Path, numbers that occur in pictures of this palette) by palette, the bytes of RGB colours.

    Returns:
        (Path, number, other path, other number), or None where the palettes agree.
    """
    tables = [
        (path, [colours[k : k + 3] for k in range(0, len(colours), 3)], numbers)
        for colours, (path, numbers) in palettes.items()
    ]
    for other in tables[1:]:
        for (path, colours, numbers), (other_path, other_colours, _) in (
            (tables[0], other),
            (other, tables[0]),
        ):
            for number in sorted(numbers):
                colour = colours[number] if number < len(colours) else None
                if colour in other_colours[number : number + 1] or colour not in other_colours:
                    continue
                return path, number, other_path, other_colours.index(colour)
    return None
