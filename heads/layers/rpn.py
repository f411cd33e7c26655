"""Region proposal network: where objects may be, whatever they are."""

import keras
from keras import ops

from heads.ops.anchors import make_anchors, mark_inside
from heads.ops.boxes import clip_boxes, decode_boxes, encode_boxes
from heads.ops.losses import binary_cross_entropy
from heads.ops.matching import match_boxes
from heads.ops.sampling import sample_matches
from heads.ops.selection import select_best, take_rows
from heads.ops.suppression import suppress_sorted_boxes

STRIDES = (4, 8, 16, 32, 64)
ANCHOR_SCALES = (8.0,)
ANCHOR_RATIOS = (0.5, 1.0, 2.0)
NUM_SAMPLES = 256
POSITIVE_FRACTION = 0.5
IOU_THRESHOLD = 0.7


@keras.saving.register_keras_serializable(package="heads")
class RegionProposalNetwork(keras.layers.Layer):
    """Scores and shifts anchors: one convolution that all levels share, then two 1 x 1 convolutions.

    Args:
        channels: channels between the convolutions.
        **kwargs: base arguments of the layer.

    Call arguments:
        levels: list of maps (batch, height, width, channels), of strides 4, 8, ... pixels.

    Returns:
        A dict of "objectness_logits" (batch, anchors) and "proposal_deltas" (batch, anchors, 4), float32,
        levels from fine to coarse, then y, x, anchor; and "anchors", a list of (anchors of the level, 4).

    Reference:
        - Ren et al., "Faster R-CNN", arXiv 1506.01497, section 3.1; the numbers are mmdetection's `RPNHead`.
    """

    def __init__(self, channels=256, **kwargs):
        super().__init__(**kwargs)
        self.channels = channels

        def make_convolution(filters, kernel_size, name, activation=None):
            return keras.layers.Conv2D(
                filters,
                kernel_size,
                padding="same",
                data_format="channels_last",
                activation=activation,
                kernel_initializer=keras.initializers.RandomNormal(0.0, 0.01),
                dtype=self.dtype_policy,
                name=name,
            )

        self.conv = make_convolution(channels, 3, "conv", "relu")
        self.objectness = make_convolution(len(ANCHOR_RATIOS), 1, "objectness")
        self.deltas = make_convolution(4 * len(ANCHOR_RATIOS), 1, "deltas")

    def build(self, input_shape):
        self.conv.build(input_shape[0])
        wide_shape = (*input_shape[0][:-1], self.channels)
        self.objectness.build(wide_shape)
        self.deltas.build(wide_shape)
        self.built = True

    def call(self, levels):
        logits, deltas, level_sizes = [], [], []
        for level in levels:
            batch, height, width, _ = ops.shape(level)
            num_anchors = height * width * len(ANCHOR_RATIOS)
            level = self.conv(level)
            logits.append(ops.reshape(self.objectness(level), (batch, num_anchors)))
            deltas.append(ops.reshape(self.deltas(level), (batch, num_anchors, 4)))
            level_sizes.append((height, width))
        strides = STRIDES[: len(levels)]
        return {
            "objectness_logits": ops.cast(ops.concatenate(logits, axis=1), "float32"),
            "proposal_deltas": ops.cast(ops.concatenate(deltas, axis=1), "float32"),
            "anchors": make_anchors(level_sizes, strides, ANCHOR_SCALES, ANCHOR_RATIOS),
        }

    def reference_layers(self):
        """Gives mmdetection's names: name -> layer."""
        return {"rpn_conv": self.conv, "rpn_cls": self.objectness, "rpn_reg": self.deltas}

    def get_config(self):
        return {**super().get_config(), "channels": self.channels}


def select_proposals(predictions, num_candidates, num_proposals):
    """Gives the best proposals: without doubles within each level, then the best of all levels.

    Args:
        predictions: what `RegionProposalNetwork` gave, and "image_sizes" (batch, 2).
        num_candidates: the best anchors of each level that are looked at.
        num_proposals: rows of the result.

    Returns:
        (proposals, scores): float32 (batch, n, 4), xyxy pixels inside of the image, and (batch, n), the best
        first; score -1 and a box of zeros where there is none. n is `num_proposals`, or less where all levels
        have fewer candidates.
    """
    proposals, scores = [], []
    start = 0
    for anchors in predictions["anchors"]:
        end = start + ops.shape(anchors)[0]
        logits, rows = select_best(predictions["objectness_logits"][:, start:end], num_candidates)
        rows = ops.cast(rows, "int32")
        deltas = take_rows(predictions["proposal_deltas"][:, start:end], rows)
        boxes = decode_boxes(deltas, ops.take(anchors, rows, axis=0))
        boxes = clip_boxes(boxes, predictions["image_sizes"])
        has_area = ops.all(boxes[..., 2:] > boxes[..., :2], axis=-1)
        kept = suppress_sorted_boxes(boxes, has_area, IOU_THRESHOLD)
        proposals.append(boxes)
        scores.append(ops.where(kept, ops.sigmoid(logits), -1.0))
        start = end
    scores, rows = select_best(ops.concatenate(scores, axis=1), num_proposals)
    proposals = take_rows(ops.concatenate(proposals, axis=1), ops.cast(rows, "int32"))
    proposals = ops.where(ops.expand_dims(scores, -1) >= 0.0, proposals, 0.0)
    return ops.stop_gradient(proposals), ops.stop_gradient(scores)


def compute_proposal_losses(targets, predictions, draw_priorities):
    """Gives the losses of a sample of the anchors, at most half of them objects.

    Args:
        targets: a dict of "boxes", float32 (batch, n, 4), xyxy pixels, and "labels", int32 (batch, n), 0 or
            more for objects, -1 for padding, -2 for crowds.
        predictions: what `RegionProposalNetwork` gave, and "image_sizes" (batch, 2).
        draw_priorities: function of an array (batch, anchors) that gives one number for each place; those of
            the smallest numbers are sampled.

    Returns:
        A dict of float32 scalars "objectness_loss" and "proposal_loss".
    """
    anchors = ops.concatenate(predictions["anchors"], axis=0)
    inside = mark_inside(anchors, predictions["image_sizes"])
    matches = match_boxes(
        anchors, targets["boxes"], targets["labels"], 0.7, 0.3, min_positive_iou=0.3, inside=inside
    )
    rows, kinds = sample_matches(matches, NUM_SAMPLES, POSITIVE_FRACTION, draw_priorities(matches))
    positive = ops.cast(kinds == 1, "float32")
    background = ops.cast(kinds == 0, "float32")
    # As mmdetection counts: at least one of each kind and image.
    counts = [ops.maximum(ops.sum(kind, axis=1), 1.0) for kind in (positive, background)]
    num_samples = ops.sum(counts[0] + counts[1])

    logits = take_rows(predictions["objectness_logits"], rows)
    objectness_loss = ops.sum(binary_cross_entropy(positive, logits) * (positive + background))
    matched = ops.maximum(take_rows(matches, rows), 0)
    deltas = encode_boxes(take_rows(targets["boxes"], matched), ops.take(anchors, rows, axis=0))
    distances = ops.abs(take_rows(predictions["proposal_deltas"], rows) - deltas)
    proposal_loss = ops.sum(ops.where(kinds[..., None] == 1, distances, 0.0))
    return {"objectness_loss": objectness_loss / num_samples, "proposal_loss": proposal_loss / num_samples}
