"""The layouts of folders for semantic segmentation: which image belongs to which label picture."""

import pathlib

from heads.data.formats.pascal_voc import PICTURE_FOLDERS, find_year
from heads.data.formats.reading import PICTURE_SUFFIXES, list_names, walk_files
from heads.data.label_folders import IMAGE_SUFFIXES, LABEL_FOLDERS, list_briefly, pair_files, read_text
from heads.data.splits import choose_split, list_split_folders
from heads.pictures import show_path

LABELME_NAMES = "SegmentationClassPNG"  # labelme's export has arrays in the folder without PNG
VOC_FOLDERS = (LABELME_NAMES, "SegmentationClass")
VOC_CLASS_NAMES = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train"),
    "tvmonitor",
)
LAYOUTS = (
    f"images/<split>/ with one of {', '.join(LABEL_FOLDERS)} and a <split>/ in it; or these without <split>/",
    "Pascal VOC's JPEGImages/ and SegmentationClass/, and ImageSets/Segmentation/<split>.txt or no splits",
)


def find_pairs(
    path: pathlib.Path, split: str | None, suffixes: tuple[str, ...] = IMAGE_SUFFIXES
) -> tuple[str, pathlib.Path, list[tuple]]:
    """The images and label pictures of a split.

    Args:
        path: The folder.
        split: Name of the split. None: all pictures of a folder without splits, the only split, or "train".
        suffixes: Of the images.

    Returns:
        Name of the layout; the folder that it starts from; sorted pairs (image, label picture).

    Raises:
        ValueError: If the folder is missing, in no known layout, or has no such split; lists images and label
            pictures without a counterpart.
    """
    if not path.is_dir():
        raise ValueError(f"path must be a folder that exists. Received: {show_path(path)}")
    year = find_year(path)
    voc_labels, voc_images = _find_folder(year, VOC_FOLDERS), _find_folder(year, PICTURE_FOLDERS)
    if voc_labels and voc_images:
        return "Pascal VOC", year, _pair_voc(year, voc_images, voc_labels, split)
    labels, images = _find_folder(path, LABEL_FOLDERS), path / "images"
    if labels is None or not images.is_dir():
        looked_for = "\n".join(f"- {layout}" for layout in LAYOUTS)
        raise ValueError(
            f"path must hold images and label pictures. Looked for:\n{looked_for}\n"
            f"Received: {show_path(path)} with {list_names(path)}"
        )
    splits = _list_splits(images, labels, split)
    name = choose_split(path, split, splits, f"the folders in images/ and {labels.name}/ of")
    return f"images and {labels.name}", path, pair_files(*splits[name], suffixes)


def has_label_pictures(path: pathlib.Path) -> bool:
    """Whether a folder holds label pictures in one of the layouts."""
    year = find_year(path)
    if _find_folder(year, VOC_FOLDERS) and _find_folder(year, PICTURE_FOLDERS):
        return True
    labels = _find_folder(path, LABEL_FOLDERS)
    if labels is None or not (path / "images").is_dir():
        return False
    return next(iter(walk_files(labels, PICTURE_SUFFIXES)), None) is not None


def _find_folder(path, names):
    return next((path / name for name in names if (path / name).is_dir()), None)


def _list_splits(images, labels, split):
    """Returns (folder of images, folder of label pictures) of each split, or of None."""
    folders = list_split_folders(images)
    if split is not None:  # it may have any name
        folders |= {each.name: each for each in images.iterdir() if each.is_dir()}
    both = {name: (each, labels / name) for name, each in folders.items() if (labels / name).is_dir()}
    return both or {None: (images, labels)}


def _pair_voc(path, images, labels, split):
    """Returns the pairs that a list names, or all that have a label picture."""
    lists = {each.stem: each for each in sorted((path / "ImageSets/Segmentation").glob("*.txt"))}
    name = choose_split(path, split, lists or [None], "those of ImageSets/Segmentation in")
    paths = {
        each.relative_to(images).with_suffix("").as_posix(): each
        for each in walk_files(images, PICTURE_SUFFIXES)
    }
    found = {
        each.relative_to(labels).with_suffix("").as_posix(): each for each in walk_files(labels, [".png"])
    }
    stems = sorted(found)
    if name is not None:
        lines = read_text(lists[name], "a list of pictures").splitlines()
        stems = list(dict.fromkeys(line.split()[0] for line in lines if line.strip()))
    problems = [f"{stem}: no image in {show_path(images)}" for stem in stems if stem not in paths]
    problems += [f"{stem}: no label picture in {show_path(labels)}" for stem in stems if stem not in found]
    if problems or not stems:
        problems = list_briefly(problems) or "there is none"
        raise ValueError(f"{show_path(path)} must hold an image for each label picture:\n{problems}")
    return [(paths[stem], found[stem]) for stem in stems]
