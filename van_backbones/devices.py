"""The statistics of batches that several devices share."""

import functools

import keras
from keras import ops


def find_device_sum():
    """Returns a function that sums a value over the devices that share the batch; None for one device.

    They are the devices of tf.distribute, or on PyTorch the processes of `torch.distributed`. On JAX, a batch
    over many devices is one array, whose sums include all devices already.
    """
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        replica = tf.distribute.get_replica_context()
        if replica is not None and replica.num_replicas_in_sync > 1:
            return functools.partial(replica.all_reduce, "SUM")
    if backend == "torch":
        from torch import distributed

        if distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1:
            from torch.distributed.nn.functional import all_reduce  # unlike `distributed`'s, with a gradient

            return all_reduce
    return None


def join_moments(mean, variance, count):
    """Returns the moments of the joint batch of all devices.

    Args:
        mean: (channels,), of this device's part of the batch.
        variance: (channels,), biased.
        count: how many values of each channel they are computed from.

    Returns:
        (mean, variance, count) of the joint batch; the arguments themselves where there is one device.
    """
    add = find_device_sum()
    if add is None:
        return mean, variance, count
    total = add(count)
    # A device may get no part of a last batch, and has no moments then.
    mean, variance = (ops.where(count > 0, value, 0.0) for value in (mean, variance))
    joint_mean = add(mean * count) / total
    # Around the joint mean, as a difference of squares would lose digits.
    return joint_mean, add((variance + (mean - joint_mean) ** 2) * count) / total, total
