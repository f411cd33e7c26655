import functools

import contracts
import keras
import numpy as np
import pytest
import tensorflow as tf
from detection_reference import (
    compare_detections,
    compare_losses,
    compare_maps,
    compute_gradients,
    count_trainable,
    fill_in,
    make_inputs,
    make_reference_model,
    make_targets,
)
from golden_reference import check, compare_training, load

from heads import RetinaNet
from van_backbones import VANBackbone
from van_backbones.checkpoints.loading import name_variables

PARAMETERS = {"b0": 13_386_068, "b1": 23_598_772, "b2": 36_315_444, "b3": 54_502_580}


@pytest.mark.parametrize("variant", ["b0", "b1"])
def test_parameters(variant):
    assert count_trainable(RetinaNet(VANBackbone(variant))) == PARAMETERS[variant]


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["b2", "b3"])
def test_parameters_of_large_variants(variant):
    assert count_trainable(RetinaNet(VANBackbone(variant))) == PARAMETERS[variant]


def test_start():
    keras.utils.set_random_seed(0)
    model = RetinaNet(contracts.PooledBackbone(), num_classes=5, channels=32)
    for tower, output, bias in (
        (model.class_tower, model.class_output, -np.log(99)),
        (model.box_tower, model.box_output, 0.0),
    ):
        np.testing.assert_allclose(output.bias, bias, rtol=1e-6)
        kernels = [conv.kernel.numpy() for conv in (*tower.convs, output)]
        assert all(kernel.std() == pytest.approx(0.01, rel=0.1) for kernel in kernels)
        assert np.abs(kernels[0] - kernels[1]).max() > 0.01
    images = np.random.default_rng(0).uniform(0, 255, (1, 64, 64, 3)).astype("float32")
    np.testing.assert_allclose(tf.sigmoid(model(images)["class_logits"]), 0.01, rtol=0.3)


def test_order_of_the_raw_predictions():
    model = RetinaNet(contracts.PooledBackbone(), num_classes=2, channels=4, num_convs=0)
    images = np.random.default_rng(0).uniform(0, 255, (2, 64, 96, 3)).astype("float32")
    predictions = model(images)
    sizes = [(8, 12), (4, 6), (2, 3), (1, 2), (1, 1)]
    assert [len(anchors) for anchors in predictions["anchors"]] == [9 * h * w for h, w in sizes]
    assert predictions["class_logits"].shape == (2, 9 * 129, 2)
    assert predictions["box_deltas"].shape == (2, 9 * 129, 4)
    levels = model.neck([model.pyramid(images)[level] for level in ("P3", "P4", "P5")])
    maps = np.asarray(model.class_output(levels[1]))
    y, x, anchor, label = 2, 5, 7, 1
    row = 9 * 96 + 9 * (y * 6 + x) + anchor
    np.testing.assert_allclose(
        predictions["class_logits"][:, row, label], maps[:, y, x, anchor * 2 + label], rtol=1e-5
    )


def test_losses_of_one_anchor_by_hand():
    """Returns a picture of which all anchors except one are background: the object is that anchor."""
    model = RetinaNet(contracts.PooledBackbone(), num_classes=3, channels=4, num_convs=0)
    predictions = dict(model(np.zeros((1, 64, 64, 3), "float32")))
    anchors = np.concatenate(predictions["anchors"])
    count = len(anchors)
    logits = np.full((1, count, 3), -2.0, "float32")
    deltas = np.full((1, count, 4), 0.25, "float32")
    predictions |= {"class_logits": logits, "box_deltas": deltas}
    chosen = 9 * (8 * 3 + 3) + 4
    targets = {"boxes": anchors[None, [chosen]], "labels": np.array([[1]], "int32")}

    probability = 1 / (1 + np.exp(2.0))
    of_absent = 0.75 * probability**2 * -np.log(1 - probability)
    of_present = 0.25 * (1 - probability) ** 2 * -np.log(probability)
    iou = measure_iou(anchors, anchors[chosen])
    positive, ignored = iou >= 0.5, (iou >= 0.4) & (iou < 0.5)
    expected = (3 * count - positive.sum() - 3 * ignored.sum()) * of_absent + positive.sum() * of_present
    losses = model.compute_losses(targets, predictions)
    assert positive.sum() > 1
    assert ignored.sum() > 1
    assert float(losses["class_loss"]) == pytest.approx(expected / positive.sum(), rel=1e-4)

    box, own = np.split(anchors[chosen], 2), np.split(anchors[positive], 2, axis=1)
    shift = (box[0] + box[1] - own[0] - own[1]) / 2 / (own[1] - own[0])
    growth = np.log((box[1] - box[0]) / (own[1] - own[0]))
    distance = np.abs(0.25 - np.concatenate([shift, growth], axis=1)).sum()
    assert float(losses["box_loss"]) == pytest.approx(distance / positive.sum(), rel=1e-4)


def measure_iou(boxes, box):
    sides = np.minimum(boxes[:, 2:], box[2:]) - np.maximum(boxes[:, :2], box[:2])
    overlaps = np.maximum(sides, 0).prod(axis=1)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    return overlaps / (areas + (box[2:] - box[:2]).prod() - overlaps)


@pytest.mark.slow
def test_it_learns_one_picture():
    keras.utils.set_random_seed(0)
    model = RetinaNet(contracts.PooledBackbone(), num_classes=2, channels=16, num_convs=1)
    image = np.full((1, 64, 64, 3), 40.0, "float32")
    image[0, 10:34, 8:40] = (250, 60, 60)
    image[0, 40:60, 30:58] = (60, 60, 250)
    boxes = np.array([[[8, 10, 40, 34], [30, 40, 58, 60]]], "float32")
    targets = {"boxes": boxes, "labels": np.array([[0, 1]], "int32")}
    model.compile(optimizer=keras.optimizers.Adam(3e-3))
    images = np.repeat(image, 100, axis=0)
    model.fit(images, {k: np.repeat(v, 100, axis=0) for k, v in targets.items()}, batch_size=1, verbose=0)
    detections = model.predict(image, verbose=0)
    assert set(detections["labels"][0, :2]) == {0, 1}
    assert detections["scores"][0, 1] > 0.3
    order = np.argsort(detections["labels"][0, :2])
    np.testing.assert_allclose(detections["boxes"][0, :2][order], boxes[0], atol=4.0)


# The same numbers as mmdetection's.


@pytest.fixture(scope="module")
def model():
    return make_reference_model(RetinaNet, "retinanet_b0")


@functools.cache
def load_case(case):
    return load(f"retinanet_b0/{case}.npz")


@pytest.fixture(scope="module")
def predictions(model):
    return model(make_inputs(load_case("loss_eval")))


def test_forward_equals_mmdetection(predictions):
    outputs = {"cls_score": ("class_logits", 9 * 80), "bbox_pred": ("box_deltas", 9 * 4)}
    compare_maps(load_case("forward"), predictions, outputs)


def test_targets_equal_mmdetections(predictions):
    from heads.ops.anchors import mark_inside
    from heads.ops.boxes import encode_boxes
    from heads.ops.matching import match_boxes

    reference = load_case("loss_eval")
    targets = make_targets(reference)
    anchors = np.concatenate(predictions["anchors"])
    inside = np.asarray(mark_inside(anchors, predictions["image_sizes"]))
    matches = np.asarray(match_boxes(anchors, targets["boxes"], targets["labels"], 0.5, 0.4, inside=inside))
    start = 0
    for level, of_level in enumerate(predictions["anchors"]):
        rows = slice(start, start + len(of_level))
        start += len(of_level)
        for image in range(2):
            flags = reference[f"valid_flags_img{image}_{level}"]
            np.testing.assert_array_equal(inside[image, rows], flags)
        matched = np.maximum(matches[:, rows], 0)
        positive = matches[:, rows] >= 0
        labels = np.where(positive, np.take_along_axis(targets["labels"], matched, 1), 80)
        weights = (matches[:, rows] > -2).astype("float32")
        compare_everywhere(reference[f"t_label_weights_{level}"], weights)
        # The labels of ignored anchors do not count.
        expected = fill_in(reference[f"t_labels_{level}"], labels)
        assert (expected == labels)[weights > 0].all()
        boxes = np.take_along_axis(targets["boxes"], matched[..., None], 1)
        deltas = np.where(positive[..., None], encode_boxes(boxes, anchors[rows]), 0.0)
        check(reference[f"t_bbox_targets_{level}"], deltas, 1e-5)


def compare_everywhere(reference, ours):
    np.testing.assert_array_equal(fill_in(reference, ours), ours)


@pytest.mark.parametrize("case", ["loss_eval", "loss_eval_img1_empty"])
def test_losses_equal_mmdetections(model, predictions, case):
    names = {"class_loss": "loss_cls", "box_loss": "loss_bbox"}
    compare_losses(model, predictions, "retinanet_b0", case, names)


@pytest.mark.parametrize("kind", [pytest.param("pred", marks=pytest.mark.slow), "pred_rescaled"])
def test_detections_equal_mmdetections(model, kind):
    inputs = make_inputs(load_case("loss_eval"), original=kind == "pred_rescaled")
    detections = model.predict(inputs, verbose=0)
    for image in range(2):
        compare_detections(load_case("predict"), f"{kind}{image}", detections, image)


@pytest.mark.slow
def test_training_equals_mmdetections():
    model = make_reference_model(RetinaNet, "retinanet_b0")
    reference = load_case("loss_train")
    losses, gradients = compute_gradients(
        model, make_inputs(load_case("loss_eval")), make_targets(load_case("loss_eval"))
    )
    assert sum(losses.values()) == pytest.approx(float(reference["total_loss"]), rel=2e-6)
    # The loss is about 750 and float32 rounds: the first convolution is 3e-4 off, the others less.
    limits = {"tolerance": 5e-4, "rounding": 5e-5, "head_tolerance": 2e-4}
    compare_training("retinanet_b0", reference, gradients, name_variables(model), **limits)
