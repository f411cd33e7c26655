"""Feature pyramid network."""

import keras
from keras import ops

from heads.layers.blocks import Layer
from heads.ops.resizing import resize_nearest

EXTRA_LEVEL_SOURCES = ("pool", "input", "output")


@keras.saving.register_keras_serializable("van_backbones.heads")
class FPN(Layer):
    """Feature pyramid network: every level gets the semantics of the coarser ones.

    A 1 x 1 convolution per level, coarse to fine addition with nearest upsampling, a 3 x 3 convolution per
    level; no norms, no activations. Extra levels of half the size each can follow the coarsest one.

    Args:
        channels: channels of all outputs.
        num_extra_levels: levels beyond the coarsest input.
        extra_levels_from: what the first extra level is computed from. "pool": every second position of the
            coarsest output (Faster R-CNN); "input": a 3 x 3 convolution of stride 2 over the coarsest input
            (RetinaNet); "output": the same over the coarsest output. Each further level is computed from the
            one before.
        **kwargs: base arguments of the layer.

    Call arguments:
        features: list of (batch, height, width, channels), fine to coarse, any channels.

    Returns:
        A list of maps with `channels` channels: of the inputs' sizes, then of the extra levels'.

    Raises:
        ValueError: if an argument is out of range.

    Reference:
        - Lin et al., "Feature Pyramid Networks for Object Detection", arXiv 1612.03144, section 3; the extra
          levels of arXiv 1708.02002, section 4. The numbers are mmdetection's and mmsegmentation's `FPN`.
    """

    def __init__(
        self, channels: int = 256, num_extra_levels: int = 0, extra_levels_from: str = "pool", **kwargs
    ):
        if num_extra_levels < 0:
            raise ValueError(f"num_extra_levels must be at least 0. Received: {num_extra_levels}")
        if extra_levels_from not in EXTRA_LEVEL_SOURCES:
            raise ValueError(
                f"extra_levels_from must be one of {list(EXTRA_LEVEL_SOURCES)}. "
                f"Received: {extra_levels_from!r}"
            )
        super().__init__(**kwargs)
        self.channels = channels
        self.num_extra_levels = num_extra_levels
        self.extra_levels_from = extra_levels_from

    def build(self, input_shape):
        def build_convolution(kernel_size, shape, name, **options):
            options = {"padding": "same", "data_format": "channels_last", **options}
            layer = keras.layers.Conv2D(
                self.channels, kernel_size, dtype=self.dtype_policy, name=name, **options
            )
            layer.build(shape)
            return layer

        self.lateral_convs = []
        self.output_convs = []
        for index, shape in enumerate(input_shape):
            wide_shape = (*shape[:-1], self.channels)
            self.lateral_convs.append(build_convolution(1, shape, f"lateral_{index}"))
            self.output_convs.append(build_convolution(3, wide_shape, f"output_{index}"))
        self.extra_convs = []
        if self.extra_levels_from != "pool":
            shape = input_shape[-1] if self.extra_levels_from == "input" else wide_shape
            for index in range(len(input_shape), len(input_shape) + self.num_extra_levels):
                # Padded in `call`: at even sizes, Keras's "same" would pad only one side.
                conv = build_convolution(3, shape, f"output_{index}", strides=2, padding="valid")
                self.extra_convs.append(conv)
                shape = wide_shape
        self.built = True

    def call(self, features):
        pyramid = [conv(level) for conv, level in zip(self.lateral_convs, features, strict=True)]
        for fine in reversed(range(len(pyramid) - 1)):
            # Not `+=`, which works in place and breaks PyTorch's gradients.
            coarse = resize_nearest(pyramid[fine + 1], ops.shape(pyramid[fine])[1:3])
            pyramid[fine] = pyramid[fine] + coarse
        pyramid = [conv(level) for conv, level in zip(self.output_convs, pyramid, strict=True)]
        if self.extra_levels_from == "pool":
            for _ in range(self.num_extra_levels):
                pyramid.append(pyramid[-1][:, ::2, ::2])
            return pyramid
        level = features[-1] if self.extra_levels_from == "input" else pyramid[-1]
        for conv in self.extra_convs:
            level = conv(ops.pad(level, ((0, 0), (1, 1), (1, 1), (0, 0))))
            pyramid.append(level)
        return pyramid

    def compute_output_shape(self, input_shape):
        shapes = [(*shape[:-1], self.channels) for shape in input_shape]
        for _ in range(self.num_extra_levels):
            batch, *size, channels = shapes[-1]
            shapes.append((batch, *(side and -(-side // 2) for side in size), channels))
        return shapes

    def reference_layers(self):
        """Returns mmdetection's names: name -> layer."""
        names = {f"lateral_convs.{i}.conv": conv for i, conv in enumerate(self.lateral_convs)}
        convs = [*self.output_convs, *self.extra_convs]
        return names | {f"fpn_convs.{i}.conv": conv for i, conv in enumerate(convs)}
