"""Multi-scale deformable attention."""

import keras
import numpy as np
from keras import ops

from heads.layers.blocks import Layer
from heads.ops.points import sample_maps


@keras.saving.register_keras_serializable("van_backbones.heads")
class DeformableAttention(Layer):
    """Attention of each query to a few points on every level, at offsets that the query predicts.

    Args:
        channels: channels of the inputs and outputs, a multiple of `num_heads`.
        num_levels: number of levels.
        num_heads: number of heads, each with its own points.
        num_points: points of each head on each level.
        **kwargs: base arguments of the layer.

    Call arguments:
        queries: (batch, n, channels).
        values: (batch, positions, channels), the positions of all levels one after another, row by row.
        reference_points: float32 (n, 2), (x, y) of the queries as shares of the image's width and height.
        sizes: the (height, width) of each level.

    Returns:
        (batch, n, channels).

    Reference:
        - Zhu et al., "Deformable DETR", arXiv 2010.04159, section 4.1.
    """

    def __init__(self, channels: int, num_levels: int, num_heads: int = 8, num_points: int = 4, **kwargs):
        super().__init__(**kwargs)
        self.autocast = False  # half precision is too coarse for positions
        self.num_levels, self.num_heads, self.num_points = num_levels, num_heads, num_points
        num_samples = num_heads * num_levels * num_points

        def make_dense(units, name, initializer, **options):
            options = {"dtype": self.dtype_policy, "name": name, **options}
            layer = keras.layers.Dense(units, kernel_initializer=initializer, **options)
            layer.build((None, None, channels))
            return layer

        self.offset_dense = make_dense(2 * num_samples, "offsets", "zeros")
        self.offset_dense.bias.assign(spread_offsets(num_heads, num_levels, num_points).ravel())
        self.weight_dense = make_dense(num_samples, "weights", "zeros")
        self.value_dense = make_dense(channels, "values", "glorot_uniform")
        self.output_dense = make_dense(channels, "output", "glorot_uniform")

    def call(self, queries, values, reference_points, sizes):
        batch, num_queries, channels = ops.shape(queries)
        heads, levels, points = self.num_heads, self.num_levels, self.num_points

        def split_heads(x, *shape):
            # (batch, n, heads * ...) -> (batch * heads, n, ...)
            x = ops.reshape(x, (batch, -1, heads, *shape))
            x = ops.transpose(x, (0, 2, 1, *range(3, len(shape) + 3)))
            return ops.reshape(x, (batch * heads, -1, *shape))

        weights = ops.softmax(split_heads(self.weight_dense(queries), levels * points), axis=-1)
        offsets = ops.cast(split_heads(self.offset_dense(queries), levels, points, 2), "float32")
        values = split_heads(self.value_dense(values), channels // heads)
        total, start = 0.0, 0
        for level, (height, width) in enumerate(sizes):
            level_map = values[:, start : start + height * width]
            level_map = ops.reshape(level_map, (batch * heads, height, width, channels // heads))
            start = start + height * width
            # An offset of 1 is one position of the level.
            steps = offsets[:, :, level] / ops.cast(ops.stack([width, height]), "float32")
            places = ops.expand_dims(reference_points, 1) + steps
            places = ops.reshape(places, (batch * heads, num_queries * points, 2))
            samples = sample_maps(level_map, places)
            samples = ops.reshape(samples, (batch * heads, num_queries, points, channels // heads))
            level_weights = ops.expand_dims(weights[..., level * points : (level + 1) * points], -1)
            total = total + ops.sum(samples * level_weights, axis=2)
        total = ops.reshape(total, (batch, heads, num_queries, channels // heads))
        total = ops.reshape(ops.transpose(total, (0, 2, 1, 3)), (batch, num_queries, channels))
        return self.output_dense(total)

    def reference_layers(self):
        """Returns mmcv's names: name -> layer."""
        return {
            "sampling_offsets": self.offset_dense,
            "attention_weights": self.weight_dense,
            "value_proj": self.value_dense,
            "output_proj": self.output_dense,
        }


def spread_offsets(num_heads, num_levels, num_points):
    """Returns the initial offsets: one direction for each head, each point farther away than the last.

    Returns:
        float64 (heads, levels, points, 2), (x, y) in positions of the level.
    """
    angles = np.arange(num_heads) * (2.0 * np.pi / num_heads)
    directions = np.stack([np.cos(angles), np.sin(angles)], axis=-1)
    directions /= np.abs(directions).max(axis=-1, keepdims=True)  # onto a square
    offsets = directions[:, None, None] * np.arange(1, num_points + 1)[:, None]
    return np.broadcast_to(offsets, (num_heads, num_levels, num_points, 2))
