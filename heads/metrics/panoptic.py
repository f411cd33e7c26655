"""Panoptic quality: how well segments are found, and how well they are outlined."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import keras
import numpy as np

from heads.metrics.scorer import Scorer
from heads.ops.labels import PADDING_LABEL, VOID_SEGMENT
from heads.processes import find_own_pictures, find_place, gather_batches, gather_numbers, on_this_process

MATCH_IOU = 0.5  # above it, a segment matches at most one other
GROUPS = ("all", "things", "stuff")


class PanopticCounts(NamedTuple):
    """Counts that are added up over pictures, each (num_classes,).

    Attributes:
        iou: The sum of the IoUs of matched segments, float64.
        matched: Pairs of a true segment and a found one, int64.
        wrong: Found segments without a true one, int64.
        missed: True segments that were not found, int64.
    """

    iou: np.ndarray
    matched: np.ndarray
    wrong: np.ndarray
    missed: np.ndarray

    @classmethod
    def zeros(cls, num_classes: int):
        """Returns the counts of no picture."""
        return cls(np.zeros(num_classes), *(np.zeros(num_classes, np.int64) for _ in range(3)))

    def add(self, other):
        """Returns the counts of both."""
        return PanopticCounts(*(ours + theirs for ours, theirs in zip(self, other, strict=True)))


def count_panoptic(truth: dict, found: dict, num_classes: int) -> PanopticCounts:
    """Matches the segments of one picture, by the rules of COCO's panoptic evaluator.

    A true and a found segment of one class match if their IoU is above 0.5; the union leaves out pixels of
    the found one that have no truth. A found segment without a match does not count if more than half of it
    has no truth or lies in crowds of its class. Crowds never count as missed.

    Args:
        truth: Dict of "segments", int (height, width), rows of "labels", -1 for none; "labels", int (n,);
            and, if there are crowds, "is_crowd", bool (n,).
        found: Dict of "segments" and "labels", -1 for rows without a segment, as `Mask2Former` returns them.
        num_classes: Number of classes.

    Returns:
        The `PanopticCounts` of the picture.

    Raises:
        ValueError: For maps of different sizes, rows that the labels do not have, and labels out of range.
    """
    truth_map, truth_labels = _read_segments("truth", truth, num_classes)
    found_map, found_labels = _read_segments("found", found, num_classes)
    if truth_map.shape != found_map.shape:
        raise ValueError(
            f"found must have the (height, width) of the truth, {truth_map.shape}. "
            f"Received: {found_map.shape}"
        )
    is_crowd = np.asarray(truth.get("is_crowd", np.zeros(len(truth_labels), bool)), bool)
    # Pixels of each pair; the last row and the last column stand for no segment.
    cells = (truth_map % (len(truth_labels) + 1)) * (len(found_labels) + 1)
    cells = cells + found_map % (len(found_labels) + 1)
    shape = (len(truth_labels) + 1, len(found_labels) + 1)
    pairs = np.bincount(cells.ravel(), minlength=np.prod(shape)).reshape(shape)
    truth_areas, found_areas = pairs.sum(1)[:-1], pairs.sum(0)[:-1]
    shared, without_truth = pairs[:-1, :-1], pairs[-1, :-1]

    same_class = truth_labels[:, None] == found_labels
    candidates = same_class & ~is_crowd[:, None] & (shared > 0)
    unions = truth_areas[:, None] + found_areas - without_truth - shared
    ious = np.where(candidates, shared / np.maximum(unions, 1), 0.0)
    is_match = ious > MATCH_IOU
    in_crowds = (shared * (same_class & is_crowd[:, None])).sum(0)
    exists = (found_labels != PADDING_LABEL) & (found_areas > 0)
    is_ignored = without_truth + in_crowds > 0.5 * found_areas
    is_wrong = exists & ~is_match.any(0) & ~is_ignored
    is_missed = (truth_areas > 0) & ~is_crowd & ~is_match.any(1)

    def count(labels):
        return np.bincount(labels, minlength=num_classes).astype(np.int64)

    rows, _ = np.nonzero(is_match)
    iou = np.bincount(truth_labels[rows], ious[is_match], num_classes)
    labels = truth_labels[rows], found_labels[is_wrong], truth_labels[is_missed]
    return PanopticCounts(iou, *map(count, labels))


def _read_segments(name, segments, num_classes):
    """Returns the checked map and labels."""
    rows, labels = np.asarray(segments["segments"]), np.asarray(segments["labels"])
    if rows.ndim != 2 or rows.dtype.kind not in "iu" or labels.ndim != 1:
        raise ValueError(
            f"{name} must have segments, integers (height, width), and labels (n,). Received: "
            f"{rows.dtype} of shape {rows.shape} and shape {labels.shape}"
        )
    if rows.size and not VOID_SEGMENT <= rows.min() <= rows.max() < len(labels):
        raise ValueError(
            f"segments of {name} must be rows of its {len(labels)} labels, or {VOID_SEGMENT}. "
            f"Received: {rows.min()} .. {rows.max()}"
        )
    if labels.size and not PADDING_LABEL <= labels.min() <= labels.max() < num_classes:
        raise ValueError(
            f"labels of {name} must be 0 .. {num_classes - 1}, or {PADDING_LABEL} for none. "
            f"Received: {labels.min()} .. {labels.max()}"
        )
    return rows.astype(np.int64), labels


def score_panoptic(counts: PanopticCounts, num_things: int) -> dict:
    """Returns panoptic quality (arXiv 1801.00868, section 4.2); classes without any segment are left out.

    Args:
        counts: Counts of all pictures, see `count_panoptic`.
        num_things: Number of classes of things, which come first.

    Returns:
        Dict of floats 0 .. 1: "PQ", the mean over the classes of SQ times RQ; "SQ", how well matched segments
        are outlined; "RQ", how many are matched; "PQ_things", "SQ_things" ... "RQ_stuff"; NaN where nothing
        was counted. And "per_class_PQ", "per_class_SQ", "per_class_RQ", float64 (num_classes,).
    """
    total = counts.matched + 0.5 * counts.wrong + 0.5 * counts.missed
    occurs = total > 0
    per_class = {
        "PQ": np.where(occurs, counts.iou / np.maximum(total, 0.5), np.nan),
        "SQ": np.where(occurs, counts.iou / np.maximum(counts.matched, 1), np.nan),
        "RQ": np.where(occurs, counts.matched / np.maximum(total, 0.5), np.nan),
    }
    scores = {}
    classes = np.arange(len(total))
    for group, selected in zip(
        GROUPS, (classes >= 0, classes < num_things, classes >= num_things), strict=True
    ):
        for name, values in per_class.items():
            known = values[selected & occurs]
            scores[name if group == "all" else f"{name}_{group}"] = (
                float(known.mean()) if len(known) else np.nan
            )
    return {**scores, **{f"per_class_{name}": values for name, values in per_class.items()}}


def format_panoptic_scores(scores: dict, class_names: Sequence[str]) -> str:
    """The scores as a plain text table in percent; "-" where a class does not occur.

    Args:
        scores: From `score_panoptic`.
        class_names: Name of each class.

    Raises:
        ValueError: Where the number of names is not the number of classes.
    """
    names = ("PQ", "SQ", "RQ")
    if len(class_names) != len(scores["per_class_PQ"]):
        raise ValueError(
            f"class_names must have {len(scores['per_class_PQ'])} names, one per class. "
            f"Received: {len(class_names)}"
        )
    rows = [("class", *names)]
    for row, name in enumerate(class_names):
        rows.append((name, *(_percent(scores[f"per_class_{each}"][row]) for each in names)))
    for group in GROUPS:
        suffix = "" if group == "all" else f"_{group}"
        rows.append((group, *(_percent(scores[each + suffix]) for each in names)))
    width = max(len(row[0]) for row in rows)
    return "\n".join(f"{name:<{width}}  " + "  ".join(f"{v:>6}" for v in values) for name, *values in rows)


def _percent(value):
    return "-" if np.isnan(value) else f"{100 * value:.2f}"


def evaluate_panoptic(model, dataset: Iterable, source) -> dict:
    """Scores a panoptic segmenter, in the pixels of the picture files.

    Args:
        model: A `Mask2Former` of the panoptic task.
        dataset: Batches of `heads.data.panoptic_evaluation_batches`.
        source: The source of the same pictures.

    Returns:
        See `score_panoptic`.

    Raises:
        ValueError: Where `dataset` has more or fewer pictures than the source.
    """
    positions, index, batches = _find_positions(dataset, len(source.image_ids)), 0, []
    with on_this_process(model) as model:
        for inputs, _ in dataset:
            inputs, batch = keras.tree.map_structure(np.asarray, inputs), []
            for found in model.predict_resized(*(inputs[name] for name in INPUTS)):
                counts = PanopticCounts.zeros(source.num_classes)
                if index < len(positions):
                    truth = source.load_segments(int(positions[index]))
                    counts = count_panoptic(truth, found, source.num_classes)
                batch.append([values.tolist() for values in counts])
                index += 1
            batches.append(batch)
    # Added in the order of a single process, as sums of floats depend on the order.
    pictures = [picture for batch in gather_batches(batches) for picture in batch]
    if len(pictures) != len(source.image_ids):
        raise ValueError(
            f"dataset must have the {len(source.image_ids)} pictures of the source, once each. "
            f"Received: {len(pictures)} pictures"
        )
    total = PanopticCounts.zeros(source.num_classes)
    for picture in pictures:
        total = total.add(PanopticCounts(*map(np.array, picture)))
    return score_panoptic(total, source.num_things)


def _find_positions(dataset, num_pictures):
    """Returns the positions in the source of this process's pictures."""
    if find_place()[1] == 1:
        return np.arange(num_pictures)
    first = next(iter(dataset), None)
    size = 0 if first is None else len(first[0]["images"])
    # This process may have only the last batch, which may be smaller.
    return find_own_pictures(num_pictures, max(1, int(gather_numbers([size]).max())))


INPUTS = ("images", "image_sizes", "original_sizes")


class PanopticScores(Scorer):
    """Scores a panoptic segmenter after an epoch, for `fit(callbacks=[...])`.

    Puts "val_PQ", "val_SQ", "val_RQ" and those of things and stuff into the logs of the epoch, so that
    callbacks later in the list can use them. An epoch that is not scored repeats the scores of the last one
    that was. The scores per class are in `last_scores`, see `score_panoptic`.

    Args:
        dataset: Batches of `heads.data.panoptic_evaluation_batches`.
        source: The source of the same pictures.
        every: Score after the first epoch of a training, and after each `every`-th.

    Raises:
        ValueError: For `every` below 1.
    """

    def __init__(self, dataset: Iterable, source, every: int = 1):
        super().__init__(dataset, every)
        self.source = source

    def score(self, model) -> dict:
        """Returns the scores of a model: see `evaluate_panoptic`."""
        return evaluate_panoptic(model, self.dataset, self.source)

    def describe(self, scores: dict) -> str:
        """Returns a few of the scores as text."""
        return ", ".join(f"{name} {scores[name]:.2%}" for name in ("PQ", "PQ_things", "PQ_stuff"))
