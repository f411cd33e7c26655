"""Crops and flips of an image with its class, for image classification."""

import tensorflow as tf

from heads.arguments import read_count, read_flag, read_range
from heads.data.semantic_moves import check_bands
from heads.pictures import RGB_CHANNELS


class ClassAugmentation:
    """A random part of the image, resized to a square and mirrored at random (Inception's augmentation).

    Args:
        image_size: Side of the square.
        area_range: Smallest and largest share of the image's area.
        ratio_range: Smallest and largest width / height of the part.
        flip: Whether to mirror half of the pictures left to right.

    Call arguments:
        image: `(height, width, channels)`, any size and dtype; RGB is 0 .. 255.
        label: int32 scalar.
        seed: int32 `(2,)`.

    Returns:
        Image float32 `(image_size, image_size, channels)`, RGB in 0 .. 255, and the label.
    """

    def __init__(
        self,
        image_size: int = 224,
        area_range: tuple[float, float] = (0.08, 1.0),
        ratio_range: tuple[float, float] = (3 / 4, 4 / 3),
        flip: bool = True,
    ):
        self.image_size = read_count("image_size", image_size)
        self.area_range = read_range("area_range", area_range)
        if self.area_range[1] > 1:
            raise ValueError(f"area_range must be shares of the area, at most 1. Received: {area_range}")
        self.ratio_range = read_range("ratio_range", ratio_range)
        self.flip = read_flag("flip", flip)

    def __call__(self, image, label, seed):
        crop_seed, flip_seed = tf.unstack(tf.random.split(seed))
        image = check_bands(image)
        num_channels = image.shape[-1]
        begin, size, _ = tf.image.stateless_sample_distorted_bounding_box(
            tf.shape(image),
            tf.constant([[[0.0, 0.0, 1.0, 1.0]]]),
            crop_seed,
            min_object_covered=0.0,
            aspect_ratio_range=self.ratio_range,
            area_range=self.area_range,
        )
        image = tf.cast(tf.slice(image, begin, size), tf.float32)
        image = tf.image.resize(image, (self.image_size, self.image_size), "bicubic", antialias=True)
        if num_channels == RGB_CHANNELS:  # the bicubic kernel overshoots at edges
            image = tf.clip_by_value(image, 0.0, 255.0)
        image = tf.ensure_shape(image, (self.image_size, self.image_size, num_channels))
        mirrored = self.flip and tf.random.stateless_uniform((), flip_seed) < 0.5
        return tf.cond(tf.cast(mirrored, tf.bool), lambda: tf.reverse(image, [1]), lambda: image), label
