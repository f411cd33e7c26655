"""Data sets in COCO's panoptic format: a JSON file, pictures, and PNG files of segment ids."""

import os
import pathlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import tensorflow as tf
from PIL import Image
from tqdm import tqdm

from heads.coco.annotations import FLAGS
from heads.coco.entries import KnownIds, is_id, list_briefly, read_entries, read_json, show
from heads.data.coco import MAX_NAMES, find_category_problem, find_path, find_picture_problem, load_picture
from heads.ops.labels import CROWD_LABEL, VOID_SEGMENT
from heads.pictures import DATA_FORMATS, decode_picture, named_faults, open_picture, show_path

LARGEST_ID = 256**3 - 1  # red + 256 green + 65536 blue; 0 means no segment


class PanopticDataset:
    """The segments of a COCO panoptic file, with the pictures of a folder.

    Labels are the classes of things in rising order of their category ids, then those of stuff. Faulty
    annotations are left out; `check` lists them.

    Args:
        annotations: Path of the JSON file.
        images: The folder that the file names of its "images" start from.
        segments: The folder that the file names of its "annotations" start from: PNG files whose pixels hold
            red + 256 green + 65536 blue = the id of a segment, 0 for none.

    Attributes:
        path: Path of the JSON file.
        class_names: Names of the classes, in the order of the labels.
        num_things: Number of classes of things.
        num_stuff: Number of classes of stuff.
        num_classes: Their sum.
        category_ids: COCO's category id of each label.
        image_ids: COCO's image ids, in the order of the file.
        image_paths: Paths of the pictures, in the same order.
        image_sizes: int32 (images, 2), (height, width) as the JSON tells them.

    Raises:
        ValueError: If the file is not COCO panoptic JSON, holds no image or category, or an entry of either
            is faulty.
    """

    def __init__(
        self, annotations: str | os.PathLike, images: str | os.PathLike, segments: str | os.PathLike
    ):
        self.path = pathlib.Path(annotations)
        content = read_json(self.path, "annotations")
        if not isinstance(content, dict):
            raise ValueError(f"annotations must hold a JSON object. Received: {self.path}")
        categories = read_entries(content, "categories", _find_kind_problem, self.path)
        pictures = read_entries(content, "images", find_picture_problem, self.path)
        self.category_ids = tuple(sorted(categories, key=lambda key: (not categories[key]["isthing"], key)))
        self.class_names = tuple(categories[key]["name"] for key in self.category_ids)
        self.num_classes = len(self.class_names)
        self.num_things = sum(bool(each["isthing"]) for each in categories.values())
        self.num_stuff = self.num_classes - self.num_things
        self.image_ids = list(pictures)
        self.image_paths = [find_path(pathlib.Path(images), each["file_name"]) for each in pictures.values()]
        sizes = [(int(picture["height"]), int(picture["width"])) for picture in pictures.values()]
        self.image_sizes = np.array(sizes, np.int32)
        self._read_annotations(content.get("annotations"), pathlib.Path(segments))

    def __len__(self):
        return len(self.image_ids)

    def load_segments(self, index: int) -> dict:
        """Returns the segments of an image.

        Returns:
            A dict of "segments": int32 (height, width), rows of "labels" and "is_crowd", -1 for none;
            "labels": int32 (n,), the classes; "is_crowd": bool (n,).

        Raises:
            ValueError: If the PNG file is missing, damaged, of another size, or holds an id that the JSON
                does not list for it. The message starts with its path.
        """
        path, ids, labels, is_crowd = self._annotations[index]
        pixels = _read_ids(path, tuple(self.image_sizes[index].tolist()))
        found, rows = np.unique(pixels, return_inverse=True)
        known = {number: row for row, number in enumerate(ids.tolist())}
        unknown = [number for number in found.tolist() if number and number not in known]
        if unknown:
            raise ValueError(
                f"{show_path(path)}: each id must be listed in segments_info. Received: "
                f"{', '.join(map(str, unknown[:MAX_NAMES]))}"
            )
        numbers = np.array([known.get(number, VOID_SEGMENT) for number in found.tolist()], np.int32)
        return {"segments": numbers[rows].reshape(pixels.shape), "labels": labels, "is_crowd": is_crowd}

    def load(self, indices: tf.data.Dataset | None = None) -> tf.data.Dataset:
        """The decoded pictures with their segments.

        Args:
            indices: Dataset of positions in `image_ids`, int64 scalars. Default: all, once, in order.

        Returns:
            Dataset of dicts of "index": int64 (); "image": uint8 (height, width, 3); "segments": int32
            (height, width), rows of "labels", -1 for none; "labels": int32 (n,), -2 for crowds. A file that
            cannot be read ends the iteration with an error that names its path.
        """

        def find(index):
            found = self.load_segments(int(index))
            labels = np.where(found["is_crowd"], CROWD_LABEL, found["labels"]).astype(np.int32)
            path = os.fsencode(self.image_paths[index])
            return path, self.image_sizes[index], found["segments"], labels

        def read(index):
            kinds = (tf.string, tf.int32, tf.int32, tf.int32)
            path, size, segments, labels = tf.numpy_function(find, [index], kinds)
            return {
                "index": index,
                "image": load_picture(tf.ensure_shape(path, ()), tf.ensure_shape(size, (2,))),
                "segments": tf.ensure_shape(segments, (None, None)),
                "labels": tf.ensure_shape(labels, (None,)),
            }

        indices = tf.data.Dataset.range(len(self)) if indices is None else indices
        return indices.map(read, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)

    def check(self, num_threads: int | None = None, progress: bool = True) -> np.ndarray:
        """Decodes every file, counts the segments of each class, and prints what is unusual.

        Run it once before training: all faults are found now and not after hours, and listed in one error.

        Args:
            num_threads: Threads that decode. Default: one per CPU core.
            progress: Whether to show a progress bar, and the numbers of images and segments.

        Returns:
            Segments of each class without crowds, (num_classes,), int64.

        Raises:
            ValueError: Lists the files that are missing, damaged or not of the size in the JSON, images
                without an annotation or with two, unknown images, categories and ids, and ids that are listed
                but not in the PNG file.
        """
        with ThreadPoolExecutor(num_threads or os.cpu_count()) as pool:
            reports = pool.map(self._examine, range(len(self)))
            reports = list(tqdm(reports, f"check {self.path.name}", len(self), disable=not progress))
        problems = [*self._problems, *(problem for found, *_ in reports for problem in found)]
        if problems:
            listed = "\n".join(list_briefly(problems))
            raise ValueError(f"{self.path} has faulty files or annotations:\n{listed}")
        labels = np.concatenate([labels[~is_crowd] for _, _, labels, is_crowd in self._annotations])
        counts = np.bincount(labels, minlength=self.num_classes).astype(np.int64)
        if progress:
            num_crowds = sum(int(is_crowd.sum()) for *_, is_crowd in self._annotations)
            void = np.mean([share for _, share in reports])
            tqdm.write(
                f"{self.path.name}: {len(self)} images, {counts.sum()} segments, {num_crowds} crowds; "
                f"{void:.1%} of the pixels belong to no segment"
            )
            missing = [name for name, count in zip(self.class_names, counts, strict=True) if not count]
            if missing:
                names = ", ".join(missing[:MAX_NAMES]) + ", ..." * (len(missing) > MAX_NAMES)
                tqdm.write(
                    f"{self.path.name}: {len(missing)} of {self.num_classes} classes have no segment: {names}"
                )
        return counts

    def _examine(self, index):
        """Returns what is wrong with the files of an image, and the share of pixels without a segment."""
        image, problems, share = f"image {show(self.image_ids[index])}", [], 0.0
        try:
            decode_picture(self.image_paths[index], self.image_sizes[index].tolist(), DATA_FORMATS)
        except ValueError as error:
            problems.append(f"{image}: {error}")
        if self._annotations[index][0] is None:  # listed already
            return problems, share
        try:
            segments = self.load_segments(index)["segments"]
        except ValueError as error:
            return [*problems, f"{image}: {error}"], share
        path, ids, *_ = self._annotations[index]
        missing = np.setdiff1d(np.arange(len(ids)), segments)
        if len(missing):
            shown = ", ".join(str(number) for number in ids[missing[:MAX_NAMES]])
            problems.append(f"{image}: {show_path(path)} has no pixels of the segments {shown}")
        return problems, float((segments == VOID_SEGMENT).mean())

    def _read_annotations(self, entries, folder):
        """Assigns the annotations to their images; faulty ones become problems."""
        if not isinstance(entries, list):
            raise ValueError(
                f'{self.path} must hold a list of "annotations", one per image. Received: {show(entries)}'
            )
        images, categories = (
            KnownIds("image", set(self.image_ids)),
            KnownIds("category", set(self.category_ids)),
        )
        label_of = {category_id: label for label, category_id in enumerate(self.category_ids)}
        by_image, self._problems = {}, []
        for position, entry in enumerate(entries):
            try:
                image_id, annotation = _read_annotation(entry, folder, images, categories, label_of)
                if image_id in by_image:
                    raise ValueError(f"image {show(image_id)} has an annotation already")
            except ValueError as error:
                self._problems.append(f"annotations at position {position}: {error}")
                continue
            by_image[image_id] = annotation
        nothing = None, np.zeros(0, np.int64), np.zeros(0, np.int32), np.zeros(0, bool)
        self._annotations = [by_image.get(image_id, nothing) for image_id in self.image_ids]
        self._problems += [
            f"image {show(image_id)}: no annotation"
            for image_id in self.image_ids
            if image_id not in by_image
        ]


def _read_annotation(entry, folder, images, categories, label_of):
    """Returns the image id of an entry of "annotations", and (path, ids, labels, is_crowd)."""
    if not isinstance(entry, dict):
        raise ValueError(f"must be an object. Received: {show(entry)}")
    image_id = images.check(entry.get("image_id"))
    name, infos = entry.get("file_name"), entry.get("segments_info")
    if not isinstance(name, str) or not name:
        raise ValueError(f"image {show(image_id)}: no usable file_name. Received: {show(name)}")
    if not isinstance(infos, list) or not all(isinstance(info, dict) for info in infos):
        raise ValueError(
            f"image {show(image_id)}: segments_info must be a list of objects. Received: {show(infos)}"
        )
    ids, labels, crowds = [], [], []
    for info in infos:
        key, is_crowd = info.get("id"), info.get("iscrowd")
        if not is_id(key) or isinstance(key, str) or not 1 <= key <= LARGEST_ID or key in ids:
            raise ValueError(
                f"image {show(image_id)}: ids of segments must differ and be 1 .. {LARGEST_ID}. "
                f"Received: {show(key)}"
            )
        if not isinstance(is_crowd, int | str | None) or is_crowd not in FLAGS:
            raise ValueError(
                f"image {show(image_id)}: iscrowd must be 0 or 1. Received: {show(is_crowd)} of segment {key}"
            )
        ids.append(int(key))
        labels.append(label_of[categories.check(info.get("category_id"))])
        crowds.append(FLAGS[is_crowd])
    arrays = np.array(ids, np.int64), np.array(labels, np.int32), np.array(crowds, bool)
    return image_id, (find_path(folder, name), *arrays)


def _find_kind_problem(category):
    """Returns what is wrong with an entry of "categories", or None."""
    if category.get("isthing") not in (0, 1):
        return f"isthing must be 0 or 1. Received: {show(category.get('isthing'))}"
    return find_category_problem(category)


def _read_ids(path, size):
    """Returns the ids of a PNG file, int64 (height, width); all 0 if there is no file to read."""
    if path is None:
        return np.zeros(size, np.int64)
    with named_faults(path):
        picture = open_picture(path, ("PNG",))
        if picture.mode not in ("RGB", "RGBA"):
            raise ValueError(f"it must be an RGB picture of ids. Received: mode {picture.mode}")
        pixels = np.asarray(picture.convert("RGB") if picture.mode == "RGBA" else picture, np.int64)
        if pixels.shape[:2] != size:
            raise ValueError(f"the (height, width) must be {size}. Received: {pixels.shape[:2]}")
    return pixels @ np.array([1, 256, 65536])


def encode_ids(ids) -> Image.Image:
    """Returns segment ids, int (height, width), as a picture that COCO's tools read."""
    ids = np.asarray(ids)
    return Image.fromarray(np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=-1).astype(np.uint8))
