"""Data sets in COCO's JSON format, for detection and instance segmentation.

Boxes are xyxy in continuous pixels, `*_size` = (height, width). What a data set gives to `detection.py` is
described there.
"""

import json
import math
import os
import pathlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import tensorflow as tf
from PIL import Image
from tqdm import tqdm

from heads.data.semantic import IMAGE_FORMATS, MAX_LISTED

CROWD_LABEL = -2
SMALLEST_BOX_SIDE = 1.0
EXIF_ORIENTATION = 274


class CocoDataset:
    """The objects of a COCO instances file, with the pictures of a folder.

    Reads polygons, compressed and uncompressed run lengths, crowds, category ids with gaps, pictures without
    objects, and files without segmentations. As in mmdetection, boxes of no area (area 0 or less, or a side
    under 1 pixel) are dropped, all others are clipped to the picture. Faulty annotations are left out;
    `check` lists them.

    Args:
        annotations: Path of the JSON file.
        images: The folder that the JSON's file names start from.
        with_masks: Whether to read the segmentations; they stay polygons or run lengths in memory.

    Attributes:
        path: Path of the JSON file.
        class_names: Names of the classes, in the order of the labels.
        num_classes: Their number.
        category_ids: COCO's category id of each label, in rising order.
        image_ids: COCO's image ids, in the order of the file.
        image_paths: Paths of the pictures, in the same order.
        image_sizes: int32 (images, 2), (height, width) as the JSON tells them.
        with_masks: Whether there are masks.
        boxes: For each image float32 (n, 4), xyxy pixels.
        labels: For each image int32 (n,); -2 marks a crowd region.
        num_dropped: The number of boxes of no area.

    Raises:
        ValueError: If the file is no COCO JSON, holds no image or category, or an entry of either is faulty;
            if masks are wanted and no annotation has a segmentation.
    """

    def __init__(self, annotations: str | os.PathLike, images: str | os.PathLike, with_masks: bool = False):
        self.path = pathlib.Path(annotations)
        self.with_masks = with_masks
        content = self.to_coco()
        categories = _read_entries(self.path, content, "categories", {"name": str})
        fields = {"file_name": str, "height": int, "width": int}
        pictures = _read_entries(self.path, content, "images", fields)
        self.category_ids = tuple(sorted(categories))
        self.class_names = tuple(categories[key]["name"] for key in self.category_ids)
        self.num_classes = len(self.class_names)
        self.image_ids = list(pictures)
        self.image_paths = [pathlib.Path(images) / picture["file_name"] for picture in pictures.values()]
        sizes = [(int(picture["height"]), int(picture["width"])) for picture in pictures.values()]
        self.image_sizes = np.array(sizes, np.int32)
        self.num_dropped = 0
        self._problems = []
        self._read_annotations(content.get("annotations", []))

    def __len__(self):
        return len(self.image_ids)

    def to_coco(self) -> dict:
        """Gives the content of the JSON file, as it is (for the evaluator)."""
        try:
            content = json.loads(self.path.read_bytes())
        except ValueError as error:
            raise ValueError(f"annotations must be a JSON file. Received: {self.path} ({error})") from error
        if not isinstance(content, dict):
            raise ValueError(f"annotations must hold a JSON object. Received: {self.path}")
        return content

    def check(self, num_threads: int | None = None, progress: bool = True) -> np.ndarray:
        """Decodes every picture and counts the objects of each class.

        Run it once before training: what is wrong is found now and not after hours, all of it in one error.

        Args:
            num_threads: Threads that decode. Default: one per CPU core.
            progress: Whether to show a progress bar, and how many boxes were dropped.

        Returns:
            Objects of each class without the crowds, (num_classes,), int64.

        Raises:
            ValueError: Lists the files that are missing, damaged or not of the size that the JSON tells, and
                the annotations with an unknown image or category, a malformed box, a box outside of its
                picture, or a mask that is malformed or of another size; each with its id.
        """
        with ThreadPoolExecutor(num_threads or os.cpu_count()) as pool:
            reports = pool.map(_examine_picture, self.image_ids, self.image_paths, self.image_sizes.tolist())
            reports = list(tqdm(reports, f"check {self.path.name}", len(self), disable=not progress))
        labels = np.concatenate(self.labels)
        if progress:
            num_empty = sum(len(found) == 0 for found in self.labels)
            tqdm.write(
                f"{self.path.name}: {len(self)} images ({num_empty} without objects), "
                f"{np.sum(labels >= 0)} objects, {np.sum(labels == CROWD_LABEL)} crowd regions; "
                f"{self.num_dropped} boxes of no area were dropped"
            )
        problems = _list_briefly([report for report in reports if report]) + _list_briefly(self._problems)
        if problems:
            raise ValueError(f"{self.path} has faulty files or annotations:\n" + "\n".join(problems))
        return np.bincount(labels[labels >= 0], minlength=self.num_classes).astype(np.int64)

    def load(self, indices: tf.data.Dataset | None = None) -> tf.data.Dataset:
        """Gives the decoded pictures with their objects.

        Args:
            indices: Dataset of positions in `image_ids`, int64 scalars. Default: all, once, in order.

        Returns:
            Dataset of dicts of "index": int64 (); "image": uint8 (height, width, 3), the pixels as stored, an
            EXIF orientation is ignored; "boxes": float32 (n, 4); "labels": int32 (n,).
        """

        def find(index):
            return str(self.image_paths[index]), self.boxes[index], self.labels[index]

        def read(index):
            path, boxes, labels = tf.numpy_function(find, [index], (tf.string, tf.float32, tf.int32))
            # decode_jpeg reads PNG as well; only it can ask for the accurate DCT, like all other decoders.
            picture = tf.io.read_file(tf.ensure_shape(path, ()))
            return {
                "index": index,
                "image": tf.io.decode_jpeg(picture, channels=3, dct_method="INTEGER_ACCURATE"),
                "boxes": tf.ensure_shape(boxes, (None, 4)),
                "labels": tf.ensure_shape(labels, (None,)),
            }

        indices = tf.data.Dataset.range(len(self)) if indices is None else indices
        return indices.map(read, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)

    def load_segmentations(self, index: int) -> list:
        """Gives the segmentation of each object of an image, as `geometry.draw_masks` takes them."""
        return self._segmentations[index]

    def _read_annotations(self, annotations):
        """Sorts the objects to their images; sets `boxes`, `labels` and what `check` tells of."""
        if self.with_masks and annotations and not any(entry.get("segmentation") for entry in annotations):
            raise ValueError(f"with_masks needs a file with segmentations. Received: {self.path}")
        positions = {image_id: position for position, image_id in enumerate(self.image_ids)}
        label_of = {category_id: label for label, category_id in enumerate(self.category_ids)}
        found = [([], [], []) for _ in self.image_ids]
        seen = set()
        for annotation in annotations:
            try:
                _check_known(annotation, positions, label_of, seen)
                position = positions[annotation["image_id"]]
                image_size = tuple(self.image_sizes[position].tolist())
                box = _read_box(annotation, image_size)
                if box is None:
                    self.num_dropped += 1
                    continue
                segmentation = _read_segmentation(annotation, image_size) if self.with_masks else None
            except ValueError as problem:
                self._problems.append(f"annotation {annotation.get('id')!r}: {problem}")
                continue
            is_crowd = bool(annotation.get("iscrowd"))
            boxes, labels, segmentations = found[position]
            boxes.append(box)
            labels.append(CROWD_LABEL if is_crowd else label_of[annotation["category_id"]])
            segmentations.append(None if is_crowd else segmentation)
        self.boxes = [np.array(boxes, np.float32).reshape(-1, 4) for boxes, _, _ in found]
        self.labels = [np.array(labels, np.int32) for _, labels, _ in found]
        self._segmentations = [segmentations for _, _, segmentations in found]


def _read_entries(path, content, name, fields):
    """Gives the entries of a list by their ids, which must be unique; each must have the fields."""
    entries = content.get(name)
    if not isinstance(entries, list) or not entries:
        raise ValueError(f'annotations must hold a list of "{name}", not empty. Received: {path}')
    by_id, problems = {}, []
    for position, entry in enumerate(entries):
        key = entry.get("id")
        missing = [field for field, kind in fields.items() if not _is_filled(entry.get(field), kind)]
        if missing:
            problems.append(f"{name} {key!r}: no usable {' and '.join(missing)}")
        if key is None or key in by_id:
            reason = "no id" if key is None else f"id {key!r} again"
            problems.append(f"{name} at position {position}: {reason}")
        by_id[key] = entry
    if problems:
        raise ValueError(f"{path} has faulty entries:\n" + "\n".join(_list_briefly(problems)))
    return by_id


def _is_filled(value, kind):
    if kind is str:
        return isinstance(value, str) and value != ""
    return isinstance(value, int | float) and math.isfinite(value) and value >= 1


def _check_known(annotation, positions, label_of, seen):
    key = annotation.get("id")
    if key is None or key in seen:
        raise ValueError("the id must be there once")
    seen.add(key)
    if annotation.get("image_id") not in positions:
        raise ValueError(f"unknown image id {annotation.get('image_id')!r}")
    if annotation.get("category_id") not in label_of:
        raise ValueError(f"unknown category id {annotation.get('category_id')!r}")


def _read_box(annotation, image_size):
    """Gives the clipped xyxy box, or None for a box of no area."""
    box_xywh = annotation.get("bbox")
    try:
        x, y, width, height = (float(number) for number in box_xywh)
    except (TypeError, ValueError):
        raise ValueError(f"the box must be [x, y, width, height]. Received: {box_xywh!r}") from None
    if not all(map(math.isfinite, (x, y, width, height))) or min(width, height) < 0:
        raise ValueError(f"the box must be finite and not negative in size. Received: {box_xywh!r}")
    area = width * height if annotation.get("area") is None else annotation["area"]
    if not isinstance(area, int | float) or not math.isfinite(area):
        raise ValueError(f"the area must be a number. Received: {area!r}")
    if min(width, height) < SMALLEST_BOX_SIDE or area <= 0:
        return None
    x1, y1 = max(x, 0.0), max(y, 0.0)
    x2, y2 = min(x + width, image_size[1]), min(y + height, image_size[0])
    if x2 <= x1 or y2 <= y1:
        raise ValueError(f"the box {box_xywh!r} lies outside of the picture, (height, width) {image_size}")
    return x1, y1, x2, y2


def _read_segmentation(annotation, image_size):
    """Gives a list of polygons, float64 arrays, or run lengths, as `geometry.draw_masks` takes them."""
    segmentation = annotation.get("segmentation")
    if isinstance(segmentation, list) and segmentation:
        return [_read_polygon(polygon, image_size) for polygon in segmentation]
    if not isinstance(segmentation, dict):
        raise ValueError(f"no segmentation. Received: {segmentation!r}")
    if segmentation.get("size") != list(image_size):
        raise ValueError(
            f"the mask has (height, width) {segmentation.get('size')!r}, the picture {list(image_size)}"
        )
    counts = segmentation.get("counts")
    runs = _decode_counts(counts) if isinstance(counts, str) else counts
    if (
        not isinstance(runs, list)
        or not all(type(run) is int and run >= 0 for run in runs)
        or sum(runs) != math.prod(image_size)
    ):
        raise ValueError("the run lengths of the mask must be whole numbers that add up to its pixels")
    return {"size": list(image_size), "counts": np.array(runs, np.int32)}


def _read_polygon(polygon, image_size):
    try:
        points = np.array(polygon, np.float64)
    except (TypeError, ValueError):
        points = np.zeros(0)
    if points.ndim != 1 or points.size < 6 or points.size % 2:
        raise ValueError(f"a polygon must be [x, y, x, y, x, y, ...]. Received: {polygon!r:.100}")
    # Far points would cost pycocotools gigabytes: it walks along every edge.
    reach = max(image_size)
    if not np.all((points >= -reach) & (points <= 2 * reach)):
        raise ValueError(f"a polygon must be finite and near its picture. Received: {polygon!r:.100}")
    return points


def _decode_counts(counts):
    """Gives the run lengths of COCO's compressed text: 5 bits a character, each added to the last but one."""
    runs, value, shift = [], 0, 0
    for character in counts:
        code = ord(character) - 48
        if not 0 <= code < 64:
            raise ValueError(f"the run lengths of the mask hold {character!r}")
        value |= (code & 31) << shift
        shift += 5
        if not code & 32:
            value -= (code & 16) << (shift - 4)
            runs.append(value + runs[-2] if len(runs) > 2 else value)
            value = shift = 0
    if shift:
        raise ValueError("the run lengths of the mask break off")
    return runs


def _examine_picture(image_id, path, image_size):
    """Gives what is wrong with a picture file, or None."""
    try:
        with Image.open(path) as image:
            if image.format not in IMAGE_FORMATS:
                return f"image {image_id!r}: {path} must be JPEG or PNG. Received: {image.format}"
            image.load()
            stored, is_turned = [image.height, image.width], image.getexif().get(EXIF_ORIENTATION, 1) > 4
    except Exception as error:  # Pillow's decoders raise many kinds; each means that the file is no use
        return f"image {image_id!r}: {path} cannot be read ({error})"
    if stored != image_size:
        hint = "; its EXIF orientation turns it, save it upright" if is_turned else ""
        return f"image {image_id!r}: {path} has (height, width) {stored}, its JSON {image_size}{hint}"
    return None


def _list_briefly(problems):
    more = [f"and {len(problems) - MAX_LISTED} more"] if len(problems) > MAX_LISTED else []
    return problems[:MAX_LISTED] + more
