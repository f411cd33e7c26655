"""ATSS: Adaptive Training Sample Selection (arXiv 1912.02424)."""

import math

import keras
from keras import ops

from heads.arguments import check_counts, check_detector
from heads.dense_model import DenseModel
from heads.layers.blocks import join_reference_layers, make_small_convolution
from heads.layers.fpn import FPN
from heads.layers.tower import Tower, count_groups
from heads.ops.anchors import join_levels, make_anchors, mark_inside
from heads.ops.boxes import decode_boxes, encode_distances, find_centers
from heads.ops.inputs import read_inputs, read_targets
from heads.ops.labels import IGNORED_MATCH
from heads.ops.losses import average_losses, binary_cross_entropy, giou_loss, sigmoid_focal_loss
from heads.ops.matching import count_matches, mark_classes, match_adaptively
from heads.ops.selection import detect_boxes, select_anchors, take_rows

LEVELS = ("P3", "P4", "P5")
STRIDES = (8, 16, 32, 64, 128)
ANCHOR_SCALE = 8.0  # Sec. 4.1: one square anchor for each cell
DEVIATIONS = (0.1, 0.1, 0.2, 0.2)
CANDIDATES_PER_LEVEL = 1000


@keras.saving.register_keras_serializable("van_backbones.heads")
class ATSS(DenseModel):
    """Object detection in one stage: each object chooses the anchors that learn it, by how well they fit.

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
        ValueError: at an argument out of range or a backbone that lacks a level.

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
        check_detector(num_classes, channels, score_threshold, iou_threshold, max_detections)
        check_counts(least=0, num_convs=num_convs)
        losses = ("class_loss", "box_loss", "centerness_loss")
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
        self.box_output = make_small_convolution(4, 3, dtype=dtype, name="box_output")
        self.centerness_output = make_small_convolution(1, 3, dtype=dtype, name="centerness_output")
        outputs = (self.class_output, self.box_output, self.centerness_output)
        for part in (self.class_tower, self.box_tower, *outputs):
            part.build((None, None, None, channels))
        # Not in half precision, which has three digits.
        self.scales = [
            self.add_weight((), "ones", autocast=False, name=f"scale_{level}")
            for level in range(len(STRIDES))
        ]

    def call(self, inputs, training=None):
        images, sizes = read_inputs(inputs)
        pyramid = self.pyramid(images, training=training)
        levels = self.neck([pyramid[level] for level in LEVELS])
        level_sizes = [ops.shape(level)[1:3] for level in levels]
        class_maps = [self.class_output(self.class_tower(level)) for level in levels]
        box_features = [self.box_tower(level) for level in levels]
        box_maps = [
            scale * ops.cast(self.box_output(level), "float32")
            for scale, level in zip(self.scales, box_features, strict=True)
        ]
        centerness_maps = [self.centerness_output(level) for level in box_features]
        return {
            "class_logits": join_levels(class_maps, self.num_classes),
            "box_deltas": join_levels(box_maps, 4),
            "centerness_logits": join_levels(centerness_maps, 1)[..., 0],
            "anchors": make_anchors(level_sizes, STRIDES, (ANCHOR_SCALE,), (1.0,)),
            **sizes,
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

    def decode(self, predictions):
        """Returns detections of raw predictions.

        Returns:
            A dict of "boxes" (batch, max_detections, 4), xyxy pixels of the original picture where its size
            was among the inputs, else of the input; "scores" (batch, max_detections), products of the
            class's score and the centerness; "labels" (batch, max_detections), -1 where there is no
            detection. The best come first.
        """
        logits, rows, labels, anchors = select_anchors(
            predictions["class_logits"], predictions["anchors"], CANDIDATES_PER_LEVEL
        )
        boxes = decode_boxes(take_rows(predictions["box_deltas"], rows), anchors, DEVIATIONS)
        scores = ops.sigmoid(logits)
        centerness = ops.sigmoid(ops.take_along_axis(predictions["centerness_logits"], rows, axis=1))
        scores = ops.where(scores > self.score_threshold, scores * centerness, 0.0)
        limits = self.iou_threshold, self.max_detections
        return detect_boxes(boxes, scores, labels, predictions, *limits)

    def reference_layers(self):
        """Returns mmdetection's names: name -> layer or variable."""
        parts = {"neck": self.neck}
        parts |= {"bbox_head.cls_convs": self.class_tower, "bbox_head.atss_cls": self.class_output}
        parts |= {"bbox_head.reg_convs": self.box_tower, "bbox_head.atss_reg": self.box_output}
        parts["bbox_head.atss_centerness"] = self.centerness_output
        parts |= {f"bbox_head.scales.{level}.scale": scale for level, scale in enumerate(self.scales)}
        return self.backbone.reference_layers() | join_reference_layers(parts)


def measure_centerness(boxes, anchors):
    """Returns how near to the centres of boxes (..., 4) those of anchors (..., 4) are: 1 there, 0 at a side.

    FCOS (arXiv 1904.01355, equation 3).
    """
    distances = ops.maximum(encode_distances(boxes, find_centers(anchors)[0]), 1e-6)
    left, top, right, bottom = ops.unstack(distances, 4, axis=-1)
    across = ops.minimum(left, right) / ops.maximum(left, right)
    return ops.sqrt(across * ops.minimum(top, bottom) / ops.maximum(top, bottom))
