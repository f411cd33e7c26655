"""Batches over several devices: what the statistics of all of them are."""

import keras


def count_devices() -> int:
    """Returns how many devices share the batch under tf.distribute: 1 without it.

    On JAX a batch over many devices is one array, whose sums are those of all devices already.
    """
    if keras.backend.backend() != "tensorflow":
        return 1
    import tensorflow as tf

    replica = tf.distribute.get_replica_context()
    return 1 if replica is None else replica.num_replicas_in_sync


def join_moments(mean, variance, count):
    """Returns the moments of the joint batch of all devices: (mean, variance, count).

    Args:
        mean: (channels,), of this device's share.
        variance: (channels,), biased.
        count: how many values of a channel they are of.
    """
    if count_devices() == 1:
        return mean, variance, count
    import tensorflow as tf

    add = tf.distribute.get_replica_context().all_reduce
    total = add("SUM", count)
    # A device may have got nothing of a last batch, and has no moments then.
    mean, variance = (keras.ops.where(count > 0, value, 0.0) for value in (mean, variance))
    joint_mean = add("SUM", mean * count) / total
    # About the joint mean, and not as a difference of squares, which would lose digits.
    return joint_mean, add("SUM", (variance + (mean - joint_mean) ** 2) * count) / total, total
