"""Resizing and pooling of maps, with PyTorch's conventions."""

from keras import ops


def resize_bilinear(inputs, size):
    """Returns bilinearly resized maps, with half-pixel centres and without antialiasing.

    PyTorch's `interpolate(mode="bilinear", align_corners=False)`.

    Args:
        inputs: (batch, height, width, channels).
        size: (height, width) of the outputs.

    Returns:
        (batch, *size, channels) of the inputs' dtype.
    """
    if all(isinstance(side, int) for side in size):
        return ops.image.resize(inputs, size, interpolation="bilinear", data_format="channels_last")
    # `ops.image.resize` fails in a TensorFlow graph whose sizes are unknown.
    old_size = ops.shape(inputs)[1:3]
    for axis, (old, new) in enumerate(zip(old_size, size, strict=True), 1):
        inputs = _interpolate(inputs, axis, old, new)
    return inputs


def resize_masks(masks, size):
    """Returns masks (batch, n, height, width) resized bilinearly to (height, width) `size`."""
    batch, count, *old_size = ops.shape(masks)
    resized = resize_bilinear(ops.reshape(masks, (batch * count, *old_size, 1)), size)
    return ops.reshape(resized, (batch, count, *size))


def _interpolate(inputs, axis, old, new):
    """Returns `inputs` with its `axis` resized from `old` to `new` positions."""
    ratio = ops.cast(old, "float32") / ops.cast(new, "float32")
    position = (ops.cast(ops.arange(new, dtype="int32"), "float32") + 0.5) * ratio - 0.5
    position = ops.maximum(position, 0.0)
    lower = ops.cast(position, "int32")
    upper = ops.minimum(lower + 1, old - 1)
    share = ops.cast(position - ops.cast(lower, "float32"), inputs.dtype)
    share = ops.reshape(share, [-1 if i == axis else 1 for i in range(len(inputs.shape))])
    lower, upper = ops.take(inputs, lower, axis=axis), ops.take(inputs, upper, axis=axis)
    return lower + (upper - lower) * share


def resize_nearest(inputs, size):
    """Returns maps resized by repeating values: output i takes input floor(i * old / new).

    PyTorch's `interpolate(mode="nearest")`. `ops.image.resize` uses half-pixel centres instead, which differs
    unless the size is doubled exactly (3 -> 5).

    Args:
        inputs: (batch, height, width, channels).
        size: (height, width) of the outputs.

    Returns:
        (batch, *size, channels) of the inputs' dtype.
    """
    old_size = ops.shape(inputs)[1:3]
    for axis, (old, new) in enumerate(zip(old_size, size, strict=True), 1):
        inputs = ops.take(inputs, ops.arange(new, dtype="int32") * old // new, axis=axis)
    return inputs


def pool_adaptively(inputs, num_bins: int):
    """Returns means over a grid of `num_bins` x `num_bins` cells, whatever the inputs' size.

    PyTorch's `adaptive_avg_pool2d`: cell i of n positions covers floor(i n / bins) .. ceil((i + 1) n / bins),
    so that neighbours may overlap. Averaging matrices make it exact at any size, in any graph;
    `keras.layers.AdaptiveAveragePooling2D` fails in TensorFlow's.

    Args:
        inputs: (batch, height, width, channels).
        num_bins: cells along each axis.

    Returns:
        (batch, num_bins, num_bins, channels) of the inputs' dtype.
    """
    height, width = ops.shape(inputs)[1:3]
    dtype = inputs.dtype
    rows = ops.cast(_averaging_matrix(height, num_bins), dtype)
    columns = ops.cast(_averaging_matrix(width, num_bins), dtype)
    return ops.einsum("ih,bhwc,jw->bijc", rows, inputs, columns)


def _averaging_matrix(num_positions, num_bins):
    # (bins, positions)
    position = ops.arange(num_positions, dtype="int32")[None, :]
    bins = ops.arange(num_bins, dtype="int32")[:, None]
    start = bins * num_positions // num_bins
    # Rounds up without negative numbers, whose quotients ONNX rounds towards zero.
    end = ((bins + 1) * num_positions + num_bins - 1) // num_bins
    inside = ops.cast((position >= start) & (position < end), "float32")
    return inside / ops.sum(inside, axis=1, keepdims=True)
