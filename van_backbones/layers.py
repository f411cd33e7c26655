"""The layers of the Visual Attention Network (arXiv 2202.09741, section 3)."""

import math

import keras
from keras import ops

from van_backbones.cpu_kernels import DepthwiseConvolution, PointwiseConvolution, fused_gelu, gelu
from van_backbones.normalization import BatchNormalization


def drop_path(rate, **kwargs):
    """Returns a layer of stochastic depth: whole samples are dropped, the others scaled up.

    Args:
        rate: probability of dropping a sample's residual branch.
        **kwargs: base arguments of the layer, such as `dtype`.

    Returns:
        A `keras.layers.Dropout` whose noise is shared by all positions and channels of a sample.
    """
    return keras.layers.Dropout(rate, noise_shape=(None, 1, 1, 1), **kwargs)


def _convolution(filters, kernel_size, strides, **kwargs):
    initializer = keras.initializers.RandomNormal(0.0, math.sqrt(2.0 / (kernel_size**2 * filters)))
    return keras.layers.Conv2D(
        filters, kernel_size, strides, data_format="channels_last", kernel_initializer=initializer, **kwargs
    )


def _pointwise_convolution(filters, **kwargs):
    initializer = keras.initializers.RandomNormal(0.0, math.sqrt(2.0 / filters))
    return PointwiseConvolution(
        filters, 1, data_format="channels_last", kernel_initializer=initializer, **kwargs
    )


def _depthwise_convolution(size, dilation=1, **kwargs):
    # With one filter per group the fan out is the kernel's area.
    initializer = keras.initializers.RandomNormal(0.0, math.sqrt(2.0 / size**2))
    return DepthwiseConvolution(
        size,
        padding="same",
        data_format="channels_last",
        dilation_rate=dilation,
        depthwise_initializer=initializer,
        **kwargs,
    )


def _convolve_normed(conv, inputs, norm):
    """Returns `conv(norm(inputs))` of a 1 x 1 convolution, in one step."""
    scale, shift = norm.scale_and_shift()
    kernel = ops.multiply(conv.kernel, scale[:, None])
    return _convolve(inputs, kernel, ops.add(conv.bias, ops.matmul(shift, conv.kernel)[0, 0]))


def _convolve_scaled(conv, inputs, scale, shift=None):
    """Returns `scale * conv(inputs) + shift` of a 1 x 1 convolution, in one step."""
    # `ops.multiply` promotes a weight in half precision to the scale's dtype; `*` would fail.
    bias = ops.multiply(conv.bias, scale)
    return _convolve(
        inputs, ops.multiply(conv.kernel, scale), bias if shift is None else ops.add(bias, shift)
    )


def _convolve(inputs, kernel, bias):
    outputs = ops.conv(inputs, ops.cast(kernel, inputs.dtype), data_format="channels_last")
    return ops.add(outputs, ops.cast(bias, inputs.dtype))


@keras.saving.register_keras_serializable(package="van_backbones")
class OverlapPatchEmbedding(keras.layers.Layer):
    """A strided convolution with symmetric zero padding, then batch normalisation.

    Args:
        width: output channels.
        kernel_size: side of the kernel, odd.
        strides: step of the kernel. A side of n pixels becomes ceil(n / strides).
        **kwargs: base arguments of the layer.
    """

    def __init__(self, width, kernel_size, strides, **kwargs):
        super().__init__(**kwargs)
        self.width = width
        self.kernel_size = kernel_size
        self.strides = strides
        dtype = self.dtype_policy
        # TensorFlow's SAME pads a strided convolution at the bottom and right only.
        self.padding = keras.layers.ZeroPadding2D(kernel_size // 2, data_format="channels_last", dtype=dtype)
        self.proj = _convolution(width, kernel_size, strides, dtype=dtype, name="proj")
        self.norm = BatchNormalization(dtype=dtype, name="norm")

    def build(self, input_shape):
        self.padding.build(input_shape)
        self.proj.build(self.padding.compute_output_shape(input_shape))
        self.norm.build((*input_shape[:-1], self.width))
        self.built = True

    def call(self, inputs, training=None):
        return self.norm(self.proj(self.padding(inputs)), training=training)

    def compute_output_shape(self, input_shape):
        batch, *size, _ = input_shape
        return (batch, *(side and -(-side // self.strides) for side in size), self.width)

    def get_config(self):
        config = {"width": self.width, "kernel_size": self.kernel_size, "strides": self.strides}
        return {**super().get_config(), **config}


@keras.saving.register_keras_serializable(package="van_backbones")
class LargeKernelAttention(keras.layers.Layer):
    """Attention by a decomposed 21 x 21 convolution, between two projections (section 3.1).

    `u = gelu(proj_1(x))`, `outputs = proj_2(u * attention(u)) + x`, where `attention` is a depthwise 5 x 5,
    a depthwise 7 x 7 of dilation 3 and a 1 x 1 convolution.

    Args:
        **kwargs: base arguments of the layer.
    """

    def build(self, input_shape):
        width, dtype = input_shape[-1], self.dtype_policy
        self.proj_1 = _pointwise_convolution(width, dtype=dtype, name="proj_1")
        self.conv0 = _depthwise_convolution(5, dtype=dtype, name="conv0")
        self.conv_spatial = _depthwise_convolution(7, dilation=3, dtype=dtype, name="conv_spatial")
        self.conv1 = _pointwise_convolution(width, dtype=dtype, name="conv1")
        self.proj_2 = _pointwise_convolution(width, dtype=dtype, name="proj_2")
        for layer in (self.proj_1, self.conv0, self.conv_spatial, self.conv1, self.proj_2):
            layer.build(input_shape)
        self.built = True

    def attention_map(self, gated):
        """Returns the factors, (batch, height, width, channels), that multiply `gated`."""
        return self.conv1(self.conv_spatial(self.conv0(gated)))

    def call(self, inputs):
        gated = fused_gelu(self.proj_1(inputs))
        return self.proj_2(gated * self.attention_map(gated)) + inputs

    def call_folded(self, inputs, norm, output_scale):
        """Returns `inputs + output_scale * self(norm(inputs))`, in fewer passes over the map.

        The norm, the layer scale and the shortcut become part of the convolutions' small weights.
        """
        gated = fused_gelu(_convolve_normed(self.proj_1, inputs, norm))
        gated = gated * self.attention_map(gated)
        # The shortcut is the normed map: its scale is added to the residual's, its shift to the bias.
        scale, shift = (ops.multiply(output_scale, value) for value in norm.scale_and_shift())
        branch = _convolve_scaled(self.proj_2, gated, output_scale, shift)
        return inputs * ops.cast(1.0 + scale, inputs.dtype) + branch

    def compute_output_shape(self, input_shape):
        return input_shape


@keras.saving.register_keras_serializable(package="van_backbones")
class ConvolutionalFeedForward(keras.layers.Layer):
    """1 x 1 convolution, depthwise 3 x 3, GELU, 1 x 1 convolution back (section 3.2).

    Args:
        expansion_ratio: hidden width over input width.
        **kwargs: base arguments of the layer.
    """

    def __init__(self, expansion_ratio, **kwargs):
        super().__init__(**kwargs)
        self.expansion_ratio = expansion_ratio

    def build(self, input_shape):
        width, dtype = input_shape[-1], self.dtype_policy
        hidden_shape = (*input_shape[:-1], int(width * self.expansion_ratio))
        self.fc1 = _pointwise_convolution(hidden_shape[-1], dtype=dtype, name="fc1")
        self.dwconv = _depthwise_convolution(3, dtype=dtype, name="dwconv")
        self.fc2 = _pointwise_convolution(width, dtype=dtype, name="fc2")
        self.fc1.build(input_shape)
        self.dwconv.build(hidden_shape)
        self.fc2.build(hidden_shape)
        self.built = True

    def call(self, inputs):
        return self.fc2(fused_gelu(self.dwconv(self.fc1(inputs))))

    def call_folded(self, inputs, norm, output_scale):
        """Returns `inputs + output_scale * self(norm(inputs))`, in fewer passes over the hidden map."""
        hidden = fused_gelu(self.dwconv(_convolve_normed(self.fc1, inputs, norm)))
        return inputs + _convolve_scaled(self.fc2, hidden, output_scale)

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {**super().get_config(), "expansion_ratio": self.expansion_ratio}


@keras.saving.register_keras_serializable(package="van_backbones")
class VANBlock(keras.layers.Layer):
    """Attention, then feed-forward, each normed, scaled per channel and added to its input.

    Args:
        expansion_ratio: hidden width over width in the feed-forward part.
        drop_path_rate: probability of leaving out a branch for a sample in training.
        layer_scale: initial factor of the branches.
        recompute: whether training computes the block again in the backward pass instead of keeping its
            intermediate maps. The numbers are the same.
        **kwargs: base arguments of the layer.
    """

    def __init__(self, expansion_ratio, drop_path_rate=0.0, layer_scale=1e-2, recompute=False, **kwargs):
        # Weights are folded in float32 and cast then: casting them first would round them twice.
        super().__init__(autocast=False, **kwargs)
        self.expansion_ratio = expansion_ratio
        self.drop_path_rate = drop_path_rate
        self.layer_scale = layer_scale
        self.recompute = recompute
        dtype = self.dtype_policy
        self.norm1 = BatchNormalization(dtype=dtype, name="norm1")
        self.attention = LargeKernelAttention(dtype=dtype, name="attention")
        self.norm2 = BatchNormalization(dtype=dtype, name="norm2")
        self.feed_forward = ConvolutionalFeedForward(expansion_ratio, dtype=dtype, name="feed_forward")
        self.drop_path = drop_path(drop_path_rate, dtype=dtype, name="drop_path")

    def build(self, input_shape):
        width = input_shape[-1]
        initializer = keras.initializers.Constant(self.layer_scale)
        self.layer_scale_1 = self.add_weight((width,), initializer, name="layer_scale_1")
        self.layer_scale_2 = self.add_weight((width,), initializer, name="layer_scale_2")
        for layer in (self.norm1, self.attention, self.norm2, self.feed_forward):
            layer.build(input_shape)
        self.built = True

    def call(self, inputs, training=None):
        inputs = ops.cast(inputs, self.compute_dtype)
        scale_1, scale_2 = self.layer_scale_1, self.layer_scale_2
        if not training:
            outputs = self.attention.call_folded(inputs, self.norm1, scale_1)
            return self.feed_forward.call_folded(outputs, self.norm2, scale_2)
        # Noise and moving statistics stay outside: what is computed twice must not draw noise or assign
        # twice.
        ones = ops.ones((2 * ops.shape(inputs)[0], 1, 1, 1), self.compute_dtype)  # one draw for both branches
        kept = ops.split(self.drop_path(ones, training=True), 2)
        factors = [
            ops.cast(ops.multiply(scale, each), self.compute_dtype)
            for scale, each in zip((scale_1, scale_2), kept, strict=True)
        ]
        train = keras.remat(self._train) if self.recompute else self._train
        outputs, *statistics = train(inputs, *factors)
        for norm, values in zip((self.norm1, self.norm2), statistics, strict=True):
            norm.update_statistics(values)
        return outputs

    def _train(self, inputs, factor_1, factor_2):
        """Returns the outputs and the statistics of the two norms, and changes no variable.

        A factor, (batch, 1, 1, channels), is the layer scale over the share of samples that keep the branch,
        and 0 for those that lose it.
        """
        normed, statistics_1 = self.norm1.normalize_batch(inputs)
        outputs = inputs + factor_1 * self.attention(normed)
        normed, statistics_2 = self.norm2.normalize_batch(outputs)
        outputs = outputs + factor_2 * self.feed_forward(normed)
        return outputs, statistics_1, statistics_2

    def attention_map(self, inputs):
        """Returns the large-kernel attention, (batch, height, width, channels), of the block's inputs."""
        gated = gelu(self.attention.proj_1(self.norm1(inputs, training=False)))
        return self.attention.attention_map(gated)

    def reference_layers(self):
        """Returns the official names: name -> layer or variable."""
        attention, feed_forward = self.attention, self.feed_forward
        return {
            "layer_scale_1": self.layer_scale_1,
            "layer_scale_2": self.layer_scale_2,
            "norm1": self.norm1,
            "attn.proj_1": attention.proj_1,
            "attn.spatial_gating_unit.conv0": attention.conv0,
            "attn.spatial_gating_unit.conv_spatial": attention.conv_spatial,
            "attn.spatial_gating_unit.conv1": attention.conv1,
            "attn.proj_2": attention.proj_2,
            "norm2": self.norm2,
            "mlp.fc1": feed_forward.fc1,
            "mlp.dwconv.dwconv": feed_forward.dwconv,
            "mlp.fc2": feed_forward.fc2,
        }

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        config = {
            "expansion_ratio": self.expansion_ratio,
            "drop_path_rate": self.drop_path_rate,
            "layer_scale": self.layer_scale,
            "recompute": self.recompute,
        }
        return {**super().get_config(), **config}
