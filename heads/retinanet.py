"""RetinaNet: Focal Loss for Dense Object Detection (arXiv 1708.02002)."""

import math

import keras
from keras import ops

from heads.arguments import check_counts, check_detector
from heads.dense_model import DenseModel
from heads.layers.blocks import join_reference_layers, make_small_convolution
from heads.layers.fpn import FPN
from heads.layers.tower import Tower
from heads.ops.anchors import join_levels, make_anchors, mark_inside
from heads.ops.boxes import decode_boxes, encode_boxes
from heads.ops.inputs import read_inputs, read_targets
from heads.ops.labels import IGNORED_MATCH
from heads.ops.losses import average_losses, sigmoid_focal_loss
from heads.ops.matching import count_matches, mark_classes, match_boxes
from heads.ops.selection import detect_boxes, select_anchors, take_rows

LEVELS = ("P3", "P4", "P5")
STRIDES = (8, 16, 32, 64, 128)
# Sec. 4, "Anchors": three sizes per octave, in units of the stride.
ANCHOR_SCALES = (4.0, 4.0 * 2 ** (1 / 3), 4.0 * 2 ** (2 / 3))
ANCHOR_RATIOS = (0.5, 1.0, 2.0)
NUM_ANCHORS = len(ANCHOR_SCALES) * len(ANCHOR_RATIOS)
CANDIDATES_PER_LEVEL = 1000


@keras.saving.register_keras_serializable("van_backbones.heads")
class RetinaNet(DenseModel):
    """Object detection in one stage: anchors on five levels, classified with the focal loss.

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
        ValueError: at an argument out of range or a backbone that lacks a level.

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
        check_detector(num_classes, channels, score_threshold, iou_threshold, max_detections)
        check_counts(least=0, num_convs=num_convs)
        super().__init__(backbone, LEVELS, ("class_loss", "box_loss"), locals(), **kwargs)
        dtype = self.dtype_policy
        num_extra_levels = len(STRIDES) - len(LEVELS)
        self.neck = FPN(channels, num_extra_levels, "input", dtype=dtype, name="neck")
        self.neck.build(self.level_shapes)
        self.class_tower = Tower(channels, num_convs, dtype=dtype, name="class_tower")
        # Sec. 4.1: at the start each class has a probability of 0.01, or the many easy negatives drown all.
        filters, bias = NUM_ANCHORS * num_classes, -math.log(99.0)
        self.class_output = make_small_convolution(filters, 3, bias, dtype=dtype, name="class_output")
        self.box_tower = Tower(channels, num_convs, dtype=dtype, name="box_tower")
        self.box_output = make_small_convolution(4 * NUM_ANCHORS, 3, dtype=dtype, name="box_output")
        for part in (self.class_tower, self.box_tower, self.class_output, self.box_output):
            part.build((None, None, None, channels))

    def call(self, inputs, training=None):
        images, sizes = read_inputs(inputs)
        pyramid = self.pyramid(images, training=training)
        levels = self.neck([pyramid[level] for level in LEVELS])
        level_sizes = [ops.shape(level)[1:3] for level in levels]
        class_maps = [self.class_output(self.class_tower(level)) for level in levels]
        box_maps = [self.box_output(self.box_tower(level)) for level in levels]
        return {
            "class_logits": join_levels(class_maps, self.num_classes),
            "box_deltas": join_levels(box_maps, 4),
            "anchors": make_anchors(level_sizes, STRIDES, ANCHOR_SCALES, ANCHOR_RATIOS),
            **sizes,
        }

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
        boxes = decode_boxes(take_rows(predictions["box_deltas"], rows), anchors)
        scores = ops.sigmoid(logits)
        scores = ops.where(scores > self.score_threshold, scores, 0.0)
        limits = self.iou_threshold, self.max_detections
        return detect_boxes(boxes, scores, labels, predictions, *limits)

    def reference_layers(self):
        """Returns mmdetection's names: name -> layer or variable."""
        parts = {"neck": self.neck}
        parts |= {"bbox_head.cls_convs": self.class_tower, "bbox_head.retina_cls": self.class_output}
        parts |= {"bbox_head.reg_convs": self.box_tower, "bbox_head.retina_reg": self.box_output}
        return self.backbone.reference_layers() | join_reference_layers(parts)
