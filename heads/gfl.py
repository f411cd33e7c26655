"""GFL: Generalized Focal Loss (arXiv 2006.04388)."""

import keras
from keras import ops

from heads.one_stage_detector import Layout, OneStageDetector
from heads.ops.anchors import join_levels, mark_inside
from heads.ops.boxes import compare_pairs, decode_distances, encode_distances, find_centers
from heads.ops.inputs import read_targets
from heads.ops.labels import IGNORED_MATCH
from heads.ops.losses import average_losses, distribution_focal_loss, giou_loss, quality_focal_loss
from heads.ops.matching import count_matches, mark_classes, match_adaptively
from heads.ops.selection import take_rows

# Sec. 4: one square anchor for each cell. Boxes use only its centre; its size decides what it learns.
ANCHOR_SCALE = 8.0
# Sec. 3: the sides of a box lie 0 .. 16 strides from the centre of its anchor.
NUM_BINS = 17
LAYOUT = Layout(num_box_values=4 * NUM_BINS, anchor_scales=(ANCHOR_SCALE,))


@keras.saving.register_keras_serializable("van_backbones.heads")
class GFL(OneStageDetector):
    """One-stage object detection: scores that tell how good a box is, and boxes as distributions.

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
        ValueError: if an argument is out of range or the backbone lacks a level.

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
        losses = ("class_loss", "box_loss", "distribution_loss")
        super().__init__(backbone, losses, locals(), LAYOUT, **kwargs)
        # A weight, because the reference saves the numbers of the bins with its weights.
        self.bins = self.add_weight((NUM_BINS,), "zeros", trainable=False, autocast=False, name="bins")
        self.bins.assign(ops.arange(NUM_BINS, dtype="float32"))

    def call(self, inputs, training=None):
        predictions, features = self.run_towers(inputs, training)
        logits = join_levels(self.predict_boxes(features), 4 * NUM_BINS)
        return {**predictions, "box_logits": ops.reshape(logits, (*ops.shape(logits)[:2], 4, NUM_BINS))}

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

    def decode_anchors(self, predictions, rows, anchors):
        centers, strides = measure_anchors(anchors)
        distances = self.average_bins(take_rows(predictions["box_logits"], rows)) * strides
        return decode_distances(distances, centers)

    def reference_layers(self):
        """Returns mmdetection's names: name -> layer or variable."""
        return self.name_layers("gfl") | {"bbox_head.integral.project": self.bins}


def measure_anchors(anchors):
    """Returns the centres (..., 2) and the strides (..., 1) of square anchors (..., 4)."""
    centers, sides = find_centers(anchors)
    return centers, sides[..., :1] / ANCHOR_SCALE
