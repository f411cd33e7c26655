"""The pixel decoder of Mask2Former: a pyramid whose levels attend to each other, and features for masks."""

import math

import keras
from keras import ops

from heads.layers.attention import NUM_HEADS, make_feed_forward
from heads.layers.blocks import Layer, join_reference_layers
from heads.layers.deformable_attention import DeformableAttention
from heads.layers.tower import count_groups
from heads.ops.resizing import resize_bilinear

HIDDEN_CHANNELS = 1024


@keras.saving.register_keras_serializable("van_backbones.heads")
class PixelDecoder(Layer):
    """Deformable attention over the coarser levels, and a map of features at the finest level's size.

    Args:
        channels: channels of all outputs, a multiple of 8.
        num_layers: layers of attention.
        **kwargs: base arguments of the layer.

    Call arguments:
        features: list of (batch, height, width, channels), fine to coarse, any channels.

    Returns:
        A list of maps of all levels but the finest, coarse to fine, and the features for masks, of the finest
        level's size, all with `channels` channels.

    Reference:
        - Cheng et al., "Mask2Former", arXiv 2112.01527, section 3.1; the numbers are mmdetection's
          `MSDeformAttnPixelDecoder`.
    """

    def __init__(self, channels: int, num_layers: int = 6, **kwargs):
        super().__init__(**kwargs)
        self.channels, self.num_layers = channels, num_layers

    def build(self, input_shape):
        dtype = self.dtype_policy
        wide_shape = (*input_shape[0][:-1], self.channels)
        shapes = input_shape[1:]
        self.num_levels = len(shapes)
        # Coarse to fine, as in the checkpoints' names.
        self.input_blocks = [
            NormedConvolution(self.channels, dtype=dtype, name=f"input_{index}")
            for index in range(self.num_levels)
        ]
        for block, shape in zip(self.input_blocks, reversed(shapes), strict=True):
            block.build(shape)
        self.level_features = self.add_weight(
            (self.num_levels, self.channels), keras.initializers.RandomNormal(0.0, 1.0), name="level_features"
        )
        self.encoder_layers = [
            EncoderLayer(self.channels, self.num_levels, dtype=dtype, name=f"encoder_{index}")
            for index in range(self.num_layers)
        ]
        for layer in self.encoder_layers:
            layer.build((None, None, self.channels))
        options = {"use_bias": False, "initializer": "fan_in", "dtype": dtype}
        self.lateral_block = NormedConvolution(self.channels, name="lateral", **options)
        self.lateral_block.build(input_shape[0])
        self.output_block = NormedConvolution(self.channels, 3, activation="relu", name="output", **options)
        self.output_block.build(wide_shape)
        self.mask_conv = keras.layers.Conv2D(
            self.channels,
            1,
            data_format="channels_last",
            kernel_initializer=make_fan_in_initializer(),
            dtype=dtype,
            name="mask_features",
        )
        self.mask_conv.build(wide_shape)
        self.built = True

    def call(self, features):
        finest, *others = features
        levels = [block(level) for block, level in zip(self.input_blocks, reversed(others), strict=True)]
        sizes = [ops.shape(level)[1:3] for level in levels]
        x, positions, points = [], [], []
        for index, (level, (height, width)) in enumerate(zip(levels, sizes, strict=True)):
            x.append(ops.reshape(level, (ops.shape(level)[0], height * width, self.channels)))
            encoded = ops.cast(encode_positions(height, width, self.channels), level.dtype)
            positions.append(encoded + ops.cast(self.level_features[index], level.dtype))
            points.append(place_centers(height, width))
        x, positions, points = (
            ops.concatenate(x, axis=1),
            ops.concatenate(positions, axis=0),
            ops.concatenate(points, axis=0),
        )
        for layer in self.encoder_layers:
            x = layer(x, positions, points, sizes=sizes)
        outputs, start = [], 0
        for height, width in sizes:
            level = x[:, start : start + height * width]
            outputs.append(ops.reshape(level, (ops.shape(x)[0], height, width, self.channels)))
            start = start + height * width
        fine = self.lateral_block(finest)
        fine = self.output_block(fine + resize_bilinear(outputs[-1], ops.shape(fine)[1:3]))
        return outputs, self.mask_conv(fine)

    def reference_layers(self):
        """Returns mmdetection's names: name -> layer or variable."""
        parts = {f"input_convs.{index}": block for index, block in enumerate(self.input_blocks)}
        parts |= {f"encoder.layers.{index}": layer for index, layer in enumerate(self.encoder_layers)}
        parts["level_encoding.weight"] = self.level_features
        parts |= {"lateral_convs.0": self.lateral_block, "output_convs.0": self.output_block}
        return join_reference_layers({**parts, "mask_feature": self.mask_conv})


@keras.saving.register_keras_serializable("van_backbones.heads")
class EncoderLayer(Layer):
    """The positions of all levels attend to each other, then each goes through a small network.

    Args:
        channels: channels of the positions.
        num_levels: number of levels.
        **kwargs: base arguments of the layer.

    Call arguments:
        inputs: (batch, n, channels), the positions of all levels.
        positions: (n, channels), encodings of where they are.
        reference_points: (n, 2), the same as shares of the width and height.
        sizes: the (height, width) of each level.
    """

    def __init__(self, channels: int, num_levels: int, **kwargs):
        super().__init__(**kwargs)
        self.autocast = False  # half precision is too coarse for positions
        dtype = self.dtype_policy
        self.attention = DeformableAttention(channels, num_levels, NUM_HEADS, dtype=dtype, name="attention")
        self.feed_forward = make_feed_forward(channels, HIDDEN_CHANNELS, dtype)
        self.norms = [
            keras.layers.LayerNormalization(epsilon=1e-5, dtype=dtype, name=f"norm_{index}")
            for index in range(2)
        ]

    def build(self, input_shape):
        for norm in self.norms:
            norm.build(input_shape)
        self.built = True

    def call(self, inputs, positions, reference_points, sizes):
        x = self.norms[0](inputs + self.attention(inputs + positions, inputs, reference_points, sizes=sizes))
        hidden, output = self.feed_forward
        return self.norms[1](x + output(hidden(x)))

    def reference_layers(self):
        """Returns mmdetection's names: name -> layer."""
        parts = {"self_attn": self.attention}
        parts |= dict(zip(("ffn.layers.0.0", "ffn.layers.1"), self.feed_forward, strict=True))
        return join_reference_layers(parts | {f"norms.{i}": norm for i, norm in enumerate(self.norms)})


@keras.saving.register_keras_serializable("van_backbones.heads")
class NormedConvolution(Layer):
    """Convolution, group normalisation, perhaps an activation; the map keeps its size.

    Args:
        filters: output channels.
        kernel_size: side of the kernel, odd.
        activation: after the norm; None for none.
        use_bias: whether the convolution has biases.
        initializer: "glorot" for Glorot's uniform weights, "fan_in" for uniform ones of variance 1 / fan in.
        **kwargs: base arguments of the layer.
    """

    def __init__(
        self,
        filters: int,
        kernel_size: int = 1,
        activation: str | None = None,
        use_bias: bool = True,
        initializer: str = "glorot",
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.activation = keras.activations.get(activation)
        self.conv = keras.layers.Conv2D(
            filters,
            kernel_size,
            padding="same",
            data_format="channels_last",
            use_bias=use_bias,
            kernel_initializer="glorot_uniform" if initializer == "glorot" else make_fan_in_initializer(),
            dtype=self.dtype_policy,
            name="conv",
        )
        self.norm = keras.layers.GroupNormalization(
            count_groups(filters), epsilon=1e-5, dtype=self.dtype_policy, name="norm"
        )

    def build(self, input_shape):
        self.conv.build(input_shape)
        self.norm.build(self.conv.compute_output_shape(input_shape))
        self.built = True

    def call(self, inputs):
        return self.activation(self.norm(self.conv(inputs)))

    def compute_output_shape(self, input_shape):
        return self.conv.compute_output_shape(input_shape)

    def reference_layers(self):
        """Returns mmcv's names: name -> layer."""
        return {"conv": self.conv, "gn": self.norm}


def make_fan_in_initializer():
    """Returns an initializer of uniform weights of variance 1 / fan in, as in Caffe2."""
    return keras.initializers.VarianceScaling(1.0, "fan_in", "uniform")


def place_centers(height, width):
    """Returns the centres of positions, row by row: float32 (height * width, 2), shares of the sides."""
    x, y = (
        (ops.cast(ops.arange(side, dtype="int32"), "float32") + 0.5) / ops.cast(side, "float32")
        for side in (width, height)
    )
    x, y = ops.broadcast_to(x[None], (height, width)), ops.broadcast_to(y[:, None], (height, width))
    return ops.reshape(ops.stack([x, y], axis=-1), (height * width, 2))


def encode_positions(height, width, channels: int):
    """Returns sine encodings of a map's positions: float32 (height * width, channels).

    Half of the channels encode the row, half the column (arXiv 2005.12872, appendix A.4), counted from 1 /
    length to 1, times 2 pi.

    Args:
        height: height of the map.
        width: width of the map.
        channels: a multiple of 4.
    """
    num_waves = channels // 2
    waves = ops.cast(ops.arange(num_waves, dtype="int32") // 2 * 2, "float32") / num_waves
    encoded = []
    for side in (height, width):
        places = ops.cast(ops.arange(side, dtype="int32") + 1, "float32")
        angles = places / (ops.cast(side, "float32") + 1e-6) * (2.0 * math.pi)
        angles = angles[:, None] / 10000.0**waves  # (side, waves), each twice
        pairs = ops.stack([ops.sin(angles[:, ::2]), ops.cos(angles[:, 1::2])], axis=-1)
        encoded.append(ops.reshape(pairs, (side, num_waves)))
    rows = ops.broadcast_to(encoded[0][:, None], (height, width, num_waves))
    columns = ops.broadcast_to(encoded[1][None], (height, width, num_waves))
    return ops.reshape(ops.concatenate([rows, columns], axis=-1), (height * width, channels))
