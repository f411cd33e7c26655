"""Batches for semantic segmentation, from any source of images with label maps."""

from collections.abc import Callable

import tensorflow as tf
from PIL import Image

from heads.arguments import read_count, read_flag, read_seed
from heads.data.order import BatchOrder, continue_batches, find_groups, load_in_order
from heads.data.prefetching import prefetch_batches
from heads.data.semantic_folder import SemanticFolder
from heads.data.semantic_moves import check_channels, fit_original, pad_pair, resize_pair
from heads.picture_sizes import Resizing
from heads.pictures import RGB_CHANNELS, named_faults
from heads.processes import find_place


def semantic_training_batches(
    source, batch_size: int, augment: Callable, seed: int = 0, shuffle: bool = True, first_step: int = 0
) -> tf.data.Dataset:
    """Endless augmented batches; the same `seed` gives the same batches.

    Each picture is drawn once per epoch; where an epoch ends within a batch, the next one fills it up. A
    second `fit` or loop over the dataset goes on after the last batch that was drawn from it, as with a
    generator; make a new dataset to start again.

    Args:
        source: A `SemanticFolder`, or anything with a length and `load(indices=None)` that gives the same
            pairs. A source without a length has `load(shuffle_seed=None)` and shuffles them itself; what
            comes before `first_step` is read and left out then. One of other than RGB images has
            `num_channels`.
        batch_size: Images per batch.
        augment: Function `(image, label, seed) -> (image, label)` that gives one size; seed is int32 `(2,)`,
            for `tf.random.stateless_*`. See `SemanticAugmentation`.
        seed: Seed of the order and of the augmentation, 0 or more.
        shuffle: Whether to shuffle in each epoch.
        first_step: How many batches to skip, because the training has had them already.

    Returns:
        Dataset of (images `(batch, height, width, 3)` float32 0 .. 255, labels `(batch, height, width)`
        int32).
    """
    read_count("batch_size", batch_size)
    order_seed = read_seed(seed) if read_flag("shuffle", shuffle) else None

    def augment_one(example, number):
        image, label = augment(*example, tf.stack([seed, tf.cast(number, tf.int32)]))
        return tf.cast(image, tf.float32), tf.cast(label, tf.int32)

    def make_batches(examples, numbers, size):
        numbered = tf.data.Dataset.zip((examples, numbers))
        augmented = numbered.map(augment_one, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
        return prefetch_batches(augmented.batch(size, drop_remainder=True))

    if not hasattr(source, "__len__"):
        if find_place()[1] > 1:
            raise ValueError(
                "source must have a length and `load(indices=...)`, so that each process reads its share. "
                f"Received: {source!r}"
            )
        first = read_count("first_step", first_step, smallest=0) * batch_size
        examples = source.load(shuffle_seed=order_seed).repeat().skip(first)
        return make_batches(examples, tf.data.Dataset.counter(first), batch_size)
    order = BatchOrder(find_groups(source, group_by_ratio=False), batch_size, order_seed)
    return continue_batches(
        order,
        first_step,
        lambda positions, *numbers: make_batches(source.load(indices=positions), *numbers),
    )


def semantic_evaluation_batches(
    source, batch_size: int = 1, image_size: tuple[int, int] | None = None
) -> tf.data.Dataset:
    """Batches of one pass in file order, not augmented; the last batch may be smaller.

    Args:
        source: See `semantic_training_batches`.
        batch_size: Images per batch; above 1, all images must have one size, or `image_size` is needed.
        image_size: (height, width). Every picture is resized to fit into it with its ratio kept, then padded
            at the bottom and right: image with the mean grey, label with 255. None keeps the stored sizes.

    Returns:
        Dataset of (images `(batch, height, width, 3)` float32 0 .. 255, labels `(batch, height, width)`
        int32).

    Raises:
        ValueError: Where images of different sizes would share a batch.
    """
    read_count("batch_size", batch_size)
    resizing = Resizing(image_size)
    if batch_size > 1 and image_size is None and isinstance(source, SemanticFolder):
        _check_one_size(source.pairs, batch_size)

    num_channels = getattr(source, "num_channels", RGB_CHANNELS)

    def prepare(image, label):
        image = check_channels(image, num_channels)
        if image_size is None:
            return tf.cast(image, tf.float32), label
        size = fit_original(resizing, tf.shape(label))
        return pad_pair(*resize_pair(image, label, size), resizing.image_size)

    examples = load_in_order(source, batch_size).map(
        prepare, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True
    )
    return prefetch_batches(examples.batch(batch_size))


def _check_one_size(pairs, batch_size):
    """Compares the sizes in the headers of the label pictures, which is cheap."""
    first_path, first_size = pairs[0][0], None
    for path, label_path in pairs:
        with named_faults(label_path), Image.open(label_path) as label:
            size = (label.height, label.width)
        first_size = first_size or size
        if size != first_size:
            raise ValueError(
                f"batch_size must be 1 or image_size=(height, width) be given, because the images differ in "
                f"size: {first_path} has {first_size}, {path} has {size}. Received: batch_size={batch_size}"
            )
