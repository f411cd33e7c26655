"""ATSS: Adaptive Training Sample Selection (arXiv 1912.02424)."""

import keras
from keras import ops

from heads.layers.blocks import make_small_convolution
from heads.one_stage_detector import Layout, OneStageDetector
from heads.ops.anchors import join_levels, mark_inside
from heads.ops.boxes import decode_boxes, encode_distances, find_centers
from heads.ops.inputs import read_targets
from heads.ops.labels import IGNORED_MATCH
from heads.ops.losses import average_losses, binary_cross_entropy, giou_loss, sigmoid_focal_loss
from heads.ops.matching import count_matches, mark_classes, match_adaptively
from heads.ops.selection import take_rows

ANCHOR_SCALE = 8.0  # Sec. 4.1: one square anchor for each cell
DEVIATIONS = (0.1, 0.1, 0.2, 0.2)
LAYOUT = Layout(anchor_scales=(ANCHOR_SCALE,))


@keras.saving.register_keras_serializable("van_backbones.heads")
class ATSS(OneStageDetector):
    """One-stage object detection: each object chooses the anchors that learn it by how well they fit.

    `model(images)` gives raw predictions, float32: "class_logits" (batch, anchors, classes), "box_deltas"
    (batch, anchors, 4) and "centerness_logits" (batch, anchors), how near to its object's centre an anchor
    is; levels from fine to coarse, then y, x; "anchors", a list of (anchors of the level, 4); and
    "image_sizes" (batch, 2). `model.predict` gives detections, `fit` takes padded boxes and labels: see
    `decode` and `compute_losses`.

    Inputs are images (batch, height, width, 3) or a dict, which also tells the sizes: see
    `heads.ops.inputs.read_inputs`.

    Args:
        backbone: a functional Keras model with `pyramid_outputs` "P3" .. "P5".
        num_classes: number of classes; there is none for the background.
        channels: channels of the pyramid and the head.
        num_convs: 3 x 3 convolutions before each output.
        score_threshold: pairs of an anchor and a class with a lower score are left out, before their scores
            are multiplied with the centerness.
        iou_threshold: of two detections of one class that overlap by more, the better one stays.
        max_detections: rows of `predict`'s result.
        **kwargs: `class_names` and `resizing`, see `DenseModel`; `name`, `trainable`, `dtype`.

    Raises:
        ValueError: if an argument is out of range or the backbone lacks a level.

    Reference:
        - Zhang et al., "Bridging the Gap Between Anchor-based and Anchor-free Detection via Adaptive Training
          Sample Selection", arXiv 1912.02424; the numbers are mmdetection's `ATSS`.
    """

    # The reference names of the layers that depend on the number of classes.
    class_layers = ("bbox_head.atss_cls",)

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
        losses = ("class_loss", "box_loss", "centerness_loss")
        super().__init__(backbone, losses, locals(), LAYOUT, **kwargs)
        self.centerness_output = make_small_convolution(
            1, 3, dtype=self.dtype_policy, name="centerness_output"
        )
        self.centerness_output.build((None, None, None, channels))

    def call(self, inputs, training=None):
        predictions, features = self.run_towers(inputs, training)
        centerness_maps = [self.centerness_output(level) for level in features]
        return {
            **predictions,
            "box_deltas": join_levels(self.predict_boxes(features), 4),
            "centerness_logits": join_levels(centerness_maps, 1)[..., 0],
        }

    def compute_losses(self, targets, predictions):
        """Returns "class_loss" (focal), "box_loss" (GIoU) and "centerness_loss".

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
        inside = mark_inside(anchors, image_sizes)
        matches = match_adaptively(levels, targets["boxes"], targets["labels"], inside)
        positive = matches >= 0
        rows = ops.maximum(matches, 0)
        num_objects = count_matches(matches)

        # (batch, anchors, classes)
        is_class = mark_classes(targets["labels"], matches, self.num_classes)
        class_losses = sigmoid_focal_loss(ops.cast(is_class, "float32"), predictions["class_logits"])
        class_losses = ops.where((matches > IGNORED_MATCH)[..., None], class_losses, 0.0)

        boxes = take_rows(targets["boxes"], rows)
        centerness = ops.where(positive, measure_centerness(boxes, anchors), 0.0)
        predicted = decode_boxes(predictions["box_deltas"], anchors, DEVIATIONS)
        box_losses = centerness * ops.where(positive, giou_loss(boxes, predicted), 0.0)
        entropies = binary_cross_entropy(centerness, predictions["centerness_logits"])
        entropies = ops.where(positive, entropies, 0.0)
        losses = {
            "class_loss": average_losses(ops.sum(class_losses), num_objects),
            "box_loss": 2.0 * average_losses(ops.sum(box_losses), ops.sum(centerness)),
            "centerness_loss": average_losses(ops.sum(entropies), num_objects),
        }
        return {name: loss + poisons.get(name, 0.0) for name, loss in losses.items()}

    def decode_anchors(self, predictions, rows, anchors):
        return decode_boxes(take_rows(predictions["box_deltas"], rows), anchors, DEVIATIONS)

    def rate_anchors(self, predictions, rows, scores):
        logits = ops.take_along_axis(predictions["centerness_logits"], rows, axis=1)
        return scores * ops.sigmoid(logits)

    def reference_layers(self):
        """Returns mmdetection's names: name -> layer or variable."""
        return self.name_layers("atss") | {"bbox_head.atss_centerness": self.centerness_output}


def measure_centerness(boxes, anchors):
    """Returns how near anchors' centres are to those of boxes, both (..., 4): 1 there, 0 at a side.

    FCOS (arXiv 1904.01355, equation 3).
    """
    distances = ops.maximum(encode_distances(boxes, find_centers(anchors)[0]), 1e-6)
    left, top, right, bottom = ops.unstack(distances, 4, axis=-1)
    across = ops.minimum(left, right) / ops.maximum(left, right)
    return ops.sqrt(across * ops.minimum(top, bottom) / ops.maximum(top, bottom))
