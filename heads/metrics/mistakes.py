"""Which classes a detector confuses, and on which pictures it is wrong most often."""

from collections.abc import Sequence

import numpy as np

from heads.coco.matches import LEAST_OVERLAP, match_greedily, measure_overlaps_of_shapes
from heads.metrics.average_precision import check_known, read_objects, to_plain_list
from heads.metrics.tables import align_rows

BACKGROUND = "background"


def count_mistakes(
    truth,
    results: list[dict],
    score_threshold: float = 0.3,
    least_overlap: float = LEAST_OVERLAP,
    image_ids: Sequence | None = None,
) -> dict:
    """Counts which classes a detector confuses, which objects it misses and which it makes up, by boxes.

    On each picture, results are matched to true objects of their class first, the best score first, as COCO
    does for one IoU; the rest is matched whatever its class. True objects without a result count as taken for
    background, and results without an object as background taken for their class. Results in crowds do not
    count.

    Args:
        truth: COCO JSON of the truth, a path or a dict.
        results: Result list, see `to_coco_results`.
        score_threshold: Results below it are left out.
        least_overlap: Least IoU of a match.
        image_ids: Pictures to look at. None: all of the truth.

    Returns:
        Dict of "confusion": int64 (classes + 1, classes + 1), rows are the truth, columns the results, the
        last ones the background; "class_names": their names, "background" the last; and int64 (images,), in
        the order of the ids, "per_picture_missed" and "per_picture_false": how many true objects, and how
        many results, have no partner of their class.

    Raises:
        ValueError: For a truth that `evaluate_coco` refuses, or ids that it does not have.
    """
    truth = read_objects(truth, ("bbox",))
    image_ids = list(truth.image_sizes) if image_ids is None else to_plain_list(image_ids)
    check_known("image_ids", image_ids, truth.image_sizes)
    for key, known in (("image_id", truth.image_sizes), ("category_id", truth.class_names)):
        check_known(f"{key} of the results", [each[key] for each in results], known)
    labels = {key: label for label, key in enumerate(truth.class_names)}
    objects, found = {key: [] for key in image_ids}, {key: [] for key in image_ids}
    for each in truth.annotations:
        if each.image_id in objects:
            objects[each.image_id].append(each)
    for each in results:
        if each["image_id"] in found and each["score"] >= score_threshold:
            found[each["image_id"]].append(each)
    confusion = np.zeros((len(labels) + 1,) * 2, np.int64)
    missed, false = np.zeros((2, len(image_ids)), np.int64)
    for picture, key in enumerate(image_ids):
        part = _count_picture(objects[key], found[key], labels, least_overlap)
        confusion += part
        num_right = np.trace(part)
        missed[picture], false[picture] = part[:-1].sum() - num_right, part[:, :-1].sum() - num_right
    return {
        "confusion": confusion,
        "class_names": [*truth.class_names.values(), BACKGROUND],
        "per_picture_missed": missed,
        "per_picture_false": false,
    }


def _count_picture(objects, found, labels, least_overlap):
    """Returns the confusion matrix of a picture."""
    is_crowd = np.array([each.is_crowd for each in objects], bool)
    true_labels = np.array([labels[each.category_id] for each in objects], int)
    found_labels = np.array([labels[each["category_id"]] for each in found], int)
    scores = np.array([each["score"] for each in found], float)
    boxes = [
        np.array(rows, float).reshape(-1, 4)
        for rows in (
            [each.box_xywh for each in objects],
            [each["bbox"] for each in found],
        )
    ]
    overlaps = measure_overlaps_of_shapes(*boxes, is_crowd)
    in_crowd = (overlaps[is_crowd] >= least_overlap).any(axis=0)
    overlaps[is_crowd] = 0.0
    is_same = true_labels[:, None] == found_labels
    partners, owners = match_greedily(np.where(is_same, overlaps, 0.0), scores, least_overlap)
    free = (partners < 0)[:, None] & (owners < 0)
    others, other_owners = match_greedily(np.where(free, overlaps, 0.0), scores, least_overlap)
    partners, owners = np.maximum(partners, others), np.maximum(owners, other_owners)
    confusion = np.zeros((len(labels) + 1,) * 2, np.int64)
    background = len(labels)
    for label, partner in zip(true_labels[~is_crowd], partners[~is_crowd], strict=True):
        confusion[label, found_labels[partner] if partner >= 0 else background] += 1
    np.add.at(confusion, (background, found_labels[(owners < 0) & ~in_crowd]), 1)
    return confusion


def format_mistakes(mistakes: dict, score_threshold: float) -> str:
    """The mistakes as a plain text table: the objects of each class, and what they were taken for.

    Args:
        mistakes: From `count_mistakes`.
        score_threshold: Threshold of the results, for the headline.
    """
    confusion, names = mistakes["confusion"], mistakes["class_names"]
    rows = [("class", "objects", "right", "other class", "missed", "false")]
    for label, name in enumerate(names[:-1]):
        objects, right, missed = confusion[label].sum(), confusion[label, label], confusion[label, -1]
        counts = (objects, right, objects - right - missed, missed, confusion[-1, label])
        rows.append((name, *map(str, counts)))
    headline = f"boxes with a score of {score_threshold:.2f} or more, right at an IoU of {LEAST_OVERLAP}"
    return "\n".join([headline, *align_rows(rows)])
