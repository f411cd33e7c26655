"""Average precision and recall of detections as COCO defines them: dicts in, numbers and tables out."""

import contextlib
import importlib.util
import io
import math
import os
from collections import Counter
from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np
from pycocotools import mask as run_lengths

from heads.coco.annotations import Annotation, judge_boxes, read_annotations, read_box
from heads.coco.entries import (
    is_id,
    is_number,
    is_side,
    list_briefly,
    read_entries,
    read_json,
    show,
    to_plain_list,
)
from heads.coco.segmentations import read_segmentation
from heads.metrics.tables import align_rows, to_percent

KINDS = ("bbox", "segm")
SIZES = ("small", "medium", "large")
MAX_DETECTIONS = (1, 10, 100)
MASKS_ARE_NEEDED = (
    'kinds has "segm", so each entry of the {} must have a "segmentation"; kinds=("bbox",) scores boxes'
)


def evaluate_coco(
    truth,
    results,
    kinds: Sequence[str] = ("bbox",),
    max_detections: Sequence[int] = MAX_DETECTIONS,
    use_fast: bool | None = None,
    image_ids: Sequence | None = None,
) -> dict:
    """Average precision and recall as COCO defines them, computed by pycocotools or faster-coco-eval.

    In a picture without results all objects count as missed; results in a picture without truth count as
    wrong. Ids may be anything unique, including 0. The truth may lack "info", "iscrowd" and "area", and for
    "bbox" also "segmentation"; if all areas are 0, they count as missing. "ignore" changes nothing, as in
    pycocotools. The truth is read as by `heads.data.CocoDataset`.

    Args:
        truth: COCO JSON of the truth, a path or a dict.
        results: Result list, or the path of its JSON.
        kinds: "bbox" and / or "segm".
        max_detections: How many of the best results per picture and class count: recall is computed for each
            number, precision for the largest. Increase it if pictures have more than 100 objects of a class.
        use_fast: Whether to use faster-coco-eval; the numbers are equal. None: if it is installed.
        image_ids: Pictures to score. None: all of the truth.

    Returns:
        Dict of floats 0 .. 1, for each kind "{kind}_AP", "_AP50", "_AP75", "_AP_small", "_AP_medium",
        "_AP_large", "_AR1", "_AR10", "_AR100", "_AR_small", "_AR_medium", "_AR_large"; and the dicts
        "{kind}_AP_per_class" and "{kind}_AP50_per_class", name -> float. NaN where the truth has no such
        object; means leave NaN out.

    Raises:
        ValueError: For a truth that `CocoDataset.check` would refuse, listing its annotations by their ids;
            for results with ids that the truth does not have, without a score, box or mask, or with one that
            is malformed.
        ImportError: Where `use_fast` is True and faster-coco-eval is not installed.
    """
    counted = _count_kinds(truth, results, kinds, max_detections, use_fast, image_ids)
    scores = {}
    for kind, (precision, recall, class_names) in counted.items():
        summary = {
            **_summarise(precision, recall, check_limits(max_detections)),
            **_summarise_classes(precision, class_names),
        }
        scores.update({f"{kind}_{name}": score for name, score in summary.items()})
    return scores


def measure_precision(
    truth,
    results,
    kind: str = "bbox",
    max_detections: Sequence[int] = MAX_DETECTIONS,
    use_fast: bool | None = None,
    image_ids: Sequence | None = None,
) -> dict:
    """Precision over recall, which `evaluate_coco` averages; the arguments are the same.

    Returns:
        Dict of the name of each class -> float64 (10, 101), the precision at IoUs of 0.5, 0.55 .. 0.95 and
        recalls of 0, 0.01 .. 1; NaN for classes without objects.
    """
    counted = _count_kinds(truth, results, (kind,), max_detections, use_fast, image_ids)
    precision, _, class_names = counted[kind]
    precision = np.where(precision > -1, precision, np.nan)
    return {name: precision[:, :, label, 0, -1] for label, name in enumerate(class_names)}


def _count_kinds(truth, results, kinds, max_detections, use_fast, image_ids):
    """Returns for each kind precision, recall, see `count_matches`, and the class names."""
    check_kinds(kinds)
    limits = check_limits(max_detections)
    results = read_json(results, "results")
    truth = read_objects(truth, kinds)
    if not isinstance(results, list | tuple) or not all(isinstance(entry, dict) for entry in results):
        raise ValueError(
            f"results must be a list of dicts, or the path of its JSON. Received: {show(results)}"
        )
    for key, known in (("image_id", truth.image_sizes), ("category_id", truth.class_names)):
        check_known(f"{key} of the results", [entry.get(key) for entry in results], known)
    scored = set(truth.image_sizes)
    if image_ids is not None:
        scored = set(to_plain_list(image_ids))
        check_known("image_ids", scored, truth.image_sizes)
    counted = {}
    for kind in kinds:
        objects, found = _to_datasets(truth, results, kind, scored)
        counted[kind] = (
            *count_matches(objects, found, kind, limits, use_fast),
            list(truth.class_names.values()),
        )
    return counted


def format_coco_scores(scores: dict) -> str:
    """The scores as plain text tables in percent; "-" where the truth has no such object.

    Args:
        scores: From `evaluate_coco`.

    Returns:
        Lines: one per score with a column per kind, an empty one, then one per class.
    """
    kinds = [kind for kind in KINDS if f"{kind}_AP" in scores]
    plain = [name.split("_", 1)[1] for name, score in scores.items() if isinstance(score, float)]
    rows = [("", *kinds)]
    rows += [
        (name, *(to_percent(scores[f"{kind}_{name}"]) for kind in kinds)) for name in dict.fromkeys(plain)
    ]
    columns = [f"{kind}_{name}" for kind in kinds for name in ("AP", "AP50")]
    classes = scores[f"{kinds[0]}_AP_per_class"] if kinds else ()
    per_class = [("class", *(column.replace("_", " ") for column in columns))]
    per_class += [
        (name, *(to_percent(scores[f"{column}_per_class"][name]) for column in columns)) for name in classes
    ]
    return "\n".join([*align_rows(rows), "", *align_rows(per_class)])


def read_truth(truth) -> dict:
    """COCO JSON as a dict.

    Args:
        truth: The dict itself or the path of its file.

    Raises:
        ValueError: If "images", "annotations" or "categories" is missing.
    """
    truth = read_json(truth, "truth")
    needed = ("images", "annotations", "categories")
    if not isinstance(truth, dict) or any(key not in truth for key in needed):
        found = list(truth) if isinstance(truth, dict) else type(truth).__name__
        raise ValueError(f"truth must be COCO JSON, a path or a dict with {list(needed)}. Received: {found}")
    return truth


class Truth(NamedTuple):
    """The truth, checked.

    Attributes:
        image_sizes: (height, width) of each image by its id, or None; in the order of the ids.
        class_names: Name of each category by its id, in the order of the ids; no two are equal.
        annotations: The objects and crowds.
    """

    image_sizes: dict
    class_names: dict
    annotations: list[Annotation]


def read_objects(truth, kinds: Sequence[str]) -> Truth:
    """The objects of the truth, all of them checked.

    Args:
        truth: COCO JSON, a path or a dict.
        kinds: "bbox" and / or "segm", which the objects must have.

    Raises:
        ValueError: Lists what is wrong with it.
    """
    source = f"truth {truth}" if isinstance(truth, str | os.PathLike) else "truth"
    truth = read_truth(truth)
    images = read_entries(truth, "images", find_size_problem, source)
    categories = read_entries(truth, "categories", lambda category: None, source)
    # In the order of their ids, as in pycocotools.
    image_sizes = {key: read_picture_size(images[key]) for key in sorted(images)}
    if "segm" in kinds:
        unknown = [key for key, size in image_sizes.items() if size is None]
        if unknown:
            raise ValueError(
                f'images need "height" and "width" for "segm". Received none for ids {unknown[:5]}'
            )
    annotations, problems = read_annotations(
        truth["annotations"], image_sizes, categories, "bbox" in kinds, "segm" in kinds
    )
    problems = judge_boxes(annotations, image_sizes) + list_briefly(problems)
    hint = ""
    if "segm" in kinds:
        unread = [show(annotation.key) for annotation in annotations if annotation.segmentation is None]
        problems += list_briefly([f"annotation {key}: no usable segmentation" for key in unread])
        hint = f" ({MASKS_ARE_NEEDED.format('truth')})"
    if problems:
        raise ValueError(f"{source} has faulty annotations{hint}:\n" + "\n".join(problems))
    return Truth(image_sizes, _class_names(categories), annotations)


def score_names(max_detections: Sequence[int] = MAX_DETECTIONS) -> list[str]:
    """Names of the scores of `evaluate_coco`, without the kind and without those per class."""
    precisions, recalls = ([f"{score}_{size}" for size in SIZES] for score in ("AP", "AR"))
    return ["AP", "AP50", "AP75", *precisions, *(f"AR{limit}" for limit in max_detections), *recalls]


def check_kinds(kinds):
    """Raises a ValueError unless there are kinds, each of them "bbox" or "segm"."""
    if not kinds or any(kind not in KINDS for kind in kinds):
        raise ValueError(f"kinds must be a sequence of {' and / or '.join(KINDS)}. Received: {kinds!r}")


def check_limits(max_detections) -> list[int]:
    """The limits in rising order; a ValueError unless there are some, all of them positive whole numbers."""
    is_list = isinstance(max_detections, list | tuple | range | np.ndarray) and len(max_detections) > 0
    if not is_list or not all(is_side(limit) for limit in max_detections):
        raise ValueError(f"max_detections must be whole numbers, at least 1. Received: {max_detections!r}")
    return sorted(int(limit) for limit in max_detections)


def check_known(name: str, ids: Collection, known: Collection):
    """Raises a ValueError that names the argument if ids are not among the known ones of the truth."""
    unknown = [key for key in ids if not is_id(key) or key not in known]
    if unknown:
        unknown = list(dict.fromkeys(map(show, unknown)))
        raise ValueError(
            f"{name} must be those of the truth. Received {len(unknown)} that it does not have: "
            f"[{', '.join(unknown[:5])}]"
        )


def count_matches(objects, found, kind, limits, use_fast, sigmas=None):
    """Returns precision (thresholds, recalls, classes, areas, limits) and recall, without the second axis.

    -1 where there is nothing to find. Thresholds are 0.5, 0.55 .. 0.95; areas are all, small, medium, large;
    for keypoints, which need `sigmas`, all, medium, large.
    """
    installed = importlib.util.find_spec("faster_coco_eval") is not None
    if use_fast and not installed:
        raise ImportError('use_fast needs faster-coco-eval: pip install "van-backbones[fast-eval]"')
    if use_fast or (use_fast is None and installed):
        from faster_coco_eval import COCO
        from faster_coco_eval import COCOeval_faster as Evaluation
    else:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval as Evaluation
    indices = []
    # Both libraries print reports.
    with contextlib.redirect_stdout(io.StringIO()):
        for dataset in (objects, found):
            indices.append(COCO())
            indices[-1].dataset = dataset
            indices[-1].createIndex()
        evaluation = Evaluation(*indices, kind)
        evaluation.params.maxDets = limits
        if sigmas is not None:
            evaluation.params.kpt_oks_sigmas = np.asarray(sigmas, np.float64)
        evaluation.evaluate()
        evaluation.accumulate()
    return np.asarray(evaluation.eval["precision"]), np.asarray(evaluation.eval["recall"])


def _summarise(precision, recall, limits):
    best = precision[..., -1]
    scores = [
        average_known(best[:, :, :, 0]),
        average_known(best[0, :, :, 0]),
        average_known(best[5, :, :, 0]),
    ]
    scores += [average_known(best[:, :, :, area]) for area in (1, 2, 3)]
    scores += [average_known(recall[:, :, 0, index]) for index in range(len(limits))]
    scores += [average_known(recall[:, :, area, -1]) for area in (1, 2, 3)]
    return dict(zip(score_names(limits), scores, strict=True))


def _summarise_classes(precision, names):
    of_class = {name: precision[:, :, index, 0, -1] for index, name in enumerate(names)}
    return {
        "AP_per_class": {name: average_known(values) for name, values in of_class.items()},
        "AP50_per_class": {name: average_known(values[0]) for name, values in of_class.items()},
    }


def average_known(values) -> float:
    """The mean of the values that are not -1; NaN if there are none."""
    values = values[values > -1]
    return float(values.mean()) if values.size else float("nan")


def find_size_problem(image) -> str | None:
    """What is wrong with the size of an entry of "images", or None; it may be missing."""
    sides = image.get("height"), image.get("width")
    if all(side is None or is_side(side) for side in sides):
        return None
    return f"no usable height and width. Received: {', '.join(map(show, sides))}"


def read_picture_size(image) -> tuple[int, int] | None:
    """(height, width) of an entry of "images", or None."""
    sides = image.get("height"), image.get("width")
    return None if None in sides else tuple(map(int, sides))


def _to_datasets(truth, results, kind, scored):
    """Returns truth and results as two COCO data sets for a kind, with all ids counted from 1.

    pycocotools treats a match with the object of id 0 as none, and keeps only one object of each id.
    """
    image_numbers = {
        key: number for number, key in enumerate(filter(scored.__contains__, truth.image_sizes), 1)
    }
    category_numbers = {key: number for number, key in enumerate(truth.class_names, 1)}
    objects, found = [], []
    for annotation in truth.annotations:
        if annotation.image_id in image_numbers:
            size = truth.image_sizes[annotation.image_id]
            entry = _to_shape(kind, annotation.box_xywh, annotation.segmentation, size)
            if annotation.area is not None:
                entry["area"] = annotation.area
            numbers = image_numbers[annotation.image_id], category_numbers[annotation.category_id]
            objects.append((*numbers, {**entry, "iscrowd": int(annotation.is_crowd)}))
    for position, result in enumerate(results):
        if result["image_id"] in image_numbers:
            try:
                entry = _read_result(result, kind, truth.image_sizes[result["image_id"]])
            except ValueError as problem:
                where = f"result at position {position}, of image {show(result['image_id'])}"
                raise ValueError(f"{where}: {problem}") from None
            numbers = image_numbers[result["image_id"]], category_numbers[result["category_id"]]
            found.append((*numbers, {**entry, "iscrowd": 0}))
    sizes = {image_numbers[key]: truth.image_sizes[key] or (0, 0) for key in image_numbers}
    return [
        {
            "images": [{"id": number, "height": size[0], "width": size[1]} for number, size in sizes.items()],
            "categories": [{"id": number} for number in category_numbers.values()],
            "annotations": [
                {"id": number, "image_id": image, "category_id": category, **entry}
                for number, (image, category, entry) in enumerate(entries, 1)
            ],
        }
        for entries in (objects, found)
    ]


def _read_result(result, kind, size):
    """Returns the score and the shape of a result."""
    score = result.get("score")
    if not is_number(score) or not math.isfinite(score):
        raise ValueError(f'"score" must be a finite number. Received: {show(score)}')
    box, segmentation = None, None
    if kind == "bbox":
        box = read_box(result.get("bbox"))
    elif not result.get("segmentation"):
        raise ValueError(f"{MASKS_ARE_NEEDED.format('results')}. Received: {sorted(map(str, result))}")
    else:
        segmentation = read_segmentation(result["segmentation"], size)
    return {**_to_shape(kind, box, segmentation, size), "score": float(score)}


def _to_shape(kind, box_xywh, segmentation, size):
    """Returns the box or the mask as pycocotools takes it, and its area."""
    if kind == "bbox":
        return {"bbox": list(box_xywh), "area": box_xywh[2] * box_xywh[3]}
    if math.prod(size) >= 2**32:
        raise ValueError(
            f"pycocotools scores masks of fewer than 2^32 pixels. Received: (height, width) {size}"
        )
    encoded = run_lengths.frPyObjects(segmentation, *size)
    if isinstance(segmentation, list):
        encoded = run_lengths.merge(encoded)
    return {"segmentation": encoded, "area": float(run_lengths.area(encoded))}


def _class_names(categories):
    """Returns the names in order of the ids; if several classes share a name, their ids are appended."""
    names = {key: str(categories[key].get("name", key)) for key in sorted(categories)}
    repeated = Counter(names.values())
    return {key: f"{name} ({key})" if repeated[name] > 1 else name for key, name in names.items()}
