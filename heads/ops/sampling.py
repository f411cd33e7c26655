"""Which of the matched anchors or proposals are learned from."""

from keras import ops

from heads.ops.backends import top_k
from heads.ops.labels import BACKGROUND_MATCH


def sample_matches(matches, num_samples: int, positive_fraction: float, priorities):
    """Returns a sample of the matched and the background anchors of each image.

    mmdetection's RandomSampler, with the random numbers as an argument: random `priorities` give a random
    sample, `arange` gives the first ones. Positives fill at most their share; background fills the rest, as
    far as there is enough.

    Args:
        matches: (batch, n) integers as `match_boxes` returns them; anchors below -1 are never sampled.
        num_samples: number of samples per image.
        positive_fraction: largest share of positives, 0 .. 1.
        priorities: (batch, n) finite floats; the smallest are taken first. Equal ones come in order of their
            index on TensorFlow and JAX, in any order on PyTorch.

    Returns:
        indices: (batch, num_samples) int32, into `matches`; 0 in empty slots.
        kinds: (batch, num_samples) int32: 1 positive, 0 background, -1 empty. In this order, and by priority.

    Raises:
        ValueError: if num_samples is not positive or positive_fraction is not in [0, 1].
    """
    if num_samples < 1 or not 0 <= positive_fraction <= 1:
        raise ValueError(
            "num_samples must be 1 or more and positive_fraction between 0 and 1. "
            f"Received: num_samples={num_samples}, positive_fraction={positive_fraction}"
        )
    max_positives = int(num_samples * positive_fraction)
    ranks = -ops.stop_gradient(ops.cast(priorities, "float32"))
    positives, num_positives = _take_first(ops.where(matches >= 0, ranks, -float("inf")), max_positives)
    backgrounds, num_backgrounds = _take_first(
        ops.where(ops.equal(matches, BACKGROUND_MATCH), ranks, -float("inf")), num_samples
    )
    slots = ops.arange(num_samples, dtype="int32")[None]
    is_positive = slots < num_positives
    is_background = ops.logical_and(slots >= num_positives, slots < num_positives + num_backgrounds)
    sources = ops.where(is_positive, slots, slots - num_positives + max_positives)
    indices = ops.take_along_axis(ops.concatenate([positives, backgrounds], axis=1), sources, axis=1)
    kinds = ops.where(is_positive, 1, ops.where(is_background, 0, -1))
    return ops.where(kinds >= 0, indices, 0), kinds


def _take_first(ranks, count):
    """Returns the indices (batch, count) of the highest finite ranks, and how many there are, (batch, 1)."""
    # Padded, as there may be fewer than `count`.
    ranks = ops.pad(ranks, ((0, 0), (0, count)), constant_values=-float("inf"))
    values, indices = top_k(ranks, count)
    number = ops.sum(ops.cast(values > -float("inf"), "int32"), axis=1, keepdims=True)
    return ops.cast(indices, "int32"), number
