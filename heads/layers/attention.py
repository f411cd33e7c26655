"""Multi-head attention with its weights packed as in PyTorch, and the small network after it."""

import keras
from keras import ops

from heads.layers.blocks import Layer

NUM_HEADS = 8


@keras.saving.register_keras_serializable("van_backbones.heads")
class MultiHeadAttention(Layer):
    """Multi-head attention (arXiv 1706.03762, section 3.2.2) with its weights packed as in PyTorch.

    Args:
        channels: channels of the inputs and outputs, a multiple of `num_heads`.
        num_heads: number of heads.
        kernel_initializer: of all kernels.
        **kwargs: base arguments of the layer.

    Call arguments:
        queries: (batch, n, channels).
        keys: (batch, positions, channels).
        values: (batch, positions, channels).
        visible: bool (batch, n, positions), which positions a query may look at; None for all. A query that
            may look at none looks at all of them alike.

    Returns:
        (batch, n, channels).
    """

    def __init__(self, channels: int, num_heads: int, kernel_initializer="glorot_uniform", **kwargs):
        super().__init__(**kwargs)
        self.num_heads = num_heads
        # One kernel for queries, keys and values; Keras's own layer has separate ones, split into heads.
        self.packed_kernel = self.add_weight(
            (3 * channels, channels), keras.initializers.get(kernel_initializer), name="packed_kernel"
        )
        self.packed_bias = self.add_weight((3 * channels,), "zeros", name="packed_bias")
        self.output_dense = keras.layers.Dense(
            channels,
            kernel_initializer=keras.initializers.get(kernel_initializer),
            dtype=self.dtype_policy,
            name="output",
        )

    def build(self, input_shape):
        self.output_dense.build(input_shape)
        self.built = True

    def call(self, queries, keys, values, visible=None):
        kernels, biases = ops.split(self.packed_kernel, 3), ops.split(self.packed_bias, 3)
        projected = []
        for inputs, kernel, bias in zip((queries, keys, values), kernels, biases, strict=True):
            batch, positions, channels = ops.shape(inputs)
            x = ops.matmul(inputs, ops.transpose(kernel)) + bias
            projected.append(ops.reshape(x, (batch, positions, self.num_heads, channels // self.num_heads)))
        mask = None if visible is None else visible[:, None]  # the same for each head
        attended = ops.dot_product_attention(*projected, mask=mask)
        return self.output_dense(ops.reshape(attended, ops.shape(queries)))

    def reference_layers(self):
        """Returns PyTorch's names: name -> layer or variable."""
        packed = {"in_proj_weight": self.packed_kernel, "in_proj_bias": self.packed_bias}
        return {**packed, "out_proj": self.output_dense}


def make_feed_forward(channels, hidden_channels, dtype):
    """Returns the two dense layers of a small network, built."""
    layers = []
    for name, units, inputs in (("hidden", hidden_channels, channels), ("output", channels, hidden_channels)):
        layer = keras.layers.Dense(
            units,
            activation="relu" if name == "hidden" else None,
            kernel_initializer=keras.initializers.GlorotNormal(),
            dtype=dtype,
            name=name,
        )
        layer.build((None, None, inputs))
        layers.append(layer)
    return layers
