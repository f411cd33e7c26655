"""The convolutions of a block, with kernel gradients that TensorFlow computes quickly on CPUs."""

import contextlib
import functools
import math

import keras
from keras import ops

from van_backbones.depthwise import convolve_depthwise


class PointwiseConvolution(keras.layers.Conv2D):
    """A 1 x 1 convolution with a bias: `kernel_size=1`, and the defaults of `keras.layers.Conv2D`.

    On CPUs the kernel's gradient is a matrix product. TensorFlow asks oneDNN for the gradients of kernel and
    bias in one call, which takes five times as long in float32.
    """

    def call(self, inputs):
        if not _runs_on_cpu():
            return super().call(inputs)
        return _convolve_pointwise(inputs, *_read_variables(self.kernel, self.bias))


class DepthwiseConvolution(keras.layers.DepthwiseConv2D):
    """A depthwise convolution with a bias, of an odd kernel size, `padding="same"` and strides of 1.

    oneDNN's quick kernel gradient works for kernels of up to three columns; that of a wider one takes up to
    ten times as long. So on CPUs, wider kernels get theirs three columns at a time. JAX and PyTorch use other
    forms (`van_backbones/depthwise.py`).
    """

    def call(self, inputs):
        if keras.backend.backend() != "tensorflow":
            kernel = ops.convert_to_tensor(self.kernel)
            return ops.add(convolve_depthwise(inputs, kernel, self.dilation_rate[0]), self.bias)
        if not _runs_on_cpu():
            return super().call(inputs)
        return _convolve_depthwise(inputs, *_read_variables(self.kernel, self.bias), self.dilation_rate[0])


def _runs_on_cpu():
    if keras.backend.backend() != "tensorflow":
        return False
    import tensorflow as tf

    return all(device.device_type == "CPU" for device in tf.config.get_visible_devices())


def _read_variables(*variables):
    """Returns tensors in the layer's compute dtype, as `tf.custom_gradient` takes no variables."""
    import tensorflow as tf

    return [tf.convert_to_tensor(ops.convert_to_tensor(variable)) for variable in variables]


def _convolve_pointwise(inputs, kernel, bias):
    import tensorflow as tf

    @tf.custom_gradient
    def convolve(inputs, kernel, bias):
        def differentiate(gradient):
            input_gradient = tf.raw_ops.Conv2DBackpropInput(
                input_sizes=tf.shape(inputs), filter=kernel, out_backprop=gradient, **options
            )
            rows, gradient_rows = (tf.reshape(x, (-1, x.shape[-1])) for x in (inputs, gradient))
            kernel_gradient = tf.matmul(rows, gradient_rows, transpose_a=True)
            return input_gradient, tf.reshape(kernel_gradient, kernel.shape), _sum_positions(gradient)

        options = {"strides": [1] * 4, "padding": "VALID"}
        return tf.nn.bias_add(tf.nn.conv2d(inputs, kernel, **options), bias), differentiate

    return convolve(inputs, kernel, bias)


def _convolve_depthwise(inputs, kernel, bias, dilation):
    import tensorflow as tf

    def split(maps):
        """Moves neighbours in the dilated convolution next to each other: one map per phase."""
        return tf.space_to_batch(maps, [dilation] * 2, margins) if dilation > 1 else maps

    def merge(phases):
        return tf.batch_to_space(phases, [dilation] * 2, margins) if dilation > 1 else phases

    @tf.custom_gradient
    def convolve(inputs, kernel, bias):
        def differentiate(gradient):
            gradient_phases = split(gradient)
            input_gradient = tf.raw_ops.DepthwiseConv2dNativeBackpropInput(
                input_sizes=tf.shape(phases), filter=kernel, out_backprop=gradient_phases, **options
            )
            kernel_gradient = _differentiate_kernel(phases, gradient_phases, kernel.shape[:2])
            return merge(input_gradient), kernel_gradient, _sum_positions(gradient)

        options = {"strides": [1] * 4, "padding": "SAME"}
        phases = split(inputs)
        outputs = merge(tf.nn.depthwise_conv2d(phases, kernel, **options))
        return tf.nn.bias_add(outputs, bias), differentiate

    margins = [[0, -side % dilation] for side in _read_size(inputs)]
    return convolve(inputs, kernel, bias)


def _differentiate_kernel(inputs, gradient, kernel_size):
    """Returns the gradient of a depthwise kernel that kept the size of its map."""
    import tensorflow as tf

    (height, width), channels = kernel_size, inputs.shape[-1]

    def differentiate_columns(inputs, gradient):
        return tf.raw_ops.DepthwiseConv2dNativeBackpropFilter(
            input=inputs,
            filter_sizes=[height, 3, channels, 1],
            out_backprop=gradient,
            strides=[1] * 4,
            padding="SAME",
        )

    # oneDNN's quick way is not for maps smaller than the kernel either, and for empty ones TensorFlow's
    # result is arbitrary. Where nothing is missing, `tf.pad` copies nothing.
    inputs, gradient = _pad_to(inputs, kernel_size), _pad_to(gradient, kernel_size)
    columns = [differentiate_columns(inputs, gradient)]
    # Of two maps that are shifted against each other by 2, the columns -1 and 0 are the kernel's -3 and -2.
    # Their column 1 would lack what was cut off.
    for shift in range(2, width // 2 + 1, 2):
        count = min(width // 2 - shift + 1, 2)
        left = differentiate_columns(inputs[:, :, :-shift], gradient[:, :, shift:])
        right = differentiate_columns(inputs[:, :, shift:], gradient[:, :, :-shift])
        columns = [left[:, 2 - count : 2], *columns, right[:, 1 : 1 + count]]
    return tf.concat(columns, axis=1)


def _pad_to(maps, size):
    """Returns maps that have at least this height and width."""
    import tensorflow as tf

    missing = [
        max(side - own, 0) if isinstance(own, int) else tf.maximum(side - own, 0)
        for side, own in zip(size, _read_size(maps), strict=True)
    ]
    if [count for count in missing if isinstance(count, int)] == [0, 0]:  # a smaller graph
        return maps
    return tf.pad(maps, [[0, 0], [0, missing[0]], [0, missing[1]], [0, 0]])


def _read_size(maps):
    """Returns height and width, as numbers if they are known."""
    return maps.shape[1:3] if None not in maps.shape[1:3] else ops.shape(maps)[1:3]


def _sum_positions(maps):
    """Returns the sum of each channel, rounded once."""
    import tensorflow as tf

    if maps.dtype != tf.bfloat16:
        return tf.raw_ops.BiasAddGrad(out_backprop=maps)
    # In bfloat16 that operation rounds after each summand, and loses most of a large map.
    rows = tf.reshape(maps, (-1, maps.shape[-1]))
    return tf.squeeze(tf.matmul(tf.ones((1, tf.shape(rows)[0]), rows.dtype), rows), axis=0)


def gelu(inputs):
    """Returns the exact GELU, `x * Phi(x)`.

    `keras.activations.gelu` is the same function, but on TensorFlow it goes through the complementary error
    function, which takes several times as long. In this order of operations, other runtimes recognise it when
    they load an export.
    """
    return (0.5 * inputs) * (1.0 + ops.erf(inputs * math.sqrt(0.5)))


def fused_gelu(inputs, training=True):
    """Returns the exact GELU, and its gradient, on TensorFlow in one pass over the map instead of five.

    The graph has the operations of `gelu`, marked, so that TensorFlow lets XLA fuse them; in an export, other
    runtimes see no difference. XLA compiles them anew for each size, so do not use it in a graph that serves
    all sizes. Training keeps the inputs, and no maps in between.

    Args:
        inputs: tensor of any shape.
        training: whether the gradient takes one pass, too. TensorFlow then keeps each graph in which this is
            traced for as long as the process lives: pass False where the graph is for inference only.
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


def normalize_in_one_pass(inputs, gamma, beta, epsilon):
    """Returns what `_normalize` returns, by a kernel of TensorFlow that Keras does not use.

    Its sums are as exact as PyTorch's in channels last, a little less than those of `_normalize`.
    """
    import tensorflow as tf

    outputs, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
        x=inputs, scale=gamma, offset=beta, mean=[], variance=[], epsilon=epsilon, is_training=True
    )
    return outputs, mean, variance
