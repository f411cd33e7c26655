"""Anchors: the boxes of fixed sizes and shapes that a dense head starts from."""

from collections.abc import Sequence

import numpy as np
from keras import ops


def make_anchors(level_sizes, strides: Sequence[int], scales: Sequence[float], ratios: Sequence[float]):
    """Returns the anchors of every pyramid level.

    Faster R-CNN (arXiv 1506.01497, Sec. 3.1.1), with mmdetection's conventions: the anchors of cell (i, j)
    are centred on (j * stride, i * stride), without half a cell's shift. An anchor of scale s and ratio r has
    the area (s * stride)^2 and is r times as high as wide.

    Args:
        level_sizes: (height, width) of each level in cells, integers or scalar tensors, fine to coarse.
        strides: pixels per cell of each level.
        scales: sides of the square anchors in units of the stride.
        ratios: height / width.

    Returns:
        A list with a float32 tensor (height * width * len(ratios) * len(scales), 4) per level: xyxy in
        pixels; by row, column, ratio, scale, the last the fastest.

    Raises:
        ValueError: if there is not one stride per level.
    """
    _check_levels(level_sizes, strides)
    return [
        _make_level(size, stride, _make_cell(stride, scales, ratios))
        for size, stride in zip(level_sizes, strides, strict=True)
    ]


def _make_cell(stride, scales, ratios):
    """Returns the anchors around (0, 0): (len(ratios) * len(scales), 4)."""
    # In float32, in mmdetection's order: matching looks at the last bit of the overlaps.
    stretch = np.sqrt(np.asarray(ratios, "float32"))[:, None]
    scales = np.asarray(scales, "float32")
    halves_x = np.float32(0.5) * (np.float32(stride) * (1 / stretch) * scales).ravel()
    halves_y = np.float32(0.5) * (np.float32(stride) * stretch * scales).ravel()
    return np.stack([-halves_x, -halves_y, halves_x, halves_y], axis=-1)


def _make_level(size, stride, cell):
    height, width = size
    x = ops.cast(ops.arange(width, dtype="int32"), "float32") * float(stride)
    y = ops.cast(ops.arange(height, dtype="int32"), "float32") * float(stride)
    y, x = ops.meshgrid(y, x, indexing="ij")
    centers = ops.stack([x, y, x, y], axis=-1)  # (height, width, 4)
    return ops.reshape(ops.expand_dims(centers, 2) + ops.convert_to_tensor(cell), (-1, 4))


def join_levels(maps, num_values):
    """Returns the outputs of all anchors, float32 (batch, anchors, num_values), in `make_anchors`' order.

    Args:
        maps: (batch, height, width, anchors of a cell * num_values) of each level, from fine to coarse.
        num_values: outputs of an anchor.
    """
    rows = []
    for level in maps:
        batch, height, width, channels = ops.shape(level)
        rows.append(ops.reshape(level, (batch, height * width * (channels // num_values), num_values)))
    return ops.cast(ops.concatenate(rows, axis=1), "float32")


def mark_inside(anchors, image_sizes, divisor: int = 32):
    """Returns which anchors have their cell in the image rather than in the padding of the batch.

    These are mmdetection's valid flags. An image includes the padding that it would get on its own, to a
    multiple of `divisor`.

    Args:
        anchors: (n, 4), pixels; each is centred on its cell, as `make_anchors` gives them.
        image_sizes: (batch, 2), (height, width) of the images in pixels, without padding.
        divisor: what the sizes of single images are rounded up to.

    Returns:
        (batch, n) bool.
    """
    padded_sizes = -(-ops.cast(image_sizes, "int32") // divisor) * divisor
    # Half a pixel less, because centres are whole strides except for rounding.
    limits = ops.cast(padded_sizes, "float32")[:, :, None] - 0.5  # (batch, 2, 1)
    left, top, right, bottom = ops.unstack(anchors, 4, axis=-1)
    return ops.logical_and(0.5 * (top + bottom) < limits[:, 0], 0.5 * (left + right) < limits[:, 1])


def mark_contained(anchors, image_sizes):
    """Returns which anchors lie completely in their image: bool (batch, n).

    Args:
        anchors: (n, 4), pixels.
        image_sizes: (batch, 2), (height, width) of the images in pixels, without padding.
    """
    heights, widths = ops.split(ops.cast(image_sizes, "float32"), 2, axis=1)
    left, top, right, bottom = ops.unstack(anchors, 4, axis=-1)
    return (left >= 0.0) & (top >= 0.0) & (right < widths) & (bottom < heights)


def _check_levels(level_sizes, strides):
    if len(level_sizes) != len(strides):
        raise ValueError(
            "level_sizes and strides must have one entry per pyramid level. "
            f"Received: {len(level_sizes)} sizes and strides={tuple(strides)}"
        )
