"""Average precision and recall of keypoints as COCO defines them: dicts in, numbers and tables out."""

import math
import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from heads.coco.annotations import judge_boxes, read_annotations
from heads.coco.entries import is_number, list_briefly, read_entries, read_json, show
from heads.coco.keypoints import find_keypoint_category
from heads.metrics.average_precision import (
    average_known,
    check_known,
    count_matches,
    find_size_problem,
    read_picture_size,
    read_truth,
    to_plain_list,
)
from heads.metrics.tables import align_rows, to_percent

MAX_PEOPLE = 20  # per picture, as in COCO
SCORE_NAMES = ("AP", "AP50", "AP75", "AP_medium", "AP_large", "AR", "AR50", "AR75", "AR_medium", "AR_large")


def evaluate_keypoints(
    truth, results, sigmas: Sequence[float], use_fast: bool | None = None, image_ids=None
) -> dict:
    """Average precision and recall of keypoints as COCO defines them, by pycocotools or faster-coco-eval.

    A result counts as right if its object keypoint similarity, the mean of exp(-d^2 / (2 area (2 sigma)^2))
    over the labelled keypoints, reaches 0.5, 0.55 .. 0.95. People without a labelled keypoint and crowds are
    ignored, as are results that match them. If the truth has no areas, those of the boxes are used. At most
    20 people per picture count.

    Args:
        truth: COCO JSON of the truth, a path or a dict, in which one category has "keypoints".
        results: Result list, or the path of its JSON, see `to_keypoint_results`.
        sigmas: The tolerance for each keypoint, in units of a person's size; `heads.data.CocoKeypoints` has
            COCO's.
        use_fast: Whether to use faster-coco-eval; the numbers are equal. None: if it is installed.
        image_ids: Pictures to score. None: all of the truth.

    Returns:
        Dict of floats 0 .. 1: "keypoints_AP", "_AP50", "_AP75", "_AP_medium", "_AP_large", "_AR", "_AR50",
        "_AR75", "_AR_medium", "_AR_large"; NaN where the truth has no such person.

    Raises:
        ValueError: For a truth that `CocoKeypoints.check` would refuse, listing its annotations by their ids;
            for results with ids that the truth does not have, or whose keypoints or score are malformed.
        ImportError: Where `use_fast` is True and faster-coco-eval is not installed.
    """
    sigmas = check_sigmas(sigmas)
    results = read_json(results, "results")
    people = read_people(truth, len(sigmas))
    if not isinstance(results, list | tuple) or not all(isinstance(entry, dict) for entry in results):
        raise ValueError(
            f"results must be a list of dicts, or the path of its JSON. Received: {show(results)}"
        )
    check_known("image_id of the results", [each.get("image_id") for each in results], people.image_sizes)
    check_known(
        "category_id of the results", [each.get("category_id") for each in results], [people.category_id]
    )
    scored = set(people.image_sizes) if image_ids is None else set(to_plain_list(image_ids))
    check_known("image_ids", scored, people.image_sizes)
    datasets = _to_datasets(people, results, scored, len(sigmas))
    precision, recall = count_matches(*datasets, "keypoints", [MAX_PEOPLE], use_fast, sigmas)
    scores = []
    for values in (precision[:, :, :, :, -1], recall[:, :, :, -1]):
        scores += [average_known(values[..., 0])]
        scores += [average_known(values[threshold, ..., 0]) for threshold in (0, 5)]
        scores += [average_known(values[..., area]) for area in (1, 2)]
    return {f"keypoints_{name}": score for name, score in zip(SCORE_NAMES, scores, strict=True)}


def format_keypoint_scores(scores: dict) -> str:
    """The scores of `evaluate_keypoints` as a plain text table in percent; "-" where there is no person."""
    rows = [(name, to_percent(scores[f"keypoints_{name}"])) for name in SCORE_NAMES]
    return "\n".join(align_rows([("", "keypoints"), *rows]))


def is_labelled(annotation) -> bool:
    """Whether a person of the truth is scored."""
    return bool(annotation.keypoints[:, 2].any()) and not annotation.is_crowd


def check_sigmas(sigmas) -> tuple[float, ...]:
    """The sigmas as a tuple; a ValueError unless there are some, all of them above 0."""
    is_list = isinstance(sigmas, list | tuple | np.ndarray) and len(sigmas) > 0
    if not is_list or not all(is_number(sigma) and 0 < sigma < math.inf for sigma in sigmas):
        raise ValueError(f"sigmas must be a number above 0 for each keypoint. Received: {sigmas!r}")
    return tuple(map(float, sigmas))


class People(NamedTuple):
    """The truth, checked.

    Attributes:
        image_sizes: (height, width) of each image by its id, or None; in the order of the ids.
        category_id: The id of the people's category.
        annotations: The people and crowds.
    """

    image_sizes: dict
    category_id: int | str
    annotations: list


def read_people(truth, num_keypoints: int) -> People:
    """The people of the truth, all of them checked.

    Args:
        truth: COCO JSON, a path or a dict.
        num_keypoints: Number of keypoints, the same as of sigmas.

    Raises:
        ValueError: Lists what is wrong with it.
    """
    source = f"truth {truth}" if isinstance(truth, str | os.PathLike) else "truth"
    truth = read_truth(truth)
    images = read_entries(truth, "images", find_size_problem, source)
    categories = read_entries(truth, "categories", lambda category: None, source)
    category_id, names, _ = find_keypoint_category(categories, source)
    if len(names) != num_keypoints:
        raise ValueError(
            f"sigmas must be a number for each of the {len(names)} keypoints of the {source}. "
            f"Received: {num_keypoints} of them"
        )
    sizes = {key: read_picture_size(images[key]) for key in sorted(images)}
    annotations, problems = read_annotations(
        truth["annotations"], sizes, categories, num_keypoints=num_keypoints
    )
    problems = judge_boxes(annotations, sizes) + list_briefly(problems)
    if problems:
        raise ValueError(f"{source} has faulty annotations:\n" + "\n".join(problems))
    annotations = [each for each in annotations if each.category_id == category_id]
    return People(sizes, category_id, annotations)


def _to_datasets(people, results, scored, num_keypoints):
    """Returns truth and results as two COCO data sets with all ids counted from 1, as pycocotools needs."""
    numbers = {key: number for number, key in enumerate(filter(scored.__contains__, people.image_sizes), 1)}
    objects, found = [], []
    for each in people.annotations:
        if each.image_id in numbers:
            x, y, width, height = each.box_xywh
            objects.append(
                {
                    "image_id": numbers[each.image_id],
                    "bbox": [x, y, width, height],
                    "area": width * height if each.area is None else each.area,
                    "iscrowd": int(each.is_crowd),
                    "num_keypoints": int((each.keypoints[:, 2] > 0).sum()),
                    "keypoints": each.keypoints.astype(np.float64).ravel().tolist(),
                }
            )
    for position, result in enumerate(results):
        if result["image_id"] in numbers:
            try:
                entry = _read_result(result, num_keypoints)
            except ValueError as problem:
                where = f"result at position {position}, of image {show(result['image_id'])}"
                raise ValueError(f"{where}: {problem}") from None
            found.append({"image_id": numbers[result["image_id"]], "iscrowd": 0, **entry})
    return [
        {
            "images": [{"id": number} for number in numbers.values()],
            "categories": [{"id": 1}],
            "annotations": [
                {"id": number, "category_id": 1, **entry} for number, entry in enumerate(entries, 1)
            ],
        }
        for entries in (objects, found)
    ]


def _read_result(result, num_keypoints):
    """Returns the score and the keypoints of a result, with the box and the area that they span."""
    score, values = result.get("score"), result.get("keypoints")
    if not is_number(score) or not math.isfinite(score):
        raise ValueError(f'"score" must be a finite number. Received: {show(score)}')
    is_list = isinstance(values, list | tuple | np.ndarray) and len(values) == 3 * num_keypoints
    if not is_list or not all(is_number(value) and math.isfinite(value) for value in values):
        raise ValueError(
            f'"keypoints" must be [x, y, score, ...], {3 * num_keypoints} finite numbers. '
            f"Received: {show(values)}"
        )
    x, y = np.array(values, np.float64).reshape(-1, 3)[:, :2].T
    left, top, width, height = x.min(), y.min(), np.ptp(x), np.ptp(y)
    return {
        "score": float(score),
        "keypoints": list(map(float, values)),
        "bbox": [float(left), float(top), float(width), float(height)],
        "area": float(width * height),
    }
