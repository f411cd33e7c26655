"""Sparse R-CNN: End-to-End Object Detection with Learnable Proposals (arXiv 2011.12450)."""

import math

import keras
import numpy as np
from keras import ops

from heads.arguments import check_counts, check_detector
from heads.dense_model import DenseModel
from heads.layers.attention import NUM_HEADS, MultiHeadAttention
from heads.layers.blocks import Layer, join_reference_layers
from heads.layers.fpn import FPN
from heads.layers.roi_align import align_regions
from heads.ops.assignment import assign_optimally
from heads.ops.boxes import compare_pairs, compute_coverage, decode_boxes
from heads.ops.inputs import read_inputs, read_targets
from heads.ops.labels import CROWD_LABEL, PADDING_LABEL
from heads.ops.losses import average_losses, giou_loss, l1_loss, sigmoid_focal_loss
from heads.ops.matching import mark_classes
from heads.ops.selection import restore_boxes, select_pairs, take_rows

LEVELS = ("P2", "P3", "P4", "P5")
DEVIATIONS = (0.5, 0.5, 1.0, 1.0)
POOLED_SIZE = 7
SAMPLES_PER_BIN = 2
# Sec. 3.4: the same weights in the assignment and in the losses.
CLASS_WEIGHT, BOX_WEIGHT, GIOU_WEIGHT = 2.0, 5.0, 2.0


@keras.saving.register_keras_serializable("van_backbones.heads")
class SparseRCNN(DenseModel):
    """Object detection from a few learned proposals, refined stage by stage, without suppression.

    `model(images)` gives raw predictions of all stages, float32: "class_logits"
    (batch, stages, proposals, classes) and "boxes" (batch, stages, proposals, 4), xyxy pixels of the input,
    which may reach out of it; and "image_sizes" (batch, 2). `model.predict` gives detections, `fit` takes
    padded boxes and labels: see `decode` and `compute_losses`.

    Inputs are images (batch, height, width, 3) or a dict, which also tells the sizes: see
    `heads.ops.inputs.read_inputs`.

    Args:
        backbone: a functional Keras model with `pyramid_outputs` "P2" .. "P5".
        num_classes: number of classes; there is none for the background.
        num_proposals: number of learned boxes, each with its features, and so of objects that an image can
            have.
        channels: channels of the pyramid and the features, a multiple of 8.
        num_stages: how often the boxes are refined.
        score_threshold: detections below are left out.
        max_detections: rows of `predict`'s result.
        **kwargs: `class_names` and `resizing`, see `DenseModel`; `name`, `trainable`, `dtype`.

    Raises:
        ValueError: if an argument is out of range or the backbone lacks a level.

    Reference:
        - Sun et al., "Sparse R-CNN", arXiv 2011.12450; the numbers are mmdetection's `SparseRCNN`.
    """

    def __init__(
        self,
        backbone,
        num_classes: int = 80,
        num_proposals: int = 100,
        channels: int = 256,
        num_stages: int = 6,
        score_threshold: float = 0.0,
        max_detections: int = 100,
        **kwargs,
    ):
        check_detector(num_classes, channels, score_threshold, None, max_detections)
        check_counts(num_proposals=num_proposals, num_stages=num_stages)
        if channels % NUM_HEADS:
            raise ValueError(f"channels must be a multiple of {NUM_HEADS}. Received: {channels}")
        super().__init__(backbone, LEVELS, ("class_loss", "box_loss", "giou_loss"), locals(), **kwargs)
        # The reference names of the layers that depend on the number of classes.
        self.class_layers = tuple(f"roi_head.bbox_head.{stage}.fc_cls" for stage in range(num_stages))
        dtype = self.dtype_policy
        self.neck = FPN(channels, dtype=dtype, name="neck")
        self.neck.build(self.level_shapes)
        # Sec. 3.2: centre, width and height as shares of the image. Each box starts as the whole image.
        self.proposal_boxes = self.add_weight(
            (num_proposals, 4), "ones", autocast=False, name="proposal_boxes"
        )
        self.proposal_boxes.assign(np.tile([0.5, 0.5, 1.0, 1.0], (num_proposals, 1)))
        self.proposal_features = self.add_weight(
            (num_proposals, channels), keras.initializers.RandomNormal(0.0, 1.0), name="proposal_features"
        )
        self.stages = [
            RefinementStage(num_classes, channels, dtype=dtype, name=f"stage_{index}")
            for index in range(num_stages)
        ]
        for stage in self.stages:
            stage.build((None, None, POOLED_SIZE, POOLED_SIZE, channels))

    def call(self, inputs, training=None):
        images, sizes = read_inputs(inputs)
        pyramid = self.pyramid(images, training=training)
        levels = self.neck([pyramid[level] for level in LEVELS])
        limits = spread_sizes(sizes["image_sizes"])
        centers, halves = self.proposal_boxes[:, :2], 0.5 * self.proposal_boxes[:, 2:]
        boxes = ops.concatenate([centers - halves, centers + halves], axis=-1) * limits
        features = ops.cast(self.proposal_features, self.compute_dtype)[None]
        features = ops.broadcast_to(features, (ops.shape(images)[0], *features.shape[1:]))
        all_logits, all_boxes = [], []
        for stage in self.stages:
            regions = align_regions(levels, boxes, POOLED_SIZE, sampling_ratio=SAMPLES_PER_BIN)
            logits, deltas, features = stage(regions, features)
            boxes = decode_boxes(deltas, boxes, DEVIATIONS)
            all_logits.append(logits)
            all_boxes.append(boxes)
            boxes = ops.stop_gradient(boxes)  # each stage learns from its own boxes only
        logits, boxes = ops.stack(all_logits, axis=1), ops.stack(all_boxes, axis=1)
        return {"class_logits": logits, "boxes": boxes, **sizes}

    def compute_losses(self, targets, predictions):
        """Returns "class_loss" (focal), "box_loss" (L1) and "giou_loss", summed over the stages.

        In each stage, each object is learned by one proposal, chosen so that the total cost is the smallest.

        Args:
            targets: a dict of "boxes" (batch, n, 4), xyxy pixels, and "labels" (batch, n), 0 .. classes - 1,
                -1 for padding, -2 for crowds, in which no proposal counts as background.
            predictions: what `call` gave.

        Returns:
            A dict of float32 scalars; NaN where a target is faulty: see `heads.ops.inputs.read_targets`.
        """
        image_sizes = predictions["image_sizes"]
        targets, poisons = read_targets(targets, self.num_classes, image_sizes=image_sizes)
        logits, boxes = predictions["class_logits"], predictions["boxes"]
        batch, num_stages, num_proposals = ops.shape(boxes)[:3]
        # As one list of proposals, since stages do not matter here: (batch, stages * proposals).
        limits = spread_sizes(image_sizes)
        matches = self.match_proposals(targets, predictions)
        flat_logits = ops.reshape(logits, (batch, num_stages * num_proposals, self.num_classes))
        flat_boxes = ops.reshape(boxes, (batch, num_stages * num_proposals, 4))
        matches = ops.reshape(matches, (batch, num_stages * num_proposals))
        positive = matches >= 0
        rows = ops.maximum(matches, 0)
        # Each stage has equally many objects.
        num_objects = ops.sum(ops.cast(positive, "float32")) / num_stages

        is_class = mark_classes(targets["labels"], matches, self.num_classes)
        in_crowd = compute_coverage(ops.stop_gradient(flat_boxes), targets["boxes"]) > 0.5
        in_crowd = ops.any(in_crowd & ops.equal(targets["labels"], CROWD_LABEL)[:, None], axis=-1)
        counts = positive | ops.logical_not(in_crowd)
        class_losses = sigmoid_focal_loss(ops.cast(is_class, "float32"), flat_logits)
        class_losses = ops.where(counts[..., None], class_losses, 0.0)

        truth = take_rows(targets["boxes"], rows)
        distances = ops.where(positive[..., None], l1_loss(truth / limits, flat_boxes / limits), 0.0)
        giou_losses = ops.where(positive, giou_loss(truth, flat_boxes), 0.0)
        losses = {
            "class_loss": CLASS_WEIGHT * average_losses(ops.sum(class_losses), num_objects),
            "box_loss": BOX_WEIGHT * average_losses(ops.sum(distances), num_objects),
            "giou_loss": GIOU_WEIGHT * average_losses(ops.sum(giou_losses), num_objects),
        }
        return {name: loss + poisons.get(name, 0.0) for name, loss in losses.items()}

    def match_proposals(self, targets, predictions):
        """Returns the object that each proposal learns, or -1: int32 (batch, stages, proposals)."""
        logits = ops.stop_gradient(predictions["class_logits"])
        boxes = ops.stop_gradient(predictions["boxes"])
        limits = spread_sizes(predictions["image_sizes"])[:, None, None]  # (batch, 1, 1, 1, 4)
        # Costs of every proposal with every object: (batch, stages, proposals, objects).
        shape = (*ops.shape(boxes)[:3], ops.shape(targets["labels"])[1])
        labels = ops.broadcast_to(targets["labels"][:, None, None], shape)
        # How the focal loss of a class changes if it is present: (batch, stages, proposals, classes).
        ones = ops.ones_like(logits)
        changes = sigmoid_focal_loss(ones, logits) - sigmoid_focal_loss(0.0 * ones, logits)
        class_costs = ops.take_along_axis(changes, ops.maximum(labels, 0), axis=-1)
        ours, truth = boxes[..., None, :], targets["boxes"][:, None, None]
        box_costs = ops.sum(l1_loss(truth / limits, ours / limits), axis=-1)
        costs = CLASS_WEIGHT * class_costs + BOX_WEIGHT * box_costs
        costs = costs - GIOU_WEIGHT * compare_pairs(truth, ours)[1]
        # Predictions that are not finite show in the losses, which end the training with a message.
        costs = ops.where(ops.isfinite(costs), costs, 0.0)
        return assign_optimally(costs, labels[:, :, 0] >= 0)

    def decode(self, predictions):
        """Returns the best pairs of a proposal of the last stage and a class.

        Returns:
            A dict of "boxes" (batch, max_detections, 4), xyxy pixels of the original picture where its size
            was among the inputs, else of the input, not clipped; "scores" (batch, max_detections); "labels"
            (batch, max_detections), -1 where there is no detection. The best come first.
        """
        scores = ops.sigmoid(predictions["class_logits"][:, -1])
        scores, rows, labels = select_pairs(scores, self.max_detections)
        boxes = take_rows(predictions["boxes"][:, -1], rows)
        image_sizes = predictions["image_sizes"]
        # NaN where the sizes are: see `read_inputs`.
        scores = scores + 0.0 * image_sizes[:, :1]
        exists = ops.logical_not(scores <= self.score_threshold)
        labels = ops.where(exists, labels, PADDING_LABEL)
        # Few proposals and classes may have fewer pairs than `max_detections`.
        padding = ((0, 0), (0, max(self.max_detections - self.num_proposals * self.num_classes, 0)))
        detections = {
            "boxes": ops.pad(ops.where(exists[..., None], boxes, 0.0), (*padding, (0, 0))),
            "scores": ops.pad(ops.where(exists, scores, 0.0), padding),
            "labels": ops.pad(
                ops.where(exists, labels, PADDING_LABEL), padding, constant_values=PADDING_LABEL
            ),
        }
        return restore_boxes(detections, image_sizes, predictions.get("original_sizes"))

    def reference_layers(self):
        """Returns mmdetection's names: name -> layer or variable."""
        parts = {
            "neck": self.neck,
            "rpn_head.init_proposal_bboxes.weight": self.proposal_boxes,
            "rpn_head.init_proposal_features.weight": self.proposal_features,
        }
        parts |= {f"roi_head.bbox_head.{index}": stage for index, stage in enumerate(self.stages)}
        return self.backbone.reference_layers() | join_reference_layers(parts)


def spread_sizes(image_sizes):
    """Returns (width, height, width, height) of images, (batch, 1, 4), from (height, width)."""
    sizes = ops.flip(image_sizes, axis=-1)
    return ops.concatenate([sizes, sizes], axis=-1)[:, None]


FILTER_CHANNELS = 64
HIDDEN_CHANNELS = 2048
NUM_BOX_LAYERS = 3


@keras.saving.register_keras_serializable("van_backbones.heads")
class RefinementStage(Layer):
    """Classifies and shifts proposals, by their own features and those under their boxes.

    Section 3.3: the proposals attend to each other, each filters its region with weights of its own, and a
    small network follows; layer norms in between.

    Args:
        num_classes: number of classes.
        channels: channels of the regions and the features.
        **kwargs: base arguments of the layer.

    Call arguments:
        regions: (batch, proposals, 7, 7, channels).
        features: (batch, proposals, channels).

    Returns:
        float32 class logits (batch, proposals, classes), deltas (batch, proposals, 4), and the new features.
    """

    def __init__(self, num_classes: int, channels: int = 256, **kwargs):
        super().__init__(**kwargs)
        dtype = self.dtype_policy

        def make_dense(units, name, **options):
            return keras.layers.Dense(units, dtype=dtype, name=name, **options)

        def make_norm(name):
            return keras.layers.LayerNormalization(epsilon=1e-5, dtype=dtype, name=name)

        self.channels = channels
        self.attention = MultiHeadAttention(channels, NUM_HEADS, dtype=dtype, name="attention")
        self.attention_norm = make_norm("attention_norm")
        self.filter_weights = make_dense(2 * channels * FILTER_CHANNELS, "filter_weights")
        self.filter_norms = [make_norm("filter_norm_0"), make_norm("filter_norm_1")]
        self.filter_output = make_dense(channels, "filter_output")
        self.filter_output_norm = make_norm("filter_output_norm")
        self.region_norm = make_norm("region_norm")
        self.hidden = make_dense(HIDDEN_CHANNELS, "hidden", activation="relu")
        self.output_dense = make_dense(channels, "output")
        self.output_norm = make_norm("output_norm")
        # Pairs of a dense layer and its norm before each output.
        self.class_layers = [(make_dense(channels, "class_0", use_bias=False), make_norm("class_norm_0"))]
        self.box_layers = [
            (make_dense(channels, f"box_{index}", use_bias=False), make_norm(f"box_norm_{index}"))
            for index in range(NUM_BOX_LAYERS)
        ]
        # As in RetinaNet, each class starts with a probability of 0.01.
        bias = keras.initializers.Constant(-math.log(99.0))
        self.classifier = make_dense(num_classes, "classifier", bias_initializer=bias)
        self.regressor = make_dense(4, "regressor")

    def build(self, input_shape):
        *_, height, width, channels = input_shape
        inputs = {
            self.filter_norms[0]: FILTER_CHANNELS,
            self.filter_output: height * width * channels,
            self.output_dense: HIDDEN_CHANNELS,
        }
        for layer in self._flatten_layers(include_self=False, recursive=False):
            layer.build((None, None, inputs.get(layer, channels)))
        self.built = True

    def call(self, regions, features):
        features = self.attention_norm(features + self.attention(features, features, features))
        features = self.region_norm(features + self.filter_regions(regions, features))
        features = self.output_norm(features + self.output_dense(self.hidden(features)))
        outputs = []
        for layers, output in ((self.class_layers, self.classifier), (self.box_layers, self.regressor)):
            x = features
            for dense, norm in layers:
                x = ops.relu(norm(dense(x)))
            outputs.append(ops.cast(output(x), "float32"))
        return *outputs, features

    def filter_regions(self, regions, features):
        """Returns the regions' features, filtered with weights that come from the proposals' features."""
        batch, count, height, width, channels = ops.shape(regions)
        weights = self.filter_weights(features)  # (batch, proposals, 2 * channels * filter channels)
        narrow, wide = ops.split(weights, 2, axis=-1)
        narrow = ops.reshape(narrow, (batch, count, channels, FILTER_CHANNELS))
        wide = ops.reshape(wide, (batch, count, FILTER_CHANNELS, channels))
        x = ops.reshape(regions, (batch, count, height * width, channels))
        for kernel, norm in zip((narrow, wide), self.filter_norms, strict=True):
            x = ops.relu(norm(ops.matmul(x, kernel)))
        x = ops.reshape(x, (batch, count, height * width * channels))
        return ops.relu(self.filter_output_norm(self.filter_output(x)))

    def reference_layers(self):
        """Returns mmdetection's names: name -> layer or variable."""
        parts = {"attention.attn": self.attention, "attention_norm": self.attention_norm}
        filters = "instance_interactive_conv"
        parts |= {f"{filters}.dynamic_layer": self.filter_weights, f"{filters}_norm": self.region_norm}
        parts |= {f"{filters}.norm_in": self.filter_norms[0], f"{filters}.norm_out": self.filter_norms[1]}
        parts |= {f"{filters}.fc_layer": self.filter_output, f"{filters}.fc_norm": self.filter_output_norm}
        parts |= {"ffn.layers.0.0": self.hidden, "ffn.layers.1": self.output_dense}
        parts["ffn_norm"] = self.output_norm
        for name, layers in (("cls_fcs", self.class_layers), ("reg_fcs", self.box_layers)):
            for index, (dense, norm) in enumerate(layers):
                parts |= {f"{name}.{3 * index}": dense, f"{name}.{3 * index + 1}": norm}
        return join_reference_layers({**parts, "fc_cls": self.classifier, "fc_reg": self.regressor})
