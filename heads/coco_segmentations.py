"""The masks of COCO's annotations and results: polygons and run lengths, checked before they are drawn."""

import math

import numpy as np

from heads.coco_entries import LONGEST_SIDE, show

# A number of a run length; no picture has 2^60 pixels.
MOST_BITS = 60


def read_segmentation(segmentation, image_size: tuple[int, int]) -> list | dict:
    """The polygons or run lengths of a mask.

    Args:
        segmentation: A list of polygons, or a dict of "size" and "counts", compressed or not.
        image_size: (height, width) of the picture.

    Returns:
        A list of float64 arrays x, y, x, y, ...; or a dict of "size" and "counts", an array of whole numbers.

    Raises:
        ValueError: If it is missing, malformed, or of another size than its picture.
    """
    if isinstance(segmentation, list | tuple) and segmentation:
        return [_read_polygon(polygon, image_size) for polygon in segmentation]
    if not isinstance(segmentation, dict):
        raise ValueError(f"no segmentation. Received: {show(segmentation)}")
    size = segmentation.get("size")
    if not isinstance(size, list | tuple) or list(size) != list(image_size):
        raise ValueError(f"the mask has (height, width) {show(size)}, the picture {list(image_size)}")
    counts = segmentation.get("counts")
    if isinstance(counts, bytes):
        counts = counts.decode("latin-1")
    runs = _decode_counts(counts) if isinstance(counts, str) else counts
    if (
        not isinstance(runs, list)
        or not all(type(run) is int and run >= 0 for run in runs)
        or sum(runs) != math.prod(image_size)
    ):
        raise ValueError("the run lengths of the mask must be whole numbers that add up to its pixels")
    dtype = np.int32 if max(runs) <= LONGEST_SIDE else np.int64
    return {"size": list(image_size), "counts": np.array(runs, dtype)}


def check_place(segmentation: list | dict, box_xyxy: tuple[float, float, float, float]):
    """Raises ValueError where a mask is empty, mostly outside of its box, or has its axes exchanged.

    A mask that is smaller than its box is none of these: boxes may span what is hidden.

    Args:
        segmentation: From `read_segmentation`.
        box_xyxy: The box, clipped to the picture.
    """
    extents, exchanged = _find_extents(segmentation)
    if extents is None:
        raise ValueError("the mask is empty")
    inside, overlap = _compare(extents, box_xyxy)
    # Drawn along the rows, a mask near the diagonal still meets its box.
    has_exchanged_axes = overlap < 0.7 and _compare(exchanged, box_xyxy)[1] > 0.9
    if inside < 0.5 or has_exchanged_axes:
        mask, box = ([round(float(side), 1) for side in place] for place in (extents, box_xyxy))
        hint = ""
        if has_exchanged_axes:
            is_runs = isinstance(segmentation, dict)
            hint = "; its runs go along rows, not down columns" if is_runs else "; x and y are exchanged"
        raise ValueError(f"the mask must lie in its box. Received, xyxy: mask {mask}, box {box}{hint}")


def _find_extents(segmentation):
    """Gives the tight xyxy box of a mask, and the one that it has with its axes exchanged; None if empty."""
    if isinstance(segmentation, dict):
        height, width = segmentation["size"]
        ends = np.cumsum(segmentation["counts"], dtype=np.int64)
        lasts = ends[1::2] - 1
        firsts = ends[::2][: len(lasts)]
        firsts, lasts = firsts[firsts <= lasts], lasts[firsts <= lasts]
        if not len(firsts):
            return None, None
        top, left, bottom, right = _find_run_extents(firsts, lasts, height)
        return (left, top, right, bottom), _find_run_extents(firsts, lasts, width)
    points = np.concatenate(segmentation).reshape(-1, 2)
    (left, top), (right, bottom) = points.min(0).tolist(), points.max(0).tolist()
    if left == right or top == bottom:
        return None, None
    return (left, top, right, bottom), (top, left, bottom, right)


def _find_run_extents(firsts, lasts, length):
    """Gives where runs lie that go along lines of a length: first along, across, end along, across."""
    first, end = int(firsts[0] // length), int(lasts[-1] // length) + 1
    if np.any(firsts // length != lasts // length):
        return 0, first, length, end
    return int((firsts % length).min()), first, int((lasts % length).max()) + 1, end


def _compare(extents, box_xyxy):
    """Gives the share of the extents inside of the box, with a pixel of slack, and the overlap (IoU)."""
    areas = [(right - left) * (bottom - top) for left, top, right, bottom in (extents, box_xyxy)]
    common = _intersect(extents, box_xyxy, 0)
    return _intersect(extents, box_xyxy, 1) / areas[0], common / (sum(areas) - common)


def _intersect(ours, theirs, slack):
    width = min(ours[2], theirs[2] + slack) - max(ours[0], theirs[0] - slack)
    height = min(ours[3], theirs[3] + slack) - max(ours[1], theirs[1] - slack)
    return max(width, 0) * max(height, 0)


def _read_polygon(polygon, image_size):
    try:
        points = np.array(polygon)
    except (TypeError, ValueError, OverflowError):  # ragged, or numbers of 400 digits
        points = np.zeros(0)
    if points.dtype.kind not in "iuf" or points.ndim != 1 or points.size < 6 or points.size % 2:
        raise ValueError(f"a polygon must be [x, y, x, y, x, y, ...], numbers. Received: {show(polygon)}")
    # Far points would cost pycocotools gigabytes: it walks along every edge.
    reach = max(image_size)
    if not np.all((points >= -reach) & (points <= 2 * reach)):
        raise ValueError(f"a polygon must be finite and near its picture. Received: {show(polygon)}")
    return points.astype(np.float64)


def _decode_counts(counts):
    """Gives the run lengths of COCO's compressed text: 5 bits a character, each added to the last but one."""
    runs, value, shift = [], 0, 0
    for character in counts:
        code = ord(character) - 48
        if not 0 <= code < 64 or shift > MOST_BITS:
            raise ValueError(f"the run lengths of the mask hold {character!r}, or a number without end")
        value |= (code & 31) << shift
        shift += 5
        if not code & 32:
            value -= (code & 16) << (shift - 4)
            runs.append(value + runs[-2] if len(runs) > 2 else value)
            value = shift = 0
    if shift:
        raise ValueError("the run lengths of the mask break off")
    return runs
