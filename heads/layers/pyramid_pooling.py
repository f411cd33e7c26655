"""Pyramid pooling: a map together with what its whole picture looks like."""

import keras
from keras import ops

from heads.layers.blocks import ConvolutionBlock
from heads.ops.resizing import pool_adaptively, resize_bilinear


@keras.saving.register_keras_serializable(package="heads")
class PyramidPooling(keras.layers.Layer):
    """Pyramid pooling module: the map, averaged over coarse grids, beside the map itself.

    Args:
        channels: output channels.
        pool_sizes: cells per axis of each grid.
        folded: whether norms are part of the convolutions: see `ConvolutionBlock`.
        **kwargs: base arguments of the layer.

    Call arguments:
        inputs: (batch, height, width, any).

    Returns:
        (batch, height, width, channels).

    Reference:
        - Zhao et al., "Pyramid Scene Parsing Network", arXiv 1612.01105, section 3.2.
    """

    def __init__(self, channels=512, pool_sizes=(1, 2, 3, 6), folded=False, **kwargs):
        super().__init__(**kwargs)
        self.channels = channels
        self.pool_sizes = tuple(pool_sizes)
        self.folded = folded
        options = {"folded": folded, "dtype": self.dtype_policy}
        self.pool_blocks = [
            ConvolutionBlock(channels, 1, **options, name=f"pool_{size}") for size in self.pool_sizes
        ]
        self.bottleneck = ConvolutionBlock(channels, 3, **options, name="bottleneck")

    def build(self, input_shape):
        for block in self.pool_blocks:
            block.build(input_shape)
        width = input_shape[-1] + self.channels * len(self.pool_sizes)
        self.bottleneck.build((*input_shape[:-1], width))
        self.built = True

    def call(self, inputs, training=None):
        size = ops.shape(inputs)[1:3]
        maps = [inputs]
        for num_bins, block in zip(self.pool_sizes, self.pool_blocks, strict=True):
            pooled = block(pool_adaptively(inputs, num_bins), training=training)
            maps.append(resize_bilinear(pooled, size))
        return self.bottleneck(ops.concatenate(maps, axis=-1), training=training)

    def compute_output_shape(self, input_shape):
        return (*input_shape[:-1], self.channels)

    def get_config(self):
        config = {"channels": self.channels, "pool_sizes": self.pool_sizes, "folded": self.folded}
        return {**super().get_config(), **config}
