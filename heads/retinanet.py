"""RetinaNet: Focal Loss for Dense Object Detection (arXiv 1708.02002)."""

import keras
from keras import ops

from heads.one_stage_detector import Layout, OneStageDetector
from heads.ops.anchors import join_levels, mark_inside
from heads.ops.boxes import decode_boxes, encode_boxes
from heads.ops.inputs import read_targets
from heads.ops.labels import IGNORED_MATCH
from heads.ops.losses import average_losses, sigmoid_focal_loss
from heads.ops.matching import count_matches, mark_classes, match_boxes
from heads.ops.selection import take_rows

LAYOUT = Layout(
    # Sec. 4, "Anchors": three sizes per octave, in units of the stride, and three shapes.
    anchor_scales=(4.0, 4.0 * 2 ** (1 / 3), 4.0 * 2 ** (2 / 3)),
    anchor_ratios=(0.5, 1.0, 2.0),
    extra_levels_from="input",
    with_norms=False,
    with_scales=False,
)


@keras.saving.register_keras_serializable("van_backbones.heads")
class RetinaNet(OneStageDetector):
    """One-stage object detection: anchors on five levels, classified with the focal loss.

    `model(images)` gives raw predictions: "class_logits" (batch, anchors, classes) and "box_deltas"
    (batch, anchors, 4), float32, levels from fine to coarse, then y, x, anchor; "anchors", a list of
    (anchors of the level, 4); and "image_sizes" (batch, 2). `model.predict` gives detections, `fit` takes
    padded boxes and labels: see `decode` and `compute_losses`.

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
        - Lin et al., "Focal Loss for Dense Object Detection", arXiv 1708.02002, section 4; the numbers are
          mmdetection's `RetinaNet` with P6 from C5.
    """

    # The reference names of the layers that depend on the number of classes.
    class_layers = ("bbox_head.retina_cls",)

    def __init__(
        self,
        backbone,
        num_classes: int = 80,
        channels: int = 256,
        num_convs: int = 4,
        score_threshold: float = 0.05,
        iou_threshold: float = 0.5,
        max_detections: int = 100,
        **kwargs,
    ):
        super().__init__(backbone, ("class_loss", "box_loss"), locals(), LAYOUT, **kwargs)

    def call(self, inputs, training=None):
        predictions, features = self.run_towers(inputs, training)
        return {**predictions, "box_deltas": join_levels(self.predict_boxes(features), 4)}

    def compute_losses(self, targets, predictions):
        """Returns "class_loss" (focal) and "box_loss" (L1 of the deltas), both per object.

        Args:
            targets: a dict of "boxes" (batch, n, 4), xyxy pixels, and "labels" (batch, n), 0 .. classes - 1,
                -1 for padding, -2 for crowds, in which no anchor counts as background.
            predictions: what `call` gave.

        Returns:
            A dict of float32 scalars; NaN where a target is faulty: see `heads.ops.inputs.read_targets`.
        """
        image_sizes = predictions["image_sizes"]
        targets, poisons = read_targets(targets, self.num_classes, image_sizes=image_sizes)
        boxes, labels = targets["boxes"], targets["labels"]
        anchors = ops.concatenate(predictions["anchors"], axis=0)
        inside = mark_inside(anchors, image_sizes)
        matches = match_boxes(anchors, boxes, labels, 0.5, 0.4, inside=inside)
        positive = matches >= 0
        rows = ops.maximum(matches, 0)
        num_objects = count_matches(matches)

        # (batch, anchors, classes)
        is_class = mark_classes(labels, matches, self.num_classes)
        losses = sigmoid_focal_loss(ops.cast(is_class, "float32"), predictions["class_logits"])
        class_loss = ops.sum(ops.where((matches > IGNORED_MATCH)[..., None], losses, 0.0))

        deltas = encode_boxes(take_rows(boxes, rows), anchors)
        distances = ops.abs(predictions["box_deltas"] - deltas)
        box_loss = ops.sum(ops.where(positive[..., None], distances, 0.0))
        losses = {
            "class_loss": average_losses(class_loss, num_objects),
            "box_loss": average_losses(box_loss, num_objects),
        }
        return {name: loss + poisons[name] for name, loss in losses.items()}

    def decode_anchors(self, predictions, rows, anchors):
        return decode_boxes(take_rows(predictions["box_deltas"], rows), anchors)

    def reference_layers(self):
        """Returns mmdetection's names: name -> layer or variable."""
        return self.name_layers("retina")
