"""GFL: Generalized Focal Loss (arXiv 2006.04388)."""

import math

import keras
from keras import ops

from heads.arguments import check_counts, check_detector
from heads.dense_model import DenseModel
from heads.layers.blocks import join_reference_layers, make_small_convolution
from heads.layers.fpn import FPN
from heads.layers.tower import Tower, count_groups
from heads.ops.anchors import join_levels, make_anchors, mark_inside
from heads.ops.boxes import compare_pairs, decode_distances, encode_distances, find_centers
from heads.ops.inputs import read_inputs, read_targets
from heads.ops.labels import IGNORED_MATCH
from heads.ops.losses import average_losses, distribution_focal_loss, giou_loss, quality_focal_loss
from heads.ops.matching import count_matches, mark_classes, match_adaptively
from heads.ops.selection import detect_boxes, select_anchors, take_rows

LEVELS = ("P3", "P4", "P5")
STRIDES = (8, 16, 32, 64, 128)
# Sec. 4: one square anchor for each cell. Only its centre is used, and its size to choose what it learns.
ANCHOR_SCALE = 8.0
# Sec. 3: the sides of a box lie 0 .. 16 strides from the centre of its anchor.
NUM_BINS = 17
CANDIDATES_PER_LEVEL = 1000


@keras.saving.register_keras_serializable("van_backbones.heads")
class GFL(DenseModel):
    """Object detection in one stage: scores that tell how good a box is, and boxes as distributions.

    `model(images)` gives raw predictions: "class_logits" (batch, anchors, classes) and "box_logits"
    (batch, anchors, 4, 17), float32: how likely the left, top, right and bottom side lie 0 .. 16 strides from
    the anchor's centre; levels from fine to coarse, then y, x; "anchors", a list of (anchors of the level,
    4); and "image_sizes" (batch, 2). `model.predict` gives detections, `fit` takes padded boxes and labels:
    see `decode` and `compute_losses`.

    Inputs are images (batch, height, width, 3) or a dict, which also tells the sizes: see
    `heads.ops.inputs.read_inputs`.

    Args:
        backbone: a functional Keras model with `pyramid_outputs` "P3" .. "P5".
        num_classes: number of classes; there is none for the background.
        channels: channels of the pyramid and the head.
        num_convs: 3 x 3 convolutions before each output.
        score_threshold: detections below are left out.
        iou_threshold: of two detections of one class that overlap by more, the better one stays.
        max_detections: rows of `predict`'s result.
        **kwargs: `class_names` and `resizing`, see `DenseModel`; `name`, `trainable`, `dtype`.

    Raises:
        ValueError: at an argument out of range or a backbone that lacks a level.

    Reference:
        - Li et al., "Generalized Focal Loss", arXiv 2006.04388; the anchors that learn an object are chosen
          as in arXiv 1912.02424. The numbers are mmdetection's `GFL`.
    """

    # The reference names of the layers that depend on the number of classes.
    class_layers = ("bbox_head.gfl_cls",)

    def __init__(
        self,
        backbone,
        num_classes: int = 80,
        channels: int = 256,
        num_convs: int = 4,
        score_threshold: float = 0.05,
        iou_threshold: float = 0.6,
        max_detections: int = 100,
        **kwargs,
    ):
        check_detector(num_classes, channels, score_threshold, iou_threshold, max_detections)
        check_counts(least=0, num_convs=num_convs)
        losses = ("class_loss", "box_loss", "distribution_loss")
        super().__init__(backbone, LEVELS, losses, locals(), **kwargs)
        dtype = self.dtype_policy
        self.neck = FPN(channels, len(STRIDES) - len(LEVELS), "output", dtype=dtype, name="neck")
        self.neck.build(self.level_shapes)
        num_groups = count_groups(channels)
        self.class_tower = Tower(channels, num_convs, num_groups, dtype=dtype, name="class_tower")
        # As RetinaNet: at the start each class has a probability of 0.01.
        bias = -math.log(99.0)
        self.class_output = make_small_convolution(num_classes, 3, bias, dtype=dtype, name="class_output")
        self.box_tower = Tower(channels, num_convs, num_groups, dtype=dtype, name="box_tower")
        self.box_output = make_small_convolution(4 * NUM_BINS, 3, dtype=dtype, name="box_output")
        for part in (self.class_tower, self.box_tower, self.class_output, self.box_output):
            part.build((None, None, None, channels))
        # Not in half precision, which has three digits.
        self.scales = [
            self.add_weight((), "ones", autocast=False, name=f"scale_{level}")
            for level in range(len(STRIDES))
        ]
        # The reference keeps the numbers of the bins with the weights.
        self.bins = self.add_weight((NUM_BINS,), "zeros", trainable=False, autocast=False, name="bins")
        self.bins.assign(ops.arange(NUM_BINS, dtype="float32"))

    def call(self, inputs, training=None):
        images, sizes = read_inputs(inputs)
        pyramid = self.pyramid(images, training=training)
        levels = self.neck([pyramid[level] for level in LEVELS])
        level_sizes = [ops.shape(level)[1:3] for level in levels]
        class_maps = [self.class_output(self.class_tower(level)) for level in levels]
        box_maps = [
            scale * ops.cast(self.box_output(self.box_tower(level)), "float32")
            for scale, level in zip(self.scales, levels, strict=True)
        ]
        box_logits = join_levels(box_maps, 4 * NUM_BINS)
        return {
            "class_logits": join_levels(class_maps, self.num_classes),
            "box_logits": ops.reshape(box_logits, (*ops.shape(box_logits)[:2], 4, NUM_BINS)),
            "anchors": make_anchors(level_sizes, STRIDES, (ANCHOR_SCALE,), (1.0,)),
            **sizes,
        }

    def compute_losses(self, targets, predictions):
        """Returns "class_loss" (quality focal), "box_loss" (GIoU) and "distribution_loss" of the box sides.

        Args:
            targets: a dict of "boxes" (batch, n, 4), xyxy pixels, and "labels" (batch, n), 0 .. classes - 1,
                -1 for padding, -2 for crowds, in which no anchor counts as background.
            predictions: what `call` gave.

        Returns:
            A dict of float32 scalars; NaN where a target is faulty: see `heads.ops.inputs.read_targets`.
        """
        image_sizes = predictions["image_sizes"]
        targets, poisons = read_targets(targets, self.num_classes, image_sizes=image_sizes)
        levels = predictions["anchors"]
        anchors = ops.concatenate(levels, axis=0)
        centers, strides = measure_anchors(anchors)
        inside = mark_inside(anchors, image_sizes)
        matches = match_adaptively(levels, targets["boxes"], targets["labels"], inside)
        positive = matches >= 0
        rows = ops.maximum(matches, 0)

        # In units of the stride, as the bins are.
        boxes = take_rows(targets["boxes"], rows) / strides
        centers = centers / strides
        logits = predictions["box_logits"]
        predicted = decode_distances(self.average_bins(logits), centers)
        iou = ops.stop_gradient(compare_pairs(predicted, boxes)[0])
        class_logits = predictions["class_logits"]
        # (batch, anchors, classes)
        is_class = mark_classes(targets["labels"], matches, self.num_classes)
        quality = ops.where(is_class, iou[..., None], 0.0)
        class_losses = quality_focal_loss(quality, class_logits)
        class_losses = ops.where((matches > IGNORED_MATCH)[..., None], class_losses, 0.0)
        num_objects = count_matches(matches)

        weights = ops.stop_gradient(ops.sigmoid(ops.max(class_logits, axis=-1)))
        weights = ops.where(positive, weights, 0.0)
        distances = ops.clip(encode_distances(boxes, centers), 0.0, NUM_BINS - 1 - 0.1)
        distribution_losses = ops.mean(distribution_focal_loss(distances, logits), axis=-1)
        box_losses = ops.where(positive, giou_loss(boxes, predicted), 0.0)
        box_loss, distribution_loss = (
            average_losses(ops.sum(weights * values), ops.sum(weights))
            for values in (box_losses, distribution_losses)
        )
        losses = {
            "class_loss": average_losses(ops.sum(class_losses), num_objects),
            "box_loss": 2.0 * box_loss,
            "distribution_loss": 0.25 * distribution_loss,
        }
        return {name: loss + poisons.get(name, 0.0) for name, loss in losses.items()}

    def average_bins(self, logits):
        """Returns the mean numbers of distributions over the bins: (..., 17) -> (...)."""
        return ops.sum(ops.softmax(logits, axis=-1) * self.bins, axis=-1)

    def decode(self, predictions):
        """Returns detections of raw predictions.

        Returns:
            A dict of "boxes" (batch, max_detections, 4), xyxy pixels of the original picture where its size
            was among the inputs, else of the input; "scores" (batch, max_detections); "labels"
            (batch, max_detections), -1 where there is no detection. The best come first.
        """
        logits, rows, labels, anchors = select_anchors(
            predictions["class_logits"], predictions["anchors"], CANDIDATES_PER_LEVEL
        )
        centers, strides = measure_anchors(anchors)
        distances = self.average_bins(take_rows(predictions["box_logits"], rows)) * strides
        boxes = decode_distances(distances, centers)
        scores = ops.sigmoid(logits)
        scores = ops.where(scores > self.score_threshold, scores, 0.0)
        limits = self.iou_threshold, self.max_detections
        return detect_boxes(boxes, scores, labels, predictions, *limits)

    def reference_layers(self):
        """Returns mmdetection's names: name -> layer or variable."""
        parts = {"neck": self.neck}
        parts |= {"bbox_head.cls_convs": self.class_tower, "bbox_head.gfl_cls": self.class_output}
        parts |= {"bbox_head.reg_convs": self.box_tower, "bbox_head.gfl_reg": self.box_output}
        parts |= {f"bbox_head.scales.{level}.scale": scale for level, scale in enumerate(self.scales)}
        parts["bbox_head.integral.project"] = self.bins
        return self.backbone.reference_layers() | join_reference_layers(parts)


def measure_anchors(anchors):
    """Returns the centres (..., 2) and the strides (..., 1) of square anchors (..., 4)."""
    centers, sides = find_centers(anchors)
    return centers, sides[..., :1] / ANCHOR_SCALE
