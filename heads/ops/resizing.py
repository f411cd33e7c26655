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


def convolve_resized(inputs, kernel, size):
    """Returns the convolution of `resize_bilinear(inputs, size)`, most of it computed at the inputs' size.

    Resizing and convolution are linear. So a 1 x 1 convolution applies each tap of the kernel to the small
    map, and two matrices resize, shift and add up what it gives, along the columns and along the rows. That
    is the same sum in another order. For 3 x 3 taps of 512 channels and 128 x 128 outputs it takes 3, 10 or
    30 times fewer multiplications than the large map's convolution if the side grows 2, 4 or 8 times.

    Args:
        inputs: (batch, height, width, channels).
        kernel: (rows, columns, channels, filters), both sides odd; the map keeps its size, as with
            `padding="same"`.
        size: (height, width) of the outputs.

    Returns:
        (batch, *size, filters) of the inputs' dtype.
    """
    num_rows, num_columns, channels, filters = kernel.shape
    batch, height, width = ops.shape(inputs)[:3]
    taps = ops.reshape(ops.transpose(kernel, (2, 1, 0, 3)), (1, 1, channels, -1))
    products = ops.conv(inputs, taps, data_format="channels_last")
    products = ops.reshape(products, (batch, height, width * num_columns, num_rows * filters))
    columns = ops.cast(_shifting_matrix(width, size[1], num_columns), inputs.dtype)
    products = ops.matmul(columns, products)  # (batch, height, new width, rows of the kernel * filters)
    products = ops.reshape(products, (batch, height, size[1], num_rows, filters))
    products = ops.transpose(products, (0, 1, 3, 2, 4))
    products = ops.reshape(products, (batch, height * num_rows, size[1] * filters))
    rows = ops.cast(_shifting_matrix(height, size[0], num_rows), inputs.dtype)
    return ops.reshape(ops.matmul(rows, products), (batch, *size, filters))


def _shifting_matrix(old, new, num_taps):
    """Returns (new, old * taps): what each tap at each old position adds to each new one."""
    places = ops.arange(new, dtype="int32")[:, None] + ops.arange(num_taps, dtype="int32") - num_taps // 2
    inside = (places >= 0) & (places < new)  # beyond, the convolution sees zeros
    ratio = ops.cast(old, "float32") / ops.cast(new, "float32")
    positions = (ops.cast(places, "float32") + 0.5) * ratio - 0.5
    positions = ops.clip(positions, 0.0, ops.cast(old - 1, "float32"))
    distances = ops.abs(positions[:, None, :] - ops.cast(ops.arange(old, dtype="int32"), "float32")[:, None])
    weights = ops.relu(1.0 - distances) * ops.cast(inside, "float32")[:, None, :]
    return ops.reshape(weights, (new, old * num_taps))


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
