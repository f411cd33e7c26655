"""Mask R-CNN (arXiv 1703.06870)."""

import keras
import numpy as np
from keras import ops

from heads.faster_rcnn import FasterRCNN
from heads.layers.blocks import join_reference_layers
from heads.layers.mask_head import MaskHead
from heads.layers.roi_align import align_regions
from heads.ops.inputs import poison_faults, read_targets
from heads.ops.losses import binary_cross_entropy
from heads.ops.masks import crop_masks
from heads.ops.regions import Stage
from heads.ops.selection import restore_boxes, take_rows

FINEST_STRIDE = 4  # of P2
POOLED_SIZE = 14
MASK_SIZE = 28


@keras.saving.register_keras_serializable("van_backbones.heads")
class MaskRCNN(FasterRCNN):
    """Instance segmentation: Faster R-CNN with a mask for each object.

    The arguments are those of `FasterRCNN`. What differs: targets also have "masks"
    (batch, n, height, width), 0 or 1 at the images' size; predictions outside of training also have
    "detections", those of `FasterRCNN` in pixels of the input, and their "mask_logits"
    (batch, max_detections, 28, 28); detections also have "masks" (batch, max_detections, 28, 28), float32,
    the probability of the object at each place of its box, 0 where there is no detection.
    `heads.ops.masks.paste_masks` lays them into the picture.

    Reference:
        - He et al., "Mask R-CNN", arXiv 1703.06870, section 3; the numbers are mmdetection's.
    """

    # The reference names of the layers that depend on the number of classes.
    class_layers = (*FasterRCNN.class_layers, "roi_head.mask_head.conv_logits")

    def __init__(self, backbone, num_classes: int = 80, **kwargs):
        super().__init__(backbone, num_classes, **kwargs)
        self.loss_trackers["mask_loss"] = keras.metrics.Mean(name="mask_loss")
        # mmdetection's configuration matches low quality here, unlike that of Faster R-CNN.
        self.stage = Stage(num_samples=self.num_samples, match_low_quality=True)
        self.mask_head = MaskHead(num_classes, self.channels, dtype=self.dtype_policy, name="mask_head")
        self.mask_head.build((None, None, POOLED_SIZE, POOLED_SIZE, self.channels))

    def call(self, inputs, training=None):
        predictions = super().call(inputs, training=training)
        if training:
            return predictions
        detections = self.detect(predictions)
        labels = ops.maximum(detections["labels"], 0)
        logits = self.segment_regions(predictions["pyramid"], detections["boxes"], labels)
        return {**predictions, "detections": detections, "mask_logits": logits}

    def compute_losses(self, targets, predictions):
        """Returns the losses of `FasterRCNN` and "mask_loss", of targets that also have "masks"."""
        image_sizes = predictions["image_sizes"]
        targets, poisons = read_targets(targets, self.num_classes, True, image_sizes)
        poisons["mask_loss"] = _check_masks(targets["masks"], predictions["pyramid"][0])
        losses, samples = self.compute_stage_losses(targets, predictions)
        losses["mask_loss"] = self.compute_mask_loss(targets, predictions, samples)
        return {name: loss + poisons.get(name, 0.0) for name, loss in losses.items()}

    def compute_mask_loss(self, targets, predictions, samples):
        """Returns the mean cross-entropy of the masks of sampled objects: see `sample_regions`."""
        # Objects come first, so only so many places can hold one.
        places = self.stage.max_positives
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
        return ops.sum(entropies) / ops.maximum(num_values, 1.0)

    def segment_regions(self, pyramid, boxes, labels):
        """Returns mask logits (batch, n, 28, 28) of boxes (batch, n, 4), each of its own class (batch, n)."""
        return self.mask_head(align_regions(pyramid, boxes, POOLED_SIZE), labels)

    def decode(self, predictions):
        """Returns detections of raw predictions: those of `FasterRCNN`, and their "masks"."""
        detections = predictions["detections"]
        exists = detections["labels"][..., None, None] >= 0
        masks = ops.where(exists, ops.sigmoid(predictions["mask_logits"]), 0.0)
        image_sizes, original_sizes = predictions["image_sizes"], predictions.get("original_sizes")
        return restore_boxes({**detections, "masks": masks}, image_sizes, original_sizes)

    def reference_layers(self):
        """Returns mmdetection's names: name -> layer or variable."""
        return super().reference_layers() | join_reference_layers({"roi_head.mask_head": self.mask_head})


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
