"""VANBackbone: images -> a feature pyramid."""

import os
from collections.abc import Sequence

import keras
import numpy as np

from van_backbones.checkpoints import load_checkpoint
from van_backbones.depthwise import widen_dtype
from van_backbones.freezing import freeze_parts, list_frozen
from van_backbones.layers import OverlapPatchEmbedding, VANBlock
from van_backbones.normalization import ImageNormalization
from van_backbones.variants import VARIANTS

# (mean, deviation) of RGB in 0 .. 255. "inception" is timm's name for the second pair.
NORMALIZATIONS = {
    "imagenet": ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375)),
    "inception": ((127.5, 127.5, 127.5), (127.5, 127.5, 127.5)),
}


@keras.saving.register_keras_serializable(package="van_backbones")
class VANBackbone(keras.Model):
    """The Visual Attention Network as a feature-pyramid backbone.

    A functional model: images -> `{"P2", "P3", "P4", "P5"}`, the normalised outputs of the four stages, with
    strides 4, 8, 16, 32 and shape `(batch, ceil(height / stride), ceil(width / stride), width)`.

    KerasHub's heads read `pyramid_outputs` (level -> symbolic output), KerasCV's `pyramid_level_inputs`
    (level -> layer name).

    Args:
        variant: one of "b0" .. "b6".
        input_shape: (height, width, channels); height and width may be None, which allows any size.
        normalization: "imagenet" (RGB images of 0 .. 255 in, ImageNet's mean and deviation are applied
            inside), "inception" (the same with 127.5 for both, how the ImageNet classifiers were trained),
            or None (images are normalised already; any number of channels).
        drop_path_rate: stochastic depth of the last block; rates rise linearly from 0. None uses the
            variant's rate.
        layer_norm_epsilon: 1e-6 as in the classification code; the segmentation code uses 1e-5.
        weights: None for a random start, "imagenet" (b0 .. b3) or "imagenet22k" (b4 .. b6) for the release of
            the variant, a release's name or a checkpoint's path: see
            `van_backbones.checkpoints.load_checkpoint`.
        widths: channels of the four stages, instead of the variant's.
        depths: blocks in the four stages, instead of the variant's.
        dtype: dtype policy of all layers. None uses the global one.
        recompute: whether training keeps only the inputs of each block and computes the rest again in the
            backward pass. Saves memory, takes longer, and gives the same numbers.
        **kwargs: `name` and `trainable`.

    Raises:
        ValueError: if an argument is out of range.

    Reference:
        - Guo et al., "Visual Attention Network", arXiv 2202.09741, section 3.2 and table 2.
    """

    def __init__(
        self,
        variant: str,
        input_shape: Sequence[int | None] = (None, None, 3),
        normalization: str | None = "imagenet",
        drop_path_rate: float | None = None,
        layer_norm_epsilon: float = 1e-6,
        weights: str | os.PathLike | None = None,
        widths: Sequence[int] | None = None,
        depths: Sequence[int] | None = None,
        dtype=None,
        recompute: bool = False,
        **kwargs,
    ):
        _check_arguments(variant, input_shape, normalization, drop_path_rate, widths, depths)
        row = VARIANTS[variant]
        widths = tuple(widths or row.widths)
        depths = tuple(depths or row.depths)
        if drop_path_rate is None:
            drop_path_rate = row.drop_path_rate
        policy = keras.dtype_policies.get(dtype or keras.config.dtype_policy())
        # At least float32, because half precision cannot hold resized pixels.
        input_dtype = widen_dtype(policy.compute_dtype)
        images = keras.Input(input_shape, dtype=input_dtype, name="images")
        x = images
        if normalization is not None:
            mean, deviation = NORMALIZATIONS[normalization]
            x = ImageNormalization(mean, deviation, dtype=dtype, name="normalization")(x)
        rates = np.linspace(0.0, drop_path_rate, sum(depths)).tolist()
        stages = _build_stages(
            x, widths, depths, row.expansion_ratios, rates, layer_norm_epsilon, dtype, recompute
        )
        pyramid = {f"P{stage + 1}": outputs for stage, outputs in enumerate(stages, 1)}
        trainable = kwargs.pop("trainable", True)
        super().__init__(inputs=images, outputs=pyramid, **kwargs)
        self.trainable = trainable  # as an argument Keras would set it on the model and not on its layers
        self.autocast = False  # the first layer casts
        self.dtype_policy = policy
        self.variant = variant
        self.normalization = normalization
        self.drop_path_rate = drop_path_rate
        self.layer_norm_epsilon = layer_norm_epsilon
        self.widths = widths
        self.depths = depths
        self.recompute = recompute
        self.pyramid_outputs = pyramid
        self.pyramid_level_inputs = {f"P{stage + 1}": f"stage{stage}_norm" for stage in (1, 2, 3, 4)}
        if weights is not None:
            load_checkpoint(self, weights)

    def reference_layers(self):
        """Returns the parts by their official names with the prefix `backbone.`, as in VAN-Segmentation."""
        names = {}
        for stage, depth in enumerate(self.depths, 1):
            embedding = self.get_layer(f"stage{stage}_embedding")
            names[f"backbone.patch_embed{stage}.proj"] = embedding.proj
            names[f"backbone.patch_embed{stage}.norm"] = embedding.norm
            for index in range(depth):
                block = self.get_layer(f"stage{stage}_block{index}")
                parts = block.reference_layers().items()
                names |= {f"backbone.block{stage}.{index}.{name}": part for name, part in parts}
            names[f"backbone.norm{stage}"] = self.get_layer(f"stage{stage}_norm")
        return names

    def freeze(self, num_stages: int = 0, batch_norms: bool = False):
        """Freezes the first stages, all batch norms, or both.

        Training does not change frozen weights and statistics, and frozen batch norms use their moving
        statistics. `.keras` files keep what is frozen, including layers frozen one by one. Freeze before
        `compile`; `freeze()` undoes it.

        Args:
            num_stages: how many stages to freeze, from the finest on, 0 .. 4.
            batch_norms: whether to freeze the batch norms of all stages.

        Raises:
            ValueError: if `num_stages` is not 0 .. 4.
        """
        if num_stages not in range(5):
            raise ValueError(f"num_stages must be 0 .. 4. Received: {num_stages!r}")
        frozen = tuple(f"stage{stage}_" for stage in range(1, num_stages + 1))
        for layer in self.layers:
            # Set on each part: Keras does not pass the flag on to the parts of a layer that already has it.
            for part in layer._flatten_layers():
                is_norm = isinstance(part, keras.layers.BatchNormalization)
                part.trainable = not layer.name.startswith(frozen) and not (batch_norms and is_norm)

    def set_layer_norm_epsilon(self, epsilon: float):
        """Sets the epsilon of the stages' last norms to that of the code that the weights come from."""
        self.layer_norm_epsilon = epsilon
        for stage in (1, 2, 3, 4):
            self.get_layer(f"stage{stage}_norm").epsilon = epsilon

    def get_config(self):
        return {
            "variant": self.variant,
            "input_shape": tuple(self.inputs[0].shape[1:]),
            "normalization": self.normalization,
            "drop_path_rate": self.drop_path_rate,
            "layer_norm_epsilon": self.layer_norm_epsilon,
            "widths": self.widths,
            "depths": self.depths,
            "recompute": self.recompute,
            "frozen_parts": list_frozen(self),
            "dtype": keras.dtype_policies.serialize(self.dtype_policy),
            "name": self.name,
            "trainable": self.trainable,
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        # A file contains its weights; the config in a stranger's file must not make us read other files.
        backbone = cls(**{key: config[key] for key in config.keys() - {"frozen_parts", "weights"}})
        if "frozen_parts" in config:
            freeze_parts(backbone, config["frozen_parts"])
        return backbone


def _build_stages(x, widths, depths, expansion_ratios, drop_path_rates, layer_norm_epsilon, dtype, recompute):
    """Returns the four stages' symbolic outputs."""
    rates = iter(drop_path_rates)
    stages = []
    for stage, (width, depth, ratio) in enumerate(zip(widths, depths, expansion_ratios, strict=True), 1):
        kernel_size, strides = (7, 4) if stage == 1 else (3, 2)
        name = f"stage{stage}_embedding"
        x = OverlapPatchEmbedding(width, kernel_size, strides, dtype=dtype, name=name)(x)
        for index in range(depth):
            name = f"stage{stage}_block{index}"
            x = VANBlock(ratio, next(rates), recompute=recompute, dtype=dtype, name=name)(x)
        name = f"stage{stage}_norm"
        x = keras.layers.LayerNormalization(epsilon=layer_norm_epsilon, dtype=dtype, name=name)(x)
        stages.append(x)
    return stages


def _check_arguments(variant, input_shape, normalization, drop_path_rate, widths, depths):
    if variant not in VARIANTS:
        raise ValueError(f"variant must be one of {list(VARIANTS)}. Received: {variant!r}")
    if normalization is not None and normalization not in NORMALIZATIONS:
        raise ValueError(
            f"normalization must be one of {list(NORMALIZATIONS)} or None. Received: {normalization!r}"
        )
    if len(input_shape) != 3 or input_shape[-1] is None:
        raise ValueError(
            f"input_shape must be (height, width, channels) with known channels. Received: {input_shape}"
        )
    if normalization is not None and input_shape[-1] != 3:
        raise ValueError(
            f"normalization={normalization!r} needs RGB images, 3 channels; "
            f"pass normalization=None for others. Received: input_shape={input_shape}"
        )
    if drop_path_rate is not None and not 0.0 <= drop_path_rate < 1.0:
        raise ValueError(f"drop_path_rate must be in [0, 1). Received: {drop_path_rate}")
    for name, values in (("widths", widths), ("depths", depths)):
        if values is not None and (len(values) != 4 or min(values) < 1):
            raise ValueError(f"{name} must be four positive integers, one per stage. Received: {values}")
