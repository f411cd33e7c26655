"""EDN, the Extremely-Downsampled Network (arXiv 2012.13093): salient object detection."""

from collections.abc import Sequence

import keras
from keras import ops

from heads.arguments import check_counts, read_counts
from heads.dense_model import DenseModel
from heads.layers.blocks import (
    BatchNormalization,
    Chain,
    ConvolutionBlock,
    Layer,
    make_kaiming_convolution,
    make_small_convolution,
)
from heads.ops.backends import sum_over_devices
from heads.ops.inputs import read_labels
from heads.ops.labels import IGNORED_LABEL
from heads.ops.losses import average_values, binary_cross_entropy
from heads.ops.resizing import resize_bilinear

LEVELS = ("P2", "P3", "P4", "P5")
NUM_EXTRA_LEVELS = 2
NUM_LEVELS = len(LEVELS) + NUM_EXTRA_LEVELS
# Channels of the decoder's levels, the finest first.
CHANNELS = (32, 64, 128, 256, 128, 128)
BASES = (32, 24, 24, 24, 24, 24)
DILATIONS = ((1, 2, 4, 8),) * 2 + ((1, 2, 3, 4),) * 2 + ((1, 1, 1, 1),) * 2
DICE_SMOOTHING = 1e-5


@keras.saving.register_keras_serializable("van_backbones.heads")
class EDN(DenseModel):
    """Salient object detection: how likely each pixel belongs to what catches the eye.

    `model(images)` gives logits at the images' size, float32 (batch, height, width, 1); with `training=True`
    the logits of all outputs, (batch, height, width, 5), the finest first. `model.predict` gives saliency
    maps, float32 (batch, height, width), 0 .. 1. `fit` takes masks (batch, height, width) or (batch, height,
    width, 1) in which 0 is the background, 1 the object and 255 ignored; `SaliencyFolder` also reads masks of
    0 and 255.

    Args:
        backbone: a functional Keras model with `pyramid_outputs` "P2" .. "P5".
        channels: channels of the decoder's six levels, the finest first.
        extra_channels: channels of the two levels that are added to the backbone's.
        bases: `base` of each level's `FusionBlock`.
        dilations: `dilations` of each level's `FusionBlock`.
        **kwargs: `resizing`, see `DenseModel`; `name`, `trainable`, `dtype`.

    Raises:
        ValueError: if an argument is out of range or the backbone lacks a level.

    Reference:
        - Wu et al., "EDN: Salient Object Detection via Extremely-Downsampled Network", arXiv 2012.13093, as
          VAN's paper used it (arXiv 2202.09741, Table 17). Written from the papers alone.
    """

    has_fixed_targets = True
    size_divisor = 1  # pictures are seen as they are, not padded

    def __init__(
        self,
        backbone,
        channels: Sequence[int] = CHANNELS,
        extra_channels: int = 256,
        bases: Sequence[int] = BASES,
        dilations: Sequence[Sequence[int]] = DILATIONS,
        **kwargs,
    ):
        channels, bases = read_counts("channels", channels), read_counts("bases", bases)
        check_counts(extra_channels=extra_channels)
        check_counts(least=2, channels=min(channels))  # half of them come from the coarser level
        dilations = tuple(read_counts("dilations", each) for each in dilations)
        _check_levels(channels=channels, bases=bases, dilations=dilations)
        super().__init__(backbone, LEVELS, ("saliency_loss", "auxiliary_loss"), locals(), **kwargs)
        widths = [shape[-1] for shape in self.level_shapes] + [extra_channels] * NUM_EXTRA_LEVELS

        def make(layer, width, *arguments, name):
            layer = layer(*arguments, dtype=self.dtype_policy, name=name)
            layer.build((None, None, None, width))
            return layer

        self.extra_blocks = [
            make(ExtraLevel, width, extra_channels, name=f"extra_{index}")
            for index, width in enumerate(widths[len(LEVELS) - 1 : -1])
        ]
        # Half of a level's channels come from the next coarser one, where there is one.
        halves = [count // 2 for count in channels[:-1]]
        self.lateral_blocks = [
            make(ConvolutionBlock, width, count - half, 1, name=f"lateral_{index}")
            for index, (width, count, half) in enumerate(zip(widths, channels, [*halves, 0], strict=True))
        ]
        self.coarse_blocks = [
            make(ConvolutionBlock, coarser, half, 1, name=f"coarse_{index}")
            for index, (coarser, half) in enumerate(zip(channels[1:], halves, strict=True))
        ]
        self.fusion_blocks = [
            make(FusionBlock, count, base, rates, name=f"fusion_{index}_{turn}")
            for index, (count, base, rates) in enumerate(zip(channels, bases, dilations, strict=True))
            for turn in range(2)
        ]
        self.output_convs = [
            make(make_small_convolution, count, 1, 1, name=f"output_{index}")
            for index, count in enumerate(channels[:-1])
        ]

    def call(self, images, training=None):
        levels = self.compute_levels(images, training=training)
        convs = self.output_convs if training else self.output_convs[:1]
        size = ops.shape(images)[1:3]
        logits = [ops.cast(conv(level), "float32") for conv, level in zip(convs, levels, strict=False)]
        return ops.concatenate([resize_bilinear(each, size) for each in logits], axis=-1)

    def compute_levels(self, images, training=None):
        """Returns the decoder's maps of all six levels, the finest first."""
        pyramid = self.pyramid(images, training=training)
        levels = [pyramid[level] for level in LEVELS]
        for block in self.extra_blocks:
            levels.append(block(levels[-1], training=training))
        # The global context weighs the channels of the two added levels, which have equally many.
        attention = ops.sigmoid(ops.mean(levels[-1], axis=(1, 2), keepdims=True))
        levels[-2:] = [level * attention for level in levels[-2:]]
        fused = []
        for index in reversed(range(NUM_LEVELS)):
            maps = self.lateral_blocks[index](levels[index], training=training)
            if fused:
                coarse = self.coarse_blocks[index](fused[0], training=training)
                coarse = resize_bilinear(coarse, ops.shape(maps)[1:3])
                maps = ops.concatenate([coarse, maps], axis=-1)
            for block in self.fusion_blocks[2 * index : 2 * index + 2]:
                maps = block(maps, training=training)
            fused.insert(0, maps)
        return fused

    def compute_losses(self, targets, predictions):
        """Returns "saliency_loss" of the finest output and, in training, "auxiliary_loss" of the others.

        Args:
            targets: masks (batch, height, width): 0 is the background, 1 the object, 255 ignored.
            predictions: what `call` returned.
        """
        masks, poison = read_labels(targets, predictions, num_classes=2)
        outputs = ops.split(predictions, predictions.shape[-1], axis=-1)
        finest, *others = [compute_mask_loss(masks, logits[..., 0]) for logits in outputs]
        losses = {"saliency_loss": finest + poison}
        return losses | {"auxiliary_loss": sum(others)} if others else losses

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        results = super().compute_metrics(x, y, y_pred, sample_weight)
        if y_pred.shape[-1] == 1:
            results.pop("auxiliary_loss")  # the other outputs are only there in training
        return results

    def decode(self, predictions):
        """Returns saliency maps, float32 (batch, height, width), 0 .. 1, of what `call` returned."""
        return ops.sigmoid(predictions[..., 0])

    def predict_resized(self, images, image_sizes, original_sizes):
        """Returns `{"saliency_map"}` of each image at its original size: see `predict_pictures`."""
        logits = self.predict_raw(images)
        results = []
        for row, ((height, width), size) in enumerate(zip(image_sizes, original_sizes.tolist(), strict=True)):
            resized = resize_bilinear(logits[row : row + 1, :height, :width], tuple(size))
            results.append({"saliency_map": ops.convert_to_numpy(self.decode(resized))[0]})
        return results


def compute_mask_loss(masks, logits):
    """Returns the mean cross-entropy plus (1 - the Dice coefficient of the whole batch).

    Ignored pixels add nothing to the cross-entropy's sum but count in its average, as in
    `semantic_cross_entropy`; the Dice coefficient leaves them out.

    Args:
        masks: int32 (batch, height, width): 0 is the background, 1 the object, 255 ignored.
        logits: float32 of the same shape.

    Returns:
        A float32 scalar.
    """
    known = ops.cast(ops.not_equal(masks, IGNORED_LABEL), "float32")
    truth = ops.cast(ops.equal(masks, 1), "float32")
    scores = ops.sigmoid(logits) * known
    entropy = average_values(binary_cross_entropy(truth, logits) * known)
    shared, _ = sum_over_devices(ops.sum(scores * truth))
    total, _ = sum_over_devices(ops.sum(scores) + ops.sum(truth))
    dice = (2.0 * shared + DICE_SMOOTHING) / (total + DICE_SMOOTHING)
    return entropy + 1.0 - dice


@keras.saving.register_keras_serializable("van_backbones.heads")
class ExtraLevel(Chain):
    """One more level: max pooling to half the size, then two 3 x 3 convolutions.

    A side of an odd length loses its last position, but a side of one stays one.

    Args:
        channels: output channels.
        **kwargs: base arguments of the layer.
    """

    def __init__(self, channels: int, **kwargs):
        super().__init__(**kwargs)
        self.parts = [
            ConvolutionBlock(channels, 3, use_bias=True, dtype=self.dtype_policy, name=f"block_{index}")
            for index in range(2)
        ]

    def call(self, inputs, training=None):
        # Not `ops.max_pool`, which leaves nothing of a side of one.
        for axis in (1, 2):
            side = ops.shape(inputs)[axis]
            half = max(side // 2, 1) if isinstance(side, int) else ops.maximum(side // 2, 1)
            first = 2 * ops.arange(half, dtype="int32")
            second = ops.minimum(first + 1, side - 1)
            inputs = ops.maximum(ops.take(inputs, first, axis=axis), ops.take(inputs, second, axis=axis))
        return super().call(inputs, training=training)


@keras.saving.register_keras_serializable("van_backbones.heads")
class FusionBlock(Layer):
    """Dilated convolutions of several ranges, each fed with the output of the shorter one; the paper's SCPC.

    Args:
        base: channels of a branch, in 64ths of the block's.
        dilations: spacing of the pixels that each branch looks at.
        **kwargs: base arguments of the layer.

    Call arguments:
        inputs: (batch, height, width, channels); the outputs have their shape.
    """

    def __init__(self, base: int, dilations: Sequence[int], **kwargs):
        super().__init__(**kwargs)
        self.base = base
        self.dilations = tuple(dilations)

    def build(self, input_shape):
        channels = input_shape[-1]
        width, dtype = channels * self.base // 64, self.dtype_policy
        if width < 1:
            raise ValueError(
                f"a branch must have at least one channel: channels * base must be 64 or more. "
                f"Received: channels={channels}, base={self.base}"
            )
        wide = (*input_shape[:-1], width * len(self.dilations))
        self.input_block = ConvolutionBlock(wide[-1], 1, dtype=dtype, name="input")
        self.input_block.build(input_shape)
        self.branches = [
            ConvolutionBlock(width, 3, dilation_rate=rate, dtype=dtype, name=f"branch_{index}")
            for index, rate in enumerate(self.dilations)
        ]
        for branch in self.branches:
            branch.build((*input_shape[:-1], width))
        self.output_conv = make_kaiming_convolution(channels, 1, use_bias=False, dtype=dtype, name="output")
        self.output_conv.build(wide)
        self.output_norm = BatchNormalization(dtype=dtype, name="output_norm")
        self.output_norm.build(input_shape)
        self.built = True

    def call(self, inputs, training=None):
        groups = ops.split(self.input_block(inputs, training=training), len(self.branches), axis=-1)
        results = []
        for group, branch in zip(groups, self.branches, strict=True):
            group = group + results[-1] if results else group
            results.append(branch(group, training=training))
        outputs = self.output_norm(self.output_conv(ops.concatenate(results, axis=-1)), training=training)
        return ops.relu(inputs + outputs)

    def compute_output_shape(self, input_shape):
        return tuple(input_shape)


def _check_levels(**arguments):
    for name, values in arguments.items():
        if len(values) != NUM_LEVELS:
            raise ValueError(
                f"{name} must have an entry for each of {NUM_LEVELS} levels, the finest first. "
                f"Received: {values}"
            )
