"""The GELU in three forms: plain, in one compiled pass, and less its constants."""

import functools
import math

import keras
from keras import ops


def gelu(inputs):
    """Gives the exact GELU, `x * Phi(x)`.

    `keras.activations.gelu` is the same function, but on TensorFlow it goes through the complementary
    error function, which takes several times as long (README, "Speed"). Written in this order, other runtimes
    know it when they load an export.
    """
    return (0.5 * inputs) * (1.0 + ops.erf(inputs * math.sqrt(0.5)))


def fused_gelu(inputs):
    """Gives the exact GELU, and its gradient, on TensorFlow in one pass over the map in place of five.

    XLA compiles that pass, for each size anew: hence not in a graph that is to serve all sizes. Batches may
    differ: there are seldom more than a full one and a last one.
    """
    if keras.backend.backend() != "tensorflow" or None in inputs.shape[1:]:
        return gelu(inputs)
    return _compile_gelu(tuple(inputs.shape), inputs.dtype)(inputs)


@functools.cache
def _compile_gelu(shape, dtype):
    import tensorflow as tf

    def compute(inputs):
        # In half precision XLA would round after every step, which takes as long as the steps.
        return ops.cast(gelu(ops.cast(inputs, keras.backend.result_type(dtype.name, "float32"))), dtype)

    return tf.function(compute, input_signature=[tf.TensorSpec(shape, dtype)], jit_compile=True)


def scaled_gelu(inputs):
    """Gives `sqrt(2) * gelu(sqrt(2) * inputs)`: the GELU less the constants that neighbours can take over."""
    return inputs * (1.0 + ops.erf(inputs))
