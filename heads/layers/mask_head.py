"""The mask head of R-CNNs: which pixels of a box belong to the object."""

import keras
from keras import ops

from heads.layers.blocks import Chain, make_kaiming_convolution
from heads.layers.roi_align import align_regions
from heads.ops.losses import average_losses, binary_cross_entropy
from heads.ops.masks import crop_masks

POOLED_SIZE = 14
MASK_SIZE = 28


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
        self.num_classes = num_classes
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


def compute_mask_loss(mask_head, pyramid, targets, samples, max_positives):
    """Returns the mean cross-entropy of the masks of sampled objects.

    Args:
        mask_head: a `MaskHead`.
        pyramid: list of maps (batch, height, width, channels) of strides 4, 8, 16, 32.
        targets: a dict with "masks" (batch, objects, height, width).
        samples: what `heads.ops.regions.sample_regions` returned.
        max_positives: how many regions of an image can be objects; they come first.

    Returns:
        A float32 scalar.
    """
    places = max_positives
    if keras.backend.backend() != "jax":  # JAX must know shapes beforehand
        num_objects = ops.sum(ops.cast(samples["kinds"] == 1, "int32"), axis=1)
        places = ops.maximum(ops.max(num_objects), 1)
    samples = {name: values[:, :places] for name, values in samples.items()}
    positive = samples["kinds"] == 1
    labels = ops.clip(samples["labels"], 0, mask_head.num_classes - 1)
    logits = mask_head(align_regions(pyramid, samples["boxes"], POOLED_SIZE), labels)
    truth = crop_masks(targets["masks"], samples["boxes"], samples["matches"], MASK_SIZE)
    entropies = ops.where(positive[:, :, None, None], binary_cross_entropy(truth, logits), 0.0)
    num_objects = ops.sum(ops.cast(positive, "float32"))
    return average_losses(ops.sum(entropies) / MASK_SIZE**2, num_objects)
