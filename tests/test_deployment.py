"""Deployed models give what the models give, and so do their exports, each in its own runtime."""

import math

import contracts
import keras
import numpy as np
import pytest
import tensorflow as tf

from heads import MaskRCNN, RetinaNet, SemanticFPN, UPerNet
from van_backbones import VANBackbone, VANClassifier
from van_backbones.activations import fused_gelu
from van_backbones.deployment import FORMATS, DeployedBackbone, deploy, export
from van_backbones.folded_layers import FoldedPatchEmbedding, FoldedVANBlock
from van_backbones.layers import OverlapPatchEmbedding, VANBlock
from van_backbones.runtimes import load_export, measure_export

PACKAGES = {"onnx": "onnxruntime", "openvino": "openvino", "litert": "ai_edge_litert"}
SMALL = {"widths": (8, 8, 16, 16), "depths": (1, 2, 1, 1)}


def build(model_class=None, **arguments):
    """Gives a small backbone, or a head on it, with weights that show."""
    keras.utils.set_random_seed(0)
    model = VANBackbone("b0", **SMALL)
    if model_class is not None:
        model = model_class(model, **arguments)
    contracts.shake_weights(model)
    return model


def draw_images(size=(49, 70), count=2):
    random = np.random.default_rng(0)
    coarse = random.integers(0, 256, (count, -(-size[0] // 7), -(-size[1] // 7), 3))
    return coarse.repeat(7, axis=1).repeat(7, axis=2)[:, : size[0], : size[1]].astype("uint8")


def relative_error(ours, theirs):
    ours, theirs = np.asarray(ours, "float64"), np.asarray(theirs, "float64")
    assert ours.shape == theirs.shape
    return np.abs(ours - theirs).max() / np.abs(theirs).max()


@pytest.mark.parametrize("kernel_size", [3, 7])
def test_patch_embedding(kernel_size):
    embedding = OverlapPatchEmbedding(8, kernel_size, 2)
    folded = FoldedPatchEmbedding(8, kernel_size, 2)
    inputs = np.random.default_rng(0).normal(size=(2, 9, 14, 3)).astype("float32")
    embedding.build(inputs.shape)
    folded.build(inputs.shape)
    contracts.shake_weights(embedding)
    folded.fold(embedding)
    assert relative_error(folded(inputs), embedding(inputs)) < 1e-5
    assert folded.compute_output_shape(inputs.shape) == embedding(inputs).shape


def test_block_is_exact_at_the_border():
    """A norm's shift that went through a padded convolution would show at the border and nowhere else."""
    block, folded = VANBlock(4), FoldedVANBlock(4)
    inputs = np.random.default_rng(0).normal(size=(1, 25, 31, 8)).astype("float32")
    block.build(inputs.shape)
    folded.build(inputs.shape)
    contracts.shake_weights(block)
    for norm in (block.norm1, block.norm2):
        norm.beta.assign(norm.beta + 3.0)
    folded.fold(block)
    attended = inputs + np.asarray(block.layer_scale_1) * np.asarray(block.attention(block.norm1(inputs)))
    expected = attended + np.asarray(block.layer_scale_2) * np.asarray(
        block.feed_forward(block.norm2(attended))
    )
    outputs = np.asarray(folded(inputs))
    assert relative_error(outputs, expected) < 1e-5
    assert relative_error(outputs[:, 0], expected[:, 0]) < 1e-5
    assert not [weight for weight in folded.weights if "norm" in weight.path or "layer_scale" in weight.path]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_fused_gelu(dtype):
    values = tf.cast(np.linspace(-6.0, 6.0, 481, dtype="float32")[None], dtype)
    compiled = fused_gelu(values)
    any_batch, any_size = (
        tf.function(fused_gelu, input_signature=[tf.TensorSpec(shape, dtype)])
        for shape in [(None, 481), (None, None)]
    )
    expected = [x * 0.5 * math.erfc(-x * math.sqrt(0.5)) for x in values.numpy()[0].astype("float64")]
    # TensorFlow compiles it at the second call: all are to agree.
    calls = [compiled, *(function(values) for function in (any_batch, any_size) for _ in range(4))]
    for outputs in (*calls, any_batch(tf.repeat(values, 3, axis=0))[2:]):
        assert outputs.dtype == dtype
        tolerance = {"float32": 1e-6, "bfloat16": 2e-2}[dtype]
        np.testing.assert_allclose(tf.cast(outputs[0], "float64"), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("size", [(64, 64), (33, 50)])
def test_backbone(size):
    backbone = build()
    deployed = deploy(backbone)
    assert isinstance(deployed, DeployedBackbone)
    assert list(deployed.pyramid_outputs) == ["P2", "P3", "P4", "P5"]
    images = draw_images(size).astype("float32")
    expected, pyramid = backbone(images, training=False), deployed(images, training=True)
    for level, outputs in expected.items():
        assert relative_error(pyramid[level], outputs) < 1e-5


def test_deploying_twice_changes_nothing():
    deployed = deploy(build())
    assert deploy(deployed) is deployed


def test_backbone_saves_and_loads(tmp_path):
    deployed = deploy(build())
    deployed.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert isinstance(loaded, DeployedBackbone)
    images = draw_images().astype("float32")
    pyramid, expected = loaded(images), deployed(images)
    for level in expected:
        np.testing.assert_array_equal(pyramid[level], expected[level])


def test_new_head_on_a_deployed_backbone():
    head = SemanticFPN(deploy(build()), num_classes=3, channels=8, pyramid_channels=8)
    images = draw_images().astype("float32")
    deployed = deploy(head)
    assert deployed is not head
    assert not [weight for weight in deployed.weights if "norm/" in weight.path and "moving" in weight.path]
    assert relative_error(deployed(images), head(images)) < 1e-5


def test_deployed_backbone_names_no_checkpoint_weights():
    with pytest.raises(ValueError, match="deploy after loading"):
        deploy(build()).reference_layers()
    with pytest.raises(ValueError, match="deploy after loading"):
        deploy(build(SemanticFPN, num_classes=3, channels=8, pyramid_channels=8)).reference_layers()


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "bfloat16"])
def test_half_precision(policy):
    """Deployed from either precision, a model is about as far from float32 as it was before."""
    backbone = build()
    images = draw_images().astype("float32")
    expected = backbone(images, training=False)
    half = VANBackbone("b0", **SMALL, dtype=policy)
    half.set_weights(backbone.get_weights())
    before = half(images, training=False)
    for deployed in (deploy(backbone, policy), deploy(half)):
        pyramid = deployed(images)
        for level, outputs in expected.items():
            assert pyramid[level].dtype == "bfloat16"
            error, error_before = (relative_error(each[level], outputs) for each in (pyramid, before))
            assert error < 2 * error_before < 0.3
    block = next(layer for layer in deployed.layers if isinstance(layer, FoldedVANBlock))
    assert {weight.dtype for weight in block.weights} == {"bfloat16"}


def test_classifier():
    model = VANClassifier("b0", num_classes=5)
    contracts.shake_weights(model)
    # What a model was compiled with does not matter.
    model.compile(optimizer="sgd", loss=lambda truth, logits: keras.ops.mean(logits))
    deployed = deploy(model)
    images = draw_images((64, 64)).astype("float32")
    assert relative_error(deployed(images), model(images)) < 1e-4
    assert len(deployed.weights) < len(model.weights)


def test_functional_model_around_a_backbone():
    backbone = build()
    images = keras.Input((None, None, 3))
    pooled = keras.layers.GlobalAveragePooling2D()(backbone(keras.layers.Rescaling(0.5)(images))["P4"])
    model = keras.Model(images, keras.layers.Dense(3)(pooled))
    deployed = deploy(model)
    values = draw_images().astype("float32")
    assert relative_error(deployed(values), model(values)) < 1e-5
    assert any(isinstance(layer, FoldedVANBlock) for layer in deployed._flatten_layers())


@pytest.mark.parametrize(
    "model", [None, "b1", keras.layers.Dense(3), keras.Sequential([keras.layers.Dense(3)])]
)
def test_other_models_are_refused(model):
    with pytest.raises(TypeError, match="model must be a VANBackbone"):
        deploy(model)


# --- exports ---


def export_to(tmp_path, model, format, **arguments):
    """Gives the answers of an export, run by its own runtime."""
    if format in PACKAGES:
        pytest.importorskip(PACKAGES[format])
        for package in FORMATS[format][1]:
            pytest.importorskip(package)
    path = tmp_path / f"model{FORMATS[format][0]}"
    export(model, path, format, **arguments)
    return load_export(path)


@pytest.mark.parametrize("format", list(FORMATS))
def test_export_of_a_backbone(format, tmp_path):
    backbone = build()
    run = export_to(tmp_path, backbone, format)
    for size, count in (((49, 70), 2), ((64, 33), 1)):  # one file for all sizes
        images = draw_images(size, count)
        pyramid = run(images)
        expected = backbone(images.astype("float32"), training=False)
        assert set(pyramid) == set(expected)
        for level, outputs in expected.items():
            assert relative_error(pyramid[level], outputs) < 1e-4
    # The model itself stays as it was.
    assert all(isinstance(part.dtype_policy, keras.dtype_policies.DTypePolicy) for part in backbone.layers)
    assert backbone.trainable_variables


# Of the other formats, the backbone's exports are in the fast suite.
SLOWER = [pytest.param(format, marks=pytest.mark.slow) for format in ("saved_model", "litert")]


@pytest.mark.parametrize("format", ["onnx", "openvino", *SLOWER])
def test_export_of_a_segmenter(format, tmp_path):
    model = build(UPerNet, num_classes=4, channels=8, auxiliary_channels=8)
    # At its start the classifier gives one class everywhere, that of the largest bias.
    model.classifier.conv.kernel.assign(100.0 * model.classifier.conv.kernel)
    images = draw_images((64, 96))
    answers = export_to(tmp_path, model, format, image_size=(64, 96), batch_size=2)(images)
    assert list(answers) == ["outputs"]
    assert answers["outputs"].dtype == "int32"
    expected = model.predict_on_batch(images.astype("float32"))
    assert len(np.unique(expected)) > 1
    assert np.mean(answers["outputs"] != expected) < 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("format", list(FORMATS))
@pytest.mark.parametrize("head", [SemanticFPN, RetinaNet, MaskRCNN])
def test_export_of_every_head(head, format, tmp_path):
    check_export_of_a_head(head, format, tmp_path)


def test_export_of_a_detector_with_frozen_weights(tmp_path):
    check_export_of_a_head(RetinaNet, "saved_model", tmp_path, freeze_weights=True)


def check_export_of_a_head(head, format, tmp_path, **arguments):
    """Compares label maps, or the scores of detections in order and their boxes where no near-tie swaps."""
    sizes = {
        SemanticFPN: {"channels": 8, "pyramid_channels": 8},
        RetinaNet: {"channels": 8, "num_convs": 1, "score_threshold": 0.001},
        MaskRCNN: {"channels": 8, "num_proposals": 20, "score_threshold": 0.001},
    }
    model = build(head, num_classes=3, **sizes[head])
    if head is SemanticFPN:
        model.classifier.conv.kernel.assign(100.0 * model.classifier.conv.kernel)
    run = export_to(tmp_path, model, format, **arguments)
    for size in ((64, 96), (70, 49)):
        images = draw_images(size)
        answers = run(images)
        expected = model.predict_on_batch(images.astype("float32"))
        if head is SemanticFPN:
            assert len(np.unique(expected)) > 1
            assert np.mean(answers["outputs"] != expected) < 1e-3
            continue
        assert set(answers) == set(expected)
        np.testing.assert_allclose(answers["scores"], expected["scores"], rtol=1e-3, atol=1e-5)
        assert (expected["scores"] > 0).sum() > 10
        near = np.abs(answers["boxes"] - expected["boxes"]).max(-1) < 1e-2
        assert near.mean() > 0.9
        assert (answers["labels"] == expected["labels"])[near].mean() > 0.9


@pytest.mark.parametrize("freeze_weights", [True, False])
def test_saved_model_takes_encoded_pictures(freeze_weights, tmp_path):
    export(build(), tmp_path / "model", freeze_weights=freeze_weights)
    signatures = tf.saved_model.load(tmp_path / "model").signatures
    images = draw_images()
    encoded = tf.stack([tf.io.encode_png(image) for image in images])
    expected = signatures["serving_default"](images=tf.constant(images))
    for level, outputs in signatures["serve_encoded"](images=encoded).items():
        np.testing.assert_array_equal(outputs, expected[level])
    with pytest.raises(tf.errors.InvalidArgumentError):
        signatures["serve_encoded"](images=tf.constant([b"not a picture"]))


@pytest.mark.parametrize("freeze_weights", [True, False])
@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_saved_model_holds_its_weights_once(policy, freeze_weights, tmp_path):
    model = VANBackbone("b0", (64, 96, 3), **{**SMALL, "widths": (64, 64, 128, 128)}, dtype=policy)
    contracts.shake_weights(model)
    weights = model.get_weights()
    export(model, tmp_path / "model", freeze_weights=freeze_weights)
    loaded = tf.saved_model.load(tmp_path / "model")
    for function in loaded.signatures.values():
        assert bool(function.graph.variables) == (not freeze_weights)
        assert bool(function.captured_inputs) == (not freeze_weights)  # nor constants that come as inputs
    bytes_each, tolerance = {"float32": (4, 1e-4), "mixed_bfloat16": (2, 0.1)}[policy]
    assert measure_export(tmp_path / "model") < 1.5 * bytes_each * model.count_params()

    images = draw_images((64, 96))
    expected = deploy(model)(images.astype("float32"))
    pyramid = load_export(tmp_path / "model")(images)
    for level, outputs in expected.items():
        assert pyramid[level].dtype == outputs.dtype
        assert relative_error(pyramid[level], outputs) < tolerance
    for before, after in zip(weights, model.get_weights(), strict=True):
        np.testing.assert_array_equal(before, after)


def test_normalized_images_are_exported_as_numbers(tmp_path):
    backbone = VANBackbone("b0", (None, None, 5), normalization=None, **SMALL)
    export(backbone, tmp_path / "model")
    signatures = tf.saved_model.load(tmp_path / "model").signatures
    assert "serve_encoded" not in signatures
    images = np.random.default_rng(0).normal(size=(1, 40, 40, 5)).astype("float32")
    outputs = signatures["serving_default"](images=tf.constant(images))
    assert relative_error(outputs["P5"], backbone(images)["P5"]) < 1e-4


def test_half_precision_is_exported_in_float32(tmp_path):
    pytest.importorskip("openvino")
    half = VANBackbone("b0", **SMALL, dtype="mixed_bfloat16")
    images = draw_images()
    pyramid = export_to(tmp_path, half, "openvino")(images)
    exact = VANBackbone("b0", **SMALL)
    exact.set_weights(half.get_weights())
    expected = exact(images.astype("float32"))
    for level, outputs in expected.items():
        assert relative_error(pyramid[level], outputs) < 1e-4
    with pytest.raises(ValueError, match="wants float32"):
        export(deploy(half), tmp_path / "model.xml", "openvino")


def test_fixed_sizes_are_kept(tmp_path):
    backbone = VANBackbone("b0", (64, 96, 3), **SMALL)
    export(backbone, tmp_path / "model")
    with pytest.raises(ValueError, match=r"\(2, 64, 96, 3\)|\(None, 64, 96, 3\)"):
        load_export(tmp_path / "model")(draw_images((64, 64)))
    with pytest.raises(ValueError, match=r"image_size must be \(64, 96\)"):
        export(backbone, tmp_path / "other", image_size=(64, 64))


@pytest.mark.parametrize(
    ("path", "format", "message"),
    [
        ("model", "torchscript", "format must be one of"),
        ("model.xml", "onnx", 'must end in ".onnx"'),
        ("model", "litert", 'must end in ".tflite"'),
    ],
)
def test_wrong_arguments(path, format, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        export(build(), tmp_path / path, format)
    assert not list(tmp_path.iterdir())
