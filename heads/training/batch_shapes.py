"""Batches padded to few shapes, the same on all processes, as JAX compiles a training step for each.

Sides of pictures are rounded up to multiples of 32 (up to 256 pixels), 64 (up to 512) or 128, and the rows of
objects or segments to 8, 16, 32 ... Batches that always have one shape, such as label maps, stay as they are.
"""

import numpy as np

from heads.ops.labels import PADDING_LABEL, VOID_SEGMENT
from heads.pictures import MEAN_PIXEL

SMALLEST_ROWS = 8
STEPS = ((256, 32), (512, 64), (np.inf, 128))  # sides up to -> multiples of


def measure_batch(batch) -> tuple[int, int, int]:
    """Returns the height and width of the pictures of a batch of objects or segments, and its rows.

    Args:
        batch: ({"images", ...}, {"labels", ...}), see `heads.data.detection_batches`; anything else gives
            zeros, because its shape is not changed.
    """
    if not _has_rows(batch):
        return 0, 0, 0
    inputs, targets = batch
    return (*inputs["images"].shape[1:3], targets["labels"].shape[1])


def choose_shape(height: int, width: int, rows: int, one_size: bool = False) -> tuple[int, int, int]:
    """Returns the measures, see `measure_batch`, that a batch is padded to.

    Args:
        height: Height of the pictures, the largest on any process.
        width: Width, likewise.
        rows: Rows, likewise.
        one_size: Whether all batches have pictures of one size, which is kept.
    """
    sides = (height, width) if one_size else map(round_side, (height, width))
    return (*map(int, sides), max(SMALLEST_ROWS, 1 << (int(rows) - 1).bit_length()))


def round_side(side: int) -> int:
    """Returns the side that pictures are padded to."""
    step = next(step for limit, step in STEPS if side <= limit)
    return -(-int(side) // step) * step


def pad_batch(batch, shape: tuple[int, int, int]):
    """Returns a batch with NumPy arrays, its objects or segments padded to a shape.

    Args:
        batch: See `measure_batch`.
        shape: From `choose_shape`, of this batch and of those that other processes have.
    """
    if not _has_rows(batch):
        return batch
    height, width, rows = shape
    inputs, targets = batch
    images = inputs["images"]
    if images.shape[1:3] != (height, width):
        padded = np.empty((len(images), height, width, 3), images.dtype)
        padded[:] = MEAN_PIXEL  # the colour that batches have beyond their pictures
        padded[:, : images.shape[1], : images.shape[2]] = images
        inputs = {**inputs, "images": padded}
    sizes = {
        "boxes": (rows, 4),
        "labels": (rows,),
        "masks": (rows, height, width),
        "segments": (height, width),
    }
    fill = {"labels": PADDING_LABEL, "segments": VOID_SEGMENT}
    return inputs, {
        name: _pad(array, sizes[name], fill.get(name, 0)) if name in sizes else array
        for name, array in targets.items()
    }


def _has_rows(batch):
    return (
        isinstance(batch, tuple)
        and len(batch) == 2
        and all(isinstance(part, dict) for part in batch)
        and "images" in batch[0]
        and "labels" in batch[1]
    )


def _pad(array, shape, value):
    widths = [(0, wanted - size) for size, wanted in zip(array.shape[1:], shape, strict=True)]
    return np.pad(array, [(0, 0), *widths], constant_values=value) if np.any(widths) else array
