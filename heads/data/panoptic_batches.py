"""Batches for panoptic segmentation, from any source of pictures with segments.

A source (`PanopticDataset`, `PanopticShapes`, or your own class) has

- `class_names`, `num_things`, `num_stuff`: the classes of things, then those of stuff.
- `image_ids`, `image_sizes`: see `heads.data.detection_batches`.
- `load(indices=None)`: a dataset of dicts of "index", "image", "segments" and "labels", see
  `PanopticDataset.load`.
- `load_segments(index)`: the truth of an image for the scores, see `PanopticDataset.load_segments`.

A batch is `(inputs, targets)`, the inputs as in `heads.data.detection_batches`; the targets are "segments":
int32 (batch, height, width), rows of "labels", -1 for none; and "labels": int32 (batch, n), -1 is padding,
-2 a crowd. n is the largest number of segments in the batch, at least 1.
"""

from collections.abc import Callable

import numpy as np
import tensorflow as tf

from heads.data.detection_batches import batch_moved, batch_resized, place_on_canvas
from heads.data.detection_moves import LONG_SIDE, Move, move_segments
from heads.ops.labels import PADDING_LABEL, VOID_SEGMENT
from heads.picture_sizes import Resizing


def panoptic_training_batches(
    source,
    batch_size: int,
    augment: Callable,
    seed: int = 0,
    shuffle: bool = True,
    group_by_ratio: bool | None = None,
    first_step: int = 0,
) -> tf.data.Dataset:
    """Endless augmented batches; the same `seed` gives the same batches.

    Segments without a pixel after the augmentation are left out. The arguments are those of
    `heads.data.detection_training_batches`.

    Returns:
        Dataset of ({"images", "image_sizes"}, {"segments", "labels"}), see the top of this file. Images are
        padded to the `image_size` of `augment`, or to the largest of the batch, rounded up to a multiple of
        32.
    """
    return batch_moved(
        source, batch_size, augment, _prepare_example, seed, shuffle, group_by_ratio, first_step
    )


def panoptic_evaluation_batches(
    source,
    batch_size: int = 1,
    image_size: tuple[int, int] | None = None,
    short_side: int | None = None,
    long_side: int = LONG_SIDE,
) -> tf.data.Dataset:
    """Batches of one pass in the order of `source.image_ids`, not augmented; the last may be smaller.

    The arguments are those of `heads.data.detection_evaluation_batches`.

    Returns:
        Dataset of ({"images", "image_sizes", "original_sizes"}, {"segments", "labels"}), see the top of this
        file.
    """
    resizing = Resizing(image_size, short_side, long_side)
    return batch_resized(source, batch_size, resizing, _prepare_example)


def _prepare_example(example, image, move, canvas_size):
    """Returns the inputs and targets of one image, padded to the canvas, the padding still black."""
    inputs, canvas_size, static_size = place_on_canvas(image, move, canvas_size)

    def draw(segments, labels, canvas_size, *move):
        moved = move_segments(segments, Move(*move))
        rows, numbers = np.unique(moved, return_inverse=True)
        is_void = rows == VOID_SEGMENT
        # Row k of the remaining labels is the k-th segment that occurs.
        numbers = np.where(is_void, VOID_SEGMENT, np.cumsum(~is_void) - 1)[numbers]
        canvas = np.full(canvas_size, VOID_SEGMENT, np.int32)
        canvas[: moved.shape[0], : moved.shape[1]] = numbers.reshape(moved.shape)
        left = labels[rows[~is_void]]
        return canvas, left if len(left) else np.full(1, PADDING_LABEL, np.int32)

    segments, labels = tf.numpy_function(
        draw, [example["segments"], example["labels"], canvas_size, *move], (tf.int32, tf.int32)
    )
    return inputs, {
        "segments": tf.ensure_shape(segments, static_size),
        "labels": tf.ensure_shape(labels, (None,)),
    }
