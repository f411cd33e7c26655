import functools

import contracts
import numpy as np
import pytest
import tensorflow as tf
from golden_reference import check, checkpoint, compare_training, computing_in, load, to_nchw

from heads import UPerNet
from heads.ops.resizing import resize_bilinear
from heads.semantic_model import predict_logits
from van_backbones import VANBackbone
from van_backbones.checkpoints.loading import load_state_dict, name_variables

PARAMETERS = {
    "b0": 32_133_004,
    "b1": 43_836_652,
    "b2": 56_553_324,
    "b3": 74_740_460,
    "b4": 90_258_028,
    "b5": 121_890_188,
    "b6": 231_481_580,
}


def test_one_policy_for_the_head_alone():
    model = UPerNet(contracts.PooledBackbone(), 3, 8, 8, dtype="mixed_bfloat16")
    assert model.fusion_block.compute_dtype == "bfloat16"
    assert model(np.zeros((1, 64, 64, 3))).dtype == tf.float32
    copy = UPerNet.from_config(model.get_config())
    assert copy.pyramid_pooling.pool_blocks[3].conv.compute_dtype == "bfloat16"
    assert copy.backbone.compute_dtype == "float32"


def count_trainable(variant):
    model = UPerNet(VANBackbone(variant), num_classes=150)
    return sum(int(np.prod(variable.shape)) for variable in model.trainable_variables)


@pytest.mark.parametrize("variant", ["b0", "b1"])
def test_parameters(variant):
    assert count_trainable(variant) == PARAMETERS[variant]


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["b2", "b3", "b4", "b5", "b6"])
def test_parameters_of_large_variants(variant):
    assert count_trainable(variant) == PARAMETERS[variant]


# The same numbers as mmsegmentation's.


def make_reference_model():
    backbone = VANBackbone("b0", normalization=None, layer_norm_epsilon=1e-5, drop_path_rate=0.0)
    model = UPerNet(backbone, num_classes=150, dropout_rate=0.0)
    load_state_dict(model, checkpoint("upernet_b0"))
    return model


@pytest.fixture(scope="module")
def reference_model():
    return make_reference_model()


@functools.cache
def load_case(case):
    reference = load(f"upernet_b0/{case}.npz")
    return reference, reference["input"].transpose(0, 2, 3, 1)


@pytest.mark.parametrize("case", ["forward", "forward_odd"])
def test_forward_equals_mmsegmentation(reference_model, case):
    reference, images = load_case(case)
    pyramid = reference_model.pyramid(images, training=False)
    low_logits = reference_model.compute_logits(pyramid)
    check(reference["logits"], to_nchw(low_logits))
    low_auxiliary_logits = reference_model.compute_auxiliary_logits(pyramid)
    check(reference["aux_logits"], to_nchw(low_auxiliary_logits))

    logits = resize_bilinear(low_logits, images.shape[1:3])
    check(reference["resized_logits_first8ch"], to_nchw(logits)[:, :8])
    label_maps = np.asarray(reference_model.decode(logits))
    assert (label_maps != reference["resized_argmax"]).sum() <= 5  # near-ties
    original = resize_bilinear(logits, reference["pred_ori_shape"].shape[1:])
    check(reference["pred_logits_ori_first4ch"], to_nchw(original)[:, :4])

    labels = reference["labels"].astype("int32")
    auxiliary_logits = resize_bilinear(low_auxiliary_logits, images.shape[1:3])
    losses = reference_model.compute_losses(labels, {"logits": logits, "auxiliary_logits": auxiliary_logits})
    assert list(losses) == ["segmentation_loss", "auxiliary_loss"]
    expected = [float(reference[f"loss_{part}.loss_ce"]) for part in ("decode", "aux")]
    np.testing.assert_allclose([float(loss) for loss in losses.values()], expected, rtol=2e-5)
    assert list(reference_model.compute_losses(labels, logits)) == ["segmentation_loss"]


def test_predict_equals_mmsegmentation(reference_model):
    reference, images = load_case("forward_odd")
    label_maps = reference_model.predict(images, verbose=0)
    assert (label_maps != reference["resized_argmax"]).sum() <= 5
    logits = reference_model(images)
    check(reference["resized_logits_first8ch"], to_nchw(logits)[:, :8])


def test_sliding_equals_mmsegmentation(reference_model):
    reference, images = load_case("slide")
    logits = predict_logits(reference_model, images, crop=(128, 160), stride=(85, 107))
    check(reference["logits_first8ch"], to_nchw(logits)[:, :8])
    label_maps = np.asarray(logits).argmax(-1)
    assert (label_maps != reference["argmax"]).sum() <= 5


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 5e-3), ("float64", 1e-3)])
def test_training_equals_mmsegmentation(dtype, tolerance):
    # Batch norm over two samples, after the pooling to one cell, turns a difference of a rounding error into
    # +1 and -1: gradients in float32 are 1.3e-3 off those in float64, and the reference's, also in float32,
    # are 6e-4 off.
    reference = load("upernet_b0/loss_train.npz")
    forward, images = load_case("forward")
    labels = forward["labels"].astype("int32")
    with computing_in(dtype):
        model = make_reference_model()
        names = name_variables(model)
        weights = {name: variable for name, variable in names.items() if variable.trainable}

        @tf.function
        def compute():
            with tf.GradientTape() as tape:
                losses = model.compute_losses(labels, model(images.astype(dtype), training=True))
                total = sum(losses.values())
            return losses, tape.gradient(total, [variable.value for variable in weights.values()])

        losses, gradients = compute()
    gradients = dict(zip(weights, gradients, strict=True))
    expected = [float(reference[f"loss.{part}.loss_ce"]) for part in ("decode", "aux")]
    np.testing.assert_allclose([float(loss) for loss in losses.values()], expected, rtol=2e-5)
    compare_training("upernet_b0", reference, gradients, names, tolerance)
