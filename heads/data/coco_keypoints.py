"""People with keypoints in COCO's JSON format, and the constants of COCO's own seventeen.

`pose_batches.py` describes what a data set of people must provide.
"""

import os
import pathlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import tensorflow as tf
from tqdm import tqdm

from heads.arguments import read_pairs
from heads.coco.annotations import clip_box, judge_boxes, read_annotations
from heads.coco.entries import list_briefly, read_entries, read_json
from heads.coco.keypoints import find_keypoint_category
from heads.data.coco import examine_picture, find_path, find_picture_problem, load_picture

_SIDES = ("eye", "ear", "shoulder", "elbow", "wrist", "hip", "knee", "ankle")
COCO_KEYPOINT_NAMES = ("nose", *(f"{side}_{part}" for part in _SIDES for side in ("left", "right")))
# COCO's: how far apart several annotators place each keypoint, in units of an object's size.
COCO_SIGMAS = (0.026, *np.repeat((0.025, 0.035, 0.079, 0.072, 0.062, 0.107, 0.087, 0.089), 2).tolist())
COCO_UPPER_BODY = tuple(range(11))  # down to the wrists


class CocoKeypoints:
    """The people of a COCO keypoints file, one by one, with the pictures of a folder.

    Leaves out regions (crowds and annotations with "ignore": 1), boxes without area, as in `CocoDataset`, and
    people without a labelled keypoint; `check` counts them. Boxes are clipped to the picture. Faulty
    annotations are left out too; `check` lists them.

    Args:
        annotations: Path of the JSON file, in which one category has "keypoints".
        images: The folder that the JSON's file names start from.
        flip_pairs: Pairs of keypoints that a mirror swaps. Default: those whose names differ only in "left"
            and "right".
        sigmas: The tolerance of the scores for each keypoint, in units of a person's size. Default: COCO's if
            the names are COCO's, else None; scores need them.
        upper_body: Keypoints of the upper body, for the half-body augmentation, which is left out if there
            are none. Default: COCO's if the names are COCO's, else none.

    Attributes:
        path: Path of the JSON file.
        category_id: The id of the category with keypoints.
        keypoint_names: Their names.
        num_keypoints: Their number.
        skeleton: Pairs of keypoints that lines connect, from 0.
        flip_pairs, sigmas, upper_body: As above.
        image_ids: COCO's image id of each person; several people may share one.
        image_paths: Path of the picture of each person.
        image_sizes: int32 (people, 2), (height, width) of the picture of each person.
        boxes: float32 (people, 4), xyxy pixels.
        keypoints: float32 (people, keypoints, 3), x, y and visibility: 0 without a label, 1 covered, 2
            visible. The centre of the first pixel is (0, 0).
        num_unlabelled: The number of people without a labelled keypoint.
        num_regions: The number of crowds and regions to ignore.
        num_dropped: The number of boxes without area.

    Raises:
        ValueError: If the file is not COCO JSON, holds no image, or not exactly one category with keypoints,
            if an entry of these is faulty, or an argument does not fit the keypoints.
    """

    def __init__(
        self,
        annotations: str | os.PathLike,
        images: str | os.PathLike,
        flip_pairs: Sequence | None = None,
        sigmas: Sequence[float] | None = None,
        upper_body: Sequence[int] | None = None,
    ):
        self.path = pathlib.Path(annotations)
        content = self.to_coco()
        categories = read_entries(content, "categories", lambda category: None, self.path)
        pictures = read_entries(content, "images", find_picture_problem, self.path)
        self.category_id, self.keypoint_names, self.skeleton = find_keypoint_category(categories, self.path)
        self.num_keypoints = len(self.keypoint_names)
        is_coco = self.keypoint_names == COCO_KEYPOINT_NAMES
        flip_pairs = find_flip_pairs(self.keypoint_names) if flip_pairs is None else flip_pairs
        self.flip_pairs = read_pairs("flip_pairs", flip_pairs, self.num_keypoints, only_once=True)
        sigmas = COCO_SIGMAS if sigmas is None and is_coco else sigmas
        self.sigmas = None if sigmas is None else _read_sigmas(sigmas, self.num_keypoints)
        upper_body = COCO_UPPER_BODY if upper_body is None and is_coco else upper_body or ()
        self.upper_body = _read_upper_body(upper_body, self.num_keypoints)
        self._folder, self._pictures = pathlib.Path(images), pictures
        self._read_annotations(content.get("annotations"), categories)

    def __len__(self):
        return len(self.image_ids)

    def to_coco(self) -> dict:
        """The content of the JSON file, as it is (for the evaluator)."""
        content = read_json(self.path, "annotations")
        if not isinstance(content, dict):
            raise ValueError(f"annotations must hold a JSON object. Received: {self.path}")
        return content

    def check(self, num_threads: int | None = None, progress: bool = True) -> np.ndarray:
        """Decodes every picture, counts the labels of each keypoint, and prints what is unusual.

        Args:
            num_threads: Threads that decode. Default: one per CPU core.
            progress: Whether to show a progress bar, and the numbers of people.

        Returns:
            How many labels each keypoint has, int64 (keypoints,).

        Raises:
            ValueError: Lists the files that are missing, damaged or not of the size in the JSON, and the
                annotations with an unknown image or category, a malformed box, one outside of its picture, or
                malformed keypoints; each with its id. Also says if nothing is left to learn.
        """
        sizes = [_read_size(picture) for picture in self._pictures.values()]
        paths = [find_path(self._folder, picture["file_name"]) for picture in self._pictures.values()]
        with ThreadPoolExecutor(num_threads or os.cpu_count()) as pool:
            reports = pool.map(examine_picture, self._pictures, paths, sizes)
            reports = list(tqdm(reports, f"check {self.path.name}", len(paths), disable=not progress))
        counts = (self.keypoints[..., 2] > 0).sum(axis=0).astype(np.int64)
        if progress:
            tqdm.write(
                f"{self.path.name}: {len(self)} people with keypoints on {len(set(self.image_ids))} of "
                f"{len(paths)} images; left out: {self.num_unlabelled} people without a labelled keypoint, "
                f"{self.num_regions} crowds and ignored regions, {self.num_dropped} boxes of no area"
            )
        problems = list_briefly([problem for problem, _ in reports if problem])
        problems += [*self._judgements, *list_briefly(self._problems)]
        if problems:
            raise ValueError(f"{self.path} has faulty files or annotations:\n" + "\n".join(problems))
        num_turned = sum(is_turned for _, is_turned in reports)
        if num_turned:
            text = f"{num_turned} pictures are turned upright, by their EXIF orientation"
            tqdm.write(f"{self.path.name}: {text}")
        missing = [name for name, count in zip(self.keypoint_names, counts, strict=True) if count == 0]
        if missing:
            tqdm.write(f"{self.path.name}: never labelled: {', '.join(missing)}")
        return counts

    def load(self, indices: tf.data.Dataset | None = None) -> tf.data.Dataset:
        """The people, each with its decoded picture.

        Args:
            indices: Dataset of people's numbers, int64 scalars. Default: all, once, in order.

        Returns:
            Dataset of dicts of "index": int64 (); "image": uint8 (height, width, 3), the whole picture;
            "box": float32 (4,); "keypoints": float32 (keypoints, 3). A picture that cannot be read, or is not
            of the size in the JSON, ends the iteration with an error that names its path.
        """

        def find(index):
            path, size = os.fsencode(self.image_paths[index]), self.image_sizes[index]
            return path, size, self.boxes[index], self.keypoints[index]

        def read(index):
            kinds = (tf.string, tf.int32, tf.float32, tf.float32)
            path, size, box, keypoints = tf.numpy_function(find, [index], kinds)
            return {
                "index": index,
                "image": load_picture(tf.ensure_shape(path, ()), tf.ensure_shape(size, (2,))),
                "box": tf.ensure_shape(box, (4,)),
                "keypoints": tf.ensure_shape(keypoints, (self.num_keypoints, 3)),
            }

        indices = tf.data.Dataset.range(len(self)) if indices is None else indices
        return indices.map(read, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)

    def _read_annotations(self, entries, categories):
        """Sets the people, and what `check` reports about the others."""
        sizes = {key: _read_size(picture) for key, picture in self._pictures.items()}
        try:
            annotations, self._problems = read_annotations(
                entries, sizes, categories, num_keypoints=self.num_keypoints
            )
        except ValueError as error:
            raise ValueError(f"{self.path}: {error}") from error
        self._judgements = judge_boxes(annotations, sizes)
        everybody = [each for each in annotations if each.category_id == self.category_id]
        kept = [each for each in everybody if not each.has_no_area]
        objects = [each for each in kept if not each.is_crowd and not each.is_ignored]
        people = [each for each in objects if each.keypoints[:, 2].any()]
        self.num_dropped = len(everybody) - len(kept)
        self.num_regions = len(kept) - len(objects)
        self.num_unlabelled = len(objects) - len(people)
        if everybody and not people and not self._judgements:
            self._judgements = [
                f"{len(everybody)} people leave nothing to learn: {self.num_unlabelled} have no "
                f"labelled keypoint, {self.num_regions} are regions, {self.num_dropped} boxes have no area"
            ]
        self.image_ids = [each.image_id for each in people]
        self.image_paths = [
            find_path(self._folder, self._pictures[key]["file_name"]) for key in self.image_ids
        ]
        self.image_sizes = np.array([sizes[key] for key in self.image_ids], np.int32).reshape(-1, 2)
        boxes = [clip_box(each.box_xywh, sizes[each.image_id]) for each in people]
        self.boxes = np.array(boxes, np.float32).reshape(-1, 4)
        keypoints = np.array([each.keypoints for each in people], np.float32)
        self.keypoints = keypoints.reshape(-1, self.num_keypoints, 3)


def find_flip_pairs(names: Sequence[str]) -> list[tuple[int, int]]:
    """Returns the pairs of keypoints whose names differ only in "left" and "right"."""
    places = {name: place for place, name in enumerate(names)}
    pairs = [
        (place, places[other])
        for name, place in places.items()
        for left, right in (("left", "right"), ("Left", "Right"), ("LEFT", "RIGHT"))
        if left in name and (other := name.replace(left, right)) in places
    ]
    return sorted(pairs)


def _read_size(picture):
    return int(picture["height"]), int(picture["width"])


def _read_sigmas(sigmas, num_keypoints):
    array = np.asarray(sigmas, np.float64)
    if array.shape != (num_keypoints,) or not (np.isfinite(array) & (array > 0)).all():
        raise ValueError(
            f"sigmas must be a number above 0 for each of the {num_keypoints} keypoints. Received: {sigmas!r}"
        )
    return tuple(array.tolist())


def _read_upper_body(numbers, num_keypoints):
    places = tuple(numbers)
    if not all(isinstance(place, int | np.integer) and 0 <= place < num_keypoints for place in places):
        raise ValueError(
            f"upper_body must be numbers of keypoints, 0 .. {num_keypoints - 1}. Received: {numbers!r}"
        )
    return tuple(map(int, places))
