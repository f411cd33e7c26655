"""Batch normalisation with PyTorch's statistics, and the normalisation of images."""

import keras
from keras import ops

from van_backbones.cpu_kernels import normalize_in_one_pass
from van_backbones.depthwise import widen_dtype
from van_backbones.devices import find_device_sum, join_moments


@keras.saving.register_keras_serializable(package="van_backbones")
class BatchNormalization(keras.layers.BatchNormalization):
    """Batch normalisation that keeps PyTorch's statistics.

    PyTorch's moving variance is the unbiased one (divided by n - 1), Keras's the biased one. The
    difference is 2 % at the coarsest level of a small crop. On several devices the statistics are those of
    the joint batch.

    Args:
        momentum: share of the old statistics that a training step keeps.
        epsilon: added to the variance.
        **kwargs: arguments of `keras.layers.BatchNormalization` other than `renorm` and `synchronized`.
    """

    def __init__(self, momentum=0.9, epsilon=1e-5, **kwargs):
        super().__init__(momentum=momentum, epsilon=epsilon, **kwargs)

    def call(self, inputs, training=None):
        if not training:
            return super().call(inputs, training=False)
        outputs, statistics = self.normalize_batch(inputs)
        self.update_statistics(statistics)
        return outputs

    def normalize_batch(self, inputs):
        """Returns the outputs of `call` in training, and the batch's statistics for `update_statistics`.

        Changes no variable, so that it may run twice. A frozen layer uses its moving statistics, and returns
        none of the batch.
        """
        if not self.trainable:
            return super().call(inputs, training=False), ()
        inputs = ops.cast(inputs, self.compute_dtype)
        dtype = widen_dtype(self.compute_dtype)
        gamma, beta = ops.cast(self.gamma, dtype), ops.cast(self.beta, dtype)
        if keras.backend.backend() == "tensorflow" and dtype == "float32" and find_device_sum() is None:
            outputs, *statistics = normalize_in_one_pass(inputs, gamma, beta, self.epsilon)
        else:
            outputs, *statistics = _normalize(inputs, gamma, beta, self.epsilon)
        return ops.cast(outputs, self.compute_dtype), tuple(map(ops.stop_gradient, statistics))

    def update_statistics(self, statistics):
        """Moves the moving statistics towards those that `normalize_batch` gave."""
        for moving, value in zip((self.moving_mean, self.moving_variance), statistics, strict=False):
            moving.assign(ops.cast(moving, value.dtype) * self.momentum + value * (1.0 - self.momentum))

    def scale_and_shift(self):
        """Returns the (channels,) `scale` and `shift` that the layer applies at inference."""
        scale = self.gamma * ops.rsqrt(self.moving_variance + self.epsilon)
        return scale, self.beta - self.moving_mean * scale


def _normalize(inputs, gamma, beta, epsilon):
    """Returns the normed inputs in gamma's dtype, the mean and the unbiased variance."""
    inputs = ops.cast(inputs, gamma.dtype)
    count = ops.cast(ops.prod(ops.shape(inputs)[:-1]), inputs.dtype)
    mean, variance, count = join_moments(*ops.moments(inputs, axes=(0, 1, 2)), count)
    outputs = ops.batch_normalization(inputs, mean, variance, -1, beta, gamma, epsilon)
    # A single value has no unbiased variance: then the biased one, 0, stays.
    return outputs, mean, variance * (count / ops.maximum(count - 1.0, 1.0))


@keras.saving.register_keras_serializable(package="van_backbones")
class ImageNormalization(keras.layers.Layer):
    """Turns RGB images of 0 .. 255 into what the network was trained on.

    Computes in float32 whatever the policy, because half precision cannot hold resized pixels, and returns
    the compute dtype.

    Args:
        mean: three floats, subtracted.
        deviation: three floats, divided by.
        **kwargs: base arguments of the layer.
    """

    def __init__(self, mean, deviation, **kwargs):
        super().__init__(autocast=False, **kwargs)
        self.mean = tuple(mean)
        self.deviation = tuple(deviation)

    def call(self, images):
        images = ops.cast(images, widen_dtype(self.compute_dtype))
        images = (images - ops.array(self.mean, images.dtype)) / ops.array(self.deviation, images.dtype)
        return ops.cast(images, self.compute_dtype)

    def compute_output_spec(self, images):
        return keras.KerasTensor(images.shape, dtype=self.compute_dtype)

    def get_config(self):
        return {**super().get_config(), "mean": self.mean, "deviation": self.deviation}
