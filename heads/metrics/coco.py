"""Detections as COCO's result lists, and a callback that scores them during `fit`."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import keras
import numpy as np

from heads.file_writing import replace_text
from heads.metrics.average_precision import (
    MAX_DETECTIONS,
    check_kinds,
    check_known,
    check_limits,
    evaluate_coco,
    read_objects,
    read_truth,
    to_plain_list,
)
from heads.metrics.scorer import Scorer, with_progress
from heads.ops.masks import paste_masks
from heads.processes import gather_batches, is_first_process, on_this_process
from heads.results import list_objects, name_categories


class CocoScores(Scorer):
    """Scores a detector after an epoch, for `fit(callbacks=[...])`.

    Puts "val_bbox_AP", "val_bbox_AP50" ... into the logs of the epoch, so that callbacks later in the list
    can use them: `CSVLogger`, `ModelCheckpoint(monitor="val_bbox_AP", mode="max", save_best_only=True)`. An
    epoch that is not scored repeats the scores of the last one that was, so that it never counts as better.
    Scores for which the truth has no object ("val_bbox_AP_small" without small objects) are not logged.

    Only the pictures in `image_ids` are scored; the truth may hold more. The scores per class are in
    `last_scores`, see `evaluate_coco`.

    Args:
        dataset: Batches, see `predict_coco_results`.
        truth: COCO JSON, a path or a dict.
        image_ids: Id of each picture of `dataset`, in its order.
        category_ids: Category id of each label, 0 .. classes - 1.
        kinds: "bbox" and / or "segm".
        every: Score after the first epoch of a training, and after each `every`-th.
        results_path: File for the results of the latest scored epoch; its folder is made. None: not kept.
        max_detections: See `evaluate_coco`.

    Raises:
        ValueError: For other kinds, `every` below 1, ids that the truth does not have, a truth that
            `evaluate_coco` refuses, or one without an object on the pictures.
    """

    def __init__(
        self,
        dataset: Iterable,
        truth,
        image_ids: Sequence,
        category_ids: Sequence,
        kinds: Sequence[str] = ("bbox",),
        every: int = 1,
        results_path=None,
        max_detections: Sequence[int] = MAX_DETECTIONS,
    ):
        super().__init__(dataset, every)
        check_kinds(kinds)
        self.truth = read_truth(truth)
        self.image_ids, self.category_ids = to_plain_list(image_ids), to_plain_list(category_ids)
        self.kinds = tuple(kinds)
        self.max_detections = tuple(check_limits(max_detections))
        self.results_path = None if results_path is None else prepare_path(results_path)
        self._check_truth(read_objects(truth, self.kinds))

    def on_train_begin(self, logs=None):
        super().on_train_begin(logs)
        num_classes = getattr(self.model, "num_classes", None)
        if num_classes is not None and num_classes != len(self.category_ids):
            raise ValueError(
                f"category_ids must have an id for each of the model's {num_classes} classes. "
                f"Received: {len(self.category_ids)} ids"
            )

    def _check_truth(self, truth):
        """Raises a ValueError if ids are not in the truth, or there is nothing to score."""
        check_known("image_ids", self.image_ids, truth.image_sizes)
        check_known("category_ids", self.category_ids, truth.class_names)
        pictures = set(self.image_ids)
        if len(pictures) < len(self.image_ids):
            raise ValueError(
                f"image_ids must have each picture once. Received: {len(self.image_ids)} ids, "
                f"{len(pictures)} different ones"
            )
        if not any(each.image_id in pictures and not each.is_crowd for each in truth.annotations):
            raise ValueError(
                "truth must have annotations of objects, to be scored. Received none, or only crowds, on "
                f"{len(pictures)} pictures"
            )

    def score(self, model) -> dict:
        """Returns the scores of a model, and saves its results if there is a `results_path`."""
        results = predict_coco_results(model, self.dataset, self.image_ids, self.category_ids)
        if self.results_path is not None and is_first_process():
            save_results(results, self.results_path)
        return evaluate_coco(self.truth, results, self.kinds, self.max_detections, image_ids=self.image_ids)

    def describe(self, scores: dict) -> str:
        """Returns a few of the scores as text."""
        parts = [
            f"{kind} AP {scores[f'{kind}_AP']:.2%}, AP50 {scores[f'{kind}_AP50']:.2%}" for kind in self.kinds
        ]
        scored, held = len(set(self.image_ids)), len(self.truth["images"])
        return "; ".join(parts) + ("" if scored == held else f" (on {scored} of {held} images)")


def predict_coco_results(
    model, dataset: Iterable, image_ids: Sequence, category_ids: Sequence, progress: bool = False
) -> list[dict]:
    """Runs a detector over all pictures and returns COCO's result list.

    Args:
        model: A detector of ours, or a Keras model whose `predict_on_batch` gives decoded detections, see
            `to_coco_results`.
        dataset: Batches: inputs, or tuples that begin with them. Inputs are images
            `(batch, height, width, 3)` or a dict of "images" and, where the pictures were resized or padded,
            "image_sizes" and "original_sizes" `(batch, 2)`, (height, width).
        image_ids: Id of each picture, in the order of `dataset`.
        category_ids: Category id of each label, 0 .. classes - 1.
        progress: Whether to show a progress bar.

    Returns:
        List of result dicts, see `to_coco_results`.

    Raises:
        ValueError: Where `dataset` has more or fewer pictures than there are ids.
    """
    batches, num_images = [], 0
    with on_this_process(model) as model:
        for inputs in with_progress(dataset, progress):
            inputs = inputs[0] if isinstance(inputs, tuple | list) else inputs
            # As NumPy, because the batches are often TensorFlow's and the model may run on another backend.
            inputs = keras.tree.map_structure(np.asarray, inputs)
            sizes = _picture_sizes(inputs)
            num_images += len(sizes)
            if num_images > len(image_ids):
                raise ValueError(
                    f"image_ids must have one id for each picture of the dataset, which has more than "
                    f"{len(image_ids)}. Is it repeated, or shuffled and cut? Received: {len(image_ids)} ids"
                )
            # Only at the end is it known where a batch is among those of all processes.
            places = range(len(sizes))
            found = to_coco_results(_detect(model, inputs, sizes), places, category_ids, sizes)
            batches.append({"num_images": len(sizes), "results": found})
    results, num_images = [], 0
    for batch in gather_batches(batches):
        ids = to_plain_list(image_ids[num_images : num_images + batch["num_images"]])
        num_images += batch["num_images"]
        results += [{**each, "image_id": ids[each["image_id"]]} for each in batch["results"]]
    if num_images != len(image_ids):
        raise ValueError(
            f"image_ids must have one id for each of {num_images} pictures of the dataset. "
            f"Received: {len(image_ids)} ids"
        )
    return results


def _detect(model, inputs, picture_sizes):
    """Returns a batch of detections in pixels of the pictures; masks may have each picture's size."""
    if not hasattr(model, "predict_resized"):  # not one of our heads
        return model.predict_on_batch(inputs)
    if not isinstance(inputs, dict):
        inputs = {"images": inputs}
    images = inputs["images"]
    image_sizes = inputs.get("image_sizes", np.tile(images.shape[1:3], (len(images), 1)))
    found = model.predict_resized(images, image_sizes, np.asarray(picture_sizes))
    return {
        name: [each[name] for each in found] if name == "masks" else np.stack([each[name] for each in found])
        for name in found[0]
    }


def to_coco_results(
    detections: dict, image_ids: Sequence, category_ids: Sequence, image_sizes=None
) -> list[dict]:
    """COCO's result list of a batch of detections.

    Args:
        detections: Dict of "boxes" `(batch, n, 4)` xyxy in pixels of the picture file, "scores" and "labels"
            `(batch, n)`, label -1 where there is no object, and optionally "masks": `(batch, n, 28, 28)`,
            probabilities within the box, or for each picture bool `(n, height, width)`, of its size.
        image_ids: Id of each picture.
        category_ids: Category id of each label, 0 .. classes - 1.
        image_sizes: (height, width) of each picture file; needed for masks.

    Returns:
        List of dicts of plain JSON types: "image_id", "category_id", "bbox" (xywh), "score", and with masks
        "segmentation" (compressed run lengths).

    Raises:
        ValueError: For other numbers of ids or sizes, labels without category, or masks without sizes.
    """
    arrays = {
        name: value if isinstance(value, list) else keras.ops.convert_to_numpy(value)
        for name, value in detections.items()
    }
    labels = arrays["labels"]
    image_ids, category_ids = to_plain_list(image_ids), name_categories(category_ids, labels)
    if len(image_ids) != len(labels):
        raise ValueError(f"image_ids must have {len(labels)} ids. Received: {len(image_ids)}")
    masks = arrays.get("masks")
    if masks is not None and (image_sizes is None or len(image_sizes) != len(labels)):
        raise ValueError(
            f"image_sizes must have (height, width) of each of {len(labels)} pictures, to paste the masks. "
            f"Received: {image_sizes!r}"
        )
    results = []
    for image, image_id in enumerate(image_ids):
        kept = np.flatnonzero(labels[image] >= 0)
        found = {name: arrays[name][image][kept] for name in ("boxes", "scores", "labels")}
        if masks is not None:
            size = tuple(int(side) for side in image_sizes[image])
            found["masks"] = _paste_each(masks[image], arrays["boxes"][image], kept, size)
        results += list_objects(found, image_id, category_ids)
    return results


def _paste_each(masks, boxes, rows, size):
    """Yields the masks of some rows, bool of the picture's size.

    One by one: a hundred masks of a large photograph do not fit into memory.
    """
    for row in rows:
        mask = masks[row]
        yield mask if mask.dtype == bool else paste_masks(mask[None], boxes[row][None], size)[0]


def save_results(results: list[dict], path, kind: str | None = None):
    """Saves a result list as the JSON that COCO's tools and server take.

    The file appears when it is complete.

    Args:
        results: From `to_coco_results`.
        path: Path of the file.
        kind: None keeps boxes and masks. "bbox" and "segm" keep one of them: in a file with both, pycocotools
            uses the areas of the boxes also for small / medium / large masks.

    Raises:
        ValueError: For another kind, or results that are not plain JSON.
    """
    if kind is not None:
        check_kinds([kind])
        unwanted = "segmentation" if kind == "bbox" else "bbox"
        results = [{key: value for key, value in each.items() if key != unwanted} for each in results]
    replace_text(path, json.dumps(results, allow_nan=False))


def prepare_path(path):
    """Returns the path of a file to write, after making its folder."""
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"results_path must be a file. Received: the folder {path}")
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _picture_sizes(inputs):
    """Returns the (height, width) of each picture, in whose pixels the detections are."""
    if isinstance(inputs, dict):
        for name in ("original_sizes", "image_sizes"):
            if name in inputs:
                return inputs[name]
        inputs = inputs["images"]
    return [inputs.shape[1:3]] * len(inputs)
