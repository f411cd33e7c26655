"""Batches for top-down pose estimation, from any source of people with keypoints.

A source (`CocoKeypoints`, `KeypointShapes`, or your own class) has

- `num_keypoints`; `flip_pairs`, pairs of keypoints that a mirror swaps; and `upper_body`, numbers of
  keypoints for the augmentation, perhaps empty.
- `image_ids`: the id of each person's picture. A person's position in this list is its index.
- `load(indices=None)`: for a `tf.data.Dataset` of indices (None: each once, in order) a dataset of dicts:
  "index": int64 (); "image": uint8 (height, width, 3), RGB, the whole picture; "box": float32 (4,), xyxy
  pixels; "keypoints": float32 (keypoints, 3), x, y and visibility, which is 0 without a label. The centre of
  the first pixel is (0, 0).

A batch is `(inputs, targets)`:

- "images": float32 (batch, height, width, 3), 0 .. 255, a crop of one person each, black outside of the
  picture.
- "to_pictures" (in evaluation): float32 (batch, 2, 3), the affine map from (x, y, 1) in the crop to (x, y) in
  the picture.
- "keypoints": float32 (batch, keypoints, 2), (x, y) in pixels of the crop; "weights": float32 (batch,
  keypoints), 1 for a labelled keypoint, else 0.
"""

from collections.abc import Callable

import numpy as np
import tensorflow as tf

from heads.arguments import read_count, read_flag, read_seed, read_size
from heads.data.order import BatchOrder, continue_batches, find_groups, load_in_order
from heads.data.person_moves import PersonMove, move_person
from heads.data.prefetching import prefetch_batches
from heads.person_crops import fit_box, invert_warp, make_warp


def pose_training_batches(
    source,
    batch_size: int,
    augment: Callable,
    seed: int = 0,
    shuffle: bool = True,
    first_step: int = 0,
) -> tf.data.Dataset:
    """Endless augmented batches; the same `seed` gives the same batches.

    Each person is drawn once per epoch. A second `fit` or loop over the dataset goes on after the last batch
    that was drawn from it; make a new dataset to start again.

    Args:
        source: See the top of this file.
        batch_size: People per batch.
        augment: Function `(picture_size, box, keypoints, upper_body, random) -> PersonMove` with an
            `image_size`, see `PoseAugmentation`.
        seed: Seed of the order and of the augmentation, 0 or more.
        shuffle: Whether to shuffle in each epoch; otherwise the order is that of the source.
        first_step: How many batches to skip, because the training has had them already.

    Returns:
        Dataset of ({"images"}, {"keypoints", "weights"}), see the top of this file.
    """
    crop_size = read_size("image_size of augment", augment.image_size)
    seed = read_seed(seed)
    order = BatchOrder(
        find_groups(source, group_by_ratio=False),
        read_count("batch_size", batch_size),
        seed if read_flag("shuffle", shuffle) else None,
    )

    def choose(example, number):
        def draw(size, box, keypoints, number):
            random = np.random.default_rng((seed, int(number)))
            warp, is_mirrored = augment(tuple(size), box, keypoints, source.upper_body, random)
            return warp, np.bool_(is_mirrored)

        size = tf.shape(example["image"])[:2]
        return tf.numpy_function(
            draw, [size, example["box"], example["keypoints"], number], (tf.float64, tf.bool)
        )

    def prepare(example, number):
        inputs, targets = _prepare_example(source, example, choose(example, number), crop_size)
        return {"images": inputs["images"]}, targets

    def make_batches(positions, numbers, size):
        examples = tf.data.Dataset.zip((source.load(indices=positions), numbers))
        examples = examples.map(prepare, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
        return prefetch_batches(examples.batch(size, drop_remainder=True))

    return continue_batches(order, first_step, make_batches)


def pose_evaluation_batches(
    source, batch_size: int = 32, image_size: tuple[int, int] = (256, 192)
) -> tf.data.Dataset:
    """Batches of one pass over the people in the order of the source, not augmented; the last may be smaller.

    Args:
        source: See the top of this file.
        batch_size: People per batch.
        image_size: (height, width) of the crops.

    Returns:
        Dataset of ({"images", "to_pictures"}, {"keypoints", "weights"}), see the top of this file.
    """
    read_count("batch_size", batch_size)
    crop_size = read_size("image_size", image_size)

    def prepare(example):
        def place(box):
            return make_warp(*fit_box(box), crop_size)

        warp = tf.numpy_function(place, [example["box"]], tf.float64)
        return _prepare_example(source, example, (warp, tf.constant(False)), crop_size)

    examples = load_in_order(source, batch_size).map(
        prepare, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True
    )
    return prefetch_batches(examples.batch(batch_size))


def _prepare_example(source, example, move, crop_size):
    """Returns the inputs and targets of one person."""
    counterparts = np.arange(source.num_keypoints)
    for left, right in source.flip_pairs:
        counterparts[[left, right]] = right, left

    def cut(pixels, keypoints, warp, is_mirrored):
        move = PersonMove(warp, bool(is_mirrored))
        crop, points, weights = move_person(move, pixels, keypoints, crop_size, counterparts)
        return crop, points, weights, invert_warp(warp).astype(np.float32)

    crop, points, weights, to_picture = tf.numpy_function(
        cut,
        [example["image"], example["keypoints"], *move],
        (tf.uint8, tf.float32, tf.float32, tf.float32),
    )
    inputs = {
        "images": tf.ensure_shape(tf.cast(crop, tf.float32), (*crop_size, 3)),
        "to_pictures": tf.ensure_shape(to_picture, (2, 3)),
    }
    targets = {
        "keypoints": tf.ensure_shape(points, (source.num_keypoints, 2)),
        "weights": tf.ensure_shape(weights, (source.num_keypoints,)),
    }
    return inputs, targets
