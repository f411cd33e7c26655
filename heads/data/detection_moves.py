"""One move for a picture with its boxes and masks: resized, cropped, mirrored.

Pixels and boxes are moved in `tf.data` graphs. Masks stay polygons or run lengths until the move is known,
and are then drawn once, in the result's pixels.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from heads.arguments import read_count, read_counts, read_flag, read_range, read_size
from heads.data.semantic_moves import check_bands, fit_sides, photometric_distortion, scale_size

# mmdetection's least width and height after large-scale jitter, in pixels.
SMALLEST_SIDE = 0.01


class Move(NamedTuple):
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


def make_resize(original_size, resized_size) -> Move:
    """Returns a move that only resizes.

    Args:
        original_size: int32 (2,), (height, width).
        resized_size: int32 (2,), (height, width).
    """
    return Move(original_size, resized_size, tf.zeros(2, tf.int32), resized_size, tf.constant(False))


def move_image(image, move: Move):
    """Returns the moved picture, by bilinear interpolation that is not antialiased, as in the reference.

    Args:
        image: (height, width, channels), any dtype.
        move: the move.

    Returns:
        float32 (*move.size, channels).
    """
    image = check_bands(image)
    # TensorFlow resizes float32 faster than uint8, the cast included.
    image = tf.image.resize(tf.cast(image, tf.float32), move.resized_size, "bilinear")
    num_channels = image.shape[-1]
    image = tf.slice(image, tf.concat([move.offset, [0]], 0), tf.concat([move.size, [num_channels]], 0))
    return tf.cond(move.flip, lambda: tf.reverse(image, [1]), lambda: image)


def move_boxes(boxes, move: Move):
    """Returns the moved boxes, clipped to the window.

    mmdetection's arithmetic: each axis is scaled by the exact ratio of the rounded new size to the old one.

    Args:
        boxes: float32 (n, 4), xyxy in pixels of the original picture.
        move: the move.

    Returns:
        float32 (n, 4), xyxy in pixels of the result; a box outside of the window has no area. And bool (n,),
        whether a part of the box was cut off.
    """
    scale = tf.cast(move.resized_size, tf.float32) / tf.cast(move.original_size, tf.float32)
    offset = tf.cast(move.offset, tf.float32)
    height, width = tf.unstack(tf.cast(move.size, tf.float32))
    whole = boxes * tf.tile(scale[::-1], [2]) - tf.tile(offset[::-1], [2])
    clipped = tf.clip_by_value(whole, 0.0, tf.stack([width, height, width, height]))
    is_cut = tf.reduce_any(tf.abs(whole - clipped) > SMALLEST_SIDE, axis=1)
    x1, y1, x2, y2 = tf.unstack(clipped, axis=1)
    mirrored = tf.stack([width - x2, y1, width - x1, y2], axis=1)
    return tf.where(move.flip, mirrored, clipped), is_cut


def draw_masks(segmentations, move: Move, canvas_size: tuple[int, int]) -> np.ndarray:
    """Returns the moved masks of the objects of one picture.

    Polygons are moved and then filled, so that their edges stay sharp at any scale. Run lengths are decoded
    at their own size and sampled at the centres of the result's pixels. Each is drawn in its own window.

    Args:
        segmentations: for each object a list of polygons (float64 x, y, x, y, ... in pixels of the original
            picture), or COCO's run lengths, see `count_runs`, or None for no mask.
        move: the move, as NumPy arrays.
        canvas_size: (height, width) of the result, at least `move.size`; the rest is 0.

    Returns:
        uint8 (n, *canvas_size), 0 or 1. Without any move the pixels are those of pycocotools' decoder.
    """
    masks = np.zeros((len(segmentations), *canvas_size), np.uint8)
    sampled = _sample_positions(move)
    for mask, segmentation in zip(masks, segmentations, strict=True):
        if isinstance(segmentation, dict):
            _draw_runs(mask, segmentation, sampled, move)
        else:
            for polygon in segmentation or ():
                _draw_polygon(mask, polygon, move)
    return masks


def move_segments(segments, move: Move) -> np.ndarray:
    """Returns a moved map of whole numbers, sampled at the centres of the result's pixels.

    Args:
        segments: (height, width).
        move: the move, as NumPy arrays.

    Returns:
        (*move.size) of the same dtype.
    """
    rows, columns = _sample_positions(move)
    moved = segments[rows][:, columns]
    return moved[:, ::-1] if move.flip else moved


def count_runs(mask) -> dict:
    """Returns the run lengths of a mask, as in COCO's uncompressed format.

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
    """Returns the boxes; those that were cut become the tight boxes of the rest of their masks.

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


def _sample_positions(move):
    """Returns for both axes the row or column of the original picture under each pixel of the window."""
    scales = np.asarray(move.original_size) / np.asarray(move.resized_size)
    return [
        ((np.arange(size) + offset + 0.5) * scale).astype(np.int64)
        for size, offset, scale in zip(move.size, move.offset, scales, strict=True)
    ]


def _draw_runs(mask, segmentation, sampled, move):
    # The runs go down column after column; only the columns with pixels are decoded.
    height, ends = segmentation["size"][0], np.cumsum(segmentation["counts"], dtype=np.int64)
    left, right = ends[0] // height, -(-ends[1::2].max(initial=0) // height)
    first, last = np.searchsorted(sampled[1], (left, right))
    if first < last:
        runs = np.diff(np.clip(ends, left * height, right * height), prepend=left * height)
        strip = np.repeat(np.arange(len(runs), dtype=np.uint8) % 2, runs).reshape(-1, height)
        part = strip[sampled[1][first:last] - left].T[sampled[0]]
        _paint(mask, part, 0, first, move)


def _draw_polygon(mask, polygon, move):
    scale = np.asarray(move.resized_size) / np.asarray(move.original_size)
    points = polygon.reshape(-1, 2) * scale[::-1] - np.asarray(move.offset)[::-1]
    # pycocotools rounds to fifths of a pixel. Rounded here already, so that the window's corner does not
    # matter.
    fifths = np.trunc(5 * points + 0.5)
    # One pixel more on each side, or the outline would be cut.
    limits = np.asarray(move.size)[::-1]
    low = np.clip(fifths.min(0) // 5 - 1, 0, limits).astype(np.int64)
    high = np.clip(fifths.max(0) // 5 + 2, 0, limits).astype(np.int64)
    width, height = (high - low).tolist()
    if width and height:
        fifths -= 5 * low
        points = (fifths - 0.75 * (fifths < 0)) / 5  # C rounds towards 0
        from pycocotools import mask as coco_mask  # only polygons need it

        (runs,) = coco_mask.frPyObjects([points.ravel()], height, width)
        _paint(mask, coco_mask.decode(runs), low[1], low[0], move)


def _paint(mask, part, top, left, move):
    height, width = part.shape
    if move.flip:
        part, left = part[:, ::-1], move.size[1] - left - width
    mask[top : top + height, left : left + width] |= part


# The coarsest stride of the backbones.
SIZE_DIVISOR = 32


SHORT_SIDES = tuple(range(480, 801, 32))


LONG_SIDE = 1333


class DetectionAugmentation:
    """A random size, crop, mirror and colour distortion of one picture.

    Either the short side is drawn from a set, or the result has one fixed size: the picture is resized to fit
    into it, enlarged or shrunk further by a random factor (large-scale jitter), and cropped to the size at
    random. The ratio is always kept.

    Args:
        short_sides: Lengths of the short side to draw from, or one length, pixels. Default: 480, 512, .. 800,
            as in DETR and Mask R-CNN's longer schedules; the 1x schedule has 800.
        long_side: Limit of the long side, pixels.
        image_size: (height, width) of the result, or one length for a square, instead of `short_sides`.
        scale_range: Lowest and highest factor of the jitter, with `image_size` only; (0.1, 2.0) or
            (0.8, 1.25) in arXiv 2012.07177. Default: 1, no jitter.
        flip: Whether to mirror half of the pictures left to right.
        photometric: Whether to distort brightness, contrast, saturation and hue, which RGB alone has.

    Call arguments:
        image: (height, width, 3), 0 .. 255, any size and dtype; or any other number of channels.
        seed: int32 (2,).

    Returns:
        Image float32 (height, width, 3), not padded, and the `Move` that boxes and masks follow.

    Raises:
        ValueError: For sizes that are not positive whole numbers, factors that are not positive, and
            arguments that exclude each other.
    """

    def __init__(
        self,
        short_sides: Sequence[int] | None = None,
        long_side: int = LONG_SIDE,
        image_size: tuple[int, int] | None = None,
        scale_range: tuple[float, float] | None = None,
        flip: bool = True,
        photometric: bool = False,
    ):
        if image_size is not None and short_sides is not None:
            raise ValueError(
                "short_sides must be None where image_size is given. "
                f"Received: short_sides={short_sides}, image_size={image_size}"
            )
        if image_size is None and scale_range is not None:
            raise ValueError(f"scale_range needs image_size=(height, width). Received: {scale_range}")
        self.long_side = read_count("long_side", long_side)
        self.short_sides = SHORT_SIDES if short_sides is None else read_counts("short_sides", short_sides)
        if self.long_side < max(self.short_sides):
            raise ValueError(
                "short_sides must be positive and not above long_side. "
                f"Received: short_sides={short_sides}, long_side={long_side}"
            )
        self.image_size = None if image_size is None else read_size("image_size", image_size)
        self.scale_range = (1.0, 1.0) if scale_range is None else read_range("scale_range", scale_range)
        self.flip = read_flag("flip", flip)
        self.photometric = read_flag("photometric", photometric)

    def __call__(self, image, seed):
        scale_seed, crop_seed, flip_seed, colour_seed = tf.unstack(tf.random.split(seed, 4))
        original_size = tf.shape(image)[:2]
        if self.image_size is None:
            drawn = tf.random.stateless_uniform((), scale_seed, 0, len(self.short_sides), tf.int32)
            short_side = tf.gather(self.short_sides, drawn)
            resized_size = fit_sides(original_size, short_side, self.long_side)
            offset, size = tf.zeros(2, tf.int32), resized_size
        else:
            factor = tf.random.stateless_uniform((), scale_seed, *map(float, self.scale_range))
            resized_size = fit_size(original_size, self.image_size, factor)
            size = tf.minimum(resized_size, self.image_size)
            places = tf.cast(resized_size - size + 1, tf.float32)
            offset = tf.cast(tf.random.stateless_uniform((2,), crop_seed) * places, tf.int32)
        flip = tf.constant(False)
        if self.flip:
            flip = tf.random.stateless_uniform((), flip_seed) < 0.5
        move = Move(original_size, resized_size, offset, size, flip)
        image = move_image(image, move)
        return photometric_distortion(image, colour_seed) if self.photometric else image, move


def fit_size(size, image_size, factor=1.0):
    """Returns the largest size of the same ratio inside of (height, width) times a factor, int32 (2,)."""
    limits = tf.floor(tf.constant(image_size, tf.float64) * tf.cast(factor, tf.float64))
    limits = tf.maximum(limits, 1.0)
    scale = tf.reduce_min(limits / tf.cast(size, tf.float64))
    return tf.minimum(scale_size(size, scale), tf.cast(limits, tf.int32))
