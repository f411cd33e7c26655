"""From queries, each with a class and a mask, to segments, objects and label maps."""

import numpy as np
from keras import ops

from heads.ops.labels import PADDING_LABEL, VOID_SEGMENT
from heads.ops.selection import label_pixels, select_best, take_rows


def merge_segments(
    class_logits, mask_logits, inside, num_things: int, score_threshold=0.8, overlap_threshold=0.8
):
    """Returns panoptic segments: each pixel belongs to at most one.

    MaskFormer (arXiv 2107.06278, section 3.4): a pixel goes to the query for which the probability of its
    class times that of its mask is the highest; a query that keeps too little of its mask is left out.
    Queries of one stuff class form one segment.

    Args:
        class_logits: (batch, queries, classes + 1), things first, then stuff; the last one is "no object".
        mask_logits: (batch, queries, height, width).
        inside: bool (batch, height, width), False for padding.
        num_things: number of classes of things.
        score_threshold: queries whose class has a lower probability are left out.
        overlap_threshold: smallest share of its mask that a query must keep.

    Returns:
        A dict of "segments" int32 (batch, height, width), rows of "labels" and "scores", -1 where there is
        none; "labels" int32 (batch, queries), -1 where a query has no segment of its own; "scores" (batch,
        queries), the probability of the class, else 0.
    """
    num_classes = class_logits.shape[-1] - 1
    scores, labels = ops.top_k(ops.softmax(class_logits, axis=-1), 1)
    scores, labels = scores[..., 0], ops.cast(labels[..., 0], "int32")
    kept = (labels != num_classes) & (scores > score_threshold)
    masks = ops.sigmoid(mask_logits)
    weighted = ops.where(kept[..., None, None], scores[..., None, None] * masks, -1.0)
    owners = label_pixels(ops.transpose(weighted, (0, 2, 3, 1)))  # (batch, height, width)
    num_queries = ops.shape(labels)[1]
    rows = ops.arange(num_queries, dtype="int32")
    is_owner = (owners[:, None] == rows[:, None, None]) & inside[:, None]
    in_mask = (masks >= 0.5) & inside[:, None]
    areas, mask_areas = _count_pixels(is_owner), _count_pixels(in_mask)
    exists = (
        kept & (areas > 0) & (mask_areas > 0) & (areas / ops.maximum(mask_areas, 1.0) >= overlap_threshold)
    )

    # The first query of a stuff class stands for all: (batch, queries, queries), True where queries share a
    # class.
    is_stuff = labels >= num_things
    same = (labels[:, :, None] == labels[:, None]) & (exists & is_stuff)[:, None] & is_stuff[:, :, None]
    first = ops.cast(ops.argmax(ops.cast(same, "int32"), axis=-1), "int32")
    first = ops.where(is_stuff, first, rows)
    segments = ops.where(exists, first, VOID_SEGMENT)  # of each query

    spread = ops.reshape(owners, (ops.shape(owners)[0], -1))
    pixel_segments = ops.reshape(ops.take_along_axis(segments, spread, axis=1), ops.shape(owners))
    covered = ops.any(is_owner & in_mask, axis=1)
    speaks = exists & (first == rows)
    return {
        "segments": ops.where(covered, pixel_segments, VOID_SEGMENT),
        "labels": ops.where(speaks, labels, PADDING_LABEL),
        "scores": ops.where(speaks, scores, 0.0),
    }


def _count_pixels(masks):
    return ops.sum(ops.cast(masks, "float32"), axis=(2, 3))


def select_objects(class_logits, mask_logits, inside, num_things: int, max_detections: int = 100):
    """Returns the best pairs of a query and a class of things as detections with masks.

    Args:
        class_logits: (batch, queries, classes + 1), things first; the last one is "no object".
        mask_logits: (batch, queries, height, width).
        inside: bool (batch, height, width), False for padding.
        num_things: number of classes of things.
        max_detections: how many pairs of all classes are chosen, before those of stuff are left out.

    Returns:
        A dict of "boxes" (batch, n, 4), xyxy pixels; "scores" (batch, n), the probability of the class times
        the mean of the mask's; "labels" int32 (batch, n), -1 where there is none; "masks" bool
        (batch, n, height, width). The best come first.
    """
    probabilities = ops.softmax(class_logits, axis=-1)[..., :-1]
    batch, num_queries, num_classes = ops.shape(probabilities)
    flat = ops.reshape(probabilities, (batch, num_queries * num_classes))
    scores, pairs = select_best(flat, max_detections)
    pairs = ops.cast(pairs, "int32")
    labels = pairs % num_classes
    logits = take_rows(mask_logits, pairs // num_classes)
    masks = (logits > 0) & inside[:, None]
    areas = _count_pixels(masks)
    mask_scores = ops.sum(ops.where(masks, ops.sigmoid(logits), 0.0), axis=(2, 3)) / (areas + 1e-6)
    exists = (labels < num_things) & (areas > 0)
    scores, order = ops.top_k(ops.where(exists, scores * mask_scores, 0.0), ops.shape(scores)[1])
    order = ops.cast(order, "int32")
    exists, labels = (ops.take_along_axis(values, order, axis=1) for values in (exists, labels))
    masks = take_rows(masks, order)
    return {
        "boxes": frame_masks(masks) * ops.cast(exists, "float32")[..., None],
        "scores": scores,
        "labels": ops.where(exists, labels, PADDING_LABEL),
        "masks": masks & exists[..., None, None],
    }


def frame_masks(masks):
    """Returns the smallest boxes around masks: bool (..., height, width) -> float32 (..., 4), xyxy pixels.

    The boxes of empty masks are zeros.
    """
    ends = []
    for axis in (-2, -1):  # over the rows: which columns are touched
        touched = ops.any(masks, axis=axis)
        number = ops.shape(touched)[-1]
        places = ops.arange(number, dtype="int32")
        first = ops.min(ops.where(touched, places, number), axis=-1, initial=number)
        last = ops.max(ops.where(touched, places + 1, 0), axis=-1, initial=0)
        ends.append((ops.where(last > 0, first, 0), last))
    (left, right), (top, bottom) = ends
    return ops.cast(ops.stack([left, top, right, bottom], axis=-1), "float32")


def label_segments(class_logits, mask_logits):
    """Returns the likeliest class of each pixel, int32 (batch, height, width).

    From the probabilities of the queries' classes, weighted by those of their masks (arXiv 2107.06278,
    section 3.4).

    Args:
        class_logits: (batch, queries, classes + 1); the last one is "no object".
        mask_logits: (batch, queries, height, width).
    """
    probabilities = ops.softmax(class_logits, axis=-1)[..., :-1]
    return label_pixels(ops.einsum("bqc,bqhw->bhwc", probabilities, ops.sigmoid(mask_logits)))


def number_segments(found):
    """Returns the segments of one image, numbered without gaps: NumPy arrays as of `merge_segments`."""
    rows = np.flatnonzero(found["labels"] >= 0)
    numbers = np.full(
        len(found["labels"]) + 1, VOID_SEGMENT, "int32"
    )  # the last place is that of VOID_SEGMENT
    numbers[rows] = np.arange(len(rows))
    segments = numbers[found["segments"]]
    return {"segments": segments, "labels": found["labels"][rows], "scores": found["scores"][rows]}
