"""The second stage of R-CNNs as functions: which regions it learns from, its losses, its detections."""

from collections.abc import Callable
from typing import NamedTuple

from keras import ops

from heads.ops.backends import top_k
from heads.ops.boxes import clip_boxes, decode_boxes, encode_boxes
from heads.ops.labels import IGNORED_MATCH, PADDING_LABEL
from heads.ops.losses import average_losses, l1_loss
from heads.ops.matching import match_boxes
from heads.ops.sampling import sample_matches
from heads.ops.selection import restore_boxes, select_detections, select_pairs, take_rows

# How many pairs of a region and a class go into the suppression; a full picture has some hundreds.
NUM_PAIRS = 5000


class Stage(NamedTuple):
    """The options of one stage, as a row of values: how it learns from regions and shifts them.

    Attributes:
        iou_threshold: smallest IoU of a region with its object; below, it is background.
        match_low_quality: whether an object also takes its best regions from other objects, if their IoU
            reaches the threshold.
        deviations: usual size of the deltas dx, dy, dw, dh.
        box_loss: function of (target deltas, predicted deltas) (..., 4), elementwise; with `compares_boxes` a
            function of (true boxes, predicted boxes) (..., 4) that returns one number for each box.
        compares_boxes: whether the loss compares boxes in pixels rather than deltas.
        box_weight: factor of the box loss.
        loss_weight: factor of the stage's losses.
        class_agnostic: whether a region has one box instead of one per class.
        num_samples: how many regions of each image are learned from.
        positive_fraction: largest share of them that are objects.
    """

    iou_threshold: float = 0.5
    match_low_quality: bool = False
    deviations: tuple = (0.1, 0.1, 0.2, 0.2)
    box_loss: Callable = l1_loss
    compares_boxes: bool = False
    box_weight: float = 1.0
    loss_weight: float = 1.0
    class_agnostic: bool = False
    num_samples: int = 512
    positive_fraction: float = 0.25

    @property
    def max_positives(self):
        """How many sampled regions of an image can be objects; they come first."""
        return int(self.num_samples * self.positive_fraction)


def sample_regions(stage, targets, proposals, exists, draw_priorities):
    """Returns regions to learn from: the true boxes and the proposals, matched and sampled.

    Args:
        stage: a `Stage`.
        targets: a dict of "boxes" (batch, objects, 4) and "labels" (batch, objects).
        proposals: (batch, n, 4), xyxy pixels.
        exists: bool (batch, n), False for rows without a proposal.
        draw_priorities: function of an array (batch, m) that returns a number for each entry; the entries
            with the smallest numbers are sampled.

    Returns:
        A dict of "boxes" (batch, num_samples, 4); "kinds" (batch, num_samples), 1 for objects, which come
        first, 0 for background, -1 for none; "matches" (batch, num_samples), the objects' indices, and
        "labels" (batch, num_samples), their classes, -1 for all but objects; and "are_true", bool (batch,
        num_samples), whether a region is a true box itself.
    """
    boxes, labels = targets["boxes"], targets["labels"]
    threshold = stage.iou_threshold
    matches = match_boxes(
        proposals, boxes, labels, threshold, threshold, threshold, stage.match_low_quality, exists
    )
    own = ops.broadcast_to(ops.arange(ops.shape(labels)[1], dtype="int32"), ops.shape(labels))
    matches = ops.concatenate([ops.where(labels >= 0, own, IGNORED_MATCH), matches], axis=1)
    regions = ops.concatenate([boxes, proposals], axis=1)
    rows, kinds = sample_matches(
        matches, stage.num_samples, stage.positive_fraction, draw_priorities(matches)
    )
    matches = ops.maximum(take_rows(matches, rows), 0)
    return {
        "boxes": ops.where(kinds[..., None] >= 0, take_rows(regions, rows), 0.0),
        "kinds": kinds,
        "matches": matches,
        "labels": ops.where(kinds == 1, take_rows(labels, matches), PADDING_LABEL),
        "are_true": (kinds == 1) & (rows < ops.shape(labels)[1]),
    }


def compute_region_losses(stage, targets, samples, class_logits, box_deltas):
    """Returns the losses of sampled regions.

    Args:
        stage: a `Stage`.
        targets: a dict of "boxes" (batch, objects, 4) and "labels" (batch, objects).
        samples: what `sample_regions` returned.
        class_logits: (batch, num_samples, classes + 1), the background last.
        box_deltas: (batch, num_samples, classes, 4), or (batch, num_samples, 1, 4) if class-agnostic.

    Returns:
        A dict of float32 scalars "class_loss" and "box_loss".
    """
    positive = samples["kinds"] == 1
    counted = ops.cast(samples["kinds"] >= 0, "float32")
    # mmdetection divides by all regions, not by the objects among them.
    num_regions = ops.sum(counted)

    num_classes = ops.shape(class_logits)[-1] - 1
    classes = ops.clip(samples["labels"], 0, num_classes - 1)
    truth = ops.where(positive, classes, num_classes)
    entropies = ops.sparse_categorical_crossentropy(truth, class_logits, from_logits=True)

    matched_boxes = take_rows(targets["boxes"], samples["matches"])
    deltas = _take_class(stage, box_deltas, classes)
    if stage.compares_boxes:
        predicted = decode_boxes(deltas, samples["boxes"], stage.deviations)
        losses = stage.box_loss(matched_boxes, predicted)[..., None]
    else:
        losses = stage.box_loss(encode_boxes(matched_boxes, samples["boxes"], stage.deviations), deltas)
    losses = ops.where(positive[..., None], losses, 0.0)
    return {
        "class_loss": stage.loss_weight * average_losses(ops.sum(entropies * counted), num_regions),
        "box_loss": stage.loss_weight * stage.box_weight * average_losses(ops.sum(losses), num_regions),
    }


def shift_regions(stage, regions, class_logits, box_deltas, image_sizes, labels=None):
    """Returns the regions that a stage has shifted, without gradient, for the next stage of a cascade.

    Args:
        stage: a `Stage`.
        regions: (batch, n, 4), xyxy pixels.
        class_logits: (batch, n, classes + 1), the background last.
        box_deltas: (batch, n, classes or 1, 4).
        image_sizes: (batch, 2), (height, width) without padding.
        labels: int32 (batch, n), the class whose deltas count, -1 for the likeliest one; None for the
            likeliest one everywhere.

    Returns:
        (batch, n, 4), xyxy pixels inside of the image.
    """
    likeliest = ops.cast(top_k(class_logits[..., :-1], 1)[1][..., 0], "int32")
    labels = likeliest if labels is None else ops.where(labels >= 0, labels, likeliest)
    boxes = decode_boxes(_take_class(stage, box_deltas, labels), regions, stage.deviations)
    return ops.stop_gradient(clip_boxes(boxes, image_sizes))


def detect_regions(stage, predictions, score_threshold, iou_threshold, max_detections):
    """Returns detections in pixels of the input: see `select_detections`.

    Args:
        stage: a `Stage`.
        predictions: a dict of "proposals" (batch, n, 4), "proposal_scores" (batch, n), "class_logits"
            (batch, n, classes + 1), "box_deltas" (batch, n, classes or 1, 4) and "image_sizes" (batch, 2).
        score_threshold: detections below are left out.
        iou_threshold: of two detections of one class that overlap by more, the better one stays.
        max_detections: rows of the result.
    """
    scores = ops.softmax(predictions["class_logits"], axis=-1)[..., :-1]
    exists = ops.expand_dims(predictions["proposal_scores"], -1) >= 0.0
    scores = ops.where(exists & (scores > score_threshold), scores, 0.0)
    scores, rows, labels = select_pairs(scores, NUM_PAIRS)
    deltas = _take_class(stage, take_rows(predictions["box_deltas"], rows), labels)
    boxes = decode_boxes(deltas, take_rows(predictions["proposals"], rows), stage.deviations)
    return select_detections(boxes, scores, labels, predictions["image_sizes"], iou_threshold, max_detections)


def decode_masks(predictions):
    """Returns the detections of predictions that have masks, in pixels of the original pictures.

    Args:
        predictions: a dict of "detections", see `select_detections`, "mask_logits" (batch, n, height, width),
            "image_sizes" (batch, 2) and, where known, "original_sizes" (batch, 2).

    Returns:
        The detections with "masks" (batch, n, height, width), float32, the probability of the object at each
        place of its box; 0 where there is no detection.
    """
    detections = predictions["detections"]
    exists = detections["labels"][..., None, None] >= 0
    masks = ops.where(exists, ops.sigmoid(predictions["mask_logits"]), 0.0)
    return restore_boxes(
        {**detections, "masks": masks}, predictions["image_sizes"], predictions.get("original_sizes")
    )


def _take_class(stage, box_deltas, labels):
    """Returns the deltas (batch, n, 4) of one class for each region."""
    if stage.class_agnostic:
        return box_deltas[:, :, 0]
    labels = ops.reshape(labels, (*ops.shape(labels), 1, 1))
    return ops.take_along_axis(box_deltas, labels, axis=2)[:, :, 0]
