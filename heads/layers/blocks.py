"""Building blocks of the heads: layers in a row, convolution with batch norm and ReLU, last layers."""

import itertools

import keras
from keras import ops

from heads.ops.backends import normalize_at_once, widen_dtype
from heads.ops.moments import measure_moments
from heads.ops.resizing import convolve_resized


class Layer(keras.layers.Layer):
    """A layer whose configuration Keras writes from the arguments of its constructor."""

    def __new__(cls, *args, dtype=None, **kwargs):
        # Without `dtype`, which Keras's `get_config` has anyway: a policy object would keep Keras from
        # recording the other arguments.
        return super().__new__(cls, *args, **kwargs)


class Chain(Layer):
    """Layers in a row, in `self.parts`, which a subclass sets in its constructor."""

    def build(self, input_shape):
        for part in self.parts:
            part.build(input_shape)
            input_shape = part.compute_output_shape(input_shape)
        self.built = True

    def call(self, inputs, training=None):
        for part in self.parts:
            inputs = part(inputs)
        return inputs

    def compute_output_shape(self, input_shape):
        for part in self.parts:
            input_shape = part.compute_output_shape(input_shape)
        return input_shape


@keras.saving.register_keras_serializable("van_backbones.heads")
class BatchNormalization(keras.layers.BatchNormalization):
    """Batch normalisation that keeps PyTorch's statistics: the moving variance is the unbiased one.

    Over a map pooled to one position, the two variances differ by a factor of n / (n - 1) with the batch
    size as n. On several devices the statistics are those of the joint batch.
    (`van_backbones.normalization` has the same class: the two packages do not import each other.)

    Args:
        momentum: share of the old statistics that a training step keeps.
        epsilon: added to the variance.
        **kwargs: arguments of `keras.layers.BatchNormalization` other than `renorm` and `synchronized`.
    """

    def __init__(self, momentum: float = 0.9, epsilon: float = 1e-5, **kwargs):
        super().__init__(momentum=momentum, epsilon=epsilon, **kwargs)

    def call(self, inputs, training=None, mask=None):
        if not (training and self.trainable):
            return super().call(inputs, training=training, mask=mask)
        dtype = widen_dtype(inputs.dtype)
        gamma, beta = ops.cast(self.gamma, dtype), ops.cast(self.beta, dtype)
        normed = normalize_at_once(inputs, gamma, beta, self.epsilon) if mask is None else None
        if normed is None:
            inputs = ops.cast(inputs, dtype)
            mean, variance, count = measure_moments(inputs, mask)
            outputs = ops.batch_normalization(inputs, mean, variance, -1, beta, gamma, self.epsilon)
            normed = outputs, mean, variance * (count / ops.maximum(count - 1.0, 1.0))
        outputs, mean, unbiased = normed
        for moving, value in ((self.moving_mean, mean), (self.moving_variance, unbiased)):
            moving.assign(ops.cast(moving, value.dtype) * self.momentum + value * (1.0 - self.momentum))
        return ops.cast(outputs, self.compute_dtype)


@keras.saving.register_keras_serializable("van_backbones.heads")
class ConvolutionBlock(Chain):
    """Convolution, batch normalisation, ReLU; the map keeps its size.

    Args:
        filters: output channels.
        kernel_size: side of the kernel, odd.
        use_bias: whether the convolution has a bias.
        dilation_rate: spacing of the pixels that the kernel looks at.
        joins_maps: whether the inputs are a list of maps: see `JoiningConvolution`.
        **kwargs: base arguments of the layer.

    Call arguments:
        inputs: (batch, height, width, channels), or the list of maps.
        counts: bool (batch, height or 1, width or 1), the positions that count in the norm's statistics; None
            for all.
    """

    def __init__(
        self,
        filters: int,
        kernel_size: int,
        use_bias: bool = False,
        dilation_rate: int = 1,
        joins_maps: bool = False,
        **kwargs,
    ):
        super().__init__(**kwargs)
        options = {"use_bias": use_bias, "dilation_rate": dilation_rate, "dtype": self.dtype_policy}
        if joins_maps:
            options["layer"] = JoiningConvolution
        self.conv = make_kaiming_convolution(filters, kernel_size, name="conv", **options)
        self.norm = BatchNormalization(dtype=self.dtype_policy, name="norm")
        self.parts = [self.conv, self.norm]

    def call(self, inputs, training=None, counts=None):
        return ops.relu(self.norm(self.conv(inputs), mask=counts))

    def reference_layers(self):
        """Returns mmcv's names: name -> layer."""
        return {"conv": self.conv, "bn": self.norm}


@keras.saving.register_keras_serializable("van_backbones.heads")
class JoiningConvolution(keras.layers.Conv2D):
    """Convolution of maps of several sizes as if they were resized to the first one's and concatenated.

    The coarse maps are convolved at their own size, which gives the same numbers in a fraction of the time:
    see `heads.ops.resizing.convolve_resized`. Strides and dilation are 1, the padding "same".

    Args:
        *args, **kwargs: arguments of `keras.layers.Conv2D`: the sides of the kernel odd, `padding="same"`,
            channels last, no strides, dilation or groups.

    Call arguments:
        inputs: a list of maps (batch, height, width, channels); all but the batch may differ.

    Returns:
        (batch, height and width of the first map, filters).

    Raises:
        ValueError: if an argument is another one.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.input_spec = None  # which is of one map
        expected = {"padding": "same", "data_format": "channels_last", "groups": 1}
        expected |= {"strides": (1, 1), "dilation_rate": (1, 1)}
        for name, value in expected.items():
            if getattr(self, name) != value:
                raise ValueError(f"{name} must be {value!r}. Received: {getattr(self, name)!r}")
        if not all(side % 2 for side in self.kernel_size):
            raise ValueError(f"the sides of the kernel must be odd. Received: kernel_size={self.kernel_size}")

    def build(self, input_shape):
        super().build(self._join_shapes(input_shape))
        self.input_spec = None

    def call(self, inputs):
        first, *others = inputs
        size = ops.shape(first)[1:3]
        *ends, _ = itertools.accumulate(maps.shape[-1] for maps in inputs)
        kernel, *kernels = ops.split(self.kernel, ends, axis=2)
        outputs = ops.conv(first, kernel, padding="same", data_format="channels_last")
        for maps, kernel in zip(others, kernels, strict=True):
            outputs = outputs + convolve_resized(maps, kernel, size)
        if self.use_bias:
            outputs = outputs + self.bias
        return outputs if self.activation is None else self.activation(outputs)

    def compute_output_shape(self, input_shape):
        return super().compute_output_shape(self._join_shapes(input_shape))

    @staticmethod
    def _join_shapes(shapes):
        """Returns the shape of the concatenated maps; Keras's own `build` asks with that one."""
        if isinstance(shapes[0], (tuple, list)):
            return (*shapes[0][:-1], sum(shape[-1] for shape in shapes))
        return shapes


@keras.saving.register_keras_serializable("van_backbones.heads")
class PixelClassifier(Chain):
    """The last layer of a segmenter: whole channels dropped in training, then a 1 x 1 convolution.

    Args:
        num_classes: number of logits per position.
        dropout_rate: share of channels that are dropped in training.
        **kwargs: base arguments of the layer.
    """

    def __init__(self, num_classes: int, dropout_rate: float = 0.1, **kwargs):
        super().__init__(**kwargs)
        options = {"data_format": "channels_last", "dtype": self.dtype_policy}
        self.dropout = keras.layers.SpatialDropout2D(dropout_rate, name="dropout", **options)
        self.conv = make_small_convolution(num_classes, 1, dtype=self.dtype_policy, name="conv")
        self.parts = [self.dropout, self.conv]


def make_small_convolution(filters: int, kernel_size: int, bias=0.0, **kwargs):
    """Returns a convolution whose weights start near 0 (deviation 0.01), as in mmdetection's heads.

    Args:
        filters: output channels.
        kernel_size: side of the kernel; the map keeps its size.
        bias: value of the biases at the start.
        **kwargs: arguments of `keras.layers.Conv2D`.
    """
    return keras.layers.Conv2D(
        filters,
        kernel_size,
        padding="same",
        data_format="channels_last",
        kernel_initializer=keras.initializers.RandomNormal(0.0, 0.01),
        bias_initializer=keras.initializers.Constant(bias),
        **kwargs,
    )


def make_kaiming_convolution(filters: int, kernel_size: int, layer=keras.layers.Conv2D, **kwargs):
    """Returns a convolution with PyTorch's kaiming normal initialisation (fan out), as in mmcv's blocks.

    Args:
        filters: output channels.
        kernel_size: side of the kernel.
        layer: the class, `keras.layers.Conv2D` or `keras.layers.Conv2DTranspose`.
        **kwargs: arguments of the class.
    """
    # A new one each time: a shared initializer would draw the same values for each layer.
    initializer = keras.initializers.VarianceScaling(2.0, "fan_out", "untruncated_normal")
    options = {"padding": "same", "data_format": "channels_last", "kernel_initializer": initializer}
    return layer(filters, kernel_size, **{**options, **kwargs})


def join_reference_layers(parts):
    """Returns the reference names of layers inside of parts: name -> layer or variable.

    Args:
        parts: prefix -> layer or variable; the names of its own `reference_layers()`, if it has any, follow
            the prefix and a dot.
    """
    names = {}
    for prefix, part in parts.items():
        inner = part.reference_layers() if hasattr(part, "reference_layers") else {"": part}
        names |= {f"{prefix}.{name}".strip("."): layer for name, layer in inner.items()}
    return names
