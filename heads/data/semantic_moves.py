"""Sizes, crops, flips and colours of an image with its label map, in `tf.data` graphs.

mmsegmentation's training pipeline for ADE20K, which the VAN paper used (Sec. 4.3). Every random function
takes an explicit stateless seed, int32 `(2,)`: the same seed gives the same result.
"""

import numpy as np
import tensorflow as tf

from heads.arguments import read_counts, read_flag, read_range, read_share, read_size
from heads.ops.labels import IGNORED_LABEL
from heads.pictures import RGB_CHANNELS, choose_padding

MAX_CROP_TRIES = 10
BRIGHTNESS_DELTA = 32.0
CONTRAST_RANGE = (0.5, 1.5)
SATURATION_RANGE = (0.5, 1.5)
# mmsegmentation has 18, in OpenCV's 8-bit hue, whose steps are 2 degrees.
HUE_DELTA = 36.0


class SemanticAugmentation:
    """Scale, crop, flip and colour distortion of one image with its label map.

    Args:
        crop_size: (height, width) of the result, or one length for a square; smaller pictures are padded at
            the bottom and right, the image with the mean grey and the label with 255.
        scale_range: Lowest and highest random scale.
        base_size: (long side, short side) to which the picture is resized before the random scale, as
            `resize_keep_ratio` does; ADE20K: (2048, 512). None starts from the stored size.
        max_class_share: A crop is drawn again, up to 10 times, while one class has this share of its
            labelled pixels or more. 1 takes the first crop.
        flip: Whether to mirror half of the pictures left to right.
        photometric: Whether to distort brightness, contrast, saturation and hue, which RGB alone has.

    Call arguments:
        image: `(height, width, 3)`, 0 .. 255, any size and dtype; or any other number of channels.
        label: `(height, width)`, int32.
        seed: int32 `(2,)`.

    Returns:
        Image float32 `(*crop_size, 3)` in 0 .. 255, and label int32 `crop_size`.
    """

    def __init__(
        self,
        crop_size: tuple[int, int],
        scale_range: tuple[float, float] = (0.5, 2.0),
        base_size: tuple[int, int] | None = None,
        max_class_share: float = 0.75,
        flip: bool = True,
        photometric: bool = True,
    ):
        self.crop_size = read_size("crop_size", crop_size)
        self.scale_range = read_range("scale_range", scale_range)
        self.base_size = None
        if base_size is not None:
            self.base_size = read_counts("base_size", base_size)
            if len(self.base_size) != 2 or self.base_size[0] < self.base_size[1]:
                raise ValueError(f"base_size must be (long side, short side). Received: {base_size}")
        self.max_class_share = read_share("max_class_share", max_class_share)
        self.flip = read_flag("flip", flip)
        self.photometric = read_flag("photometric", photometric)

    def __call__(self, image, label, seed):
        scale_seed, crop_seed, flip_seed, colour_seed = tf.unstack(tf.random.split(seed, 4))
        image, label = random_scale(image, label, scale_seed, self.scale_range, self.base_size)
        image, label = random_crop(image, label, crop_seed, self.crop_size, self.max_class_share, pad=False)
        if self.flip:
            image, label = random_flip(image, label, flip_seed)
        if self.photometric:
            image = photometric_distortion(image, colour_seed)
        # Padded last, so that the padding is at the bottom right and keeps the grey that a backbone sees as
        # zero.
        return pad_pair(image, label, self.crop_size)


def random_scale(image, label, seed, scale_range, base_size=None):
    """Image and label resized by a random scale, the ratio kept.

    Args:
        image: `(height, width, 3)`.
        label: `(height, width)`, int32.
        seed: int32 `(2,)`.
        scale_range: Lowest and highest scale; uniform between them.
        base_size: (long side, short side) that scale 1 stands for, see `resize_keep_ratio`; the two limits
            are scaled, and the picture is resized only once. None: scale 1 is the stored size.

    Returns:
        Image float32 and label int32.
    """
    scale = tf.random.stateless_uniform((), seed, *map(float, scale_range))
    if base_size is None:
        return resize_pair(image, label, scale_size(tf.shape(label), scale))
    long_side, short_side = (tf.floor(side * scale) for side in base_size)
    return resize_keep_ratio(image, label, long_side, short_side)


def random_crop(image, label, seed, crop_size, max_class_share=0.75, pad=True):
    """A random window of an image and its label map.

    Drawn again until the window holds two classes or more and none has `max_class_share` of its labelled
    pixels (mmsegmentation's `RandomCrop`); the 10th window is taken as it is.

    Args:
        image: `(height, width, 3)`.
        label: `(height, width)`, int32.
        seed: int32 `(2,)`.
        crop_size: (height, width) of the window, or one length for a square.
        max_class_share: Share of one class, 1 for no limit.
        pad: Whether a smaller picture is padded to `crop_size`; otherwise the result is smaller.

    Returns:
        Image float32 and label int32.
    """
    crop_size = read_size("crop_size", crop_size)
    image = check_bands(image)
    size = tf.minimum(tf.shape(label), crop_size)
    positions = tf.cast(tf.shape(label) - size + 1, tf.float32)

    def draw(attempt):
        drawn = tf.random.stateless_uniform((2,), tf.random.fold_in(seed, attempt))
        return tf.cast(drawn * positions, tf.int32)

    def is_one_sided(attempt, offset):
        counts = _count_classes(tf.slice(label, offset, size))
        share = tf.reduce_max(counts) / tf.maximum(tf.reduce_sum(counts), 1)
        enough_classes = tf.math.count_nonzero(counts) > 1
        return ~(enough_classes & (share < max_class_share))

    offset = draw(0)
    if max_class_share < 1:
        _, offset = tf.while_loop(
            is_one_sided,
            lambda attempt, offset: (attempt + 1, draw(attempt + 1)),
            (0, offset),
            maximum_iterations=MAX_CROP_TRIES - 1,
        )
    label = tf.slice(label, offset, size)
    image = tf.slice(image, tf.concat([offset, [0]], 0), tf.concat([size, [image.shape[-1]]], 0))
    return pad_pair(image, label, crop_size) if pad else (tf.cast(image, tf.float32), label)


def random_flip(image, label, seed):
    """Image and label, mirrored left to right with probability 0.5."""
    return tf.cond(
        _flip_coin(seed), lambda: (tf.reverse(image, [1]), tf.reverse(label, [1])), lambda: (image, label)
    )


def photometric_distortion(image, seed):
    """Brightness, contrast, saturation and hue, each changed with probability 0.5.

    mmsegmentation's `PhotoMetricDistortion`, without its rounding to whole numbers in between: brightness
    up to +-32, contrast and saturation 0.5 .. 1.5, hue up to +-36 degrees; contrast comes with equal chance
    before or after saturation and hue. Each step is clipped to 0 .. 255.

    Args:
        image: `(height, width, 3)` RGB, 0 .. 255.
        seed: int32 `(2,)`.

    Returns:
        Image float32, 0 .. 255.
    """
    order, brightness, contrast, saturation, hue = tf.unstack(tf.random.split(seed, 5))
    contrast_first = _flip_coin(order)
    image = check_channels(image, way_out="; photometric=False leaves colours as they are")
    image = tf.cast(image, tf.float32)
    image = _apply_by_chance(add_brightness, image, brightness, (-BRIGHTNESS_DELTA, BRIGHTNESS_DELTA))
    image = _apply_by_chance(scale_contrast, image, contrast, CONTRAST_RANGE, contrast_first)
    image = _apply_by_chance(scale_saturation, image, saturation, SATURATION_RANGE)
    image = _apply_by_chance(rotate_hue, image, hue, (-HUE_DELTA, HUE_DELTA))
    return _apply_by_chance(scale_contrast, image, contrast, CONTRAST_RANGE, ~contrast_first)


def add_brightness(image, delta):
    """The image plus a number, clipped to 0 .. 255."""
    return tf.clip_by_value(image + delta, 0.0, 255.0)


def scale_contrast(image, factor):
    """The image times a number (so around black, not around its mean), clipped to 0 .. 255."""
    return tf.clip_by_value(image * factor, 0.0, 255.0)


def scale_saturation(image, factor):
    """The image with its HSV saturation times a number, clipped to full saturation."""
    return tf.clip_by_value(tf.image.adjust_saturation(image, factor), 0.0, 255.0)


def rotate_hue(image, degrees):
    """The image with its HSV hue turned."""
    return tf.clip_by_value(tf.image.adjust_hue(image, degrees / 360.0), 0.0, 255.0)


def resize_keep_ratio(image, label, long_side, short_side):
    """An image and its label map, as large as fits both limits with the ratio kept.

    mmsegmentation's resize for ADE20K, with 2048 and 512: scale = min(long_side / longer side,
    short_side / shorter side), new side = int(side * scale + 0.5). It also enlarges.

    Args:
        image: `(height, width, 3)`.
        label: `(height, width)`, int32.
        long_side: Limit of the longer side, pixels.
        short_side: Limit of the shorter side, pixels.

    Returns:
        Image float32 and label int32, of the new size.
    """
    return resize_pair(image, label, fit_sides(tf.shape(label), short_side, long_side))


def fit_sides(size, short_side, long_side):
    """The largest size of the same ratio within both limits, int32 (2,), rounded as in mmdetection."""
    sides = tf.cast(size, tf.float64)
    scale = tf.minimum(
        tf.cast(long_side, tf.float64) / tf.reduce_max(sides),
        tf.cast(short_side, tf.float64) / tf.reduce_min(sides),
    )
    return scale_size(size, scale)


def fit_original(resizing, size):
    """The size that a `Resizing` gives to a picture of a size, in a graph; both int32 (2,)."""
    fitted = tf.numpy_function(lambda size: np.array(resizing.fit(size), "int32"), [size], tf.int32)
    return tf.ensure_shape(fitted, (2,))


def scale_size(size, scale):
    """The size times a scale, rounded half up, at least 1 pixel; in float64 as the reference has it."""
    scaled = tf.cast(size, tf.float64) * tf.cast(scale, tf.float64) + 0.5
    return tf.maximum(tf.cast(scaled, tf.int32), 1)


def resize_pair(image, label, size):
    """Image by bilinear, label by nearest interpolation; both with half-pixel centres, so they stay aligned.

    Not antialiased, as in the reference (OpenCV's bilinear).

    Args:
        image: `(height, width, 3)`.
        label: `(height, width)`, int32.
        size: New (height, width).

    Returns:
        Image float32 and label int32.
    """
    image = tf.image.resize(tf.cast(image, tf.float32), size, "bilinear")
    label = tf.image.resize(label[..., tf.newaxis], size, "nearest")
    return image, label[..., 0]


def pad_pair(image, label, size):
    """Image and label padded at the bottom and right to a size: mean grey (0 where it is not RGB), and 255.

    Args:
        image: `(height, width, channels)`, not larger than `size`.
        label: `(height, width)`, int32.
        size: (height, width), integers, or scalars of a graph.

    Returns:
        Image float32 `(*size, channels)` and label int32 `size`.
    """
    height, width = size
    below, right = height - tf.shape(label)[0], width - tf.shape(label)[1]
    image = check_bands(image)
    num_channels = image.shape[-1]
    image = tf.pad(tf.cast(image, tf.float32), [[0, below], [0, right], [0, 0]])
    image = colour_padding(image[tf.newaxis], tf.shape(label)[tf.newaxis])[0]
    label = tf.pad(label, [[0, below], [0, right]], constant_values=IGNORED_LABEL)
    known = [side if isinstance(side, int) else None for side in size]
    return tf.ensure_shape(image, (*known, num_channels)), tf.ensure_shape(label, known)


def colour_padding(images, image_sizes):
    """Images `(batch, height, width, channels)` with `choose_padding` beyond their sizes `(batch, 2)`."""
    rows = tf.sequence_mask(image_sizes[:, 0], tf.shape(images)[1])[:, :, tf.newaxis, tf.newaxis]
    columns = tf.sequence_mask(image_sizes[:, 1], tf.shape(images)[2])[:, tf.newaxis, :, tf.newaxis]
    return tf.where(rows & columns, images, choose_padding(images.shape[-1]))


def check_bands(image):
    """The image; a ValueError if it is known to be none. Where its channels are unknown it must be RGB."""
    image = tf.convert_to_tensor(image)
    if image.shape.rank not in (None, 3):
        raise ValueError(f"an image must be (height, width, channels). Received: {image.shape}")
    is_known = image.shape.rank == 3 and image.shape[-1] is not None
    return image if is_known else tf.ensure_shape(image, (None, None, RGB_CHANNELS))


def check_channels(image, num_channels: int = RGB_CHANNELS, way_out: str = ""):
    """The image; a ValueError if it is known not to have so many channels, else one when it runs."""
    shape, wanted = tf.convert_to_tensor(image).shape, (None, None, num_channels)
    if not shape.is_compatible_with(wanted):
        if num_channels == RGB_CHANNELS:
            way_out = f", RGB: choose three of its bands, or repeat a grey one{way_out}"
        raise ValueError(f"an image must be (height, width, {num_channels}){way_out}. Received: {shape}")
    return tf.ensure_shape(image, wanted)


def _apply_by_chance(distort, image, seed, value_range, enabled=True):
    """`distort(image, value)` with probability 0.5, where enabled; the value is uniform in the range."""
    coin_seed, value_seed = tf.unstack(tf.random.split(seed, 2))
    value = tf.random.stateless_uniform((), value_seed, *value_range)
    return tf.cond(_flip_coin(coin_seed) & enabled, lambda: distort(image, value), lambda: image)


def _flip_coin(seed):
    return tf.random.stateless_uniform((), seed) < 0.5


def _count_classes(label):
    """Pixels of each class that occurs (and zeros), without the ignored ones; never empty."""
    return tf.math.bincount(tf.boolean_mask(label, label != IGNORED_LABEL), minlength=1)
