"""Mean and variance of a batch, over the positions that count on all devices that share the batch."""

from keras import ops

from heads.ops.backends import sum_over_devices


def measure_moments(inputs, mask=None):
    """Returns the mean, the biased variance and the number of values of each channel.

    Args:
        inputs: (..., channels), float.
        mask: bool (...), the positions that count; axes along which it is constant may have length 1. None
            for all.

    Returns:
        (mean (channels,), variance (channels,), count), of the joint batch where devices share one.
    """
    axes = list(range(len(inputs.shape) - 1))
    count = ops.cast(ops.prod(ops.shape(inputs)[:-1]), inputs.dtype)
    if mask is None:
        mean, variance = ops.moments(inputs, axes)
    else:
        counts = ops.expand_dims(mask, -1)
        count = count * ops.mean(ops.cast(counts, inputs.dtype))
        divisor = ops.maximum(count, 1.0)
        # Not as products with 0, since values that do not count may be NaN, and need a gradient of 0.
        mean = ops.sum(ops.where(counts, inputs, 0.0), axes) / divisor
        variance = ops.sum(ops.where(counts, inputs - mean, 0.0) ** 2, axes) / divisor
    total, num_devices = sum_over_devices(count)
    if num_devices == 1:
        return mean, variance, count
    # A device may get no part of a last batch, and has no moments then.
    mean, variance = (ops.where(count > 0, value, 0.0) for value in (mean, variance))
    divisor = ops.maximum(total, 1.0)
    joint_mean = sum_over_devices(mean * count)[0] / divisor
    # Around the joint mean, as a difference of squares would lose digits.
    squares = (variance + (mean - joint_mean) ** 2) * count
    return joint_mean, sum_over_devices(squares)[0] / divisor, total
