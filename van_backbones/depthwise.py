"""Depthwise convolutions in forms that JAX and PyTorch compute quickly.

Both run a dilated convolution in kernels that can take fifty times as long as those without dilation, and on
CPUs XLA takes at least ten times as long for any depthwise convolution (docs/speed.md).
"""

import functools

import keras
from keras import ops


def convolve_depthwise(inputs, kernel, dilation=1):
    """Returns a depthwise convolution over maps that keep their size, on JAX or PyTorch.

    Args:
        inputs: (batch, height, width, channels).
        kernel: (side, side, channels, 1) in the same dtype, with an odd side.
        dilation: the step between the pixels that neighbouring weights of the kernel are applied to.

    Returns:
        A tensor like `inputs`. The maps are padded with zeros.
    """
    if _runs_on_jax_cpu():
        return _make_convolution_by_shifts(dilation)(inputs, kernel)
    if dilation == 1:
        return _convolve(inputs, kernel)
    # Neighbours in the dilated convolution move next to each other: a picture becomes one map for each phase.
    _, height, width, channels = inputs.shape
    rows, columns = -(-height // dilation), -(-width // dilation)
    margins = [[0, 0], [0, rows * dilation - height], [0, columns * dilation - width], [0, 0]]
    phases = ops.reshape(ops.pad(inputs, margins), (-1, rows, dilation, columns, dilation, channels))
    # The batch stays first, so that a batch that is split over devices needs no exchange.
    phases = ops.reshape(ops.transpose(phases, (0, 2, 4, 1, 3, 5)), (-1, rows, columns, channels))
    outputs = ops.reshape(_convolve(phases, kernel), (-1, dilation, dilation, rows, columns, channels))
    outputs = ops.transpose(outputs, (0, 3, 1, 4, 2, 5))
    outputs = ops.reshape(outputs, (-1, rows * dilation, columns * dilation, channels))
    return outputs[:, :height, :width]


def widen_dtype(dtype) -> str:
    """Returns the dtype in which values of a floating dtype are added up: float32, or float64 for float64."""
    # Not `keras.backend.result_type`, which on JAX and PyTorch turns float64 into float32.
    return "float64" if keras.backend.standardize_dtype(dtype) == "float64" else "float32"


def _convolve(inputs, kernel):
    return ops.depthwise_conv(inputs, kernel, padding="same", data_format="channels_last")


def _runs_on_jax_cpu():
    if keras.backend.backend() != "jax":
        return False
    import jax

    return jax.default_backend() == "cpu"


@functools.cache
def _make_convolution_by_shifts(dilation):
    """Returns a convolution that adds shifted maps, each times its place in the kernel."""
    import jax

    @jax.jit  # one compiled function outside of a compiled model, too
    @jax.custom_gradient
    def convolve(inputs, kernel):
        def differentiate(gradient):
            input_gradient = _add_shifted(gradient, kernel[::-1, ::-1], dilation)
            return input_gradient, _differentiate_kernel(inputs, gradient, kernel, dilation)

        return _add_shifted(inputs, kernel, dilation), differentiate

    return convolve


# Loops over the places of the kernel: unrolled, they would run a little faster and compile much longer.
def _add_shifted(inputs, kernel, dilation):
    import jax

    shift, factors = _make_shift(inputs, kernel, dilation), ops.reshape(kernel, (-1, inputs.shape[-1]))
    outputs = jax.lax.fori_loop(
        0,
        len(factors),
        lambda place, outputs: outputs + shift(place) * factors[place],
        ops.zeros(inputs.shape, _widen(inputs).dtype),
    )
    return ops.cast(outputs, inputs.dtype)


def _differentiate_kernel(inputs, gradient, kernel, dilation):
    import jax

    shift, places = _make_shift(inputs, kernel, dilation), jax.numpy.arange(len(kernel) ** 2)
    # The batch is summed after the loop, in one exchange where several devices share it.
    sums = jax.lax.map(lambda place: ops.sum(shift(place) * gradient, axis=(1, 2)), places)
    return ops.cast(ops.reshape(ops.sum(sums, axis=1), kernel.shape), kernel.dtype)


def _make_shift(inputs, kernel, dilation):
    """Returns a function: place in the kernel -> the maps that meet it, wide enough for sums."""
    import jax

    side = len(kernel)
    margin = side // 2 * dilation
    padded = ops.pad(_widen(inputs), [[0, 0], [margin, margin], [margin, margin], [0, 0]])

    def shift(place):
        corner = (0, place // side * dilation, place % side * dilation, 0)
        return jax.lax.dynamic_slice(padded, corner, inputs.shape)

    return shift


def _widen(values):
    return ops.cast(values, widen_dtype(values.dtype))
