"""The files of a folder for semantic segmentation: its splits, pairs and class names."""

import codecs
import os
import pathlib
import unicodedata

from heads.bands import BAND_SUFFIXES
from heads.ops.labels import IGNORED_LABEL
from heads.pictures import show_path

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
LABEL_SUFFIXES = (".png",)
# The second name is labelme's.
CLASS_FILES = ("classes.txt", "class_names.txt")
LABEL_FOLDERS = ("labels", "annotations", "masks")
# Pictures with these suffixes lie in such folders too; errors name them instead of ignoring them.
OTHER_SUFFIXES = (
    *(".avif", ".bmp", ".gif", ".heic", ".jfif", ".jp2", ".jpe", ".mpo", ".npy", ".tga", ".tif", ".tiff"),
    ".webp",
)
MAX_LISTED = 20


def find_class_names(path: pathlib.Path, class_names, reduce_zero_label: bool) -> tuple[str, ...]:
    """The checked class names: as given, from a given file, or from the folder's classes.txt."""
    if class_names is None:
        class_names = next((path / name for name in CLASS_FILES if (path / name).is_file()), None)
        if class_names is None:
            raise ValueError(
                f"class_names must be given (a sequence of names, or a text file with one name per line) "
                f"where the folder has no {CLASS_FILES[0]}. Received: class_names=None for {path}"
            )
    if isinstance(class_names, str | os.PathLike):
        class_names = read_class_names(class_names)
    class_names = tuple(class_names)
    most = IGNORED_LABEL - 1 if reduce_zero_label else IGNORED_LABEL
    if not 2 <= len(class_names) <= most or not all(class_names):
        hint = ""
        if len(class_names) == 1:
            hint = ". A single class leaves nothing to learn: name the background too, as class 0"
        elif len(class_names) > most:
            hint = f": label {IGNORED_LABEL} is ignored" + " and 0 is no class" * reduce_zero_label
        raise ValueError(
            f"class_names must be 2 to {most} non-empty names{hint}. "
            f"Received: {len(class_names)} names, {class_names!r:.300}"
        )
    return class_names


def read_class_names(path: str | os.PathLike) -> tuple[str, ...]:
    """The lines of a text file, one class name each.

    UTF-8 is read, with a byte order mark or without, and UTF-16 with one. Empty lines at the end are ignored.

    Raises:
        ValueError: If the file is missing, in another encoding or has an empty line between the names.
    """
    text = read_text(path, "class_names")
    names = tuple(line.strip() for line in text.rstrip().splitlines())
    if not all(names):
        raise ValueError(
            f"{show_path(path)} must hold non-empty names, one per line; a gap would shift what follows. "
            f"Received: line {names.index('') + 1} is empty"
        )
    return names


def read_text(path: str | os.PathLike, argument: str) -> str:
    """The text of a file in UTF-8, with a byte order mark or without, or in UTF-16 with one.

    Args:
        path: Path of the file.
        argument: Name of the argument that it is for, for messages.

    Raises:
        ValueError: If the file is missing or in another encoding.
    """
    try:
        data = pathlib.Path(path).read_bytes()
    except OSError as error:
        raise ValueError(
            f"{argument} must be a text file with one entry per line. "
            f"Received: {show_path(path)} ({error.strerror})"
        ) from error
    is_utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = data.decode("utf-16" if is_utf16 else "utf-8-sig")
    except UnicodeDecodeError as error:
        text, reason = "\0", str(error)
    else:
        reason = "it holds NUL characters"
    if "\0" in text:
        raise ValueError(f"{show_path(path)} must be UTF-8 text; save it again as UTF-8. Received: {reason}")
    return text


def pair_files(
    image_folder: pathlib.Path, label_folder: pathlib.Path, suffixes: tuple[str, ...] = IMAGE_SUFFIXES
) -> list[tuple]:
    """Sorted (image, label) paths, those of sub-folders too; every file must have its counterpart."""
    images, problems = _find_pictures(image_folder, suffixes, "image")
    labels, label_problems = _find_pictures(label_folder, LABEL_SUFFIXES, "label picture")
    problems += label_problems
    problems += [
        f"{show_path(images[key])}: no label picture" for key in sorted(images.keys() - labels.keys())
    ]
    problems += [f"{show_path(labels[key])}: no image" for key in sorted(labels.keys() - images.keys())]
    if problems:
        raise ValueError(
            f"Every image must have one label picture of the same name in {label_folder}:\n"
            f"{list_briefly(problems)}"
        )
    if not images:
        raise ValueError(f"The split must hold {', '.join(suffixes)} files. Received: none in {image_folder}")
    return [(images[key], labels[key]) for key in sorted(images)]


def list_briefly(problems: list[str]) -> str:
    """The problems as lines; if there are many, the first of them."""
    more = [f"and {len(problems) - MAX_LISTED} more"] if len(problems) > MAX_LISTED else []
    return "\n".join(problems[:MAX_LISTED] + more)


def _find_pictures(folder, suffixes, kind):
    """The pictures by their names within the folder, without suffix, and problems.

    Hidden files (macOS writes ._a.png beside a.png) and other kinds of files are ignored. Names are compared
    in one Unicode form, as macOS stores another form than Linux and Windows.
    """
    found, problems = {}, []
    for path in _walk(folder):
        suffix = path.suffix.lower()
        if path.name.startswith(".") or suffix not in (*IMAGE_SUFFIXES, *OTHER_SUFFIXES):
            continue
        key = unicodedata.normalize("NFC", str(path.relative_to(folder).with_suffix("")))
        if suffix not in suffixes:
            is_tiff = kind == "image" and suffix in BAND_SUFFIXES
            hint = "; num_channels=N reads TIFF of N channels, other than 3; scripts find N if all are TIFF"
            hint *= is_tiff
            problems.append(f"{show_path(path)}: the {kind} must be {' or '.join(suffixes)}{hint}")
        elif key in found:
            problems.append(f"{show_path(path)}: a second {kind} of this name")
        found.setdefault(key, path)
    return found, problems


def _walk(folder):
    """Paths of all files in a folder and its sub-folders, except hidden ones."""

    def refuse(error):
        raise ValueError(f"{show_path(error.filename)}: cannot be read ({error.strerror})") from error

    for parent, subfolders, names in os.walk(folder, onerror=refuse, followlinks=True):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        for name in sorted(names):
            yield pathlib.Path(parent, name)
