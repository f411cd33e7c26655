"""Faster R-CNN on a feature pyramid (arXiv 1506.01497 and 1612.03144)."""

import keras
from keras import ops

from heads.arguments import check_counts, check_detector
from heads.dense_model import DenseModel
from heads.layers.blocks import join_reference_layers
from heads.layers.box_head import BoxHead
from heads.layers.fpn import FPN
from heads.layers.roi_align import align_regions
from heads.layers.rpn import RegionProposalNetwork, compute_proposal_losses, select_proposals
from heads.ops.inputs import read_inputs, read_targets
from heads.ops.regions import Stage, compute_region_losses, detect_regions, sample_regions
from heads.ops.selection import restore_boxes

LEVELS = ("P2", "P3", "P4", "P5")
LOSSES = ("objectness_loss", "proposal_loss", "class_loss", "box_loss")
CANDIDATES_PER_LEVEL = 1000
TRAINING_CANDIDATES_PER_LEVEL = 2000
POOLED_SIZE = 7


@keras.saving.register_keras_serializable("van_backbones.heads")
class FasterRCNN(DenseModel):
    """Two-stage object detection: proposals, then a classifier of the features under each.

    `model(images)` gives raw predictions: those of `heads.layers.rpn.RegionProposalNetwork`, "pyramid" (the
    maps P2 .. P5), "image_sizes" (batch, 2), and, except in training, "proposals" (batch, proposals, 4),
    "proposal_scores" (batch, proposals), "class_logits" (batch, proposals, classes + 1), the background last,
    and "box_deltas" (batch, proposals, classes, 4). `model.predict` gives detections, `fit` takes padded
    boxes and labels: see `decode` and `compute_losses`.

    Inputs are images (batch, height, width, 3) or a dict, which also tells the sizes: see
    `heads.ops.inputs.read_inputs`.

    Args:
        backbone: a functional Keras model with `pyramid_outputs` "P2" .. "P5".
        num_classes: number of classes without the background.
        channels: channels of the pyramid and the heads.
        num_proposals: proposals of each image that the second stage looks at.
        num_samples: proposals of each image that the second stage learns from, at most a quarter of them
            objects; at least 4.
        score_threshold: detections below are left out.
        iou_threshold: of two detections of one class that overlap by more, the better one stays.
        max_detections: rows of `predict`'s result.
        **kwargs: `class_names` and `resizing`, see `DenseModel`; `name`, `trainable`, `dtype`.

    Raises:
        ValueError: if an argument is out of range or the backbone lacks a level.

    Reference:
        - Ren et al., "Faster R-CNN", arXiv 1506.01497; Lin et al., "Feature Pyramid Networks for Object
          Detection", arXiv 1612.03144, section 4; the numbers are mmdetection's.
    """

    # The reference names of the layers that depend on the number of classes.
    class_layers = ("roi_head.bbox_head.fc_cls", "roi_head.bbox_head.fc_reg")

    def __init__(
        self,
        backbone,
        num_classes: int = 80,
        channels: int = 256,
        num_proposals: int = 1000,
        num_samples: int = 512,
        score_threshold: float = 0.05,
        iou_threshold: float = 0.5,
        max_detections: int = 100,
        **kwargs,
    ):
        check_detector(num_classes, channels, score_threshold, iou_threshold, max_detections)
        # Among fewer samples there would be no object: see `Stage.positive_fraction`.
        check_counts(least=4, num_samples=num_samples)
        check_counts(num_proposals=num_proposals)
        super().__init__(backbone, LEVELS, LOSSES, locals(), **kwargs)
        self.stage = Stage(num_samples=num_samples)
        self.seed_generator = keras.random.SeedGenerator()
        dtype = self.dtype_policy
        self.neck = FPN(channels, num_extra_levels=1, extra_levels_from="pool", dtype=dtype, name="neck")
        self.neck.build(self.level_shapes)
        self.rpn = RegionProposalNetwork(channels, dtype=dtype, name="rpn")
        self.rpn.build([(None, None, None, channels)])
        self.box_head = BoxHead(num_classes, dtype=dtype, name="box_head")
        self.box_head.build((None, None, POOLED_SIZE, POOLED_SIZE, channels))

    def call(self, inputs, training=None):
        images, sizes = read_inputs(inputs)
        pyramid = self.pyramid(images, training=training)
        levels = self.neck([pyramid[level] for level in LEVELS])
        predictions = {**self.rpn(levels), "pyramid": levels[: len(LEVELS)], **sizes}
        if training:  # the second stage runs on samples, which depend on the targets
            return predictions
        proposals, scores = select_proposals(predictions, CANDIDATES_PER_LEVEL, self.num_proposals)
        predictions |= {"proposals": proposals, "proposal_scores": scores}
        class_logits, box_deltas = self.classify_regions(predictions["pyramid"], proposals)
        return {**predictions, "class_logits": class_logits, "box_deltas": box_deltas}

    def classify_regions(self, pyramid, boxes):
        """Returns the second stage's logits (batch, n, classes + 1) and deltas (batch, n, classes, 4)."""
        return self.box_head(align_regions(pyramid, boxes, POOLED_SIZE))

    def compute_losses(self, targets, predictions):
        """Returns the losses of both stages: two for the proposals, two for the classified regions.

        Args:
            targets: a dict of "boxes" (batch, n, 4), xyxy pixels, and "labels" (batch, n), 0 .. classes - 1,
                -1 for padding, -2 for crowds, in which nothing counts as background.
            predictions: what `call` gave.

        Returns:
            A dict of float32 scalars "objectness_loss", "proposal_loss", "class_loss" and "box_loss"; NaN
            where a target is faulty: see `heads.ops.inputs.read_targets`.
        """
        targets, poisons = read_targets(targets, self.num_classes, image_sizes=predictions["image_sizes"])
        losses, _ = self.compute_stage_losses(targets, predictions)
        return {name: loss + poisons.get(name, 0.0) for name, loss in losses.items()}

    def compute_stage_losses(self, targets, predictions):
        """Returns the losses of both stages for checked targets, and the sampled regions."""
        losses = compute_proposal_losses(targets, predictions, self.draw_priorities)
        samples = self.sample_regions(targets, predictions)
        outputs = self.classify_regions(predictions["pyramid"], samples["boxes"])
        return losses | compute_region_losses(self.stage, targets, samples, *outputs), samples

    def sample_regions(self, targets, predictions):
        """Returns regions to learn from: see `heads.ops.regions.sample_regions`."""
        proposals, scores = select_proposals(predictions, TRAINING_CANDIDATES_PER_LEVEL, self.num_proposals)
        return sample_regions(self.stage, targets, proposals, scores >= 0.0, self.draw_priorities)

    def draw_priorities(self, values):
        """Returns a random number for each entry of `values`; the entries with the smallest are sampled."""
        return keras.random.uniform(ops.shape(values), seed=self.seed_generator)

    def decode(self, predictions):
        """Returns detections of raw predictions.

        Returns:
            A dict of "boxes" (batch, max_detections, 4), xyxy pixels of the original picture where its size
            was among the inputs, else of the input; "scores" (batch, max_detections); "labels"
            (batch, max_detections), -1 where there is no detection. The best come first.
        """
        detections = self.detect(predictions)
        return restore_boxes(detections, predictions["image_sizes"], predictions.get("original_sizes"))

    def detect(self, predictions):
        """Returns detections as `decode` does, in pixels of the input."""
        return detect_regions(
            self.stage, predictions, self.score_threshold, self.iou_threshold, self.max_detections
        )

    def reference_layers(self):
        """Returns mmdetection's names: name -> layer or variable."""
        parts = {"neck": self.neck, "rpn_head": self.rpn, "roi_head.bbox_head": self.box_head}
        return self.backbone.reference_layers() | join_reference_layers(parts)
