import functools

import contracts
import keras
import numpy as np
import pytest
from detection_reference import (
    compare_adaptive_targets,
    compare_decoding,
    compare_losses,
    compare_maps,
    compute_gradients,
    count_trainable,
    make_inputs,
    make_reference_model,
    make_targets,
)
from golden_reference import checkpoint, compare_training, load

from heads import ATSS
from heads.atss import DEVIATIONS, measure_centerness
from heads.ops.boxes import encode_boxes
from heads.ops.matching import match_adaptively
from van_backbones import VANBackbone
from van_backbones.checkpoints.loading import name_variables, to_state_dict

PARAMETERS = {"b0": 11_841_466, "b1": 21_464_346, "b2": 34_181_018, "b3": 52_368_154}


@pytest.mark.parametrize(
    "variant", ["b0", "b1", *(pytest.param(name, marks=pytest.mark.slow) for name in ("b2", "b3"))]
)
def test_parameters(variant):
    assert count_trainable(ATSS(VANBackbone(variant))) == PARAMETERS[variant]


def test_start():
    keras.utils.set_random_seed(0)
    model = ATSS(contracts.PooledBackbone(), num_classes=5, channels=32)
    np.testing.assert_allclose(model.class_output.bias, -np.log(99), rtol=1e-6)
    convs = (*model.class_tower.convs, *model.box_tower.convs, model.class_output, model.box_output)
    convs += (model.centerness_output,)
    assert all(conv.kernel.numpy().std() == pytest.approx(0.01, rel=0.1) for conv in convs)
    assert [float(scale) for scale in model.scales] == [1.0] * 5


def make_model():
    return ATSS(contracts.PooledBackbone(), num_classes=3, channels=8, num_convs=0)


def test_scores_are_multiplied_after_the_threshold():
    model = make_model()
    predictions = dict(model(np.zeros((1, 64, 64, 3), "float32")))
    anchors = np.concatenate(predictions["anchors"])
    logits = np.full((1, len(anchors), 3), -9.0, "float32")
    row = 64 + 2 * 4 + 1  # level P4: stride 16, centre at x 16, y 32
    logits[0, row, 2], logits[0, row + 1, 0] = -2.8, -3.0  # scores above and below 0.05
    deltas = np.zeros((1, len(anchors), 4), "float32")
    deltas[0, row] = (0.0, 0.0, np.log(0.25) / 0.2, np.log(0.125) / 0.2)
    centerness = np.full((1, len(anchors)), -1.0, "float32")
    raw = {"class_logits": logits, "box_deltas": deltas, "centerness_logits": centerness}
    detections = model.decode({**predictions, **raw})
    np.testing.assert_allclose(detections["boxes"][0, 0], [0, 24, 32, 40], atol=1e-4)
    assert np.asarray(detections["labels"])[0, :2].tolist() == [2, -1]
    score = 1 / (1 + np.exp(2.8)) / (1 + np.exp(1.0))
    assert float(detections["scores"][0, 0]) == pytest.approx(score, rel=1e-5)


@pytest.mark.parametrize(
    ("box", "expected"),
    [((-4, -4, 4, 4), 1.0), ((-2, -4, 6, 4), np.sqrt(1 / 3)), ((-2, -2, 6, 6), 1 / 3), ((0, -4, 4, 4), 0.0)],
)
def test_centerness_by_hand(box, expected):
    got = measure_centerness(np.array([box], "float32"), np.array([[-32, -32, 32, 32]], "float32"))
    assert float(got[0]) == pytest.approx(expected, abs=1e-3)


def test_losses_by_hand():
    """One object that a single anchor learns, off its centre, whose box is predicted perfectly."""
    model = make_model()
    predictions = dict(model(np.zeros((1, 64, 64, 3), "float32")))
    anchors = np.concatenate(predictions["anchors"])
    targets = {"boxes": np.array([[[14, 12, 22, 20]]], "float32"), "labels": np.array([[1]], "int32")}
    matches = np.asarray(match_adaptively(predictions["anchors"], targets["boxes"], targets["labels"]))[0]
    (row,) = np.flatnonzero(matches >= 0)
    raw = {
        "class_logits": np.full((1, len(anchors), 3), -2.0, "float32"),
        "box_deltas": np.asarray(encode_boxes(targets["boxes"][0], anchors, DEVIATIONS))[None],
        "centerness_logits": np.full((1, len(anchors)), 1.0, "float32"),
    }
    losses = model.compute_losses(targets, {**predictions, **raw})
    probability = 1 / (1 + np.exp(2.0))
    present = 0.25 * (1 - probability) ** 2 * -np.log(probability)
    absent = 0.75 * probability**2 * -np.log(1 - probability)
    expected = present + (3 * len(anchors) - 1) * absent
    assert float(losses["class_loss"]) == pytest.approx(expected, rel=1e-5)
    assert float(losses["box_loss"]) == pytest.approx(0.0, abs=1e-4)
    np.testing.assert_array_equal(anchors[row], [-16, -16, 48, 48])
    centerness, score = np.sqrt(2 / 6), 1 / (1 + np.exp(-1.0))
    entropy = -centerness * np.log(score) - (1 - centerness) * np.log(1 - score)
    assert float(losses["centerness_loss"]) == pytest.approx(entropy, rel=1e-5)


# The same numbers as mmdetection's.


@pytest.fixture(scope="module")
def model():
    return make_reference_model(ATSS, "atss_b0")


@functools.cache
def load_case(case):
    return load(f"atss_b0/{case}.npz")


@pytest.fixture(scope="module")
def predictions(model):
    return model(make_inputs(load_case("loss_eval")))


def test_forward_equals_mmdetection(predictions):
    outputs = {"cls_score": ("class_logits", 80), "bbox_pred": ("box_deltas", 4)}
    outputs["centerness"] = ("centerness_logits", 1)
    compare_maps(load_case("forward"), predictions, outputs)


def test_the_state_dict_comes_back(model):
    arrays, ours = checkpoint("atss_b0"), to_state_dict(model)
    assert set(ours) == set(arrays)
    for layer in ("scales.2.scale", "atss_centerness.bias", "reg_convs.1.gn.weight"):
        name = f"bbox_head.{layer}"
        np.testing.assert_array_equal(ours[name], arrays[name])


def test_targets_equal_mmdetections(predictions):
    compare_adaptive_targets(predictions, "atss_b0")


NAMES = {"class_loss": "loss_cls", "box_loss": "loss_bbox", "centerness_loss": "loss_centerness"}


@pytest.mark.parametrize("case", ["loss_eval", "loss_eval_img1_empty"])
def test_losses_equal_mmdetections(model, predictions, case):
    compare_losses(model, predictions, "atss_b0", case, NAMES)


@pytest.mark.parametrize("kind", ["pred", "pred_rescaled"])
def test_detections_equal_mmdetections(model, predictions, kind):
    compare_decoding(model, predictions, "atss_b0", kind)


@pytest.mark.slow
def test_training_equals_mmdetections():
    model = make_reference_model(ATSS, "atss_b0")
    reference = load_case("loss_train")
    losses, gradients = compute_gradients(
        model, make_inputs(load_case("loss_eval")), make_targets(load_case("loss_eval"))
    )
    assert sum(losses.values()) == pytest.approx(float(reference["total_loss"]), rel=2e-6)
    # Noise of 1e-6 in the images moves the backbone's gradients by 2e-3: the norms over a few cells of the
    # coarse levels take most of them out. The head's own are equal to 3e-5.
    limits = {"tolerance": 5e-3, "rounding": 5e-5, "head_tolerance": 1e-4}
    compare_training("atss_b0", reference, gradients, name_variables(model), **limits)
