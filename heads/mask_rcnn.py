"""Mask R-CNN (arXiv 1703.06870)."""

import keras
from keras import ops

from heads.faster_rcnn import FasterRCNN
from heads.layers.blocks import join_reference_layers
from heads.layers.mask_head import POOLED_SIZE, MaskHead, compute_mask_loss
from heads.layers.roi_align import align_regions
from heads.ops.inputs import check_masks, read_targets
from heads.ops.regions import Stage, decode_masks


@keras.saving.register_keras_serializable("van_backbones.heads")
class MaskRCNN(FasterRCNN):
    """Instance segmentation: Faster R-CNN with a mask for each object.

    The arguments are those of `FasterRCNN`. In addition, targets have "masks" (batch, n, height, width), 0 or
    1 at the images' size; predictions outside of training have "detections", those of `FasterRCNN` in pixels
    of the input, and their "mask_logits" (batch, max_detections, 28, 28); detections have "masks" (batch,
    max_detections, 28, 28), float32, the probability of the object at each place of its box, 0 where there is
    no detection. `heads.ops.masks.paste_masks` puts them into the picture.

    Reference:
        - He et al., "Mask R-CNN", arXiv 1703.06870, section 3; the numbers are mmdetection's.
    """

    with_masks = True
    # The reference names of the layers that depend on the number of classes.
    class_layers = (*FasterRCNN.class_layers, "roi_head.mask_head.conv_logits")

    def __init__(self, backbone, num_classes: int = 80, **kwargs):
        super().__init__(backbone, num_classes, **kwargs)
        self.loss_trackers["mask_loss"] = keras.metrics.Mean(name="mask_loss")
        # mmdetection's configuration sets `match_low_quality` here, unlike that of Faster R-CNN.
        self.stage = Stage(num_samples=self.num_samples, match_low_quality=True)
        self.mask_head = MaskHead(num_classes, self.channels, dtype=self.dtype_policy, name="mask_head")
        self.mask_head.build((None, None, POOLED_SIZE, POOLED_SIZE, self.channels))

    def call(self, inputs, training=None):
        predictions = super().call(inputs, training=training)
        if training:
            return predictions
        detections = self.detect(predictions)
        labels = ops.maximum(detections["labels"], 0)
        regions = align_regions(predictions["pyramid"], detections["boxes"], POOLED_SIZE)
        logits = self.mask_head(regions, labels)
        return {**predictions, "detections": detections, "mask_logits": logits}

    def compute_losses(self, targets, predictions):
        """Returns the losses of `FasterRCNN` and "mask_loss"; the targets also need "masks"."""
        image_sizes = predictions["image_sizes"]
        targets, poisons = read_targets(targets, self.num_classes, True, image_sizes)
        pyramid = predictions["pyramid"]
        poisons["mask_loss"] = check_masks(targets["masks"], pyramid[0])
        losses, samples = self.compute_stage_losses(targets, predictions)
        losses["mask_loss"] = compute_mask_loss(
            self.mask_head, pyramid, targets, samples, self.stage.max_positives
        )
        return {name: loss + poisons.get(name, 0.0) for name, loss in losses.items()}

    def decode(self, predictions):
        """Returns detections of raw predictions: those of `FasterRCNN`, and their "masks"."""
        return decode_masks(predictions)

    def reference_layers(self):
        """Returns mmdetection's names: name -> layer or variable."""
        return super().reference_layers() | join_reference_layers({"roi_head.mask_head": self.mask_head})
