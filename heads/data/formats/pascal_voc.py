"""Pascal VOC: an XML file with the boxes of each picture, and pictures of the objects' masks."""

import pathlib
from xml.etree import ElementTree

import numpy as np

from heads.coco.entries import show
from heads.coco.segmentations import encode_mask
from heads.data.formats.reading import (
    PICTURE_SUFFIXES,
    Reading,
    find_class_list,
    walk_files,
)
from heads.data.label_folders import read_text
from heads.data.label_pictures import decode_label
from heads.data.splits import list_split_folders
from heads.pictures import show_path

FORMAT = "Pascal VOC"
LAYOUTS = (
    "Annotations/*.xml with JPEGImages/ or images/, and ImageSets/Main/<split>.txt where there are splits",
    "Pascal VOC's .xml files beside their pictures, in <split>/ or in the folder itself",
)
XML_FOLDERS = ("Annotations", "annotations")
PICTURE_FOLDERS = ("JPEGImages", "images", "Images")
MASK_FOLDER = "SegmentationObject"
CORNERS = ("xmin", "ymin", "xmax", "ymax")
FLAGS = {"0": False, "1": True, "": False, "Unspecified": False}


def list_splits(path: pathlib.Path) -> dict:
    """Split (None for the only one) -> what it consists of; empty if the folder is not Pascal VOC's.

    A split is (folder of the XML files, folder of the pictures, folder of the masks or None, name or None of
    the lists in ImageSets).
    """
    path = find_year(path)
    for name in XML_FOLDERS:
        files = path / name
        pictures = next((path / each for each in PICTURE_FOLDERS if (path / each).is_dir()), None)
        if pictures is None or not files.is_dir() or not _holds_annotations(files):
            continue
        masks = path / MASK_FOLDER if (path / MASK_FOLDER).is_dir() else None
        lists = [each.stem for each in sorted((path / "ImageSets").glob("*/*.txt")) if "_" not in each.stem]
        if lists:
            return {split: (files, pictures, masks, split) for split in dict.fromkeys(lists)}
        folders = {each: pictures / each for each in list_split_folders(files) if (pictures / each).is_dir()}
        return {each: (files / each, folder, masks, None) for each, folder in folders.items()} or {
            None: (files, pictures, masks, None)
        }
    folders = {name: each for name, each in list_split_folders(path).items() if _holds_annotations(each)}
    folders = folders or ({None: path} if _holds_annotations(path) else {})
    return {name: (folder, folder, None, None) for name, folder in folders.items()}


def read_split(path: pathlib.Path, place, with_masks: bool = False) -> Reading:
    """The pictures and objects of a split.

    Pixels count from 1 and boxes include both ends, as in Pascal VOC: a box spans xmin - 1 .. xmax. Objects
    marked as difficult are regions like crowds: neither objects nor background in training, neither right nor
    wrong in scores. The classes are those of classes.txt or labels.txt, or all names of the folder.

    Args:
        path: The folder.
        place: From `list_splits`.
        with_masks: Whether to read the masks: then only pictures with a file in SegmentationObject count,
            whose number k is the k-th object of the XML file.

    Raises:
        ValueError: If a list of pictures is missing or empty, or no object has a class.
    """
    files, pictures, masks, split = place
    path = find_year(path)
    if with_masks and masks is None:
        raise ValueError(f"with_masks needs {MASK_FOLDER}/ in {show_path(path)}. Received: no such folder")
    stems = _list_stems(path, files, masks if with_masks else None, split)
    trees, problems = {}, []
    for file in walk_files(find_top(path, files), [".xml"]):
        try:
            trees[file] = _parse(file)
        except ValueError as problem:
            problems.append((file, str(problem)))
    names = find_class_list([path, files])
    if names is None:
        found = {each.findtext("name", "").strip() for tree in trees.values() for each in tree.iter("object")}
        names = sorted(found - {""})
    if not names:
        raise ValueError(f"{show_path(path)} must hold objects with names. Received: none in its XML files")
    reading = Reading(FORMAT, path, path, names)
    wanted = {files / f"{stem}.xml" for stem in stems}
    reading.problems += [problem for file, problem in problems if file in wanted]
    known = _index_pictures(pictures)
    for stem in stems:
        file = files / f"{stem}.xml"
        if file in trees:
            mask_path = masks / f"{stem}.png" if with_masks else None
            _read_picture(reading, file, trees[file], known, stem, mask_path)
        elif not file.is_file():
            reading.problems.append(f"{reading.name(file)}: is missing, but {split}.txt lists it")
    if split is None:
        alone = [each for stem, each in known.items() if stem not in set(stems)]
        reading.remark_files(alone, "pictures have no XML file and are left out")
    _remark_zeros(reading, [trees[file] for file in sorted(wanted & trees.keys())])
    return reading


def find_year(path: pathlib.Path) -> pathlib.Path:
    """The folder of the year, such as VOC2012, if the development kit's folder is given."""
    for parent in (path / "VOCdevkit", path):
        years = sorted(each for each in parent.glob("VOC2*") if (each / "Annotations").is_dir())
        if len(years) == 1:
            return years[0]
    return path


def find_top(path: pathlib.Path, files: pathlib.Path) -> pathlib.Path:
    """The folder with the XML files of all splits: one split might lack some of the classes."""
    return next((path / name for name in XML_FOLDERS if files.is_relative_to(path / name)), path)


def read_box(element: ElementTree.Element) -> tuple[float, float, float, float]:
    """The box of an object, xyxy in continuous pixels.

    Raises:
        ValueError: If it is missing, not numbers, or its ends are exchanged.
    """
    box = element.find("bndbox")  # the box of a part (head, hands) lies deeper
    texts = [None if box is None else box.findtext(name) for name in CORNERS]
    try:
        x1, y1, x2, y2 = map(float, texts)
    except (TypeError, ValueError):
        raise ValueError(
            f"bndbox must have {', '.join(CORNERS)}, numbers. Received: {', '.join(map(show, texts))}"
        ) from None
    if not (x1 <= x2 and y1 <= y2):  # NaN too
        raise ValueError(f"bndbox must have xmin <= xmax and ymin <= ymax. Received: {', '.join(texts)}")
    return x1 - 1, y1 - 1, x2, y2


def _holds_annotations(folder):
    """Whether the first XML file is one of Pascal VOC's, or too damaged to tell."""
    first = next(iter(walk_files(folder, [".xml"])), None)
    if first is None:
        return False
    try:
        return ElementTree.parse(first).getroot().tag == "annotation"
    except ElementTree.ParseError:
        return True


def _list_stems(path, files, masks, split):
    """Returns the pictures of a split as paths within the folder of XML files, without suffix."""
    if split is None:
        stems = [each.relative_to(files).with_suffix("").as_posix() for each in walk_files(files, [".xml"])]
        return [stem for stem in stems if masks is None or (masks / f"{stem}.png").is_file()]
    kinds = ("Segmentation", "Main") if masks is not None else ("Main", "Layout", "Segmentation")
    lists = [path / "ImageSets" / kind / f"{split}.txt" for kind in kinds]
    lists += sorted((path / "ImageSets").glob(f"*/{split}.txt"))
    chosen = next(each for each in lists if each.is_file())
    stems = [line.split()[0] for line in read_text(chosen, "a list of pictures").splitlines() if line.strip()]
    if masks is not None:
        stems = [stem for stem in stems if (masks / f"{stem}.png").is_file()]
    if not stems:
        hint = " with masks" if masks is not None else ""
        raise ValueError(f"{show_path(chosen)} must list pictures{hint}. Received: none")
    return list(dict.fromkeys(stems))


def _parse(file):
    try:
        root = ElementTree.parse(file).getroot()
    except (ElementTree.ParseError, OSError, ValueError) as error:
        raise ValueError(f"{show_path(file)}: must be an XML file. Received: {error}") from error
    if root.tag != "annotation":
        raise ValueError(f"{show_path(file)}: must hold <annotation>. Received: <{root.tag}>")
    return root


def _index_pictures(folder):
    """Returns the pictures by their paths within a folder, without suffix."""
    found = {}
    for each in walk_files(folder, PICTURE_SUFFIXES):
        found.setdefault(each.relative_to(folder).with_suffix("").as_posix(), each)
    return found


def _read_picture(reading, file, tree, known, stem, mask_path):
    """Adds a picture with its objects."""
    name = reading.name(file)
    other = pathlib.PurePosixPath(tree.findtext("filename", "").strip().replace("\\", "/")).stem
    path = known.get(stem) or known.get(other)
    if path is None:
        reading.problems.append(f"{name}: there is no picture of this name, nor {show(other)}")
        return
    try:
        sides = [int(float(tree.findtext(f"size/{side}", "0"))) for side in ("height", "width")]
    except (ValueError, OverflowError):
        sides = [0, 0]
    try:
        picture = reading.add_picture(path, tuple(sides) if min(sides) > 0 else None)
        numbers = None if mask_path is None else decode_label(mask_path)
        if numbers is not None and numbers.shape != (picture["height"], picture["width"]):
            size = (picture["height"], picture["width"])
            raise ValueError(f"{reading.name(mask_path)}: must have {size}. Received: {numbers.shape}")
    except ValueError as problem:
        reading.problems.append(f"{name}: {problem}")
        return
    labels = {each: label for label, each in enumerate(reading.class_names)}
    for number, element in enumerate(tree.findall("object"), 1):
        key = f"{name} object {number}"
        try:
            reading.add_object(key, picture, *_read_object(element, number, numbers, labels))
        except ValueError as problem:
            reading.problems.append(f"{key}: {problem}")


def _read_object(element, number, numbers, labels):
    """Returns the label, the box, the mask if there are numbers of objects, and whether it is difficult."""
    class_name = element.findtext("name", "").strip()
    if class_name not in labels:
        known = ", ".join(labels)
        raise ValueError(f"the name must be one of the classes, {known:.200}. Received: {show(class_name)}")
    flag = element.findtext("difficult", "").strip()
    if flag not in FLAGS:
        raise ValueError(f"difficult must be 0 or 1. Received: {show(flag)}")
    box = read_box(element)
    if numbers is None:
        return labels[class_name], box, None, FLAGS[flag]
    mask = numbers == number
    if not mask.any() and FLAGS[flag]:
        x1, y1, x2, y2 = box
        return labels[class_name], box, [[x1, y1, x2, y1, x2, y2, x1, y2]], True
    if not mask.any():
        found = np.setdiff1d(numbers, [0, 255]).tolist()
        raise ValueError(f"must have pixels of number {number} in its mask. Received: {show(found)} there")
    return labels[class_name], box, encode_mask(mask), FLAGS[flag]


def _remark_zeros(reading, trees):
    """Adds a remark where boxes begin at 0, which is outside of a picture whose pixels count from 1."""
    firsts = ([box.findtext("xmin"), box.findtext("ymin")] for tree in trees for box in tree.iter("bndbox"))
    num_zeros = sum(any((text or "").strip() in ("0", "0.0") for text in texts) for texts in firsts)
    if num_zeros:
        reading.remarks.append(
            f"{num_zeros} boxes begin at 0, where Pascal VOC counts pixels from 1: if the tool that wrote "
            "them counts from 0, all boxes are a pixel too large at the left and the top"
        )
