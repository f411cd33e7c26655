"""What one-stage detectors share: five levels, two towers, anchors, and how detections are chosen."""

import math
from typing import NamedTuple

from keras import ops

from heads.arguments import check_counts, check_detector
from heads.dense_model import DenseModel
from heads.layers.blocks import join_reference_layers, make_small_convolution
from heads.layers.fpn import FPN
from heads.layers.tower import Tower, count_groups
from heads.ops.anchors import join_levels, make_anchors
from heads.ops.inputs import read_inputs
from heads.ops.selection import detect_boxes, select_anchors

LEVELS = ("P3", "P4", "P5")
STRIDES = (8, 16, 32, 64, 128)
CANDIDATES_PER_LEVEL = 1000


class Layout(NamedTuple):
    """The differences between one-stage detectors before their losses, as a row of values; default: ATSS.

    Attributes:
        num_box_values: outputs of the box convolution for each anchor.
        anchor_scales: sides of the square anchors in units of the stride.
        anchor_ratios: height / width of the anchors.
        extra_levels_from: what P6 is computed from, see `FPN`.
        with_norms: whether the towers have group norms.
        with_scales: whether the box outputs of each level are multiplied by a trained factor.
    """

    num_box_values: int = 4
    anchor_scales: tuple = (8.0,)
    anchor_ratios: tuple = (1.0,)
    extra_levels_from: str = "output"
    with_norms: bool = True
    with_scales: bool = True


class OneStageDetector(DenseModel):
    """A detector that classifies and shifts the anchors of five levels, P3 .. P7.

    A subclass writes `call`, which begins with `run_towers`; `compute_losses`; and `decode_anchors`, which
    `decode` calls. Its constructor has the arguments of `RetinaNet`.

    Args:
        backbone: a functional Keras model with `pyramid_outputs` "P3" .. "P5".
        loss_names: the keys of `compute_losses`.
        arguments: `locals()` of the subclass's constructor.
        layout: a `Layout` of the networks.
        **kwargs: `class_names` and `resizing`, see `DenseModel`; `name`, `trainable`, `dtype`.

    Raises:
        ValueError: if an argument is out of range or the backbone lacks a level.
    """

    def __init__(self, backbone, loss_names, arguments, layout, **kwargs):
        limits = ("score_threshold", "iou_threshold", "max_detections")
        check_detector(*(arguments[name] for name in ("num_classes", "channels", *limits)))
        check_counts(least=0, num_convs=arguments["num_convs"])
        super().__init__(backbone, LEVELS, loss_names, arguments, **kwargs)
        self.layout = layout
        dtype, channels = self.dtype_policy, self.channels
        self.neck = FPN(
            channels, len(STRIDES) - len(LEVELS), layout.extra_levels_from, dtype=dtype, name="neck"
        )
        self.neck.build(self.level_shapes)
        num_groups = count_groups(channels) if layout.with_norms else None
        num_anchors = len(layout.anchor_scales) * len(layout.anchor_ratios)
        self.class_tower = Tower(channels, self.num_convs, num_groups, dtype=dtype, name="class_tower")
        # RetinaNet, Sec. 4.1: each class starts with a probability of 0.01, or the many easy negatives would
        # drown everything else.
        filters, bias = num_anchors * self.num_classes, -math.log(99.0)
        self.class_output = make_small_convolution(filters, 3, bias, dtype=dtype, name="class_output")
        self.box_tower = Tower(channels, self.num_convs, num_groups, dtype=dtype, name="box_tower")
        filters = num_anchors * layout.num_box_values
        self.box_output = make_small_convolution(filters, 3, dtype=dtype, name="box_output")
        for part in (self.class_tower, self.box_tower, self.class_output, self.box_output):
            part.build((None, None, None, channels))
        # Not in half precision, which has only three digits.
        options = {"initializer": "ones", "autocast": False}
        names = [f"scale_{level}" for level in range(len(STRIDES))] if layout.with_scales else []
        self.scales = [self.add_weight((), name=name, **options) for name in names]

    def run_towers(self, inputs, training):
        """Returns the predictions without boxes, and the box tower's features of each level.

        Args:
            inputs: what `call` takes.
            training: whether the backbone's norms and drop path are in training mode.
        """
        images, sizes = read_inputs(inputs)
        pyramid = self.pyramid(images, training=training)
        levels = self.neck([pyramid[level] for level in LEVELS])
        level_sizes = [ops.shape(level)[1:3] for level in levels]
        class_maps = [self.class_output(self.class_tower(level)) for level in levels]
        anchors = self.layout.anchor_scales, self.layout.anchor_ratios
        predictions = {
            "class_logits": join_levels(class_maps, self.num_classes),
            "anchors": make_anchors(level_sizes, STRIDES, *anchors),
            **sizes,
        }
        return predictions, [self.box_tower(level) for level in levels]

    def predict_boxes(self, features):
        """Returns the map of box outputs of each level, from the box tower's features."""
        maps = [ops.cast(self.box_output(level), "float32") for level in features]
        if not self.scales:
            return maps
        return [scale * level for scale, level in zip(self.scales, maps, strict=True)]

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
        boxes = self.decode_anchors(predictions, rows, anchors)
        scores = ops.sigmoid(logits)
        rated = self.rate_anchors(predictions, rows, scores)
        scores = ops.where(scores > self.score_threshold, rated, 0.0)
        return detect_boxes(boxes, scores, labels, predictions, self.iou_threshold, self.max_detections)

    def decode_anchors(self, predictions, rows, anchors):
        """Returns the boxes (batch, n, 4) of rows (batch, n), whose anchors are (batch, n, 4)."""
        raise NotImplementedError(f"{type(self).__name__} must define decode_anchors")

    def rate_anchors(self, predictions, rows, scores):
        """Returns the scores of detections at rows (batch, n), from their class scores."""
        return scores

    def name_layers(self, detector: str) -> dict:
        """Returns mmdetection's names: name -> layer or variable; names of outputs include the detector's."""
        parts = {"neck": self.neck}
        parts |= {"bbox_head.cls_convs": self.class_tower, f"bbox_head.{detector}_cls": self.class_output}
        parts |= {"bbox_head.reg_convs": self.box_tower, f"bbox_head.{detector}_reg": self.box_output}
        parts |= {f"bbox_head.scales.{level}.scale": scale for level, scale in enumerate(self.scales)}
        return self.backbone.reference_layers() | join_reference_layers(parts)
