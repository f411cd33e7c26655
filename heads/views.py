"""Merged detections of several views of a picture: slices of large pictures, mirror images, other sizes."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from keras import ops

from heads.arguments import check_counts, check_shares, read_flag, read_size
from heads.ops.boxes import compute_coverage
from heads.ops.labels import PADDING_LABEL
from heads.ops.suppression import suppress_boxes
from heads.ops.windows import find_step, place_windows
from heads.prediction import (
    check_masks,
    count_channels,
    find_pictures,
    finish_objects,
    keep_path,
    predict_prepared,
    prepare_picture,
    read_pixels,
    show_progress,
)

MOST_DETECTIONS = 1000
# For detectors without suppression of their own.
IOU_THRESHOLD = 0.5
# A box this near to the border of a slice, as a share of the slice's side, may go on beyond it.
NEAR_BORDER = 0.01
LEAST_NEAR = 2  # pixels
# The share of a part's box that a better view of the object must cover ...
LEAST_COVERED = 0.5
# ... and that view's least score, as a share of the part's: doubtful boxes remove nothing.
LEAST_CERTAINTY = 0.5
BLOCK = 64


class View(NamedTuple):
    """A part of a picture in whole pixels, and how it is shown."""

    left: int
    top: int
    right: int
    bottom: int
    scale: float = 1.0
    is_mirrored: bool = False


def detect_in_slices(
    model,
    pictures,
    slice_size,
    overlap: float = 0.2,
    with_whole: bool = True,
    batch_size: int = 1,
    score_threshold: float = 0.0,
    masks: str = "pasted",
    max_detections: int = MOST_DETECTIONS,
    progress: bool = True,
) -> list[dict]:
    """Returns the objects in large pictures, from overlapping slices and the whole picture.

    Small objects vanish if a large picture is resized to the size that a detector was trained on. In slices
    they stay large: each slice is resized as the model's `resizing` says, as if it were a picture. Then

    - a box is removed if it touches an inner border of its slice, and mostly lies in a box of its class that
      is cut less and not much less certain: it is a part of an object that another view shows better;
    - of boxes of one class that overlap by more than the model's `iou_threshold` the best one stays.

    Objects that are no larger than the overlap are whole in some slice; larger ones may be whole only in the
    view of the whole picture.

    Args:
        model: a detector.
        pictures: see `DenseModel.predict_pictures`.
        slice_size: (height, width) of the slices in pixels of the picture; a whole number stands for squares.
        overlap: share of a slice's sides by which it overlaps the next one, from 0 to below 1.
        with_whole: whether to add the whole picture as a view.
        batch_size: most slices that go through the model at once.
        score_threshold: detections below are left out.
        masks: see `DenseModel.predict_pictures`. For large pictures use "run_lengths", which fit into memory.
        max_detections: how many objects a picture can have, at most.
        progress: whether to show a progress bar, for two pictures or more.

    Returns:
        A list with a dict for each picture, as of `DenseModel.predict_pictures`.

    Raises:
        ValueError: if the model is no detector, a file cannot be read, or an argument is out of range.

    Reference:
        - Slices and whole pictures as in Akyon et al., "Slicing Aided Hyper Inference and Fine-tuning for
          Small Object Detection", arXiv 2202.06934; there, other boxes are merged.
    """
    slice_size, with_whole = read_size("slice_size", slice_size), read_flag("with_whole", with_whole)
    check_shares(overlap=overlap)
    check_counts(max_detections=max_detections)

    def place_views(size):
        sides = zip(size, slice_size, strict=True)
        rows, columns = (place_windows(side, part, find_step(part, overlap)) for side, part in sides)
        views = [View(left, top, right, bottom) for top, bottom in rows for left, right in columns]
        whole = View(0, 0, size[1], size[0])
        return [*views, whole] if with_whole and whole not in views else views

    return _detect(model, pictures, place_views, batch_size, score_threshold, masks, max_detections, progress)


def detect_in_views(
    model,
    pictures,
    scales: Sequence[float] = (1.0,),
    flip: bool = True,
    batch_size: int = 1,
    score_threshold: float = 0.0,
    masks: str = "pasted",
    progress: bool = True,
) -> list[dict]:
    """Returns the objects in pictures from several views of each: test-time augmentation.

    The detections of all views are put together. Of boxes of one class that overlap by more than the model's
    `iou_threshold` the best one stays, with its own score and mask: nothing is averaged.

    Args:
        model: a detector.
        pictures: see `DenseModel.predict_pictures`.
        scales: factors of the sizes that the model's `resizing` gives pictures.
        flip: whether to add the mirror image of each view.
        batch_size: most views of one size that go through the model at once.
        score_threshold: detections below are left out.
        masks: see `DenseModel.predict_pictures`.
        progress: whether to show a progress bar, for two pictures or more.

    Returns:
        A list with a dict for each picture, as of `DenseModel.predict_pictures`.

    Raises:
        ValueError: if the model is no detector, a file cannot be read, or an argument is out of range.
    """
    scales = _read_scales(scales)
    mirrors = (False, True) if read_flag("flip", flip) else (False,)

    def place_views(size):
        whole = (0, 0, size[1], size[0])
        return [View(*whole, scale, is_mirrored) for scale in scales for is_mirrored in mirrors]

    limit = getattr(model, "max_detections", MOST_DETECTIONS)
    return _detect(model, pictures, place_views, batch_size, score_threshold, masks, limit, progress)


def _read_scales(scales):
    values = tuple(scales) if hasattr(scales, "__iter__") else (scales,)
    if not values or not all(isinstance(each, int | float) and 0 < each < np.inf for each in values):
        raise ValueError(f"scales must be one or more numbers above 0. Received: {scales!r}")
    return values


def _detect(
    model, pictures, place_views, batch_size, score_threshold, masks, max_detections, progress
) -> list[dict]:
    """Returns the merged detections of pictures; `place_views` gives the views of a (height, width)."""
    if not hasattr(model, "max_detections"):
        raise ValueError(f"model must be a detector, which gives boxes. Received: {type(model).__name__}")
    check_counts(batch_size=batch_size)
    check_masks(masks)
    pictures = find_pictures(pictures)
    sizes, found, results = {}, {}, [None] * len(pictures)

    def prepare():
        for place, picture in enumerate(show_progress(pictures, progress)):
            pixels = read_pixels(picture, count_channels(model))
            sizes[place] = pixels.shape[:2]
            views = place_views(sizes[place])
            found[place] = dict.fromkeys(views)
            for view in views:
                yield (place, view), _show(model, pixels, view)

    for (place, view), _, result in predict_prepared(model, prepare(), batch_size):
        found[place][view] = _restore(result, view, sizes[place], score_threshold)
        if all(each is not None for each in found[place].values()):
            size, views = sizes.pop(place), list(found.pop(place).values())
            merged = _merge(views, getattr(model, "iou_threshold", IOU_THRESHOLD), max_detections)
            merged = finish_objects(model, merged, size, score_threshold, masks)
            results[place] = {"path": keep_path(pictures[place]), **merged}
    return results


def _show(model, pixels, view):
    """Returns a view as the model sees it."""
    part = pixels[view.top : view.bottom, view.left : view.right]
    part = part[:, ::-1] if view.is_mirrored else part
    return prepare_picture(part, model.resizing, model.size_divisor, view.scale, count_channels(model))


def _restore(result, view, size, score_threshold):
    """Returns the detections of a view in pixels of the picture, and at how many sides each may be cut."""
    kept = (result["labels"] != PADDING_LABEL) & (result["scores"] >= score_threshold)
    found = {name: np.asarray(values)[kept] for name, values in result.items()}
    if view.is_mirrored:
        width = view.right - view.left
        found["boxes"] = [width, 0, width, 0] + found["boxes"][:, [2, 1, 0, 3]] * [-1, 1, -1, 1]
        if "masks" in found:
            found["masks"] = found["masks"][:, :, ::-1]
    found["boxes"] = (found["boxes"] + [view.left, view.top] * 2).astype("float32")
    return {**found, "num_cuts": _count_cuts(found["boxes"], view, size)}


def _count_cuts(boxes, view, size):
    """Returns how many inner borders of its view each box touches: (n,)."""
    near_x, near_y = (
        max(LEAST_NEAR, NEAR_BORDER * side) for side in (view.right - view.left, view.bottom - view.top)
    )
    left, top, right, bottom = boxes.T
    touches = [
        (left <= view.left + near_x) & (view.left > 0),
        (top <= view.top + near_y) & (view.top > 0),
        (right >= view.right - near_x) & (view.right < size[1]),
        (bottom >= view.bottom - near_y) & (view.bottom < size[0]),
    ]
    return np.sum(touches, axis=0, dtype="int32")


def _merge(views, iou_threshold, max_detections):
    """Returns the detections of all views of a picture without parts and duplicates, the best first."""
    found = {name: np.concatenate([view[name] for view in views]) for name in views[0]}
    num_cuts, count = found.pop("num_cuts"), len(found["labels"])
    # Padded to few numbers of rows, as JAX compiles for each; empty rows have score 0.
    padding = (0, max(BLOCK, 1 << max(count - 1, 0).bit_length()) - count)
    boxes = np.pad(found["boxes"], (padding, (0, 0)))
    scores, labels, num_cuts = (
        np.pad(values, padding) for values in (found["scores"], found["labels"], num_cuts)
    )
    scores = np.where(find_parts(boxes, scores, labels, num_cuts), 0.0, scores)
    chosen = suppress_boxes(boxes[None], scores[None], labels[None], iou_threshold, max_detections)
    chosen = ops.convert_to_numpy(chosen)[0]
    return {name: values[chosen[chosen >= 0]] for name, values in found.items()}


def find_parts(boxes, scores, labels, num_cuts) -> np.ndarray:
    """Returns which boxes show a part of an object that another box shows more of: bool (n,).

    Such a box is cut, and at least half of it is covered by a box of its label that is cut at fewer sides and
    has at least half of its score.

    Args:
        boxes: (n, 4), xyxy pixels.
        scores: (n,), 0 where there is no box.
        labels: (n,) integers.
        num_cuts: (n,), the number of sides at which each box may be cut.
    """
    is_part = np.zeros(len(boxes), bool)
    cut = np.flatnonzero((num_cuts > 0) & (scores > 0))
    for start in range(0, len(cut), BLOCK):  # not all pairs at once: there may be thousands of boxes
        rows = np.resize(cut[start : start + BLOCK], BLOCK)
        covered = ops.convert_to_numpy(compute_coverage(boxes[rows], boxes)) >= LEAST_COVERED
        is_better = (labels == labels[rows, None]) & (num_cuts < num_cuts[rows, None])
        is_better &= (scores > 0) & (scores >= LEAST_CERTAINTY * scores[rows, None])
        is_part[rows] = (covered & is_better).any(axis=1)
    return is_part
