"""Sizes and flips of an image with its mask, for salient object detection."""

from collections.abc import Sequence

import tensorflow as tf

from heads.arguments import read_count, read_counts, read_flag
from heads.data.semantic_moves import pad_pair, random_flip, resize_keep_ratio


class SaliencyAugmentation:
    """A square with one image and its mask, mirrored at random; each batch has one of several sizes.

    The image is resized to fit into the square with its ratio kept, then padded at the bottom and right, with
    the mean grey and the mask with 255, as `Resizing(image_size)` does for prediction.

    Args:
        batch_size: The same as in `semantic_training_batches`: the running number of an image tells its
            batch, and so its size.
        image_sizes: Sides of the squares, of which each batch gets one at random.
        flip: Whether to mirror half of the pictures left to right.

    Call arguments:
        image: `(height, width, 3)`, 0 .. 255, any size and dtype.
        label: `(height, width)`, int32.
        seed: int32 `(2,)`: the seed, and the running number of the image.

    Returns:
        Image float32 `(side, side, 3)` in 0 .. 255, and label int32 `(side, side)`.
    """

    def __init__(self, batch_size: int, image_sizes: Sequence[int] = (320, 352, 384), flip: bool = True):
        self.batch_size = read_count("batch_size", batch_size)
        self.image_sizes = read_counts("image_sizes", image_sizes)
        self.flip = read_flag("flip", flip)

    def __call__(self, image, label, seed):
        side = self._draw_side(seed)
        image, label = resize_keep_ratio(image, label, side, side)
        if self.flip:
            image, label = random_flip(image, label, tf.random.fold_in(seed, 1))
        return pad_pair(image, label, (side, side))

    def _draw_side(self, seed):
        if len(self.image_sizes) == 1:
            return self.image_sizes[0]  # known before the graph runs
        batch_seed = tf.stack([seed[0], seed[1] // self.batch_size])
        choice = tf.random.stateless_uniform((), batch_seed, 0, len(self.image_sizes), tf.int32)
        return tf.gather(self.image_sizes, choice)
