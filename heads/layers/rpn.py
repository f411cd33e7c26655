"""Region proposal network: where objects may be, whatever their class."""

from collections.abc import Sequence

import keras
from keras import ops

from heads.layers.blocks import Layer, make_small_convolution
from heads.ops.anchors import join_levels, make_anchors, mark_contained, mark_inside
from heads.ops.boxes import clip_boxes, decode_boxes, encode_boxes
from heads.ops.losses import average_losses, binary_cross_entropy, l1_loss
from heads.ops.matching import match_boxes
from heads.ops.sampling import sample_matches
from heads.ops.selection import select_best, select_each_level, take_rows
from heads.ops.suppression import suppress_sorted_boxes


@keras.saving.register_keras_serializable("van_backbones.heads")
class RegionProposalNetwork(Layer):
    """Scores and shifts anchors: a 3 x 3 convolution, then two 1 x 1 convolutions, shared by all levels.

    Args:
        channels: channels between the convolutions.
        strides: pixels per cell of each level.
        anchor_scales: sides of the square anchors in units of the stride.
        anchor_ratios: heights of the anchors over their widths.
        **kwargs: base arguments of the layer.

    Call arguments:
        levels: list of maps (batch, height, width, channels), of these strides.

    Returns:
        A dict of "objectness_logits" (batch, anchors) and "proposal_deltas" (batch, anchors, 4), float32,
        levels from fine to coarse, then y, x, anchor; and "anchors", a list of (anchors of the level, 4).

    Reference:
        - Ren et al., "Faster R-CNN", arXiv 1506.01497, section 3.1; the numbers are mmdetection's `RPNHead`.
    """

    def __init__(
        self,
        channels: int = 256,
        strides: Sequence[int] = (4, 8, 16, 32, 64),
        anchor_scales: Sequence[float] = (8.0,),
        anchor_ratios: Sequence[float] = (0.5, 1.0, 2.0),
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.channels = channels
        self.anchor_options = strides, anchor_scales, anchor_ratios
        num_anchors = len(anchor_scales) * len(anchor_ratios)
        dtype = self.dtype_policy
        self.conv = make_small_convolution(channels, 3, activation="relu", dtype=dtype, name="conv")
        self.objectness = make_small_convolution(num_anchors, 1, dtype=dtype, name="objectness")
        self.deltas = make_small_convolution(4 * num_anchors, 1, dtype=dtype, name="deltas")

    def build(self, input_shape):
        self.conv.build(input_shape[0])
        for layer in (self.objectness, self.deltas):
            layer.build((*input_shape[0][:-1], self.channels))
        self.built = True

    def call(self, levels):
        features = [self.conv(level) for level in levels]
        return {
            "objectness_logits": join_levels(map(self.objectness, features), 1)[..., 0],
            "proposal_deltas": join_levels(map(self.deltas, features), 4),
            "anchors": make_anchors([ops.shape(level)[1:3] for level in levels], *self.anchor_options),
        }

    def reference_layers(self):
        """Returns mmdetection's names: name -> layer."""
        return {"rpn_conv": self.conv, "rpn_cls": self.objectness, "rpn_reg": self.deltas}


def select_proposals(predictions, num_candidates: int, num_proposals: int, iou_threshold: float = 0.7):
    """Returns the best proposals: without duplicates within each level, then the best of all levels.

    Args:
        predictions: what `RegionProposalNetwork` gave, and "image_sizes" (batch, 2).
        num_candidates: how many of the best anchors of each level are considered.
        num_proposals: rows of the result.
        iou_threshold: of two proposals of one level that overlap by more, the better one stays.

    Returns:
        (proposals, scores): float32 (batch, n, 4), xyxy pixels inside of the image, and (batch, n), the best
        first; score -1 and a box of zeros where there is none. n is `num_proposals`, or less where all levels
        have fewer candidates.
    """
    proposals, scores = [], []
    anchors = ops.concatenate(predictions["anchors"], axis=0)
    # Not `[..., None]`, which LiteRT does not support for sides of unknown length.
    all_logits = ops.expand_dims(predictions["objectness_logits"], -1)
    for logits, rows, _ in select_each_level(all_logits, predictions["anchors"], num_candidates):
        deltas = take_rows(predictions["proposal_deltas"], rows)
        boxes = decode_boxes(deltas, ops.take(anchors, rows, axis=0))
        boxes = clip_boxes(boxes, predictions["image_sizes"])
        has_area = ops.all(boxes[..., 2:] > boxes[..., :2], axis=-1)
        kept = suppress_sorted_boxes(boxes, has_area, iou_threshold)
        proposals.append(boxes)
        scores.append(ops.where(kept, ops.sigmoid(logits), -1.0))
    scores, rows = select_best(ops.concatenate(scores, axis=1), num_proposals)
    proposals = take_rows(ops.concatenate(proposals, axis=1), ops.cast(rows, "int32"))
    proposals = ops.where(ops.expand_dims(scores, -1) >= 0.0, proposals, 0.0)
    return ops.stop_gradient(proposals), ops.stop_gradient(scores)


def compute_proposal_losses(
    targets,
    predictions,
    draw_priorities,
    num_samples: int = 256,
    positive_fraction: float = 0.5,
    positive_threshold: float = 0.7,
    negative_threshold: float = 0.3,
    box_loss=l1_loss,
    takes_cut_anchors: bool = True,
):
    """Returns the losses of a random sample of the anchors.

    Args:
        targets: a dict of "boxes", float32 (batch, n, 4), xyxy pixels, and "labels", int32 (batch, n), 0 or
            more for objects, -1 for padding, -2 for crowds.
        predictions: what `RegionProposalNetwork` gave, and "image_sizes" (batch, 2).
        draw_priorities: function of an array (batch, anchors) that returns a number for each entry; the
            entries with the smallest numbers are sampled.
        num_samples: anchors of each image that are learned from.
        positive_fraction: largest share of them that are objects.
        positive_threshold: smallest IoU of an object's anchor, except for the best anchors of each object.
        negative_threshold: IoU below which an anchor is background; also the least IoU of an object's best
            anchors.
        box_loss: function of (target deltas, predicted deltas) (..., 4), elementwise.
        takes_cut_anchors: whether anchors that reach out of their image are learned from.

    Returns:
        A dict of float32 scalars "objectness_loss" and "proposal_loss".
    """
    anchors = ops.concatenate(predictions["anchors"], axis=0)
    inside = mark_inside(anchors, predictions["image_sizes"])
    if not takes_cut_anchors:
        inside = inside & mark_contained(anchors, predictions["image_sizes"])
    matches = match_boxes(
        anchors,
        targets["boxes"],
        targets["labels"],
        positive_threshold,
        negative_threshold,
        min_positive_iou=negative_threshold,
        inside=inside,
    )
    rows, kinds = sample_matches(matches, num_samples, positive_fraction, draw_priorities(matches))
    positive = ops.cast(kinds == 1, "float32")
    background = ops.cast(kinds == 0, "float32")
    # As mmdetection counts: at least one of each kind and image.
    counts = [ops.maximum(ops.sum(kind, axis=1), 1.0) for kind in (positive, background)]
    total = ops.sum(counts[0] + counts[1])

    logits = take_rows(predictions["objectness_logits"], rows)
    objectness_loss = ops.sum(binary_cross_entropy(positive, logits) * (positive + background))
    matched = ops.maximum(take_rows(matches, rows), 0)
    deltas = encode_boxes(take_rows(targets["boxes"], matched), ops.take(anchors, rows, axis=0))
    losses = box_loss(deltas, take_rows(predictions["proposal_deltas"], rows))
    proposal_loss = ops.sum(ops.where(kinds[..., None] == 1, losses, 0.0))
    return {
        "objectness_loss": average_losses(objectness_loss, total),
        "proposal_loss": average_losses(proposal_loss, total),
    }
