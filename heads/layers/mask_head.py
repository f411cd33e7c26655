"""The mask head of R-CNNs: which pixels of a box belong to the object."""

import keras
from keras import ops

from heads.layers.blocks import Chain, make_kaiming_convolution


@keras.saving.register_keras_serializable("van_backbones.heads")
class MaskHead(Chain):
    """Draws a mask for each class: four convolutions, one that doubles the size, one output per class.

    Args:
        num_classes: number of classes.
        channels: channels between the layers.
        **kwargs: base arguments of the layer.

    Call arguments:
        regions: (batch, n, 14, 14, channels).
        labels: integers (batch, n), 0 .. num_classes - 1, the class whose mask is wanted.

    Returns:
        float32 logits (batch, n, 28, 28).
    """

    def __init__(self, num_classes: int, channels: int = 256, **kwargs):
        super().__init__(**kwargs)
        dtype = self.dtype_policy
        self.convs = [
            make_kaiming_convolution(channels, 3, activation="relu", dtype=dtype, name=f"conv_{index}")
            for index in range(4)
        ]
        transposed = {"layer": keras.layers.Conv2DTranspose, "strides": 2, "padding": "valid"}
        self.upsampler = make_kaiming_convolution(
            channels, 2, activation="relu", dtype=dtype, name="upsampler", **transposed
        )
        self.output_conv = make_kaiming_convolution(num_classes, 1, dtype=dtype, name="output")
        self.parts = [*self.convs, self.upsampler, self.output_conv]

    def build(self, input_shape):
        super().build((None, *input_shape[-3:]))

    def call(self, regions, labels):
        batch, count, *size, channels = ops.shape(regions)
        logits = super().call(ops.reshape(regions, (batch * count, *size, channels)))
        height, width = ops.shape(logits)[1:3]
        labels = ops.reshape(labels, (batch * count, 1, 1, 1))
        labels = ops.broadcast_to(labels, (batch * count, height, width, 1))
        logits = ops.take_along_axis(ops.cast(logits, "float32"), labels, axis=3)
        return ops.reshape(logits, (batch, count, height, width))

    def reference_layers(self):
        """Returns mmdetection's names: name -> layer."""
        names = {f"convs.{index}.conv": conv for index, conv in enumerate(self.convs)}
        return names | {"upsample": self.upsampler, "conv_logits": self.output_conv}
