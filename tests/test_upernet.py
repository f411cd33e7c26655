import functools
import json

import contracts
import keras
import numpy as np
import pytest
import tensorflow as tf
from golden_reference import ROOT, check, checkpoint, load, needs_golden

from heads import UPerNet, segment_images
from heads.resizing import resize_bilinear
from heads.segmentation import predict_logits
from van_backbones import VANBackbone
from van_backbones.checkpoints import load_state_dict, name_variables

PARAMETERS = {
    "b0": 32_133_004,
    "b1": 43_836_652,
    "b2": 56_553_324,
    "b3": 74_740_460,
    "b4": 90_258_028,
    "b5": 121_890_188,
    "b6": 231_481_580,
}
NUM_CLASSES = 3


def make_head(backbone):
    return UPerNet(backbone, NUM_CLASSES, channels=8, auxiliary_channels=8)


def make_small_van():
    keras.utils.set_random_seed(0)
    return make_head(VANBackbone("b0", widths=(8, 8, 16, 16), depths=(1, 1, 1, 1)))


def make_on_pooled_backbone():
    keras.utils.set_random_seed(0)
    return make_head(contracts.PooledBackbone())


def make_on_keras_hub():
    keras_hub = pytest.importorskip("keras_hub")
    keras.utils.set_random_seed(0)
    backbone = keras_hub.models.ResNetBackbone(
        input_conv_filters=[64],
        input_conv_kernel_sizes=[7],
        stackwise_num_filters=[64, 64, 64, 64],
        stackwise_num_blocks=[1, 1, 1, 1],
        stackwise_num_strides=[1, 2, 2, 2],
        block_type="basic_block",
    )
    return make_head(backbone)


both_backbones = pytest.mark.parametrize("make_model", [make_small_van, make_on_pooled_backbone])


def make_batch(size=(64, 64), count=3):
    generator = np.random.default_rng(sum(size))
    images = generator.uniform(0, 255, (count, *size, 3)).astype("float32")
    labels = generator.integers(0, NUM_CLASSES, (count, *size)).astype("int32")
    labels[generator.random(labels.shape) < 0.1] = 255
    return images, labels


# What every head must do.


@both_backbones
def test_every_weight_gets_a_gradient(make_model):
    contracts.check_every_weight_gets_a_gradient(make_model, make_batch(), ("_embedding/proj/bias",))


@both_backbones
def test_fit(make_model):
    contracts.check_fit(make_model, make_batch(), ["mean_iou"])


def test_labels_without_truth():
    images, labels = make_batch()
    contracts.check_targets_without_truth(make_on_pooled_backbone, images, np.full_like(labels, 255))


def test_image_sizes():
    contracts.check_image_sizes(make_on_pooled_backbone, make_batch)


def test_unknown_sizes():
    contracts.check_unknown_sizes(make_on_pooled_backbone, make_batch)


def test_saving(tmp_path):
    contracts.check_saving(make_on_pooled_backbone, make_batch(), tmp_path / "model.keras")


@both_backbones
def test_config(make_model):
    contracts.check_config(make_model)


def test_mixed_precision():
    label_maps = contracts.check_mixed_precision(make_small_van, make_batch())
    assert label_maps.dtype == np.int32
    assert label_maps.shape == (3, 64, 64)


def test_frozen_backbone(tmp_path):
    contracts.check_frozen_backbone(make_on_pooled_backbone, make_batch(), tmp_path / "model.keras")


def test_evaluate():
    names = ["loss", "segmentation_loss", "mean_iou"]
    contracts.check_evaluate(make_on_pooled_backbone, make_batch(), names)


def test_sample_weight():
    contracts.check_sample_weight(make_on_pooled_backbone, make_batch())


def test_backbones_without_pyramid():
    contracts.check_backbones_without_pyramid(make_head)


def test_on_keras_hub_backbone():
    contracts.check_fit(make_on_keras_hub, make_batch(), ["mean_iou"])


# What this head does.


@pytest.fixture(scope="module")
def small_model():
    return make_small_van()


def test_predict_gives_the_best_class(small_model):
    images, _ = make_batch((33, 49))
    logits = np.asarray(small_model(images))
    assert logits.shape == (3, 33, 49, NUM_CLASSES)
    label_maps = small_model.predict(images, verbose=0)
    assert label_maps.dtype == np.int32
    assert np.mean(label_maps != logits.argmax(-1)) < 1e-3
    np.testing.assert_array_equal(small_model.decode(logits), logits.argmax(-1))


def test_symbolic_call(small_model):
    logits = small_model(keras.Input((None, None, 3)))
    assert tuple(logits.shape) == (None, None, None, NUM_CLASSES)
    assert logits.dtype == "float32"


def test_segment_is_segment_images(small_model):
    images, _ = make_batch((33, 40), count=1)
    options = {"crop": (32, 32), "stride": (20, 20), "scales": (1.0, 0.9), "flip": True}
    np.testing.assert_array_equal(
        small_model.segment(images, **options), segment_images(small_model, images, **options)
    )
    np.testing.assert_array_equal(small_model.segment(images), np.asarray(small_model(images)).argmax(-1))


def test_training_drops_channels_of_the_classifier():
    model = UPerNet(contracts.PooledBackbone(), NUM_CLASSES, 8, 8, dropout_rate=0.9)
    images, _ = make_batch()
    keras.utils.set_random_seed(1)
    first, second = model(images, training=True), model(images, training=True)
    for name in ("logits", "auxiliary_logits"):
        assert np.abs(first[name] - second[name]).max() > 1e-4
    np.testing.assert_array_equal(model(images, training=False), model(images))


@pytest.mark.parametrize("num_classes", [0, -1])
def test_too_few_classes_raise(num_classes):
    with pytest.raises(ValueError, match=rf"num_classes must be at least 1\. Received: {num_classes}"):
        UPerNet(contracts.PooledBackbone(), num_classes)


def test_one_policy_for_the_head_alone():
    model = UPerNet(contracts.PooledBackbone(), NUM_CLASSES, 8, 8, dtype="mixed_bfloat16")
    assert model.fusion_block.compute_dtype == "bfloat16"
    assert model(make_batch()[0]).dtype == tf.float32
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


def to_nchw(array):
    return np.asarray(array).transpose(0, 3, 1, 2)


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


@needs_golden
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


@needs_golden
def test_predict_equals_mmsegmentation(reference_model):
    reference, images = load_case("forward_odd")
    label_maps = reference_model.predict(images, verbose=0)
    assert (label_maps != reference["resized_argmax"]).sum() <= 5
    logits = reference_model(images)
    check(reference["resized_logits_first8ch"], to_nchw(logits)[:, :8])


@needs_golden
def test_sliding_equals_mmsegmentation(reference_model):
    reference, images = load_case("slide")
    logits = predict_logits(reference_model, images, crop=(128, 160), stride=(85, 107))
    check(reference["logits_first8ch"], to_nchw(logits)[:, :8])
    label_maps = np.asarray(logits).argmax(-1)
    assert (label_maps != reference["argmax"]).sum() <= 5


@needs_golden
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [("float32", 5e-3), pytest.param("float64", 1e-3, marks=pytest.mark.slow)]
)
def test_training_equals_mmsegmentation(dtype, tolerance):
    # Batch norm over two samples, at the pooling to one cell, turns differences of a rounding error into +1
    # and -1: float32 gradients are 1.3e-3 away from the float64 ones, and the reference's, which are float32
    # too, 6e-4.
    reference = load("upernet_b0/loss_train.npz")
    forward, images = load_case("forward")
    labels = forward["labels"].astype("int32")
    floatx, policy = keras.config.floatx(), keras.config.dtype_policy()
    keras.config.set_floatx(dtype)
    keras.config.set_dtype_policy(dtype)
    try:
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
    finally:
        keras.config.set_floatx(floatx)
        keras.config.set_dtype_policy(policy)
    gradients = dict(zip(weights, gradients, strict=True))
    expected = [float(reference[f"loss.{part}.loss_ce"]) for part in ("decode", "aux")]
    np.testing.assert_allclose([float(loss) for loss in losses.values()], expected, rtol=2e-5)
    compare_with_reference(reference, gradients, names, tolerance)


def compare_with_reference(reference, gradients, names, tolerance):
    """Compares the gradients and the batch norms' new statistics that the reference holds."""
    compared = 0
    for key, expected in reference.items():
        kind, _, name = key.partition(":")
        if kind not in ("grad", "buf_after"):
            continue
        array = np.asarray(gradients[name] if kind == "grad" else names[name])
        if array.ndim == 4:
            axes = (2, 3, 0, 1) if ".conv_spatial." in name else (3, 2, 0, 1)
            array = array.transpose(axes)
        check(expected, array, tolerance)
        compared += 1
    assert compared == 9

    lengths = json.loads((ROOT / "upernet_b0" / "loss_train.grads.json").read_text())["grad_l2"]
    assert set(lengths) == set(gradients)
    for name, expected in lengths.items():
        # The gradients of biases right before a batch norm are rounding errors around 0.
        got = float(np.linalg.norm(np.ravel(gradients[name])))
        assert got == pytest.approx(expected, rel=5 * tolerance, abs=1e-5), name
