"""What every backend of Keras does in its own way, such as calls to the host and sums over devices."""

import keras
import numpy as np
from keras import ops


def call_on_host(function, arrays, shape, dtype: str):
    """Returns the result of a NumPy function of tensors, also inside graphs; it has no gradient.

    Args:
        function: function of NumPy arrays that returns one, whose rows depend on the same rows of the arrays
            only: devices that share a batch call it for their rows. An error in it ends the step.
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
        return _call_from_jax(function, arrays, shape, np.dtype(dtype))
    return ops.convert_to_tensor(function(*map(ops.convert_to_numpy, arrays)), dtype)


def _call_from_jax(function, arrays, shape, dtype):
    import jax

    def call(*rows):
        return jax.pure_callback(function, jax.ShapeDtypeStruct((len(rows[0]), *shape[1:]), dtype), *rows)

    joint = keras.distribution.distribution()
    if joint is None:
        return call(*arrays)
    # Otherwise one device would ask for the rows of all, which processes cannot pass to each other.
    rows = jax.sharding.PartitionSpec(joint.batch_dim_name)
    share = jax.shard_map(
        call, mesh=joint.device_mesh.backend_mesh, in_specs=rows, out_specs=rows, check_vma=False
    )
    return share(*arrays)


def top_k(values, count):
    """Returns what `ops.top_k` returns; devices that share a batch each process only their own rows.

    JAX would send all rows to all devices first.

    Args:
        values: (batch, ..., n).
        count: how many values of the last axis to return.
    """
    joint = keras.distribution.distribution() if keras.backend.backend() == "jax" else None
    if joint is None or values.shape[0] % joint.device_mesh.devices.size:
        return ops.top_k(values, count)
    import jax

    rows = jax.sharding.PartitionSpec(joint.batch_dim_name)
    share = jax.shard_map(
        lambda part: tuple(ops.top_k(part, count)),
        mesh=joint.device_mesh.backend_mesh,
        in_specs=rows,
        out_specs=rows,
        check_vma=False,
    )
    return share(values)


def widen_dtype(dtype) -> str:
    """Returns the dtype in which values of a floating dtype are added up: float32, or float64 for float64."""
    # Not `keras.backend.result_type`, which on JAX and PyTorch turns float64 into float32.
    return "float64" if keras.backend.standardize_dtype(dtype) == "float64" else "float32"


def sum_over_devices(value):
    """Returns the sum of a value over the devices that share a batch, and their number.

    The devices are those of tf.distribute, or on PyTorch the processes of `torch.distributed`. On JAX, a
    batch over many devices is one array, whose sums include all devices already.
    """
    backend = keras.backend.backend()
    if backend == "tensorflow":
        replica = _find_replica()
        if replica is not None:
            return replica.all_reduce("SUM", value), replica.num_replicas_in_sync
    if backend == "torch":
        from torch import distributed

        if distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1:
            from torch.distributed.nn.functional import all_reduce  # unlike `distributed`'s, with a gradient

            return all_reduce(value), distributed.get_world_size()
    return value, 1


def _find_replica():
    """Returns tf.distribute's context, or None where no other device shares the batch."""
    import tensorflow as tf

    replica = tf.distribute.get_replica_context()
    return replica if replica is not None and replica.num_replicas_in_sync > 1 else None


def normalize_at_once(inputs, gamma, beta, epsilon):
    """Returns what batch normalisation gives in training, from one operation, or None where there is none.

    Several operations would take two passes over the maps each way, and many more nodes of the graph. The
    sums are as exact as PyTorch's in channels last.

    Args:
        inputs: (batch, height, width, channels).
        gamma: (channels,), float32.
        beta: (channels,), float32.
        epsilon: added to the variance.

    Returns:
        (outputs in the inputs' dtype, mean, unbiased variance), the last two without a gradient; None for
        other inputs and in float64, where several devices share the batch, and on other backends than
        TensorFlow.
    """
    has_kernel = len(inputs.shape) == 4 and widen_dtype(inputs.dtype) == "float32"
    if keras.backend.backend() != "tensorflow" or not has_kernel or _find_replica() is not None:
        return None
    import tensorflow as tf

    outputs, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
        x=inputs, scale=gamma, offset=beta, mean=[], variance=[], epsilon=epsilon, is_training=True
    )
    return outputs, ops.stop_gradient(mean), ops.stop_gradient(variance)


def apply_adam(variable, mean, square, gradient, **factors):
    """Updates a variable of TensorFlow and its moments by one operation.

    Args:
        variable: tf.Variable.
        mean: Keras's variable of the gradient's mean.
        square: Keras's variable of the squared gradient's mean.
        gradient: of the variable.
        **factors: scalars of the variable's dtype: `lr`, `beta1`, `beta2`, `beta1_power`, `beta2_power` and
            `epsilon`, as in `tf.raw_ops.ResourceApplyAdam`.
    """
    import tensorflow as tf

    handles = {"var": variable.handle, "m": mean.value.handle, "v": square.value.handle}
    tf.raw_ops.ResourceApplyAdam(**handles, grad=tf.convert_to_tensor(gradient), **factors)


def keep_tensorflow_off_gpus():
    """Hides the GPUs from TensorFlow where it only reads pictures: it would take all their memory."""
    import tensorflow as tf

    tf.config.set_visible_devices([], "GPU")
