"""Feature pyramid network."""

import keras

from heads.resizing import resize_nearest


@keras.saving.register_keras_serializable(package="heads")
class FPN(keras.layers.Layer):
    """Feature pyramid network: every level gets the semantics of the coarser ones.

    A 1 x 1 convolution per level, coarse to fine addition with nearest upsampling, a 3 x 3 convolution per
    level; no norms, no activations.

    Args:
        channels: channels of all outputs.
        **kwargs: base arguments of the layer.

    Call arguments:
        features: list of (batch, height, width, channels), fine to coarse, any channels.

    Returns:
        A list of maps of the inputs' sizes with `channels` channels.

    Reference:
        - Lin et al., "Feature Pyramid Networks for Object Detection", arXiv 1612.03144, section 3;
          the numbers are mmdetection's and mmsegmentation's `FPN`.
    """

    def __init__(self, channels=256, **kwargs):
        super().__init__(**kwargs)
        self.channels = channels

    def build(self, input_shape):
        def build_convolution(kernel_size, shape, name):
            layer = keras.layers.Conv2D(
                self.channels, kernel_size, padding="same", dtype=self.dtype_policy, name=name
            )
            layer.build(shape)
            return layer

        self.lateral_convs = []
        self.output_convs = []
        for index, shape in enumerate(input_shape):
            wide_shape = (*shape[:-1], self.channels)
            self.lateral_convs.append(build_convolution(1, shape, f"lateral_{index}"))
            self.output_convs.append(build_convolution(3, wide_shape, f"output_{index}"))
        self.built = True

    def call(self, features):
        pyramid = [conv(level) for conv, level in zip(self.lateral_convs, features, strict=True)]
        for fine in reversed(range(len(pyramid) - 1)):
            # Not `+=`: in place, PyTorch's gradients break.
            coarse = resize_nearest(pyramid[fine + 1], keras.ops.shape(pyramid[fine])[1:3])
            pyramid[fine] = pyramid[fine] + coarse
        return [conv(level) for conv, level in zip(self.output_convs, pyramid, strict=True)]

    def compute_output_shape(self, input_shape):
        return [(*shape[:-1], self.channels) for shape in input_shape]

    def reference_layers(self):
        """Gives mmdetection's names: name -> layer."""
        names = {f"lateral_convs.{i}.conv": conv for i, conv in enumerate(self.lateral_convs)}
        return names | {f"fpn_convs.{i}.conv": conv for i, conv in enumerate(self.output_convs)}

    def get_config(self):
        return {**super().get_config(), "channels": self.channels}
