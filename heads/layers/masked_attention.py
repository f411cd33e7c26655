"""The layer of Mask2Former's decoder."""

import keras

from heads.layers.attention import NUM_HEADS, MultiHeadAttention, make_feed_forward
from heads.layers.blocks import Layer, join_reference_layers

HIDDEN_CHANNELS = 2048


@keras.saving.register_keras_serializable("van_backbones.heads")
class MaskedAttentionLayer(Layer):
    """Queries attend to a level within their masks, then to each other (arXiv 2112.01527, section 3.2).

    Args:
        channels: channels of the queries and the level.
        **kwargs: base arguments of the layer.

    Call arguments:
        features: (batch, queries, channels).
        positions: (batch, queries, channels), learned positions of the queries, added to the features.
        keys: (batch, positions, channels), of the level.
        values: (batch, positions, channels), of the level.
        visible: bool (batch, queries, positions).
    """

    def __init__(self, channels: int, **kwargs):
        super().__init__(**kwargs)
        dtype = self.dtype_policy
        self.cross_attention, self.self_attention = (
            MultiHeadAttention(channels, NUM_HEADS, "glorot_normal", dtype=dtype, name=name)
            for name in ("cross_attention", "self_attention")
        )
        self.feed_forward = make_feed_forward(channels, HIDDEN_CHANNELS, dtype)
        self.norms = [
            keras.layers.LayerNormalization(epsilon=1e-5, dtype=dtype, name=f"norm_{index}")
            for index in range(3)
        ]

    def build(self, input_shape):
        for layer in (self.cross_attention, self.self_attention, *self.norms):
            layer.build(input_shape)
        self.built = True

    def call(self, features, positions, keys, values, visible):
        attended = self.cross_attention(features + positions, keys, values, visible)
        features = self.norms[0](features + attended)
        asking = features + positions
        features = self.norms[1](features + self.self_attention(asking, asking, features))
        hidden, output = self.feed_forward
        return self.norms[2](features + output(hidden(features)))

    def reference_layers(self):
        """Returns mmdetection's names: name -> layer or variable."""
        parts = {"cross_attn.attn": self.cross_attention, "self_attn.attn": self.self_attention}
        parts |= dict(zip(("ffn.layers.0.0", "ffn.layers.1"), self.feed_forward, strict=True))
        return join_reference_layers(parts | {f"norms.{i}": norm for i, norm in enumerate(self.norms)})
