"""Mask R-CNN (arXiv 1703.06870)."""

import keras
import numpy as np
from keras import ops

from heads.faster_rcnn import POSITIVE_FRACTION, FasterRCNN, flatten_regions
from heads.layers.roi_align import align_regions
from heads.ops.inputs import poison_faults
from heads.ops.losses import binary_cross_entropy
from heads.ops.masks import crop_masks
from heads.ops.selection import restore_boxes, take_rows

FINEST_STRIDE = 4  # of P2
POOLED_SIZE = 14
MASK_SIZE = 28


@keras.saving.register_keras_serializable(package="heads")
class MaskRCNN(FasterRCNN):
    """Instance segmentation: Faster R-CNN with a mask for each object.

    The arguments are those of `FasterRCNN`. What differs: targets also have "masks"
    (batch, n, height, width), 0 or 1 at the images' size; detections also have "masks"
    (batch, max_detections, 28, 28), float32, the probability of the object at each place of its box, 0 where
    there is no detection. `heads.ops.masks.paste_masks` lays them into the picture.

    Reference:
        - He et al., "Mask R-CNN", arXiv 1703.06870, section 3; the numbers are mmdetection's.
    """

    # The reference names of the layers that depend on the number of classes.
    class_layers = (*FasterRCNN.class_layers, "roi_head.mask_head.conv_logits")
    with_masks = True
    loss_names = (*FasterRCNN.loss_names, "mask_loss")

    def build(self, input_shape):
        if self.built:
            return
        self.mask_head = MaskHead(self.num_classes, self.channels, dtype=self.dtype_policy, name="mask_head")
        self.mask_head.build((None, POOLED_SIZE, POOLED_SIZE, self.channels))
        super().build(input_shape)

    def compute_region_losses(self, targets, predictions, samples):
        """Gives "class_loss", "box_loss" and "mask_loss" of sampled regions: see `sample_regions`."""
        losses = super().compute_region_losses(targets, predictions, samples)
        poison = _check_masks(targets["masks"], predictions["pyramid"][0])
        # Objects come first, so only so many places can hold one.
        places = int(self.num_samples * POSITIVE_FRACTION)
        if keras.backend.backend() != "jax":  # JAX must know shapes beforehand
            num_objects = ops.sum(ops.cast(samples["kinds"] == 1, "int32"), axis=1)
            places = ops.maximum(ops.max(num_objects), 1)
        samples = {name: values[:, :places] for name, values in samples.items()}
        positive = samples["kinds"] == 1
        labels = ops.maximum(take_rows(targets["labels"], samples["matches"]), 0)
        labels = ops.minimum(labels, self.num_classes - 1)
        logits = self.segment_regions(predictions["pyramid"], samples["boxes"], labels)
        truth = crop_masks(targets["masks"], samples["boxes"], samples["matches"], MASK_SIZE)
        entropies = ops.where(positive[:, :, None, None], binary_cross_entropy(truth, logits), 0.0)
        num_values = ops.sum(ops.cast(positive, "float32")) * MASK_SIZE**2
        return {**losses, "mask_loss": ops.sum(entropies) / ops.maximum(num_values, 1.0) + poison}

    def segment_regions(self, pyramid, boxes, labels):
        """Gives mask logits (batch, n, 28, 28) of boxes (batch, n, 4), each for its own label (batch, n)."""
        batch, num_boxes = ops.shape(boxes)[:2]
        logits = self.mask_head(flatten_regions(align_regions(pyramid, boxes, POOLED_SIZE)))
        labels = ops.reshape(labels, (batch * num_boxes, 1, 1, 1))
        labels = ops.broadcast_to(labels, (batch * num_boxes, MASK_SIZE, MASK_SIZE, 1))
        logits = ops.take_along_axis(logits, labels, axis=3)
        return ops.reshape(logits, (batch, num_boxes, MASK_SIZE, MASK_SIZE))

    def decode(self, predictions):
        """Gives detections of raw predictions: those of `FasterRCNN`, and their "masks"."""
        detections = self.detect(predictions)
        labels = ops.maximum(detections["labels"], 0)
        logits = self.segment_regions(predictions["pyramid"], detections["boxes"], labels)
        exists = detections["labels"][..., None, None] >= 0
        detections["masks"] = ops.where(exists, ops.sigmoid(logits), 0.0)
        return restore_boxes(detections, predictions)

    def reference_layers(self):
        """Gives mmdetection's names: name -> layer or variable."""
        parts = self.mask_head.reference_layers().items()
        return super().reference_layers() | {f"roi_head.mask_head.{name}": layer for name, layer in parts}


def _check_masks(masks, finest_level):
    """Returns 0, or NaN where masks are not as large as the images (but for the stride) or exceed 1."""
    size, cells = ops.shape(masks)[2:], ops.shape(finest_level)[1:3]
    differs = [-(-side // FINEST_STRIDE) != number for side, number in zip(size, cells, strict=True)]
    known = all(isinstance(each, bool) for each in differs)
    poison = poison_faults(
        np.array(differs) if known else ops.stack(differs),
        lambda index: (
            "masks must have the (height, width) of the padded images, in multiples of "
            f"{FINEST_STRIDE} {tuple(FINEST_STRIDE * int(side) for side in cells)}. "
            f"Received: {tuple(map(int, size))}"
        ),
    )
    masks = ops.convert_to_tensor(masks)
    if keras.backend.standardize_dtype(masks.dtype) == "bool":
        return poison
    return poison + poison_faults(
        ops.max(masks, initial=0) > 1,
        lambda index: f"masks must be 0 or 1. Received: values up to {float(ops.max(masks))}",
    )


@keras.saving.register_keras_serializable(package="heads")
class MaskHead(keras.layers.Layer):
    """Draws a mask for each class: four convolutions, one that doubles the size, one output per class.

    Args:
        num_classes: number of classes.
        channels: channels between the layers.
        **kwargs: base arguments of the layer.

    Call arguments:
        regions: (n, 14, 14, channels).

    Returns:
        float32 logits (n, 28, 28, num_classes).
    """

    def __init__(self, num_classes, channels=256, **kwargs):
        super().__init__(**kwargs)
        self.num_classes = num_classes
        self.channels = channels

        def make_options(name):
            # PyTorch's kaiming normal over the fan out, a new one each time: a shared one repeats itself.
            initializer = keras.initializers.VarianceScaling(2.0, "fan_out", "untruncated_normal")
            options = {"kernel_initializer": initializer, "dtype": self.dtype_policy, "name": name}
            return {"data_format": "channels_last", **options}

        self.convs = [
            keras.layers.Conv2D(channels, 3, padding="same", activation="relu", **make_options(f"conv_{i}"))
            for i in range(4)
        ]
        self.upsampler = keras.layers.Conv2DTranspose(
            channels, 2, strides=2, activation="relu", **make_options("upsampler")
        )
        self.output_conv = keras.layers.Conv2D(num_classes, 1, **make_options("output"))

    def build(self, input_shape):
        wide_shape = (*input_shape[:-1], self.channels)
        self.convs[0].build(input_shape)
        for layer in (*self.convs[1:], self.upsampler, self.output_conv):
            layer.build(wide_shape)
        self.built = True

    def call(self, regions):
        for layer in (*self.convs, self.upsampler, self.output_conv):
            regions = layer(regions)
        return ops.cast(regions, "float32")

    def reference_layers(self):
        """Gives mmdetection's names: name -> layer."""
        names = {f"convs.{index}.conv": conv for index, conv in enumerate(self.convs)}
        return names | {"upsample": self.upsampler, "conv_logits": self.output_conv}

    def get_config(self):
        return {**super().get_config(), "num_classes": self.num_classes, "channels": self.channels}
