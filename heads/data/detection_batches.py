"""Batches for detection and instance segmentation, from any source of pictures with boxes.

A source (`CocoDataset`, `DetectionShapes`, or your own class) has

- `class_names`, `num_classes`: the classes; label k is `class_names[k]`.
- `image_ids`: the ids of its images. An image's position in this list is its index.
- `image_sizes`: int32 (images, 2), (height, width) of each.
- `load(indices=None)`: for a `tf.data.Dataset` of indices (None: each once, in order) a dataset of dicts:
  "index": int64 (); "image": uint8 (height, width, 3), RGB, or float32 (height, width, channels) of others;
  "boxes": float32 (n, 4), xyxy pixels inside of the image; "labels": int32 (n,), -2 for a crowd region. n may
  be 0.
- `with_masks`: whether batches have masks. If so, `load_segmentations(index)` gives for each object, in the
  order of its boxes, what `detection_moves.draw_masks` takes: polygons, run lengths, or None (crowds).

A batch is `(inputs, targets)`:

- "images": float32 (batch, height, width, 3), 0 .. 255. Smaller pictures are at the top left, the rest is the
  ImageNet mean, which a backbone sees as 0; of other channels than RGB it is 0.
- "image_sizes": int32 (batch, 2), (height, width) of the pictures without that padding; "original_sizes" (in
  evaluation): int32 (batch, 2), as stored.
- "boxes": float32 (batch, n, 4), xyxy pixels of "images"; "labels": int32 (batch, n), -1 is padding, -2 a
  crowd; "masks" (where wanted): uint8 (batch, n, height, width), 0 or 1. n is the largest number of objects
  in the batch, at least 1.
"""

from collections.abc import Callable

import numpy as np
import tensorflow as tf

from heads.arguments import read_count, read_flag, read_seed, read_size
from heads.data.detection_moves import (
    LONG_SIDE,
    SIZE_DIVISOR,
    SMALLEST_SIDE,
    Move,
    draw_masks,
    make_resize,
    move_boxes,
    move_image,
    tighten_boxes,
)
from heads.data.order import BatchOrder, continue_batches, find_groups, load_in_order
from heads.data.prefetching import prefetch_batches
from heads.data.semantic_moves import colour_padding, fit_original
from heads.ops.labels import PADDING_LABEL, VOID_SEGMENT
from heads.picture_sizes import Resizing


def detection_training_batches(
    source,
    batch_size: int,
    augment: Callable,
    seed: int = 0,
    shuffle: bool = True,
    group_by_ratio: bool | None = None,
    first_step: int = 0,
) -> tf.data.Dataset:
    """Endless augmented batches; the same `seed` gives the same batches.

    Each picture is drawn once per epoch, see `BatchOrder` for what ends it. A second `fit` or loop over the
    dataset goes on after the last batch that was drawn from it, as with a generator; make a new dataset to
    start again.

    Objects whose box has no area after the augmentation are left out. With masks, a box that was cut by a
    crop becomes the tight box of the rest of its mask, and is left out if nothing is left.

    Args:
        source: See the top of this file.
        batch_size: Images per batch.
        augment: Function `(image, seed) -> (image, move)`, see `DetectionAugmentation`. Its attribute
            `image_size`, if there is one and it is not None, is the largest size of its results.
        seed: Seed of the order and of the augmentation, 0 or more.
        shuffle: Whether to shuffle in each epoch; otherwise the order is that of `source.image_ids`.
        group_by_ratio: Whether wide and tall pictures go into separate batches, which saves padding; at the
            end of an epoch, one or two batches mix them. Default: unless `augment` has an `image_size`.
        first_step: How many batches to skip, because the training has had them already.

    Returns:
        Dataset of ({"images", "image_sizes"}, {"boxes", "labels"} and "masks"), see the top of this file.
        Images are padded to the `image_size` of `augment`, or to the largest of the batch, rounded up to a
        multiple of 32.
    """

    def prepare(example, image, move, canvas_size):
        return _prepare_example(source, example, image, move, canvas_size, drop_lost=True)

    return batch_moved(source, batch_size, augment, prepare, seed, shuffle, group_by_ratio, first_step)


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
        image_size: (height, width), or one length for a square. Every picture is resized to fit into it with
            its ratio kept, then padded to it.
        short_side: Every picture is resized to this short side with its ratio kept, unless its long side
            exceeds `long_side`; the paper has 800. Default: the stored sizes, if `image_size` is None too.
        long_side: Limit of the long side, with `short_side`.

    Returns:
        Dataset of ({"images", "image_sizes", "original_sizes"}, {"boxes", "labels"} and "masks"), see the top
        of this file. Images are padded to `image_size`, or to the largest of the batch, rounded up to a
        multiple of 32.
    """

    def prepare(example, image, move, canvas_size):
        return _prepare_example(source, example, image, move, canvas_size, drop_lost=False)

    return batch_resized(source, batch_size, Resizing(image_size, short_side, long_side), prepare)


def batch_moved(source, batch_size, augment, prepare, seed, shuffle, group_by_ratio, first_step):
    """Returns endless augmented batches: see `detection_training_batches`.

    `prepare(example, image, move, canvas_size)` returns the inputs and targets of a moved image.
    """
    canvas_size = getattr(augment, "image_size", None)
    canvas_size = None if canvas_size is None else read_size("image_size of augment", canvas_size)
    group_by_ratio = canvas_size is None if group_by_ratio is None else group_by_ratio
    order = BatchOrder(
        find_groups(source, read_flag("group_by_ratio", group_by_ratio)),
        read_count("batch_size", batch_size),
        read_seed(seed) if read_flag("shuffle", shuffle) else None,
    )

    def augment_one(example, number):
        image, move = augment(example["image"], tf.stack([seed, tf.cast(number, tf.int32)]))
        return prepare(example, image, move, canvas_size)

    def make_batches(positions, numbers, size):
        examples = tf.data.Dataset.zip((source.load(indices=positions), numbers))
        examples = examples.map(augment_one, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
        return _batch_examples(examples, size, drop_remainder=True)

    return continue_batches(order, first_step, make_batches)


def batch_resized(source, batch_size, resizing, prepare):
    """Returns batches of one pass, only resized: see `detection_evaluation_batches` and `batch_moved`."""
    read_count("batch_size", batch_size)

    def resize_one(example):
        original_size = tf.shape(example["image"])[:2]
        move = make_resize(original_size, fit_original(resizing, original_size))
        image = move_image(example["image"], move)
        inputs, targets = prepare(example, image, move, resizing.image_size)
        return {**inputs, "original_sizes": original_size}, targets

    examples = load_in_order(source, batch_size).map(
        resize_one, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True
    )
    return _batch_examples(examples, batch_size, drop_remainder=False)


def _prepare_example(source, example, image, move, canvas_size, drop_lost):
    """Returns the inputs and targets of one image, padded to the canvas, the padding still black."""
    boxes, is_cut = move_boxes(example["boxes"], move)
    kept = tf.range(tf.shape(boxes)[0])
    if drop_lost:
        kept = kept[tf.reduce_all(boxes[:, 2:] - boxes[:, :2] > SMALLEST_SIDE, axis=1)]
    boxes, labels, is_cut = (tf.gather(values, kept) for values in (boxes, example["labels"], is_cut))
    inputs, canvas_size, static_size = place_on_canvas(image, move, canvas_size)
    targets = {}
    if source.with_masks:

        def draw(index, kept, boxes, labels, is_cut, canvas_size, *move):
            segmentations = source.load_segmentations(int(index))
            masks = draw_masks([segmentations[k] for k in kept], Move(*move), canvas_size)
            if drop_lost and is_cut.any():
                boxes = tighten_boxes(boxes, masks, is_cut & (labels >= 0))
                found = (boxes[:, 2:] - boxes[:, :2] > SMALLEST_SIDE).all(1)
                boxes, labels, masks = boxes[found], labels[found], masks[found]
            return boxes, labels, masks if len(masks) else np.zeros((1, *canvas_size), np.uint8)

        boxes, labels, masks = tf.numpy_function(
            draw,
            [example["index"], kept, boxes, labels, is_cut, canvas_size, *move],
            (tf.float32, tf.int32, tf.uint8),
        )
        targets["masks"] = tf.ensure_shape(masks, (None, *static_size))
    missing = tf.maximum(1 - tf.shape(labels)[0], 0)
    boxes = tf.pad(tf.ensure_shape(boxes, (None, 4)), [[0, missing], [0, 0]])
    labels = tf.pad(tf.ensure_shape(labels, (None,)), [[0, missing]], constant_values=PADDING_LABEL)
    return inputs, {"boxes": boxes, "labels": labels, **targets}


def place_on_canvas(image, move, canvas_size):
    """Returns the inputs of one moved image, padded in black.

    Args:
        image: (*move.size, channels).
        move: the `Move`.
        canvas_size: (height, width), or None for the next multiples of 32.

    Returns:
        ({"images", "image_sizes"}, the size of the canvas, and this size as far as graphs know it).
    """
    static_size = (None, None) if canvas_size is None else canvas_size
    if canvas_size is None:
        canvas_size = (move.size + SIZE_DIVISOR - 1) // SIZE_DIVISOR * SIZE_DIVISOR
    below, right = tf.unstack(canvas_size - move.size)
    image = tf.pad(tf.cast(image, tf.float32), [[0, below], [0, right], [0, 0]])
    image = tf.ensure_shape(image, (*static_size, image.shape[-1]))
    inputs = {"images": image, "image_sizes": move.size}
    return inputs, canvas_size, static_size


def _batch_examples(examples, batch_size, drop_remainder):
    """Returns batches padded to their largest image and their largest number of objects or segments."""
    padding = tf.nest.map_structure(lambda spec: tf.zeros((), spec.dtype), examples.element_spec)
    for name, value in (("labels", PADDING_LABEL), ("segments", VOID_SEGMENT)):
        if name in padding[1]:
            padding[1][name] = tf.constant(value)

    def colour(inputs, targets):
        coloured = colour_padding(inputs["images"], inputs["image_sizes"])
        return {**inputs, "images": tf.ensure_shape(coloured, inputs["images"].shape)}, targets

    batches = examples.padded_batch(batch_size, padding_values=padding, drop_remainder=drop_remainder)
    batches = batches.map(colour, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    return prefetch_batches(batches)
