"""Data sets in COCO's JSON format, for detection and instance segmentation.

Boxes are xyxy in continuous pixels, `*_size` = (height, width). `detection_batches.py` describes what a data
set must provide.
"""

import copy
import itertools
import os
import pathlib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import tensorflow as tf
from tqdm import tqdm

from heads.arguments import read_count
from heads.bands import find_num_channels, read_data_picture
from heads.coco.annotations import clip_box, judge_boxes, read_annotations
from heads.coco.entries import is_side, list_briefly, read_entries, read_json, show
from heads.coco.segmentations import _decode_counts  # noqa: F401  a case of issue 11 times it by this name
from heads.data.splits import choose_held_out
from heads.ops.labels import CROWD_LABEL
from heads.pictures import RGB_CHANNELS

MAX_NAMES = 10


class CocoDataset:
    """The objects of a COCO instances file, with the pictures of a folder.

    Reads polygons, compressed and uncompressed run lengths, crowds, category ids with gaps, pictures without
    objects, and files without segmentations. As in mmdetection, boxes of no area (area 0, or a side under 1
    pixel) are dropped, all others are clipped to the picture; if all areas are 0, they count as missing. An
    annotation with "ignore": 1 is a region like a crowd: neither object nor background. Faulty annotations
    are left out; `check` lists them.

    Args:
        annotations: Path of the JSON file.
        images: The folder that the JSON's file names start from. Backslashes in them count as slashes where
            this leads to a picture.
        with_masks: Whether to read the segmentations; they stay polygons or run lengths in memory.
        num_channels: Channels of the pictures, as many as the backbone takes. 3 is RGB; others are TIFF files
            of so many bands, read as `heads.bands.read_bands` says. None: as many as the first picture has if
            all are TIFF files, else 3.

    Attributes:
        format: Name of the format.
        path: Path of the JSON file.
        class_names: Names of the classes, in the order of the labels.
        num_classes: Their number.
        category_ids: COCO's category id of each label, in rising order.
        image_ids: COCO's image ids, in the order of the file.
        image_paths: Paths of the pictures, in the same order.
        image_sizes: int32 (images, 2), (height, width) as the JSON tells them.
        num_channels: Channels of the pictures.
        with_masks: Whether there are masks.
        boxes: For each image float32 (n, 4), xyxy pixels.
        labels: For each image int32 (n,); -2 marks a crowd region, or one to ignore.
        num_dropped: The number of boxes of no area.

    Raises:
        ValueError: If the file is not COCO JSON, holds no image or category, or an entry of either is faulty;
            if masks are wanted and no annotation has a segmentation.
    """

    format = "COCO"
    _kept_ids = None  # ids of the pictures, if this is a part of a data set

    def __init__(
        self,
        annotations: str | os.PathLike,
        images: str | os.PathLike,
        with_masks: bool = False,
        num_channels: int | None = RGB_CHANNELS,
    ):
        self.path, self.num_channels = pathlib.Path(annotations), num_channels
        self._read_content(self.to_coco(), pathlib.Path(images), with_masks)

    def _read_content(self, content, folder, with_masks):
        """Sets everything from the content of a COCO file."""
        self._folder, self.with_masks = folder, with_masks
        categories = read_entries(content, "categories", find_category_problem, self.path)
        pictures = read_entries(content, "images", find_picture_problem, self.path)
        self.category_ids = tuple(sorted(categories))
        self.class_names = tuple(categories[key]["name"] for key in self.category_ids)
        self.num_classes = len(self.class_names)
        self.image_ids = list(pictures)
        self.image_paths = [find_path(folder, picture["file_name"]) for picture in pictures.values()]
        if self.num_channels is None:
            self.num_channels = find_num_channels(self.image_paths)
        read_count("num_channels", self.num_channels)
        sizes = [(int(picture["height"]), int(picture["width"])) for picture in pictures.values()]
        self.image_sizes = np.array(sizes, np.int32)
        self._read_annotations(content.get("annotations"), dict(zip(pictures, sizes, strict=True)))

    def __len__(self):
        return len(self.image_ids)

    def to_coco(self) -> dict:
        """The content of the JSON file, as it is (for the evaluator); of a part, that of its pictures."""
        content = self._load_content()
        if self._kept_ids is None:
            return content
        pictures = [entry for entry in content["images"] if entry["id"] in self._kept_ids]
        entries = content.get("annotations") or []
        entries = [entry for entry in entries if entry["image_id"] in self._kept_ids]
        return {**content, "images": pictures, "annotations": entries}

    def _load_content(self):
        content = read_json(self.path, "annotations")
        if not isinstance(content, dict):
            raise ValueError(f"annotations must hold a JSON object. Received: {self.path}")
        return content

    def split(self, share: float, seed: int = 0) -> tuple["CocoDataset", "CocoDataset"]:
        """Returns two parts, one to train on and one that is held out: see `choose_held_out`.

        Args:
            share: Share of the pictures of each class that is held out.
            seed: Seed of the choice; the same seed chooses the same pictures.

        Raises:
            ValueError: For a share that is not below 1, where no class is on two pictures, or where
                annotations are faulty: `check` lists them.
        """
        if self._problems:
            raise ValueError(f"{self.path} has {len(self._problems)} faulty annotations: see `check`")
        is_on = np.zeros((len(self), self.num_classes), bool)
        for position, labels in enumerate(self.labels):
            is_on[position, labels[labels >= 0]] = True
        is_held_out = choose_held_out(is_on, self.image_ids, share, seed, self.path)
        return self._select(~is_held_out), self._select(is_held_out)

    def _select(self, is_kept):
        """Returns the part with some of the pictures."""
        part = copy.copy(self)
        part._kept_ids = {self.image_ids[place] for place in np.flatnonzero(is_kept)}
        part._read_content(part.to_coco(), self._folder, self.with_masks)
        return part

    def check(self, num_threads: int | None = None, progress: bool = True) -> np.ndarray:
        """Decodes every picture, counts the objects of each class, and prints what is unusual.

        Run it once before training: all faults are found now and not after hours, and listed in one error.
        What is valid but may surprise is printed, a line each: pictures that their EXIF orientation turns,
        boxes that reach out of their picture, classes without an object, and the like.

        Args:
            num_threads: Threads that decode. Default: one per CPU core.
            progress: Whether to show a progress bar, and the numbers of images and objects.

        Returns:
            Objects of each class, without crowds and regions to ignore, (num_classes,), int64.

        Raises:
            ValueError: Lists the files that are missing, damaged or not of the size in the JSON, and the
                annotations with an unknown image or category, a malformed box, a box outside of its picture,
                or a mask that is malformed, of another size or not in its box; each with its id. Also says if
                the boxes are relative or corners, or if no annotation is left to learn from.
        """
        with ThreadPoolExecutor(num_threads or os.cpu_count()) as pool:
            channels = itertools.repeat(self.num_channels)
            pictures = self.image_ids, self.image_paths, self.image_sizes.tolist(), channels
            reports = pool.map(examine_picture, *pictures)
            reports = list(tqdm(reports, f"check {self.path.name}", len(self), disable=not progress))
        labels = np.concatenate(self.labels)
        counts = np.bincount(labels[labels >= 0], minlength=self.num_classes).astype(np.int64)
        if progress:
            num_empty = sum(len(found) == 0 for found in self.labels)
            tqdm.write(
                f"{self.path.name}: {len(self)} images ({num_empty} without objects), "
                f"{counts.sum()} objects, {self.num_crowds} crowd regions; "
                f"{self.num_dropped} boxes of no area were dropped"
            )
        problems = list_briefly([problem for problem, _ in reports if problem])
        problems += [*self._judgements, *list_briefly(self._problems)]
        if problems:
            raise ValueError(f"{self.path} has faulty files or annotations:\n" + "\n".join(problems))
        for remark in self._remark(counts, sum(is_turned for _, is_turned in reports)):
            tqdm.write(f"{self.path.name}: {remark}")
        return counts

    def load(self, indices: tf.data.Dataset | None = None) -> tf.data.Dataset:
        """The decoded pictures with their objects.

        Args:
            indices: Dataset of positions in `image_ids`, int64 scalars. Default: all, once, in order.

        Returns:
            Dataset of dicts of "index": int64 (); "image": (height, width, channels), uint8 of RGB and else
            float32, see `heads.bands.read_data_picture`; "boxes": float32 (n, 4); "labels": int32 (n,). A
            picture that cannot be read, or is not of the size in the JSON, ends the iteration with an error
            that names its path.
        """

        def find(index):
            size = self.image_sizes[index]
            return os.fsencode(self.image_paths[index]), size, self.boxes[index], self.labels[index]

        def read(index):
            kinds = (tf.string, tf.int32, tf.float32, tf.int32)
            path, size, boxes, labels = tf.numpy_function(find, [index], kinds)
            return {
                "index": index,
                "image": load_picture(
                    tf.ensure_shape(path, ()), tf.ensure_shape(size, (2,)), self.num_channels
                ),
                "boxes": tf.ensure_shape(boxes, (None, 4)),
                "labels": tf.ensure_shape(labels, (None,)),
            }

        indices = tf.data.Dataset.range(len(self)) if indices is None else indices
        return indices.map(read, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)

    def read_image(self, index: int) -> np.ndarray:
        """The pixels of a picture: see `load`."""
        size = self.image_sizes[index]
        return read_data_picture(self.image_paths[index], self.num_channels, size).pixels

    def load_segmentations(self, index: int) -> list:
        """The segmentation of each object of an image, as `detection_moves.draw_masks` takes them."""
        return self._segmentations[index]

    def _read_annotations(self, entries, image_sizes):
        """Assigns the objects to their images; sets `boxes`, `labels` and what `check` reports."""
        has_masks = isinstance(entries, list) and any(
            isinstance(entry, dict) and entry.get("segmentation") for entry in entries
        )
        if self.with_masks and entries and not has_masks:
            raise ValueError(f"with_masks needs a file with segmentations. Received: {self.path}")
        try:
            annotations, self._problems = read_annotations(
                entries, image_sizes, self.category_ids, with_masks=self.with_masks
            )
        except ValueError as error:
            raise ValueError(f"{self.path}: {error}") from error
        self._judgements = judge_boxes(annotations, image_sizes)
        kept = [annotation for annotation in annotations if not annotation.has_no_area]
        self.num_dropped = len(annotations) - len(kept)
        self.num_crowds = sum(each.is_crowd for each in kept)
        self.num_ignored = sum(each.is_ignored and not each.is_crowd for each in kept)
        if annotations and not self._judgements and len(kept) == self.num_crowds + self.num_ignored:
            self._judgements = [
                f"{len(annotations)} annotations leave nothing to learn: {self.num_dropped} boxes have no "
                f'area (0, or a side under 1 pixel), {self.num_ignored} have "ignore": 1, {self.num_crowds} '
                'are crowds ("iscrowd": 1; it must be 0 for single objects, whatever form their masks have)'
            ]
        positions = {image_id: position for position, image_id in enumerate(self.image_ids)}
        label_of = {category_id: label for label, category_id in enumerate(self.category_ids)}
        found = [([], [], []) for _ in self.image_ids]
        self.num_clipped = 0
        for each in kept:
            boxes, labels, segmentations = found[positions[each.image_id]]
            height, width = image_sizes[each.image_id]
            x, y, box_width, box_height = each.box_xywh
            self.num_clipped += min(x, y, width - x - box_width, height - y - box_height) < -1
            is_region = each.is_crowd or each.is_ignored
            boxes.append(clip_box(each.box_xywh, (height, width)))
            labels.append(CROWD_LABEL if is_region else label_of[each.category_id])
            segmentations.append(None if is_region else each.segmentation)
        self.boxes = [np.array(boxes, np.float32).reshape(-1, 4) for boxes, _, _ in found]
        self.labels = [np.array(labels, np.int32) for _, labels, _ in found]
        self._segmentations = [segmentations for _, _, segmentations in found]

    def _remark(self, counts, num_turned):
        """Yields remarks on what is valid but may surprise."""
        if num_turned:
            yield f"{num_turned} pictures are turned upright, by their EXIF orientation"
        if self.num_clipped:
            yield f"{self.num_clipped} boxes reach out of their picture by more than a pixel and are clipped"
        if self.num_ignored:
            yield f'{self.num_ignored} annotations have "ignore": 1, and are regions like crowds'
        repeated = [name for name, number in Counter(self.class_names).items() if number > 1]
        if repeated:
            yield f"several categories have the name {', '.join(repeated)}"
        missing = [name for name, count in zip(self.class_names, counts, strict=True) if count == 0]
        if len(missing) == self.num_classes:
            yield "no annotations: there is nothing to learn and nothing to score"
        elif missing:
            names = ", ".join(missing[:MAX_NAMES]) + ", ..." * (len(missing) > MAX_NAMES)
            yield f"{len(missing)} of {self.num_classes} classes have no objects: {names}"


def load_picture(path, size=None, num_channels=RGB_CHANNELS):
    """`read_data_picture` in a `tf.data` graph: an unreadable picture ends the iteration with its path."""
    dtype = tf.uint8 if num_channels == RGB_CHANNELS else tf.float32

    def read(path, *size):
        path = np.asarray(path, object).item()  # bytes in a graph, an array of them outside
        return read_data_picture(os.fsdecode(path), num_channels, size or None).pixels

    arguments = [path] if size is None else [path, size[0], size[1]]
    return tf.ensure_shape(tf.numpy_function(read, arguments, dtype), (None, None, num_channels))


def find_category_problem(category):
    """Returns what is wrong with an entry of "categories", or None."""
    name = category.get("name")
    if not isinstance(name, str) or not name.strip():
        return f"no usable name. Received: {show(name)}"
    return None


def find_picture_problem(picture):
    """Returns what is wrong with an entry of "images", or None."""
    is_right = {
        "file_name": _is_file_name(picture.get("file_name")),
        "height": is_side(picture.get("height")),
        "width": is_side(picture.get("width")),
    }
    missing = [field for field, right in is_right.items() if not right]
    if missing:
        received = ", ".join(show(picture.get(field)) for field in missing)
        return f"no usable {' and '.join(missing)}. Received: {received}"
    return None


def _is_file_name(name):
    if not isinstance(name, str) or not name or "\0" in name:
        return False
    try:
        os.fsencode(name)
    except UnicodeEncodeError:  # half of a pair of surrogates
        return False
    return True


def find_path(folder, name):
    """Returns the path of a picture, whose name may have the backslashes of Windows."""
    path, other = folder / name, folder / name.replace("\\", "/")
    return other if "\\" in name and not os.path.exists(path) and os.path.exists(other) else path


def examine_picture(image_id, path, image_size, num_channels=RGB_CHANNELS):
    """Returns what is wrong with a picture file, or None; and whether its EXIF orientation turns it."""
    try:
        return None, read_data_picture(path, num_channels, image_size).is_turned
    except ValueError as error:
        is_windows = "\\" in path.name and not os.path.exists(path)
        hint = "; its file_name has backslashes, and no file with slashes instead" if is_windows else ""
        return f"image {show(image_id)}: {error}{hint}", False
