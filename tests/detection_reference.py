"""What the parity tests of the detectors share: mmdetection's inputs, targets and detections."""

import numpy as np
import pytest
import tensorflow as tf
from golden_reference import check, checkpoint, load
from keras import ops

from heads.ops.anchors import mark_inside
from heads.ops.matching import count_matches, match_adaptively
from van_backbones import VANBackbone
from van_backbones.checkpoints.loading import load_state_dict, name_variables

# name of the reference: positive and negative threshold, smallest best IoU, low quality matches
RULES = {
    "retina": (0.5, 0.4, 0.0, True),
    "rpn": (0.7, 0.3, 0.3, True),
    "rcnn": (0.5, 0.5, 0.5, True),
    "cascade2": (0.6, 0.6, 0.6, False),
}


def count_trainable(model):
    """Returns the number of a model's trainable parameters."""
    return sum(int(np.prod(variable.shape)) for variable in model.trainable_variables)


def take_first(values):
    """Takes the first ones, as in the references, instead of a random sample."""
    return ops.cumsum(ops.ones_like(values, "float32"), axis=1)


def make_reference_model(head_class, name, **options):
    """Returns a head on VAN-B0 with the weights of a reference."""
    backbone = VANBackbone("b0", normalization=None, layer_norm_epsilon=1e-5, drop_path_rate=0.0)
    model = head_class(backbone, **options)
    load_state_dict(model, checkpoint(name))
    model.draw_priorities = take_first
    return model


def compare_maps(reference, predictions, outputs, tolerance=2e-5):
    """Compares raw outputs of all anchors with the maps of each level, and the anchors themselves.

    `outputs` is a dict of the reference's name -> (ours, channels of the map).
    """
    for name, (ours, channels) in outputs.items():
        start = 0
        for level, anchors in enumerate(predictions["anchors"]):
            height, width = reference[f"{name}_{level}"].shape[2:]
            end = start + len(anchors)
            maps = np.asarray(predictions[ours])[:, start:end].reshape(2, height, width, channels)
            check(reference[f"{name}_{level}"], maps.transpose(0, 3, 1, 2), tolerance)
            check(reference[f"anchors_{level}"], np.asarray(anchors), 1e-7)
            start = end
        assert end == predictions[ours].shape[1]


def fill_in(reference, ours):
    """Returns the reference's values where they are known, and ours elsewhere."""
    if isinstance(reference, np.ndarray):
        return reference
    values = ours.copy().reshape(-1)
    values[reference.index] = reference.value
    return values.reshape(ours.shape)


def read_truth(reference):
    """Returns the boxes, labels and image sizes of a model's reference, padded to one batch."""
    boxes, labels = np.zeros((2, 6, 4), "float32"), np.full((2, 6), -1, "int32")
    for image in range(2):
        count = len(reference[f"gt{image}_labels"])
        boxes[image, :count] = reference[f"gt{image}_bboxes"]
        labels[image, :count] = reference[f"gt{image}_labels"]
    return boxes, labels, np.stack([reference["img0_shape"], reference["img1_shape"]])


def make_inputs(reference, original=False):
    """Returns the inputs of a reference: two images, the second padded; with the original sizes if asked."""
    names = {"image_sizes": "shape"} | ({"original_sizes": "ori_shape"} if original else {})
    sizes = {
        name: np.stack([reference[f"img{image}_{key}"] for image in range(2)]).astype("int32")
        for name, key in names.items()
    }
    return {"images": reference["input"].transpose(0, 2, 3, 1), **sizes}


def make_targets(reference, empty=None, with_masks=False):
    """Returns the true boxes, labels and masks as a padded batch; the image `empty` has none."""
    targets = {"boxes": np.zeros((2, 5, 4), "float32"), "labels": np.full((2, 5), -1, "int32")}
    if with_masks:
        targets["masks"] = np.zeros((2, 5, *reference["input"].shape[2:]), "uint8")
    for image in range(2):
        if image == empty:
            continue
        for ours, theirs in (("boxes", "bboxes"), ("labels", "labels"), ("masks", "masks")):
            if ours in targets:
                values = reference[f"gt{image}_{theirs}"]
                targets[ours][image, : len(values)] = values
    return targets


def compute_gradients(model, inputs, targets):
    """Returns the losses in training mode, and the gradients under the reference's names."""
    weights = {name: variable for name, variable in name_variables(model).items() if variable.trainable}

    @tf.function
    def compute():
        with tf.GradientTape() as tape:
            losses = model.compute_losses(targets, model(inputs, training=True))
            total = sum(losses.values())
        return losses, tape.gradient(total, [variable.value for variable in weights.values()])

    losses, gradients = compute()
    return (
        {name: float(loss) for name, loss in losses.items()},
        {name: np.asarray(gradient) for name, gradient in zip(weights, gradients, strict=True)},
    )


def compare_detections(reference, prefix, detections, image):
    """Compares the detections of an image; the order of near-ties, or the last one of them, may differ."""
    boxes, scores, labels = (reference[f"{prefix}_{name}"] for name in ("bboxes", "scores", "labels"))
    np.testing.assert_allclose(detections["scores"][image], scores, rtol=0, atol=1e-4)
    free = list(range(len(labels)))
    pairs = []
    for row, (box, score, label) in enumerate(zip(boxes, scores, labels, strict=True)):
        for other in free:
            same = detections["labels"][image, other] == label
            near = np.abs(detections["boxes"][image, other] - box).max() <= 1e-2
            if same and near and abs(detections["scores"][image, other] - score) <= 1e-4:
                free.remove(other)
                pairs.append((row, other))
                break
    lost = [row for row in range(len(labels)) if row not in {pair[0] for pair in pairs}]
    assert all(scores[row] - scores[-1] < 1e-5 for row in lost), f"{prefix}: rows {lost} are not found"
    return pairs


def compare_losses(model, predictions, name, case, losses):
    """Compares the losses of a reference's case, "loss_eval" or "loss_eval_img1_empty".

    `losses` is a dict of ours -> the reference's name.
    """
    targets = make_targets(load(f"{name}/loss_eval.npz"), empty=1 if "empty" in case else None)
    found = model.compute_losses(targets, predictions)
    assert list(found) == list(losses)
    for ours, theirs in losses.items():
        expected = float(load(f"{name}/{case}.npz")[f"loss.{theirs}.sum"])
        assert float(found[ours]) == pytest.approx(expected, rel=2e-6), ours


def compare_decoding(model, predictions, name, kind):
    """Compares the detections, "pred" or "pred_rescaled", that a model decodes from raw predictions."""
    sizes = make_inputs(load(f"{name}/loss_eval.npz"), original=kind == "pred_rescaled")
    sizes = {key: ops.cast(values, "float32") for key, values in sizes.items() if key != "images"}
    detections = model.decode({**predictions, **sizes})
    detections = {key: np.asarray(values) for key, values in detections.items()}
    for image in range(2):
        compare_detections(load(f"{name}/predict.npz"), f"{kind}{image}", detections, image)


def compare_adaptive_targets(predictions, name):
    """Compares which anchor learns which object, if the reference's targets are boxes."""
    reference = load(f"{name}/loss_eval.npz")
    targets = make_targets(reference)
    levels = predictions["anchors"]
    inside = mark_inside(np.concatenate(levels), predictions["image_sizes"])
    matches = np.asarray(match_adaptively(levels, targets["boxes"], targets["labels"], inside))
    start = 0
    for level, anchors in enumerate(levels):
        own = matches[:, start : start + len(anchors)]
        start += len(anchors)
        labels = np.where(own >= 0, np.take_along_axis(targets["labels"], np.maximum(own, 0), 1), 80)
        weights = (own > -2).astype("float32")
        for key, ours in (("labels", labels), ("label_weights", weights)):
            expected = fill_in(reference[f"t_{key}_{level}"], ours)
            np.testing.assert_array_equal(ours[weights > 0], expected[weights > 0])
        boxes = np.take_along_axis(targets["boxes"], np.maximum(own, 0)[..., None], 1)
        check(reference[f"t_bbox_targets_{level}"], np.where(own[..., None] >= 0, boxes, 0.0), 1e-7)
    assert float(count_matches(matches)) == float(reference["avg_factor"])
