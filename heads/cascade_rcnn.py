"""Cascade Mask R-CNN (arXiv 1906.09756)."""

import functools

import keras
from keras import ops

from heads.arguments import check_counts, check_detector
from heads.dense_model import DenseModel
from heads.layers.blocks import join_reference_layers
from heads.layers.box_head import BoxHead
from heads.layers.fpn import FPN
from heads.layers.mask_head import POOLED_SIZE as MASK_POOLED_SIZE
from heads.layers.mask_head import MaskHead, compute_mask_loss
from heads.layers.roi_align import align_regions
from heads.layers.rpn import RegionProposalNetwork, compute_proposal_losses, select_proposals
from heads.ops.inputs import check_masks, read_inputs, read_targets
from heads.ops.losses import giou_loss, smooth_l1_loss
from heads.ops.masks import average_sigmoids
from heads.ops.regions import (
    Stage,
    compute_region_losses,
    decode_masks,
    detect_regions,
    sample_regions,
    shift_regions,
)

LEVELS = ("P2", "P3", "P4", "P5")
LOSSES = ("objectness_loss", "proposal_loss", "class_loss", "box_loss", "mask_loss")
CANDIDATES_PER_LEVEL = 1000
TRAINING_CANDIDATES_PER_LEVEL = 2000
NUM_TRAINING_PROPOSALS = 2000
POOLED_SIZE = 7
# Each stage learns from better regions than the one before and shifts them by less.
STAGES = (
    Stage(iou_threshold=0.5, deviations=(0.1, 0.1, 0.2, 0.2), loss_weight=1.0),
    Stage(iou_threshold=0.6, deviations=(0.05, 0.05, 0.1, 0.1), loss_weight=0.5),
    Stage(iou_threshold=0.7, deviations=(0.033, 0.033, 0.067, 0.067), loss_weight=0.25),
)
# Kind of box head -> options of its layers, and of its stages.
BOX_HEADS = {
    "2fc": (
        {"class_agnostic": True},
        {"class_agnostic": True, "box_loss": functools.partial(smooth_l1_loss, beta=1.0)},
    ),
    "4conv1fc": (
        {"num_convs": 4, "num_denses": 1},
        {"compares_boxes": True, "box_loss": giou_loss, "box_weight": 10.0},
    ),
}


@keras.saving.register_keras_serializable("van_backbones.heads")
class CascadeMaskRCNN(DenseModel):
    """Instance segmentation in three stages after the proposals, each on the boxes from the one before.

    `model(images)` gives raw predictions: those of `heads.layers.rpn.RegionProposalNetwork`, "pyramid" (the
    maps P2 .. P5), "image_sizes" (batch, 2), and, except in training, the last stage's inputs and outputs:
    "proposals" (batch, proposals, 4), "proposal_scores" (batch, proposals), "class_logits" (batch, proposals,
    classes + 1), the mean of the three stages', the background last, "box_deltas" (batch, proposals, classes
    or 1, 4), "detections" in pixels of the input, and "mask_logits" (batch, max_detections, 28, 28), whose
    sigmoid is the mean of the three mask heads'. `model.predict` gives detections, `fit` takes padded boxes,
    labels and masks: see `decode` and `compute_losses`.

    Inputs are images (batch, height, width, 3) or a dict, which also tells the sizes: see
    `heads.ops.inputs.read_inputs`.

    Args:
        backbone: a functional Keras model with `pyramid_outputs` "P2" .. "P5".
        num_classes: number of classes without the background.
        box_head: "4conv1fc" for four convolutions and a dense layer, a box per class and the GIoU loss, the
            paper's 84 M parameters with VAN-B2; "2fc" for mmdetection's plain configuration, two dense
            layers, one box for all classes and the smooth L1 loss.
        channels: channels of the pyramid and the heads.
        num_proposals: proposals per image that the stages look at; training uses 2000.
        num_samples: proposals of each image that each stage learns from, at most a quarter of them objects;
            at least 4.
        score_threshold: detections below are left out.
        iou_threshold: of two detections of one class that overlap by more, the better one stays.
        max_detections: rows of `predict`'s result.
        **kwargs: `class_names` and `resizing`, see `DenseModel`; `name`, `trainable`, `dtype`.

    Raises:
        ValueError: if an argument is out of range or the backbone lacks a level.

    Reference:
        - Cai and Vasconcelos, "Cascade R-CNN: High Quality Object Detection and Instance Segmentation", arXiv
          1906.09756; the numbers are mmdetection's.
    """

    with_masks = True
    # The reference names of the layers that depend on the number of classes.
    class_layers = tuple(
        f"roi_head.{part}.{stage}.{layer}"
        for part, layer in (("bbox_head", "fc_cls"), ("bbox_head", "fc_reg"), ("mask_head", "conv_logits"))
        for stage in range(len(STAGES))
    )

    def __init__(
        self,
        backbone,
        num_classes: int = 80,
        box_head: str = "4conv1fc",
        channels: int = 256,
        num_proposals: int = 1000,
        num_samples: int = 512,
        score_threshold: float = 0.05,
        iou_threshold: float = 0.5,
        max_detections: int = 100,
        **kwargs,
    ):
        check_detector(num_classes, channels, score_threshold, iou_threshold, max_detections)
        check_counts(least=4, num_samples=num_samples)
        check_counts(num_proposals=num_proposals)
        if box_head not in BOX_HEADS:
            raise ValueError(f"box_head must be one of {list(BOX_HEADS)}. Received: {box_head!r}")
        super().__init__(backbone, LEVELS, LOSSES, locals(), **kwargs)
        self.seed_generator = keras.random.SeedGenerator()
        dtype = self.dtype_policy
        self.neck = FPN(channels, num_extra_levels=1, extra_levels_from="pool", dtype=dtype, name="neck")
        self.neck.build(self.level_shapes)
        self.rpn = RegionProposalNetwork(channels, dtype=dtype, name="rpn")
        self.rpn.build([(None, None, None, channels)])
        layers, values = BOX_HEADS[box_head]
        self.stages = [stage._replace(num_samples=num_samples, **values) for stage in STAGES]
        self.box_heads, self.mask_heads = [], []
        for index in range(len(STAGES)):
            head = BoxHead(num_classes, **layers, dtype=dtype, name=f"box_head_{index}")
            head.build((None, None, POOLED_SIZE, POOLED_SIZE, channels))
            self.box_heads.append(head)
            head = MaskHead(num_classes, channels, dtype=dtype, name=f"mask_head_{index}")
            head.build((None, None, MASK_POOLED_SIZE, MASK_POOLED_SIZE, channels))
            self.mask_heads.append(head)

    def call(self, inputs, training=None):
        images, sizes = read_inputs(inputs)
        pyramid = self.pyramid(images, training=training)
        levels = self.neck([pyramid[level] for level in LEVELS])
        predictions = {**self.rpn(levels), "pyramid": levels[: len(LEVELS)], **sizes}
        if training:  # the stages run on samples, which depend on the targets
            return predictions
        boxes, scores = select_proposals(predictions, CANDIDATES_PER_LEVEL, self.num_proposals)
        all_logits = []
        for stage, box_head in zip(self.stages, self.box_heads, strict=True):
            proposals = boxes
            logits, deltas = box_head(align_regions(predictions["pyramid"], proposals, POOLED_SIZE))
            all_logits.append(logits)
            boxes = shift_regions(stage, proposals, logits, deltas, sizes["image_sizes"])
        predictions |= {"proposals": proposals, "proposal_scores": scores}
        predictions |= {"class_logits": sum(all_logits) / len(all_logits), "box_deltas": deltas}
        detections = detect_regions(
            self.stages[-1], predictions, self.score_threshold, self.iou_threshold, self.max_detections
        )
        labels = ops.maximum(detections["labels"], 0)
        regions = align_regions(predictions["pyramid"], detections["boxes"], MASK_POOLED_SIZE)
        mask_logits = average_sigmoids([head(regions, labels) for head in self.mask_heads])
        return {**predictions, "detections": detections, "mask_logits": mask_logits}

    def compute_losses(self, targets, predictions):
        """Returns the losses of the proposals, and those of the three stages, weighted and summed.

        Args:
            targets: a dict of "boxes" (batch, n, 4), xyxy pixels; "labels" (batch, n), 0 .. classes - 1, -1
                for padding, -2 for crowds, in which nothing counts as background; and "masks"
                (batch, n, height, width), 0 or 1 at the images' size.
            predictions: what `call` gave.

        Returns:
            A dict of float32 scalars "objectness_loss", "proposal_loss", "class_loss", "box_loss" and
            "mask_loss"; NaN where a target is faulty: see `heads.ops.inputs.read_targets`.
        """
        image_sizes, pyramid = predictions["image_sizes"], predictions["pyramid"]
        targets, poisons = read_targets(targets, self.num_classes, True, image_sizes)
        poisons["mask_loss"] = check_masks(targets["masks"], pyramid[0])
        losses = compute_proposal_losses(
            targets,
            predictions,
            self.draw_priorities,
            box_loss=functools.partial(smooth_l1_loss, beta=1 / 9),
            takes_cut_anchors=False,
        )
        for of_stage in self.compute_stage_losses(targets, predictions):
            losses = {name: losses.get(name, 0.0) + of_stage.get(name, 0.0) for name in LOSSES}
        return {name: loss + poisons.get(name, 0.0) for name, loss in losses.items()}

    def compute_stage_losses(self, targets, predictions):
        """Yields a dict of "class_loss", "box_loss" and "mask_loss" for each stage, for checked targets."""
        pyramid = predictions["pyramid"]
        regions, scores = select_proposals(predictions, TRAINING_CANDIDATES_PER_LEVEL, NUM_TRAINING_PROPOSALS)
        exists = scores >= 0.0
        for stage, box_head, mask_head in zip(self.stages, self.box_heads, self.mask_heads, strict=True):
            samples = sample_regions(stage, targets, regions, exists, self.draw_priorities)
            exists = samples["kinds"] >= 0
            features = align_regions(pyramid, samples["boxes"], POOLED_SIZE)
            outputs = box_head(features, training="class_logits" not in predictions, exists=exists)
            losses = compute_region_losses(stage, targets, samples, *outputs)
            mask_loss = compute_mask_loss(mask_head, pyramid, targets, samples, stage.max_positives)
            yield {**losses, "mask_loss": stage.loss_weight * mask_loss}
            # The true boxes join each stage anew.
            exists = exists & ops.logical_not(samples["are_true"])
            regions = shift_regions(
                stage, samples["boxes"], *outputs, predictions["image_sizes"], samples["labels"]
            )

    def draw_priorities(self, values):
        """Returns a random number for each entry of `values`; the entries with the smallest are sampled."""
        return keras.random.uniform(ops.shape(values), seed=self.seed_generator)

    def decode(self, predictions):
        """Returns detections of raw predictions.

        Returns:
            A dict of "boxes" (batch, max_detections, 4), xyxy pixels of the original picture where its size
            was among the inputs, else of the input; "scores" (batch, max_detections); "labels"
            (batch, max_detections), -1 where there is no detection; "masks" (batch, max_detections, 28, 28),
            the probability of the object at each place of its box. The best come first.
        """
        return decode_masks(predictions)

    def reference_layers(self):
        """Returns mmdetection's names: name -> layer or variable."""
        parts = {"neck": self.neck, "rpn_head": self.rpn}
        parts |= {f"roi_head.bbox_head.{index}": head for index, head in enumerate(self.box_heads)}
        parts |= {f"roi_head.mask_head.{index}": head for index, head in enumerate(self.mask_heads)}
        return self.backbone.reference_layers() | join_reference_layers(parts)
