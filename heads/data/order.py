"""Which pictures the batches of an endless training hold, and at which batch a pass over them begins.

The batches of a training are numbered by its steps, from 0. What a step's batch holds follows from the number
alone, so that a stopped training goes on where it was.
"""

import functools
import math
import threading
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from heads.arguments import read_count, read_seed
from heads.processes import find_own_pictures, find_place, split_batch


class BatchOrder:
    """The endless order in which the pictures of a source are drawn, in batches of one size.

    An epoch is one pass: each picture is drawn once, in an order of its own. With groups (wide and tall
    pictures), each batch has pictures of one group, except

    - at the end of an epoch: pictures that do not fill a batch of their group are mixed with those of others;
    - where an epoch ends within a batch: the first pictures of the next epoch fill it up, whatever their
      group. They differ from those that the batch holds already, so no batch holds a picture twice unless the
      source has fewer pictures than a batch.

    Args:
        groups: int (pictures,), the group of each.
        batch_size: Pictures per batch.
        seed: Seed of the order, 0 or more; None keeps the order of the source in each epoch.

    Raises:
        ValueError: If there are no pictures.
    """

    def __init__(self, groups: Sequence[int], batch_size: int, seed: int | None):
        self.groups = np.asarray(groups)
        if not len(self.groups):
            raise ValueError("source must hold at least one picture. Received: none")
        self.batch_size = batch_size
        self.seed = seed
        # A batch reaches over more than two epochs only if they are small.
        self._find_epoch = functools.lru_cache(maxsize=2)(self._draw_epoch)

    def find(self, step: int) -> np.ndarray:
        """Returns the positions of the pictures in the batch of a step, int64 (batch_size,)."""
        count = len(self.groups)
        first, last = int(step) * self.batch_size, (int(step) + 1) * self.batch_size
        epochs = range(first // count, -(-last // count))
        starts = (epoch * count for epoch in epochs)
        parts = [
            self._find_epoch(epoch)[max(0, first - start) : last - start]
            for epoch, start in zip(epochs, starts, strict=True)
        ]
        return np.concatenate(parts)

    def _draw_epoch(self, epoch):
        """Returns the positions of all pictures in the order of an epoch."""
        # The pictures that fill up the last batch of the epoch before must differ from those in it. They
        # follow from that epoch alone, unless the source is smaller than two batches: then the epochs are
        # retraced from the last one that began with a new batch.
        count, size = len(self.groups), self.batch_size
        first = max(epoch - 1, 0)
        if size <= count < 2 * size:
            first = epoch - epoch % (size // math.gcd(size, count))
        tail = []
        for each in range(first, epoch + 1):
            head, middle, tail = self._split_epoch(each, tail)
        return np.concatenate([head, self._sort_by_group(middle), tail])

    def _split_epoch(self, epoch, tail_before):
        """Returns the pictures that fill up the epoch before, those of whole batches, and the rest."""
        count, size = len(self.groups), self.batch_size
        order = np.arange(count)
        if self.seed is not None:
            np.random.default_rng((self.seed, epoch)).shuffle(order)
        missing = -epoch * count % size
        allowed = order if count < size else order[~np.isin(order, tail_before)]
        head = allowed[:missing]
        rest = order[~np.isin(order, head)]
        middle, tail = np.split(rest, [len(rest) // size * size])
        return head, middle, tail

    def _sort_by_group(self, pictures):
        """Returns pictures in batches of one group, in the order in which these fill, then the rest."""
        groups = self.groups[pictures]
        batches, left = [], []
        for group in np.unique(groups):
            places = np.flatnonzero(groups == group)
            filled = len(places) // self.batch_size * self.batch_size
            batches.extend(places[:filled].reshape(-1, self.batch_size))
            left.extend(places[filled:])
        batches.sort(key=lambda places: places[-1])
        return pictures[np.concatenate([*batches, np.sort(left)]).astype(np.int64)]


def find_training_pictures(
    source,
    batch_size: int,
    step: int,
    seed: int = 0,
    shuffle: bool = True,
    group_by_ratio: bool = False,
) -> list:
    """Returns which pictures a batch holds, e.g. to find out why its loss is not finite.

    Args:
        source: The source of `semantic_training_batches` or `detection_training_batches`, and the next
            arguments as they were given there.
        batch_size: Pictures per batch.
        step: The number of the batch, from 0; a training's first batch is that of its `first_step`.
        seed: Seed of the order.
        shuffle: Whether the order is shuffled.
        group_by_ratio: Whether wide and tall pictures go into separate batches. In
            `detection_training_batches` this is so by default, unless its `augment` has an `image_size`.

    Returns:
        List of the paths of the pictures in the order of the batch, or of their positions in a source without
        `image_paths`.
    """
    read_count("step", step, smallest=0)
    groups = find_groups(source, group_by_ratio)
    order = BatchOrder(groups, read_count("batch_size", batch_size), read_seed(seed) if shuffle else None)
    paths = getattr(source, "image_paths", None)
    return [index if paths is None else str(paths[index]) for index in order.find(step).tolist()]


def find_groups(source, group_by_ratio: bool) -> np.ndarray:
    """Returns the group of each picture of a source: 1 for wide and 0 for tall, or 0 for all."""
    if not group_by_ratio:
        pictures = getattr(source, "image_ids", source)
        if not hasattr(pictures, "__len__"):
            raise ValueError(f"source must have a length, the number of its pictures. Received: {source!r}")
        return np.zeros(len(pictures), np.int64)
    heights, widths = np.asarray(source.image_sizes).T
    return (widths >= heights).astype(np.int64)


def continue_batches(
    order: BatchOrder,
    first_step: int,
    make_batches: Callable[[tf.data.Dataset, tf.data.Dataset], tf.data.Dataset],
) -> tf.data.Dataset:
    """Returns an endless dataset of batches; each iterator goes on where the last one stopped.

    Keras makes a new iterator in each `fit`. When an iterator draws its first batch, it begins at the step
    after the farthest that was drawn from the dataset. So two iterators that are used in turns draw some
    batches twice, and batches that a buffer behind the dataset (`prefetch`, or Keras's on a GPU with JAX)
    drew ahead but did not hand out are skipped.

    Where several processes train together (`heads.processes`), each gets its share of every batch.

    Args:
        order: Which pictures a batch holds.
        first_step: The number of the first batch.
        make_batches: Function of two datasets of int64 scalars, the positions of the pictures and the running
            numbers of the examples, and the number of pictures in a batch or a share, to the dataset of
            batches.
    """
    place = _Place(read_count("first_step", first_step, smallest=0))
    first, size = split_batch(order.batch_size)

    def find_share(step):
        return order.find(step)[first : first + size]

    def find(step):
        return tf.ensure_shape(tf.numpy_function(find_share, [step], tf.int64), (size,))

    def count_from(read_start, scale=1):
        # Each iterator makes the inner dataset anew, and reads the start then.
        return tf.data.Dataset.range(1).flat_map(
            lambda _: tf.data.Dataset.range(scale * tf.numpy_function(read_start, [], tf.int64), tf.int64.max)
        )

    def note(step, batch):
        with tf.control_dependencies([tf.numpy_function(place.leave, [step], [])]):
            return tf.nest.map_structure(tf.identity, batch)

    # Not from_generator: it makes TensorFlow return freed memory at once, which slows the training. A zip
    # asks its first dataset first: that one enters the place, and the others repeat its start.
    positions = count_from(place.enter).map(find).unbatch()
    numbers = count_from(place.entered, size)
    if size < order.batch_size:  # examples are numbered as in the joint batch
        numbers = numbers.map(lambda number: number // size * order.batch_size + first + number % size)
    batches = make_batches(positions, numbers, size)
    numbered = tf.data.Dataset.zip((batches, count_from(place.entered)))
    # Not parallel, and after the prefetching: batches that wait there have not been handed out.
    batches = numbered.map(lambda batch, step: note(step, batch))
    return batches.apply(tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY))


def load_in_order(source, batch_size: int) -> tf.data.Dataset:
    """Returns the examples of one pass over a source, in its order, for batches that are scored.

    Where several processes train together (`heads.processes`), each gets the examples of its own batches.
    Once a process has left the others, the same dataset gives it all of them.
    """
    if find_place()[1] == 1:
        return source.load()
    pictures = getattr(source, "image_ids", source)
    if not hasattr(pictures, "__len__"):
        raise ValueError(
            "source must have a length, the number of its pictures, where several processes score it. "
            f"Received: {source!r}"
        )

    def find():
        return find_own_pictures(len(pictures), batch_size)

    def list_positions(_):
        return tf.data.Dataset.from_tensor_slices(
            tf.ensure_shape(tf.numpy_function(find, [], tf.int64), (None,))
        )

    return source.load(indices=tf.data.Dataset.range(1).flat_map(list_positions))


class _Place:
    """Where a stream of batches is: the number of the batch that is handed out next."""

    def __init__(self, step):
        self.step = self.start = step
        self.lock = threading.Lock()

    def enter(self):
        with self.lock:
            self.start = self.step
            return np.int64(self.start)

    def entered(self):
        return np.int64(self.start)

    def leave(self, step):
        # Iterators that are used in turns draw the same batches; a new one goes on after the farthest.
        with self.lock:
            self.step = max(self.step, int(step) + 1)
