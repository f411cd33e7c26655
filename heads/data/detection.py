"""Batches for detection and instance segmentation, from any source of pictures with boxes.

A source (`CocoDataset`, `ShapesDetection`, or your own class) has

- `class_names`, `num_classes`: the classes; label k is `class_names[k]`.
- `image_ids`: the ids of its images. An image's position in this list is its index.
- `image_sizes`: int32 (images, 2), (height, width) of each.
- `load(indices=None)`: for a `tf.data.Dataset` of indices (None: each once, in order) a dataset of dicts:
  "index": int64 (); "image": uint8 (height, width, 3), RGB; "boxes": float32 (n, 4), xyxy pixels inside of
  the image; "labels": int32 (n,), -2 for a crowd region. n may be 0.
- `with_masks`: whether batches have masks. If so, `load_segmentations(index)` gives for each object, in the
  order of its boxes, what `geometry.draw_masks` takes: polygons, run lengths, or None (crowds).

A batch is `(inputs, targets)`:

- "images": float32 (batch, height, width, 3), 0 .. 255. Smaller pictures are at the top left, the rest is the
  ImageNet mean, which a backbone sees as 0.
- "image_sizes": int32 (batch, 2), (height, width) of the pictures without that padding; "original_sizes" (in
  evaluation): int32 (batch, 2), as stored.
- "boxes": float32 (batch, n, 4), xyxy pixels of "images"; "labels": int32 (batch, n), -1 is padding, -2 a
  crowd; "masks" (where wanted): uint8 (batch, n, height, width), 0 or 1. n is the largest number of objects
  in the batch, at least 1.
"""

import itertools
import threading
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from heads.data.augmentation import photometric_distortion, scale_size
from heads.data.geometry import (
    SMALLEST_SIDE,
    Geometry,
    draw_masks,
    move_boxes,
    move_image,
    resize_geometry,
    tighten_boxes,
)
from heads.data.prefetching import prefetch_batches

MEAN_PIXEL = (123.675, 116.28, 103.53)
# The coarsest stride of the backbones.
SIZE_DIVISOR = 32
SHORT_SIDES = tuple(range(480, 801, 32))
LONG_SIDE = 1333
PADDING_LABEL = -1


class DetectionAugmentation:
    """A random size, crop, mirror and colour distortion of one picture.

    Either the short side is drawn from a set, or the result has one fixed size: the picture is resized to fit
    into it, enlarged or shrunk further by a random factor (large-scale jitter), and what exceeds the size is
    cropped at random. The ratio is always kept.

    Args:
        short_sides: Lengths of the short side to draw from, pixels. Default: 480, 512, .. 800, as in DETR and
            Mask R-CNN's longer schedules; the 1x schedule has (800,).
        long_side: Limit of the long side, pixels.
        image_size: (height, width) of the result, in place of `short_sides`.
        scale_range: Lowest and highest factor of the jitter, with `image_size` only; (0.1, 2.0) or
            (0.8, 1.25) in arXiv 2012.07177. Default: 1, no jitter.
        flip: Whether to mirror half of the pictures left to right.
        photometric: Whether to distort brightness, contrast, saturation and hue.

    Call arguments:
        image: (height, width, 3), 0 .. 255, any size and dtype.
        seed: int32 (2,).

    Returns:
        Image float32 (height, width, 3), not padded, and the `Geometry` that boxes and masks follow.

    Raises:
        ValueError: For sizes and factors that are not positive, or that exclude each other.
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
        self.short_sides = tuple(SHORT_SIDES if short_sides is None else short_sides)
        if not self.short_sides or min(self.short_sides) < 1 or long_side < max(self.short_sides):
            raise ValueError(
                "short_sides must be positive and not above long_side. "
                f"Received: short_sides={short_sides}, long_side={long_side}"
            )
        self.image_size = _checked_size(image_size)
        self.scale_range = (1.0, 1.0) if scale_range is None else tuple(scale_range)
        if len(self.scale_range) != 2 or not 0 < self.scale_range[0] <= self.scale_range[1]:
            raise ValueError(f"scale_range must be (lowest, highest), above 0. Received: {scale_range}")
        self.long_side = long_side
        self.flip = flip
        self.photometric = photometric

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
        geometry = Geometry(original_size, resized_size, offset, size, flip)
        image = move_image(image, geometry)
        return photometric_distortion(image, colour_seed) if self.photometric else image, geometry


def detection_training_batches(
    source,
    batch_size: int,
    augment: Callable,
    seed: int = 0,
    shuffle: bool = True,
    group_by_ratio: bool | None = None,
) -> tf.data.Dataset:
    """Endless augmented batches; the same `seed` gives the same batches.

    Objects whose box has no area after the augmentation are left out. With masks, a box that was cut off by a
    crop becomes the tight box of what is left of its mask, and is left out where nothing is.

    Args:
        source: See the top of this file.
        batch_size: Images per batch.
        augment: Function `(image, seed) -> (image, geometry)`, see `DetectionAugmentation`. Its attribute
            `image_size`, where it has one that is not None, is the largest size that it gives.
        seed: Seed of the order and of the augmentation, 0 or more.
        shuffle: Whether to shuffle in each epoch; otherwise the order is that of `source.image_ids`.
        group_by_ratio: Whether wide and tall pictures go into separate batches, which saves padding. Default:
            where there are both and `augment` has no `image_size`.

    Returns:
        Dataset of ({"images", "image_sizes"}, {"boxes", "labels"} and "masks"), see the top of this file.
        Images are padded to the `image_size` of `augment`, or to the largest of the batch, rounded up to a
        multiple of 32.
    """
    _check_batch_size(batch_size)
    canvas_size = getattr(augment, "image_size", None)
    is_wide = np.asarray(source.image_sizes)[:, 1] >= np.asarray(source.image_sizes)[:, 0]
    if group_by_ratio is None:
        group_by_ratio = canvas_size is None
    groups = is_wide.astype(int) if group_by_ratio else np.zeros(len(is_wide), int)

    def prepare(example, step):
        image, geometry = augment(example["image"], tf.stack([seed, tf.cast(step, tf.int32)]))
        return _prepare_example(source, example, image, geometry, canvas_size, drop_lost=True)

    find_batch = _remember(_draw_order(groups, batch_size, seed if shuffle else None))

    def find(step):
        return tf.ensure_shape(tf.numpy_function(find_batch, [step], tf.int64), (batch_size,))

    # Not from_generator: it has TensorFlow give freed memory back at once, which slows the training.
    order = tf.data.Dataset.counter().map(find).unbatch()
    examples = tf.data.Dataset.zip((source.load(order), tf.data.Dataset.counter()))
    examples = examples.map(prepare, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    return _batch_examples(examples, batch_size, drop_remainder=True)


def detection_evaluation_batches(
    source,
    batch_size: int = 1,
    image_size: tuple[int, int] | None = None,
    short_side: int | None = None,
    long_side: int = LONG_SIDE,
) -> tf.data.Dataset:
    """Batches of one pass in the order of `source.image_ids`, not augmented; the last may be smaller.

    Args:
        source: See the top of this file.
        batch_size: Images per batch.
        image_size: (height, width). Every picture is resized to fit into it with its ratio kept, then padded
            to it.
        short_side: Every picture is resized to this short side with its ratio kept, unless its long side
            exceeds `long_side`; the paper has 800. Default: the stored sizes, if `image_size` is None too.
        long_side: Limit of the long side, with `short_side`.

    Returns:
        Dataset of ({"images", "image_sizes", "original_sizes"}, {"boxes", "labels"} and "masks"), see the top
        of this file. Images are padded to `image_size`, or to the largest of the batch, rounded up to a
        multiple of 32.
    """
    _check_batch_size(batch_size)
    canvas_size = _checked_size(image_size)
    if short_side is not None and (image_size is not None or not 1 <= short_side <= long_side):
        raise ValueError(
            "short_side must be at least 1, not above long_side, and None where image_size is given. "
            f"Received: short_side={short_side}, long_side={long_side}, image_size={image_size}"
        )

    def prepare(example):
        original_size = resized_size = tf.shape(example["image"])[:2]
        if canvas_size is not None:
            resized_size = fit_size(original_size, canvas_size)
        elif short_side is not None:
            resized_size = fit_sides(original_size, short_side, long_side)
        geometry = resize_geometry(original_size, resized_size)
        image = move_image(example["image"], geometry)
        inputs, targets = _prepare_example(source, example, image, geometry, canvas_size, drop_lost=False)
        return {**inputs, "original_sizes": original_size}, targets

    examples = source.load().map(prepare, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    return _batch_examples(examples, batch_size, drop_remainder=False)


def fit_sides(size, short_side, long_side):
    """Gives the largest size of the same ratio within both limits, int32 (2,), rounded as in mmdetection."""
    sides = tf.cast(size, tf.float64)
    scale = tf.minimum(
        tf.cast(long_side, tf.float64) / tf.reduce_max(sides),
        tf.cast(short_side, tf.float64) / tf.reduce_min(sides),
    )
    return scale_size(size, scale)


def fit_size(size, image_size, factor=1.0):
    """Gives the largest size of the same ratio inside of (height, width) times a factor, int32 (2,)."""
    limits = tf.floor(tf.constant(image_size, tf.float64) * tf.cast(factor, tf.float64))
    limits = tf.maximum(limits, 1.0)
    scale = tf.reduce_min(limits / tf.cast(size, tf.float64))
    return tf.minimum(scale_size(size, scale), tf.cast(limits, tf.int32))


def _draw_order(groups, batch_size, seed):
    """Yields the image indices of each batch, (batch_size,), for ever; each batch is of one group.

    What does not fill a batch at the end of an epoch waits for the next one, so no image is left out.
    """
    waiting = {group: [] for group in np.unique(groups)}
    for epoch in itertools.count():
        order = np.arange(len(groups))
        if seed is not None:
            np.random.default_rng((seed, epoch)).shuffle(order)
        for index in order:
            batch = waiting[groups[index]]
            batch.append(index)
            if len(batch) == batch_size:
                yield np.array(batch, np.int64)
                batch.clear()


def _remember(values):
    """Gives a function of a position in an endless iterator, so that every pass can begin anew."""
    drawn, lock = [], threading.Lock()

    def find(position):
        with lock:
            drawn.extend(itertools.islice(values, max(0, int(position) + 1 - len(drawn))))
        return drawn[int(position)]

    return find


def _prepare_example(source, example, image, geometry, canvas_size, drop_lost):
    """Gives the inputs and targets of one image, padded to the canvas, the padding still black."""
    boxes, is_cut = move_boxes(example["boxes"], geometry)
    kept = tf.range(tf.shape(boxes)[0])
    if drop_lost:
        kept = kept[tf.reduce_all(boxes[:, 2:] - boxes[:, :2] > SMALLEST_SIDE, axis=1)]
    boxes, labels, is_cut = (tf.gather(values, kept) for values in (boxes, example["labels"], is_cut))
    static_size = (None, None) if canvas_size is None else canvas_size
    if canvas_size is None:
        canvas_size = (geometry.size + SIZE_DIVISOR - 1) // SIZE_DIVISOR * SIZE_DIVISOR
    targets = {}
    if source.with_masks:

        def draw(index, kept, boxes, labels, is_cut, canvas_size, *geometry):
            segmentations = source.load_segmentations(int(index))
            masks = draw_masks([segmentations[k] for k in kept], Geometry(*geometry), canvas_size)
            if drop_lost and is_cut.any():
                boxes = tighten_boxes(boxes, masks, is_cut & (labels >= 0))
                found = (boxes[:, 2:] - boxes[:, :2] > SMALLEST_SIDE).all(1)
                boxes, labels, masks = boxes[found], labels[found], masks[found]
            return boxes, labels, masks if len(masks) else np.zeros((1, *canvas_size), np.uint8)

        boxes, labels, masks = tf.numpy_function(
            draw,
            [example["index"], kept, boxes, labels, is_cut, canvas_size, *geometry],
            (tf.float32, tf.int32, tf.uint8),
        )
        targets["masks"] = tf.ensure_shape(masks, (None, *static_size))
    missing = tf.maximum(1 - tf.shape(labels)[0], 0)
    boxes = tf.pad(tf.ensure_shape(boxes, (None, 4)), [[0, missing], [0, 0]])
    labels = tf.pad(tf.ensure_shape(labels, (None,)), [[0, missing]], constant_values=PADDING_LABEL)
    below, right = tf.unstack(canvas_size - geometry.size)
    image = tf.pad(tf.cast(image, tf.float32), [[0, below], [0, right], [0, 0]])
    inputs = {"images": tf.ensure_shape(image, (*static_size, 3)), "image_sizes": geometry.size}
    return inputs, {"boxes": boxes, "labels": labels, **targets}


def _batch_examples(examples, batch_size, drop_remainder):
    """Gives batches padded to their largest image and their largest number of objects."""
    padding = tf.nest.map_structure(lambda spec: tf.zeros((), spec.dtype), examples.element_spec)
    padding[1]["labels"] = tf.constant(PADDING_LABEL)

    def colour_padding(inputs, targets):
        images, sizes = inputs["images"], inputs["image_sizes"]
        rows = tf.sequence_mask(sizes[:, 0], tf.shape(images)[1])[:, :, tf.newaxis, tf.newaxis]
        columns = tf.sequence_mask(sizes[:, 1], tf.shape(images)[2])[:, tf.newaxis, :, tf.newaxis]
        coloured = tf.where(rows & columns, images, MEAN_PIXEL)
        return {**inputs, "images": tf.ensure_shape(coloured, images.shape)}, targets

    batches = examples.padded_batch(batch_size, padding_values=padding, drop_remainder=drop_remainder)
    batches = batches.map(colour_padding, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    return prefetch_batches(batches)


def _check_batch_size(batch_size):
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1. Received: {batch_size}")


def _checked_size(image_size):
    if image_size is None:
        return None
    if len(image_size) != 2 or min(image_size) < 1:
        raise ValueError(f"image_size must be (height, width), at least 1 each. Received: {image_size}")
    return tuple(map(int, image_size))
