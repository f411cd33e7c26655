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

from heads import GFL
from heads.ops.matching import match_adaptively
from van_backbones import VANBackbone
from van_backbones.checkpoints.loading import name_variables, to_state_dict

PARAMETERS = {"b0": 11_986_681, "b1": 21_609_561, "b2": 34_326_233, "b3": 52_513_369}


@pytest.mark.parametrize(
    "variant", ["b0", "b1", *(pytest.param(name, marks=pytest.mark.slow) for name in ("b2", "b3"))]
)
def test_parameters(variant):
    assert count_trainable(GFL(VANBackbone(variant))) == PARAMETERS[variant]


def test_start():
    keras.utils.set_random_seed(0)
    model = GFL(contracts.PooledBackbone(), num_classes=5, channels=32)
    np.testing.assert_allclose(model.class_output.bias, -np.log(99), rtol=1e-6)
    convs = (*model.class_tower.convs, *model.box_tower.convs, model.class_output, model.box_output)
    assert all(conv.kernel.numpy().std() == pytest.approx(0.01, rel=0.1) for conv in convs)
    np.testing.assert_array_equal(model.bins, np.arange(17))
    assert [float(scale) for scale in model.scales] == [1.0] * 5


def make_model():
    return GFL(contracts.PooledBackbone(), num_classes=3, channels=8, num_convs=0)


def test_boxes_are_the_means_of_their_bins():
    """An anchor whose sides are surely 1, 2 and 3 strides away, and as likely 4 as 5 strides."""
    model = make_model()
    predictions = dict(model(np.zeros((1, 64, 64, 3), "float32")))
    count = sum(map(len, predictions["anchors"]))
    logits = np.full((1, count, 3), -9.0, "float32")
    row = 64 + 2 * 4 + 1  # level P4: stride 16, centre at x 16, y 32
    logits[0, row, 2] = 2.0
    bins = np.full((1, count, 4, 17), -50.0, "float32")
    for side, numbers in enumerate(((1,), (2,), (2,), (1, 2))):
        bins[0, row, side, numbers] = 0.0
    detections = model.decode({**predictions, "class_logits": logits, "box_logits": bins})
    np.testing.assert_allclose(detections["boxes"][0, 0], [0, 0, 48, 56], atol=1e-4)
    assert detections["labels"][0, 0] == 2
    assert float(detections["scores"][0, 0]) == pytest.approx(1 / (1 + np.exp(-2.0)))


def test_losses_by_hand():
    """One object that a single anchor learns, whose box is predicted perfectly."""
    model = make_model()
    predictions = dict(model(np.zeros((1, 64, 64, 3), "float32")))
    anchors = np.concatenate(predictions["anchors"])
    targets = {"boxes": np.array([[[12, 12, 20, 20]]], "float32"), "labels": np.array([[1]], "int32")}
    matches = np.asarray(match_adaptively(predictions["anchors"], targets["boxes"], targets["labels"]))[0]
    (row,) = np.flatnonzero(matches >= 0)
    np.testing.assert_array_equal(anchors[row], [-16, -16, 48, 48])  # half a stride to each side
    logits = np.full((1, len(anchors), 3), -2.0, "float32")
    bins = np.full((1, len(anchors), 4, 17), -50.0, "float32")
    bins[..., :2] = 0.0
    losses = model.compute_losses(targets, {**predictions, "class_logits": logits, "box_logits": bins})
    probability = 1 / (1 + np.exp(2.0))
    quality = (1 - probability) ** 2 * -np.log(probability)
    absent = probability**2 * -np.log(1 - probability)
    expected = quality + (3 * len(anchors) - 1) * absent
    assert float(losses["class_loss"]) == pytest.approx(expected, rel=1e-5)
    assert float(losses["box_loss"]) == pytest.approx(0.0, abs=1e-5)
    # The weight is the best score of the anchor; below one, the sum of the weights counts as one.
    assert float(losses["distribution_loss"]) == pytest.approx(0.25 * probability * np.log(2.0), rel=1e-5)


def test_scales_and_bins_keep_their_digits_in_mixed_precision():
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = make_model()
        images = np.random.default_rng(0).uniform(0, 255, (1, 64, 64, 3)).astype("float32")
        before = np.asarray(model(images)["box_logits"])
        for scale in model.scales:
            scale.assign(1.001)  # 1 in half precision
        np.testing.assert_allclose(model(images)["box_logits"], 1.001 * before, rtol=1e-5)
    finally:
        keras.config.set_dtype_policy(policy)


# The same numbers as mmdetection's.


@pytest.fixture(scope="module")
def model():
    return make_reference_model(GFL, "gfl_b0")


@functools.cache
def load_case(case):
    return load(f"gfl_b0/{case}.npz")


@pytest.fixture(scope="module")
def predictions(model):
    return model(make_inputs(load_case("loss_eval")))


def test_forward_equals_mmdetection(predictions):
    outputs = {"cls_score": ("class_logits", 80), "bbox_pred": ("box_logits", 68)}
    compare_maps(load_case("forward"), predictions, outputs)


def test_the_state_dict_comes_back(model):
    arrays, ours = checkpoint("gfl_b0"), to_state_dict(model)
    assert set(ours) == set(arrays)
    for name in ("bbox_head.scales.2.scale", "bbox_head.integral.project", "bbox_head.reg_convs.1.gn.weight"):
        np.testing.assert_array_equal(ours[name], arrays[name])


def test_targets_equal_mmdetections(predictions):
    compare_adaptive_targets(predictions, "gfl_b0")


NAMES = {"class_loss": "loss_cls", "box_loss": "loss_bbox", "distribution_loss": "loss_dfl"}


@pytest.mark.parametrize("case", ["loss_eval", "loss_eval_img1_empty"])
def test_losses_equal_mmdetections(model, predictions, case):
    compare_losses(model, predictions, "gfl_b0", case, NAMES)


@pytest.mark.parametrize("kind", ["pred", "pred_rescaled"])
def test_detections_equal_mmdetections(model, predictions, kind):
    compare_decoding(model, predictions, "gfl_b0", kind)


@pytest.mark.slow
def test_training_equals_mmdetections():
    model = make_reference_model(GFL, "gfl_b0")
    reference = load_case("loss_train")
    losses, gradients = compute_gradients(
        model, make_inputs(load_case("loss_eval")), make_targets(load_case("loss_eval"))
    )
    assert sum(losses.values()) == pytest.approx(float(reference["total_loss"]), rel=2e-6)
    # Noise of 1e-6 in the images moves the backbone's gradients by 2e-3: the norms over a few cells of the
    # coarse levels take most of them out. The head's own are equal to 3e-5.
    limits = {"tolerance": 5e-3, "rounding": 5e-5, "head_tolerance": 1e-4}
    compare_training("gfl_b0", reference, gradients, name_variables(model), **limits)
