"""The GELU, plain and in one pass."""

import contextlib
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


def fused_gelu(inputs, training=True):
    """Gives the exact GELU, and its gradient, on TensorFlow in one pass over the map in place of five.

    The graph has the operations of `gelu`, marked, so that TensorFlow lets XLA make them one; in an export,
    other runtimes see no difference. XLA compiles them for each size anew: hence not in a graph that is to
    serve all sizes. Training keeps the inputs, and no maps in between.

    Args:
        inputs: tensor of any shape.
        training: whether the gradient is one pass, too. TensorFlow then keeps each graph that this is traced
            in for as long as the process lives: False for what is for inference only.
    """
    if keras.backend.backend() != "tensorflow":
        return gelu(inputs)
    return _fused_gelu()(inputs) if training else _fuse(gelu, inputs)


def _fuse(function, inputs, *others):
    import tensorflow as tf

    # In half precision XLA would round after every step, which takes as long as the steps.
    dtype = keras.backend.result_type(inputs.dtype.name, "float32")
    is_fixed = not tf.executing_eagerly() and None not in inputs.shape[1:]
    with tf.xla.experimental.jit_scope() if is_fixed else contextlib.nullcontext():
        return tf.cast(function(*(tf.cast(x, dtype) for x in (inputs, *others))), inputs.dtype)


@functools.cache
def _fused_gelu():
    import tensorflow as tf

    def differentiate(inputs, gradient):
        cumulative = 0.5 * (1.0 + tf.math.erf(inputs * math.sqrt(0.5)))
        density = tf.exp(-0.5 * tf.square(inputs)) * (0.5 * math.sqrt(2.0 / math.pi))
        return gradient * (cumulative + inputs * density)

    @tf.custom_gradient
    def compute(inputs):
        return _fuse(gelu, inputs), lambda gradient: _fuse(differentiate, inputs, gradient)

    return compute
