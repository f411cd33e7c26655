"""What every backend of Keras does in its own way: calls to the host, sums over devices."""

import keras
import numpy as np
from keras import ops


def call_on_host(function, arrays, shape, dtype: str):
    """Returns what a NumPy function makes of tensors, also inside of graphs; it has no gradient.

    Args:
        function: function of NumPy arrays that gives one. What it raises ends the step.
        arrays: tensors.
        shape: shape of the result.
        dtype: dtype of the result.
    """
    arrays = [ops.stop_gradient(array) for array in arrays]
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        result = tf.numpy_function(function, arrays, dtype, stateful=False)
        return ops.reshape(result, shape)
    if backend == "jax":
        import jax

        return jax.pure_callback(function, jax.ShapeDtypeStruct(shape, np.dtype(dtype)), *arrays)
    return ops.convert_to_tensor(function(*map(ops.convert_to_numpy, arrays)), dtype)


def sum_over_devices(value):
    """Returns the sum of a value over the devices that share a batch, and their number.

    Those of tf.distribute, and on PyTorch the processes of `torch.distributed`. On JAX a batch over many
    devices is one array, whose sums are those of all devices already.
    """
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        replica = tf.distribute.get_replica_context()
        if replica is not None and replica.num_replicas_in_sync > 1:
            return replica.all_reduce("SUM", value), replica.num_replicas_in_sync
    if backend == "torch":
        from torch import distributed

        if distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1:
            from torch.distributed.nn.functional import all_reduce  # unlike `distributed`'s, with a gradient

            return all_reduce(value), distributed.get_world_size()
    return value, 1
