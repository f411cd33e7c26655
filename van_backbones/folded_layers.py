"""The layers of a deployed network: without norms and layer scales, which are part of the convolutions."""

import keras
import numpy as np

from van_backbones.cpu_kernels import fused_gelu


@keras.saving.register_keras_serializable(package="van_backbones")
class FoldedPatchEmbedding(keras.layers.Layer):
    """`OverlapPatchEmbedding` for inference: the norm behind the convolution is part of it.

    Args:
        width: output channels.
        kernel_size: side of the kernel, odd.
        strides: step of the kernel.
        **kwargs: base arguments of the layer.
    """

    folded = True

    def __init__(self, width, kernel_size, strides, **kwargs):
        super().__init__(**kwargs)
        self.width = width
        self.kernel_size = kernel_size
        self.strides = strides
        dtype = self.compute_dtype
        self.padding = keras.layers.ZeroPadding2D(kernel_size // 2, data_format="channels_last", dtype=dtype)
        self.proj = keras.layers.Conv2D(
            width, kernel_size, strides, data_format="channels_last", dtype=dtype, name="proj"
        )

    def build(self, input_shape):
        self.padding.build(input_shape)
        self.proj.build(self.padding.compute_output_shape(input_shape))
        self.built = True

    def fold(self, embedding):
        """Takes the weights of an `OverlapPatchEmbedding`."""
        scale, shift = _read_norm(embedding.norm)
        kernel, bias = _read(embedding.proj)
        self.proj.set_weights([kernel * scale, bias * scale + shift])

    def call(self, inputs):
        return self.proj(self.padding(inputs))

    def compute_output_shape(self, input_shape):
        batch, *size, _ = input_shape
        return (batch, *(side and -(-side // self.strides) for side in size), self.width)

    def get_config(self):
        config = {"width": self.width, "kernel_size": self.kernel_size, "strides": self.strides}
        return {**super().get_config(), **config}


@keras.saving.register_keras_serializable(package="van_backbones")
class FoldedVANBlock(keras.layers.Layer):
    """`VANBlock` for inference: nine convolutions, and little between them.

    Weights are kept in the compute dtype. Only norms before 1 x 1 convolutions are folded into what follows:
    before a padded convolution, the border would see the folded shift where the norm had none.

    Args:
        expansion_ratio: hidden width over width in the feed-forward part.
        **kwargs: base arguments of the layer.
    """

    folded = True

    def __init__(self, expansion_ratio, **kwargs):
        super().__init__(**kwargs)
        self.expansion_ratio = expansion_ratio

    def build(self, input_shape):
        width = input_shape[-1]
        hidden_shape = (*input_shape[:-1], int(width * self.expansion_ratio))

        def build_layer(layer_class, shape, name, *arguments, **options):
            options = {"padding": "same", "data_format": "channels_last", **options}
            layer = layer_class(*arguments, dtype=self.compute_dtype, name=name, **options)
            layer.build(shape)
            return layer

        pointwise, depthwise = keras.layers.Conv2D, keras.layers.DepthwiseConv2D
        self.proj_1 = build_layer(pointwise, input_shape, "proj_1", width, 1)
        self.conv0 = build_layer(depthwise, input_shape, "conv0", 5)
        # Without a bias: it is folded into that of the next convolution.
        self.conv_spatial = build_layer(
            DilatedConvolution, input_shape, "conv_spatial", 7, dilation_rate=3, use_bias=False
        )
        self.conv1 = build_layer(pointwise, input_shape, "conv1", width, 1)
        self.proj_2 = build_layer(pointwise, input_shape, "proj_2", width, 1)
        self.shortcut_scale = self.add_weight((width,), dtype=self.compute_dtype, name="shortcut_scale")
        self.fc1 = build_layer(pointwise, input_shape, "fc1", hidden_shape[-1], 1)
        self.dwconv = build_layer(depthwise, hidden_shape, "dwconv", 3)
        self.fc2 = build_layer(pointwise, hidden_shape, "fc2", width, 1)
        self.built = True

    def fold(self, block):
        """Takes the weights of a `VANBlock`."""
        attention, feed_forward = block.attention, block.feed_forward
        layer_scale_1, layer_scale_2 = (
            _read_variable(block.layer_scale_1),
            _read_variable(block.layer_scale_2),
        )

        scale, shift = _read_norm(block.norm1)
        kernel, bias = _read(attention.proj_1)
        bias = bias + shift @ kernel[0, 0]
        self.proj_1.set_weights([kernel * scale[:, None], bias])
        kernel, bias = _read(attention.conv0)
        self.conv0.set_weights([kernel, bias])
        spatial_kernel, spatial_bias = _read(attention.conv_spatial)
        self.conv_spatial.set_weights([spatial_kernel])
        kernel, bias = _read(attention.conv1)
        self.conv1.set_weights([kernel, bias + spatial_bias @ kernel[0, 0]])
        # The attention's shortcut is the normed map: its scale is added to the residual's, its shift to the
        # bias.
        kernel, bias = _read(attention.proj_2)
        self.proj_2.set_weights([kernel * layer_scale_1, (bias + shift) * layer_scale_1])
        self.shortcut_scale.assign(1.0 + layer_scale_1 * scale)

        scale, shift = _read_norm(block.norm2)
        kernel, bias = _read(feed_forward.fc1)
        self.fc1.set_weights([kernel * scale[:, None], bias + shift @ kernel[0, 0]])
        kernel, bias = _read(feed_forward.dwconv)
        self.dwconv.set_weights([kernel, bias])
        kernel, bias = _read(feed_forward.fc2)
        self.fc2.set_weights([kernel * layer_scale_2, bias * layer_scale_2])

    def attention_map(self, inputs):
        """Returns the large-kernel attention, (batch, height, width, channels), of the block's inputs."""
        return self._attend(fused_gelu(self.proj_1(inputs), training=False))

    def _attend(self, gated):
        return self.conv1(self.conv_spatial(self.conv0(gated)))

    def call(self, inputs):
        gated = fused_gelu(self.proj_1(inputs), training=False)
        factors = self._attend(gated)
        outputs = inputs * self.shortcut_scale + self.proj_2(gated * factors)
        return outputs + self.fc2(fused_gelu(self.dwconv(self.fc1(outputs)), training=False))

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {**super().get_config(), "expansion_ratio": self.expansion_ratio}


@keras.saving.register_keras_serializable(package="van_backbones")
class DilatedConvolution(keras.layers.DepthwiseConv2D):
    """A depthwise convolution that is exported to other formats as one operation.

    TensorFlow's CPU kernel knows no dilation, so Keras surrounds it with two operations that move the pixels.
    At sizes that are not fixed, converters cannot undo that.
    """

    # Set while a graph is traced for another runtime: see `_traced_for` in exporting/export.py.
    single_operation = None

    def call(self, inputs):
        if self.single_operation is None:
            return super().call(inputs)
        return self.single_operation(inputs, self.kernel, self.dilation_rate)


def _read_variable(variable):
    # In float64, so that products of three weights are rounded only once, at the end.
    return np.asarray(keras.ops.convert_to_numpy(variable), np.float64)


def _read(layer):
    """Returns a convolution's kernel, with LoRA in it where that is enabled, and bias."""
    return [_read_variable(variable) for variable in (layer.kernel, layer.bias)]


def _read_norm(norm):
    """Returns the scale and the shift that a batch norm applies at inference."""
    gamma, beta, mean, variance = (
        _read_variable(variable)
        for variable in (norm.gamma, norm.beta, norm.moving_mean, norm.moving_variance)
    )
    scale = gamma / np.sqrt(variance + norm.epsilon)
    return scale, beta - mean * scale
