"""One move for a picture and all that lies on it: resized, cut out, mirrored.

The pixels and the boxes are moved in `tf.data` graphs. Masks stay polygons or run lengths until the move is
known, and are drawn once, in the result's pixels.
"""

from typing import NamedTuple

import numpy as np
import tensorflow as tf
from pycocotools import mask as coco_mask

# mmdetection's least width and height after large-scale jitter, in pixels.
SMALLEST_SIDE = 0.01


class Geometry(NamedTuple):
    """A resize, then a window of the resized picture, then perhaps a mirror.

    Attributes:
        original_size: int32 (2,), (height, width) of the picture.
        resized_size: int32 (2,), (height, width) of the whole picture after resizing.
        offset: int32 (2,), (top, left) of the window in the resized picture.
        size: int32 (2,), (height, width) of the window, which is the result.
        flip: bool (), whether the window is mirrored left to right.
    """

    original_size: tf.Tensor
    resized_size: tf.Tensor
    offset: tf.Tensor
    size: tf.Tensor
    flip: tf.Tensor


def resize_geometry(original_size, resized_size) -> Geometry:
    """Gives the geometry of a resize alone.

    Args:
        original_size: int32 (2,), (height, width).
        resized_size: int32 (2,), (height, width).
    """
    return Geometry(original_size, resized_size, tf.zeros(2, tf.int32), resized_size, tf.constant(False))


def move_image(image, geometry: Geometry):
    """Gives the moved picture, by bilinear interpolation that is not antialiased, as in the reference.

    Args:
        image: (height, width, 3), any dtype.
        geometry: the move.

    Returns:
        float32 (*geometry.size, 3).
    """
    # TensorFlow resizes float32 faster than uint8, the cast included.
    image = tf.image.resize(tf.cast(image, tf.float32), geometry.resized_size, "bilinear")
    image = tf.slice(image, tf.concat([geometry.offset, [0]], 0), tf.concat([geometry.size, [3]], 0))
    return tf.cond(geometry.flip, lambda: tf.reverse(image, [1]), lambda: image)


def move_boxes(boxes, geometry: Geometry):
    """Gives the moved boxes, clipped to the window.

    mmdetection's arithmetic: each axis is scaled by the exact ratio of the rounded new size to the old one.

    Args:
        boxes: float32 (n, 4), xyxy in pixels of the original picture.
        geometry: the move.

    Returns:
        float32 (n, 4), xyxy in pixels of the result; a box outside of the window has no area. And bool (n,),
        whether a part of the box was cut off.
    """
    scale = tf.cast(geometry.resized_size, tf.float32) / tf.cast(geometry.original_size, tf.float32)
    offset = tf.cast(geometry.offset, tf.float32)
    height, width = tf.unstack(tf.cast(geometry.size, tf.float32))
    whole = boxes * tf.tile(scale[::-1], [2]) - tf.tile(offset[::-1], [2])
    clipped = tf.clip_by_value(whole, 0.0, tf.stack([width, height, width, height]))
    is_cut = tf.reduce_any(tf.abs(whole - clipped) > SMALLEST_SIDE, axis=1)
    x1, y1, x2, y2 = tf.unstack(clipped, axis=1)
    mirrored = tf.stack([width - x2, y1, width - x1, y2], axis=1)
    return tf.where(geometry.flip, mirrored, clipped), is_cut


def draw_masks(segmentations, geometry: Geometry, canvas_size: tuple[int, int]) -> np.ndarray:
    """Gives the moved masks of the objects of one picture.

    Polygons are moved and then filled, so that their edges stay sharp at any scale. Run lengths are decoded
    at their own size and sampled at the centres of the result's pixels. Each is drawn in its own window.

    Args:
        segmentations: for each object a list of polygons (float64 x, y, x, y, ... in pixels of the original
            picture), or COCO's run lengths, see `encode_mask`, or None for no mask.
        geometry: the move, as NumPy arrays.
        canvas_size: (height, width) of the result, at least `geometry.size`; the rest is 0.

    Returns:
        uint8 (n, *canvas_size), 0 or 1. Without any move the pixels are those of pycocotools' decoder.
    """
    masks = np.zeros((len(segmentations), *canvas_size), np.uint8)
    sampled = _sample_positions(geometry)
    for mask, segmentation in zip(masks, segmentations, strict=True):
        if isinstance(segmentation, dict):
            _draw_runs(mask, segmentation, sampled, geometry)
        else:
            for polygon in segmentation or ():
                _draw_polygon(mask, polygon, geometry)
    return masks


def encode_mask(mask) -> dict:
    """Gives the run lengths of a mask, as in COCO's uncompressed format.

    Args:
        mask: bool or 0 and 1, (height, width).

    Returns:
        Dict of "size": [height, width]; "counts": int32 (runs,), the lengths of the runs of zeros, ones,
        zeros, .. down the columns; the first may be 0.
    """
    pixels = np.asarray(mask, bool).T.ravel()
    changes = np.flatnonzero(np.diff(pixels, prepend=False))
    counts = np.diff(np.concatenate([[0], changes, [pixels.size]]))
    return {"size": list(np.shape(mask)), "counts": counts.astype(np.int32)}


def tighten_boxes(boxes, masks, is_cut):
    """Gives the boxes, with those that were cut replaced by the tight box of what is left of their masks.

    mmdetection's `recompute_bbox` after a random crop: the clipped box of a slanted object may be far larger
    than the part that is still visible.

    Args:
        boxes: float32 (n, 4), xyxy pixels.
        masks: uint8 (n, height, width).
        is_cut: bool (n,), the boxes to replace.

    Returns:
        float32 (n, 4); a box of zeros where the mask is empty.
    """
    boxes = np.array(boxes, np.float32)
    for index in np.flatnonzero(is_cut):
        rows, columns = np.flatnonzero(masks[index].any(1)), np.flatnonzero(masks[index].any(0))
        boxes[index] = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1) if len(rows) else 0
    return boxes


def _sample_positions(geometry):
    """Gives for both axes the row or column of the original picture under each pixel of the window."""
    scales = np.asarray(geometry.original_size) / np.asarray(geometry.resized_size)
    return [
        ((np.arange(size) + offset + 0.5) * scale).astype(np.int64)
        for size, offset, scale in zip(geometry.size, geometry.offset, scales, strict=True)
    ]


def _draw_runs(mask, segmentation, sampled, geometry):
    # The runs go down column after column; only the columns with pixels are spread out.
    height, ends = segmentation["size"][0], np.cumsum(segmentation["counts"], dtype=np.int64)
    left, right = ends[0] // height, -(-ends[1::2].max(initial=0) // height)
    first, last = np.searchsorted(sampled[1], (left, right))
    if first < last:
        runs = np.diff(np.clip(ends, left * height, right * height), prepend=left * height)
        strip = np.repeat(np.arange(len(runs), dtype=np.uint8) % 2, runs).reshape(-1, height)
        part = strip[sampled[1][first:last] - left].T[sampled[0]]
        _paint(mask, part, 0, first, geometry)


def _draw_polygon(mask, polygon, geometry):
    scale = np.asarray(geometry.resized_size) / np.asarray(geometry.original_size)
    points = polygon.reshape(-1, 2) * scale[::-1] - np.asarray(geometry.offset)[::-1]
    # pycocotools rounds to fifths of a pixel; done here, so that the window's corner does not change it.
    fifths = np.trunc(5 * points + 0.5)
    # One pixel more on each side, or the outline would be cut.
    limits = np.asarray(geometry.size)[::-1]
    low = np.clip(fifths.min(0) // 5 - 1, 0, limits).astype(np.int64)
    high = np.clip(fifths.max(0) // 5 + 2, 0, limits).astype(np.int64)
    width, height = (high - low).tolist()
    if width and height:
        fifths -= 5 * low
        points = (fifths - 0.75 * (fifths < 0)) / 5  # C rounds towards 0
        (runs,) = coco_mask.frPyObjects([points.ravel()], height, width)
        _paint(mask, coco_mask.decode(runs), low[1], low[0], geometry)


def _paint(mask, part, top, left, geometry):
    height, width = part.shape
    if geometry.flip:
        part, left = part[:, ::-1], geometry.size[1] - left - width
    mask[top : top + height, left : left + width] |= part
