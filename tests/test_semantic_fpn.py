import functools

import contracts
import numpy as np
import pytest
import tensorflow as tf
from golden_reference import check, checkpoint, compare_training, load, to_nchw

from heads import SemanticFPN
from heads.ops.resizing import resize_bilinear
from heads.semantic_model import predict_logits
from van_backbones import VANBackbone
from van_backbones.checkpoints.loading import load_state_dict, name_variables

PARAMETERS = {"b0": 7_984_374, "b1": 17_615_446, "b2": 30_332_118, "b3": 48_519_254, "b4": 64_036_822}


def test_one_policy_for_the_head_alone():
    model = SemanticFPN(contracts.PooledBackbone(), 3, 8, 16, dtype="mixed_bfloat16")
    assert model.neck.compute_dtype == "bfloat16"
    assert model(np.zeros((1, 64, 64, 3))).dtype == tf.float32
    copy = SemanticFPN.from_config(model.get_config())
    assert copy.scale_heads[3].parts[2].conv.compute_dtype == "bfloat16"
    assert copy.backbone.compute_dtype == "float32"


def count_trainable(variant):
    model = SemanticFPN(VANBackbone(variant), num_classes=150)
    return sum(int(np.prod(variable.shape)) for variable in model.trainable_variables)


@pytest.mark.parametrize("variant", ["b0", "b1"])
def test_parameters(variant):
    assert count_trainable(variant) == PARAMETERS[variant]


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["b2", "b3", "b4"])
def test_parameters_of_large_variants(variant):
    assert count_trainable(variant) == PARAMETERS[variant]


# The same numbers as mmsegmentation's.


def make_reference_model():
    backbone = VANBackbone("b0", normalization=None, layer_norm_epsilon=1e-5, drop_path_rate=0.0)
    model = SemanticFPN(backbone, num_classes=150, dropout_rate=0.0)
    load_state_dict(model, checkpoint("semfpn_b0"))
    return model


@pytest.fixture(scope="module")
def reference_model():
    return make_reference_model()


@functools.cache
def load_case(case):
    reference = load(f"semfpn_b0/{case}.npz")
    return reference, reference["input"].transpose(0, 2, 3, 1)


@pytest.mark.parametrize("case", ["forward", "forward_odd"])
def test_forward_equals_mmsegmentation(reference_model, case):
    reference, images = load_case(case)
    check(reference["logits"], to_nchw(reference_model.compute_logits(images, training=False)))
    logits = reference_model(images)
    check(reference["resized_logits_first8ch"], to_nchw(logits)[:, :8])
    label_maps = np.asarray(reference_model.decode(logits))
    assert (label_maps != reference["resized_argmax"]).sum() <= 5  # near-ties
    original = resize_bilinear(logits, reference["pred_ori_shape"].shape[1:])
    check(reference["pred_logits_ori_first4ch"], to_nchw(original)[:, :4])

    losses = reference_model.compute_losses(reference["labels"].astype("int32"), logits)
    assert list(losses) == ["segmentation_loss"]
    assert float(losses["segmentation_loss"]) == pytest.approx(
        float(reference["loss_decode.loss_ce"]), rel=2e-5
    )


def test_predict_equals_mmsegmentation(reference_model):
    reference, images = load_case("forward_odd")
    label_maps = reference_model.predict(images, verbose=0)
    assert (label_maps != reference["resized_argmax"]).sum() <= 5


def test_sliding_equals_mmsegmentation(reference_model):
    reference, images = load_case("slide")
    logits = predict_logits(reference_model, images, crop=(128, 160), stride=(85, 107))
    check(reference["logits_first8ch"], to_nchw(logits)[:, :8])
    label_maps = reference_model.segment(images, crop=(128, 160), stride=(85, 107))
    assert (label_maps != reference["argmax"]).sum() <= 5


def test_training_equals_mmsegmentation():
    reference, images = load("semfpn_b0/loss_train.npz"), load_case("forward")[1]
    labels = load_case("forward")[0]["labels"].astype("int32")
    model = make_reference_model()
    names = name_variables(model)
    weights = {name: variable for name, variable in names.items() if variable.trainable}

    @tf.function
    def compute():
        with tf.GradientTape() as tape:
            losses = model.compute_losses(labels, model(images, training=True))
            total = sum(losses.values())
        return total, tape.gradient(total, [variable.value for variable in weights.values()])

    total, gradients = compute()
    gradients = dict(zip(weights, gradients, strict=True))
    assert float(total) == pytest.approx(float(reference["total_loss"]), rel=2e-5)
    compare_training("semfpn_b0", reference, gradients, names, tolerance=1e-4)
