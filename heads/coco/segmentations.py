"""The masks of COCO's annotations and results: polygons and run lengths, checked before they are drawn."""

import math

import numpy as np

from heads.coco.entries import LONGEST_SIDE, show

# The most bits of a run length: no picture has 2^60 pixels.
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


def encode_mask(mask) -> dict:
    """COCO's compressed run lengths of a mask.

    Args:
        mask: Bool or 0 / 1, `(height, width)`.

    Returns:
        {"size": [height, width], "counts": str}.
    """
    from pycocotools import mask as run_lengths

    encoded = run_lengths.encode(np.asfortranarray(mask, dtype="uint8"))
    return {"size": [int(side) for side in encoded["size"]], "counts": encoded["counts"].decode("ascii")}


def decode_mask(segmentation: dict) -> np.ndarray:
    """The mask of COCO's compressed run lengths, those of `encode_mask`: bool `(height, width)`."""
    from pycocotools import mask as run_lengths

    return run_lengths.decode(segmentation).astype(bool)


def check_place(segmentation: list | dict, box_xyxy: tuple[float, float, float, float]):
    """Raises ValueError where a mask is empty, mostly outside of its box, or fits it with x and y exchanged.

    A mask may be smaller than its box, which may include hidden parts.

    Args:
        segmentation: From `read_segmentation`.
        box_xyxy: The box, clipped to the picture.
    """
    measure = _measure_runs if isinstance(segmentation, dict) else _measure_polygons
    # A pixel of slack: boxes are rounded.
    slack = (box_xyxy[0] - 1, box_xyxy[1] - 1, box_xyxy[2] + 1, box_xyxy[3] + 1)
    share = measure(segmentation, slack)
    if share is None:
        raise ValueError("the mask is empty")
    if share < 0.8:
        exchanged = measure(segmentation, slack, is_exchanged=True) > 0.9
        if exchanged or share < 0.5:
            box = [round(float(side), 1) for side in box_xyxy]
            hint = "; all does with x and y exchanged (rows and columns)" if exchanged else ""
            raise ValueError(
                f"the mask must lie in its box {box}, xyxy. Received: {share:.0%} of it does{hint}"
            )


def _measure_runs(segmentation, box_xyxy, is_exchanged=False):
    """Returns the share of a mask's pixels inside a box; `is_exchanged` takes its runs along rows."""
    height, width = segmentation["size"]
    x1, y1, x2, y2 = np.clip(np.round(box_xyxy), 0, (width, height, width, height)).astype(np.int64)
    line, along, across = (width, (x1, x2), (y1, y2)) if is_exchanged else (height, (y1, y2), (x1, x2))
    ends = np.cumsum(segmentation["counts"], dtype=np.int64)
    ends = np.concatenate([ends, ends[-1:]])[: len(ends) // 2 * 2]  # without the last run of zeros

    # The pixels of the box that lie before each end of a run.
    lines, rest = ends // line - across[0], ends % line - along[0]
    num_lines, length = across[1] - across[0], along[1] - along[0]
    in_line = np.minimum(np.maximum(rest, 0), length) * ((lines >= 0) & (lines < num_lines))
    before = np.minimum(np.maximum(lines, 0), num_lines) * length + in_line
    total = int(np.sum(ends[1::2] - ends[::2]))
    return int(np.sum(before[1::2] - before[::2])) / total if total else None


def _measure_polygons(polygons, box_xyxy, is_exchanged=False):
    """Returns roughly the share of the polygons inside a box; `is_exchanged` swaps x and y."""
    inside = total = 0.0
    for polygon in polygons:
        points = polygon.reshape(-1, 2)
        points = points[:, ::-1] if is_exchanged else points
        (x1, y1), (x2, y2) = points.min(0).tolist(), points.max(0).tolist()
        sides = (x2 - x1) * (y2 - y1)
        if sides:
            width = min(x2, box_xyxy[2]) - max(x1, box_xyxy[0])
            height = min(y2, box_xyxy[3]) - max(y1, box_xyxy[1])
            area = 1.0 if len(polygons) == 1 else _area(points) or sides
            inside += area * max(width, 0) * max(height, 0) / sides
            total += area
    return inside / total if total else None


def _area(points):
    """Returns the area of a polygon, 0 where it crosses itself in the middle."""
    x, y = points.T
    return abs(float(x @ np.roll(y, 1) - y @ np.roll(x, 1))) / 2


def _read_polygon(polygon, image_size):
    try:
        points = np.array(polygon)
    except (TypeError, ValueError, OverflowError):  # ragged, or numbers of 400 digits
        points = np.zeros(0)
    if points.dtype.kind not in "iuf" or points.ndim != 1 or points.size < 6 or points.size % 2:
        raise ValueError(f"a polygon must be [x, y, x, y, x, y, ...], numbers. Received: {show(polygon)}")
    # Far points would cost pycocotools gigabytes: it walks along every edge.
    reach = max(image_size)
    if not (points.min() >= -reach and points.max() <= 2 * reach):  # false for NaN too
        raise ValueError(f"a polygon must be finite and near its picture. Received: {show(polygon)}")
    return points.astype(np.float64)


def _decode_counts(counts):
    """Returns the run lengths in COCO's compressed text: 5 bits a character, added to the run two before."""
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
