"""Pyramid pooling: a map together with averages over large parts of it."""

from collections.abc import Sequence

import keras

from heads.layers.blocks import ConvolutionBlock, Layer, join_reference_layers
from heads.ops.resizing import pool_adaptively


@keras.saving.register_keras_serializable("van_backbones.heads")
class PyramidPooling(Layer):
    """Pyramid pooling module: the map and its averages over coarse grids, fused by a convolution.

    Args:
        channels: output channels.
        pool_sizes: cells per axis of each grid.
        **kwargs: base arguments of the layer.

    Call arguments:
        inputs: (batch, height, width, any).

    Returns:
        (batch, height, width, channels).

    Reference:
        - Zhao et al., "Pyramid Scene Parsing Network", arXiv 1612.01105, section 3.2.
    """

    def __init__(self, channels: int = 512, pool_sizes: Sequence[int] = (1, 2, 3, 6), **kwargs):
        super().__init__(**kwargs)
        self.channels = channels
        self.pool_sizes = tuple(pool_sizes)
        dtype = self.dtype_policy
        self.pool_blocks = [
            ConvolutionBlock(channels, 1, dtype=dtype, name=f"pool_{size}") for size in self.pool_sizes
        ]
        self.bottleneck = ConvolutionBlock(channels, 3, joins_maps=True, dtype=dtype, name="bottleneck")

    def build(self, input_shape):
        for block in self.pool_blocks:
            block.build(input_shape)
        pooled = [(*input_shape[:-1], self.channels)] * len(self.pool_sizes)
        self.bottleneck.build([input_shape, *pooled])
        self.built = True

    def call(self, inputs, training=None):
        maps = [inputs]
        for num_bins, block in zip(self.pool_sizes, self.pool_blocks, strict=True):
            maps.append(block(pool_adaptively(inputs, num_bins), training=training))
        return self.bottleneck(maps, training=training)

    def compute_output_shape(self, input_shape):
        return (*input_shape[:-1], self.channels)

    def reference_layers(self):
        """Returns mmsegmentation's names: name -> layer."""
        blocks = {f"psp_modules.{index}.1": block for index, block in enumerate(self.pool_blocks)}
        return join_reference_layers({"bottleneck": self.bottleneck, **blocks})
