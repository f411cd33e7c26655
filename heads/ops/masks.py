"""Masks of objects: cropped to boxes for training, averaged, pasted into pictures for the user."""

from typing import NamedTuple

import numpy as np
from keras import ops, tree

from heads.ops.bilinear import Samples, place_samples, weigh_cells


class Crops(NamedTuple):
    """What to crop: for each box the number of its mask, below 0 for none, and `Samples` on both axes."""

    numbers: object
    rows: Samples
    columns: Samples


def crop_masks(masks, boxes, indices, size: int = 28):
    """Returns the parts of objects' masks that lie in boxes, at one size: the targets of a mask head.

    RoIAlign of the full masks with samples as fine as the pixels, then a threshold of 0.5, as in
    mmdetection's `BitmapMasks.crop_and_resize`. Box by box, so that only one mask at a time becomes floating
    point.

    Args:
        masks: (batch, n, height, width), 0 or 1 of any dtype.
        boxes: (batch, m, 4) float32, (x1, y1, x2, y2) in pixels. A box without area gives zeros.
        indices: (batch, m) int32, 0 .. n - 1, the mask that each box crops; below 0 gives zeros.
        size: height and width of the crops.

    Returns:
        (batch, m, size, size) float32, 0 or 1.

    Raises:
        ValueError: if size is below 1.

    Reference:
        - He et al., "Mask R-CNN", arXiv 1703.06870, section 3.1.
    """
    if size < 1:
        raise ValueError(f"size must be at least 1. Received: {size}")
    masks = ops.convert_to_tensor(masks)
    boxes, indices = ops.cast(boxes, "float32"), ops.cast(indices, "int32")
    batch, num_masks, height, width = ops.shape(masks)
    num_boxes = ops.shape(boxes)[1]
    first_masks = ops.arange(batch, dtype="int32")[:, None] * num_masks
    numbers = ops.reshape(ops.where(indices < 0, -1, first_masks + indices), (-1,))
    # One extra box without a mask, as not every backend can map over nothing.
    numbers = ops.concatenate([numbers, -ops.ones((1,), "int32")])
    corners = ops.concatenate([ops.reshape(boxes, (-1, 4)), ops.zeros((1, 4), "float32")]) - 0.5
    ones = ops.ones_like(numbers)
    crops = Crops(
        numbers,
        rows=place_samples(corners[:, 1], corners[:, 3], height * ones, size),
        columns=place_samples(corners[:, 0], corners[:, 2], width * ones, size),
    )
    masks = ops.reshape(masks, (-1, height, width))
    row_cells, column_cells = (ops.arange(side, dtype="int32")[None] for side in (height, width))

    def crop_mask(crop):
        mask = ops.cast(ops.take(masks, ops.maximum(crop.numbers, 0), axis=0), "float32")
        row_weights, column_weights = (
            weigh_cells(tree.map_structure(lambda field: field[None], samples), cells, size)[0]
            for samples, cells in ((crop.rows, row_cells), (crop.columns, column_cells))
        )
        sums = ops.matmul(ops.matmul(row_weights, mask), ops.transpose(column_weights))
        # Sums instead of means, so that an exact half stays exact.
        counts = crop.rows.counts * crop.columns.counts
        return ops.cast((sums >= 0.5 * counts) & (counts > 0.0) & (crop.numbers >= 0), "float32")

    cropped = ops.map(crop_mask, crops)[:-1]
    return ops.reshape(cropped, (batch, num_boxes, size, size))


def paste_masks(masks, boxes, image_size, threshold: float = 0.5):
    """Returns the masks of detections at the picture's size, from their scores on a grid over the box.

    Interpolates bilinearly between the centres of the grid's cells and fades to 0 beyond the outermost ones,
    as mmdetection does with PyTorch's `grid_sample(align_corners=False)`. Uses NumPy, one box at a time.

    Args:
        masks: (n, grid height, grid width), scores 0 .. 1, such as 28 x 28.
        boxes: (n, 4), (x1, y1, x2, y2) in the picture's pixels. A box without area gives an empty mask.
        image_size: (height, width) of the picture in pixels.
        threshold: scores from here on belong to the object; above 0, at most 1.

    Returns:
        (n, height, width) bool.

    Raises:
        ValueError: if shapes do not fit or the threshold is not a positive score.
    """
    masks = np.asarray(ops.convert_to_numpy(masks), dtype="float32")
    boxes = np.asarray(ops.convert_to_numpy(boxes), dtype="float32")
    if masks.ndim != 3 or 0 in masks.shape[1:] or boxes.shape != (len(masks), 4):
        raise ValueError(
            "masks must be (n, grid height, grid width) and boxes (n, 4). Take one picture of a batch at a "
            f"time. Received: shapes {masks.shape} and {boxes.shape}"
        )
    if len(image_size) != 2 or min(image_size) < 1:
        raise ValueError(f"image_size must be (height, width), at least 1. Received: {image_size}")
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold must be above 0 and at most 1. Received: {threshold}")
    pasted = np.zeros((len(masks), *image_size), dtype=bool)
    for target, mask, (x1, y1, x2, y2) in zip(pasted, masks, boxes, strict=True):
        first_row, rows = _interpolation_matrix(y1, y2, mask.shape[0], image_size[0])
        first_column, columns = _interpolation_matrix(x1, x2, mask.shape[1], image_size[1])
        scores = rows @ mask @ columns.T
        target[first_row : first_row + len(rows), first_column : first_column + len(columns)] = (
            scores >= threshold
        )
    return pasted


def _interpolation_matrix(start, end, num_cells, num_pixels):
    """Returns the first pixel that a grid from `start` to `end` touches, and the cells' weights in each.

    Returns:
        - int, the first pixel.
        - (touched pixels, num_cells) float32; no pixels where the grid has no length.
    """
    length = float(end) - float(start)
    if not 0 < length < np.inf:
        return 0, np.zeros((0, num_cells), "float32")
    # Half a cell beyond the grid the scores have faded to 0.
    margin = 0.5 * length / num_cells
    first = int(np.clip(np.floor(start - margin - 0.5), 0, num_pixels))
    stop = int(np.clip(np.ceil(end + margin + 0.5), first, num_pixels))
    positions = (np.arange(first, stop) + 0.5 - start) / length * num_cells - 0.5
    weights = np.maximum(1.0 - np.abs(positions[:, None] - np.arange(num_cells)), 0.0)
    return first, weights.astype("float32")


def average_sigmoids(logits):
    """Returns the logits whose sigmoid is the mean of the sigmoids of a list of logits."""
    logits = ops.stack(logits)
    # Both means separately, as 1 - mean would lose values near 0. (LiteRT has no logarithm of a sigmoid.)
    shares = [ops.mean(ops.sigmoid(signed), axis=0) for signed in (logits, -logits)]
    present, absent = (ops.log(ops.maximum(share, 1e-37)) for share in shares)
    return present - absent
