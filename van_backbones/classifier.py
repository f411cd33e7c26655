"""VANClassifier: the ImageNet model."""

import os
from collections.abc import Sequence

import keras
import numpy as np
from keras import ops

from van_backbones.backbone import VANBackbone
from van_backbones.checkpoints import load_checkpoint
from van_backbones.class_names import read_imagenet_names
from van_backbones.freezing import freeze_parts, list_frozen


@keras.saving.register_keras_serializable(package="van_backbones")
class VANClassifier(keras.Model):
    """The Visual Attention Network as an image classifier: logits from the mean of the last level.

    A functional model: images (batch, height, width, channels) -> logits (batch, num_classes).

    Args:
        variant: one of "b0" .. "b6".
        num_classes: number of classes. If a checkpoint has another number, its last layer is left out, with a
            warning.
        weights: None for a random start, "imagenet" (b0 .. b3), a release's name or a checkpoint's path: see
            `van_backbones.checkpoints.load_checkpoint`.
        input_shape: (height, width, channels); height and width may be None. With other than 3 channels,
            `normalization` must be None.
        normalization: as in `VANBackbone`; "inception" is how the published weights were trained.
        drop_path_rate: as in `VANBackbone`.
        layer_norm_epsilon: as in `VANBackbone`.
        dtype: dtype policy of all layers.
        recompute: as in `VANBackbone`.
        **kwargs: `name` and `trainable`.

    Reference:
        - Guo et al., "Visual Attention Network", arXiv 2202.09741, section 4.1.
    """

    # The reference names of the layers that depend on the number of classes.
    class_layers = ("head",)

    def __init__(
        self,
        variant: str,
        num_classes: int = 1000,
        weights: str | os.PathLike | None = None,
        input_shape: Sequence[int | None] = (None, None, 3),
        normalization: str | None = "inception",
        drop_path_rate: float | None = None,
        layer_norm_epsilon: float = 1e-6,
        dtype=None,
        recompute: bool = False,
        **kwargs,
    ):
        if num_classes < 1:
            raise ValueError(f"num_classes must be at least 1. Received: {num_classes}")
        backbone = VANBackbone(
            variant,
            input_shape,
            normalization,
            drop_path_rate,
            layer_norm_epsilon,
            dtype=dtype,
            recompute=recompute,
            name=f"van_{variant}",
        )
        images = keras.Input(input_shape, dtype=backbone.input.dtype, name="images")
        features = keras.layers.GlobalAveragePooling2D(data_format="channels_last", dtype=dtype, name="pool")(
            backbone(images)["P5"]
        )
        initializer = keras.initializers.TruncatedNormal(0.0, 0.02)
        head = keras.layers.Dense(num_classes, kernel_initializer=initializer, dtype=dtype, name="head")
        trainable = kwargs.pop("trainable", True)
        super().__init__(inputs=images, outputs=head(features), **kwargs)
        self.trainable = trainable  # as an argument Keras would set it on the model and not on its layers
        self.autocast = False  # the backbone's first layer casts
        self.dtype_policy = backbone.dtype_policy
        self.backbone = backbone
        self.num_classes = num_classes
        if weights is not None:
            load_checkpoint(self, weights)

    def reference_layers(self):
        """Returns official name -> layer or variable; the backbone's names start with `backbone.`."""
        return {**self.backbone.reference_layers(), "head": self.get_layer("head")}

    def get_config(self):
        return {
            "variant": self.backbone.variant,
            "num_classes": self.num_classes,
            "input_shape": tuple(self.inputs[0].shape[1:]),
            "normalization": self.backbone.normalization,
            "drop_path_rate": self.backbone.drop_path_rate,
            "layer_norm_epsilon": self.backbone.layer_norm_epsilon,
            "recompute": self.backbone.recompute,
            "frozen_parts": list_frozen(self),
            "dtype": keras.dtype_policies.serialize(self.dtype_policy),
            "name": self.name,
            "trainable": self.trainable,
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        # See `VANBackbone.from_config`.
        classifier = cls(**{key: config[key] for key in config.keys() - {"frozen_parts", "weights"}})
        if "frozen_parts" in config:
            freeze_parts(classifier, config["frozen_parts"])
        return classifier


def preprocess_images(images, image_size=224, crop_share=0.9, num_channels=3):
    """Returns images prepared as for the published accuracies: bicubic resizing, then the centre crop.

    The shorter side becomes `image_size / crop_share`, and the central square of `image_size` is kept. RGB is
    rounded and stays in 0 .. 255; the values of other channels are kept as they are.

    Args:
        images: (batch, height, width, channels) or a single (height, width, channels); RGB is 0 .. 255.
        image_size: side of the result.
        crop_share: the share of the resized image's shorter side that is kept.
        num_channels: as many as the images must have; 3 is RGB.

    Returns:
        Float32 (batch, image_size, image_size, channels); a single image becomes a batch of one.

    Raises:
        ValueError: for another shape.
    """
    shape = tuple(images.shape)
    if len(shape) not in (3, 4) or shape[-1] != num_channels:
        raise ValueError(f"images must be (batch, height, width, {num_channels}). Received: shape {shape}")
    if len(shape) == 3:
        images = images[None]
    height, width = images.shape[1:3]
    side = int(image_size / crop_share)
    size = (side * height // min(height, width), side * width // min(height, width))
    images = ops.cast(images, "float32")
    images = ops.image.resize(images, size, "bicubic", antialias=True, data_format="channels_last")
    top, left = (round((length - image_size) / 2) for length in size)
    images = images[:, top : top + image_size, left : left + image_size]
    # The bicubic kernel overshoots at edges.
    return ops.clip(ops.round(images), 0.0, 255.0) if num_channels == 3 else images


def decode_predictions(logits, top: int = 5):
    """Returns the names of the most likely ImageNet classes.

    Args:
        logits: (batch, 1000).
        top: classes per image.

    Returns:
        A list per image of (WordNet id, name, score), the best first.

    Raises:
        ValueError: for another shape, or fewer than one class per image.
    """
    names = read_imagenet_names()
    if len(logits.shape) != 2 or logits.shape[1] != len(names):
        raise ValueError(f"logits must be (batch, {len(names)}). Received: shape {tuple(logits.shape)}")
    if top < 1:
        raise ValueError(f"top must be at least 1. Received: {top}")
    scores = ops.convert_to_numpy(ops.softmax(ops.cast(logits, "float32"), axis=-1))
    best = np.argsort(-scores, axis=-1, kind="stable")[:, :top]
    return [
        [(*names[label], float(row[label])) for label in labels]
        for row, labels in zip(scores, best, strict=True)
    ]
