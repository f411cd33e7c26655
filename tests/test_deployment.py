"""Deployed models predict what the models predict."""

import math

import contracts
import keras
import numpy as np
import pytest
import tensorflow as tf
from small_models import SMALL, build, draw_images, relative_error

from heads import Resizing, SemanticFPN
from van_backbones import VANBackbone, VANClassifier
from van_backbones.cpu_kernels import fused_gelu
from van_backbones.deployment import DeployedBackbone, deploy
from van_backbones.folded_layers import FoldedPatchEmbedding, FoldedVANBlock
from van_backbones.layers import OverlapPatchEmbedding, VANBlock


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
    """A norm's shift that went through a padded convolution would be visible at the border only."""
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
    # TensorFlow compiles it at the second call: all calls should agree.
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
    assert not deployed.trainable_variables
    assert relative_error(deployed(images), head(images)) < 1e-5


def test_deployed_head_takes_pictures_as_before(tmp_path):
    options = {"class_names": ("a", "b", "c"), "resizing": Resizing(image_size=(64, 96))}
    head = SemanticFPN(build(), num_classes=3, channels=8, pyramid_channels=8, **options)
    picture = np.random.default_rng(0).integers(0, 256, (50, 70, 3), "uint8")
    (expected,) = head.predict_pictures(picture)
    deployed = deploy(head)
    deployed.save(tmp_path / "deployed.keras")
    for model in (deployed, keras.saving.load_model(tmp_path / "deployed.keras")):
        assert model.resizing.get_config() == head.resizing.get_config()
        assert model.class_names == head.class_names
        (found,) = model.predict_pictures(picture)
        assert np.mean(found["label_map"] == expected["label_map"]) > 0.99


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


# Backbones and heads inside other models.

IMAGES = draw_images((64, 64)).astype("float32")


def check_deployed(model, inputs=IMAGES, dtype=None):
    """Everything is folded, the answers are equal, and the model itself is unchanged; returns the result."""
    weights = model.get_weights()
    deployed = deploy(model, dtype)
    for layer in deployed._flatten_layers():
        assert not isinstance(layer, (VANBlock, OverlapPatchEmbedding))
        assert getattr(layer, "folded", True)
        assert not getattr(layer, "lora_enabled", False)
    pairs = zip(
        *(keras.tree.flatten(each(inputs, training=False)) for each in (deployed, model)), strict=True
    )
    for ours, theirs in pairs:
        assert relative_error(ours, theirs) < 1e-5
    assert len(model.get_weights()) == len(weights)
    assert deploy(deployed) is deployed
    return deployed


def enable_lora(model):
    """Gives LoRA to every layer of a model that supports it, enough to change kernels and answers."""
    random = np.random.default_rng(0)
    for layer in list(model._flatten_layers()):
        if hasattr(layer, "enable_lora") and not list(layer._flatten_layers(include_self=False)):
            layer.enable_lora(2, lora_alpha=3)
            layer.lora_kernel_b.assign(random.normal(0.0, 0.1, layer.lora_kernel_b.shape))
    return model


@pytest.fixture(scope="module")
def backbone():
    return build()


def test_head_with_lora_in_a_functional_model():
    head = enable_lora(build(SemanticFPN, num_classes=3, channels=8, pyramid_channels=8))
    images = keras.Input((64, 64, 3))
    check_deployed(keras.Model(images, keras.layers.Softmax()(head(images))))


def test_sequential_model_with_lora(backbone, tmp_path):
    """With a layer that has statistics outside of its variables, and one that Keras cannot copy."""
    scaling = keras.layers.Normalization()
    scaling.adapt(IMAGES / 2)
    part = keras.Model(backbone.input, backbone.output["P4"])
    pooling = keras.layers.Lambda(lambda maps: keras.ops.mean(maps, (1, 2)))
    model = keras.Sequential([keras.Input((64, 64, 3)), scaling, part, pooling, keras.layers.Dense(3)])
    model.layers[-1].enable_lora(2, lora_alpha=5)
    model.layers[-1].lora_kernel_b.assign(np.ones((2, 3)))
    assert isinstance(check_deployed(model), keras.Sequential)


def test_two_inputs_and_two_outputs(backbone):
    """A backbone that is called twice, an operation that is no layer, and a backbone that is not trained."""
    images, numbers = keras.Input((64, 64, 3)), keras.Input((5,))
    mirrored = backbone(keras.ops.flip(images, 2), training=False)["P5"]
    maps = keras.layers.Subtract()([backbone(keras.layers.RandomFlip()(images))["P5"], mirrored])
    pooled = keras.layers.GlobalAveragePooling2D()(maps)
    joined = keras.layers.Concatenate()([pooled, keras.layers.Dropout(0.5)(numbers)])
    model = keras.Model([images, numbers], [keras.layers.Dense(2)(joined), maps])
    check_deployed(model, [IMAGES, np.ones((2, 5), "float32")])


def test_head_on_a_functional_model_with_a_backbone(backbone):
    images = keras.Input((None, None, 3))
    pyramid = backbone(keras.layers.Rescaling(0.5)(images))
    own = keras.Model(images, pyramid)
    own.pyramid_outputs = pyramid
    size = {"num_classes": 3, "channels": 8, "pyramid_channels": 8}
    assert isinstance(check_deployed(SemanticFPN(own, **size)).backbone, DeployedBackbone)
    other = keras.Model(images, list(pyramid.values()))
    other.pyramid_outputs = pyramid
    with pytest.raises(
        TypeError, match="must have a VANBackbone as its backbone, or a functional model whose outputs"
    ):
        deploy(SemanticFPN(other, **size))


def test_quantized_layers_stay_quantized(backbone):
    part = keras.Model(backbone.input, backbone.output["P4"])
    pooling, dense = keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(3)
    model = keras.Sequential([keras.Input((64, 64, 3)), part, pooling, dense])
    dense.quantize("int8")
    check_deployed(model)
    with pytest.raises(ValueError, match=r"quantized, as dense\S* is .*Received: 'float32'"):
        deploy(model, "float32")


class Wrapped(keras.Model):
    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone

    def call(self, images):
        return self.backbone(images)["P5"]


class Doubled(VANBackbone):
    def call(self, images, training=None, mask=None):
        return {level: 2 * maps for level, maps in super().call(images, training=training).items()}


def test_backbones_out_of_reach_are_refused(backbone):
    """Otherwise the result would be a model that is no faster, or predicts something else."""
    wrapped = Wrapped(backbone)
    wrapped(IMAGES)
    images, frames = keras.Input((64, 64, 3)), keras.Input((2, 64, 64, 3))
    part = keras.Model(backbone.input, backbone.output["P5"])
    models = {
        "Wrapped": [wrapped, keras.Model(images, keras.layers.ReLU()(wrapped(images)))],
        "TimeDistributed": [keras.Model(frames, keras.layers.TimeDistributed(part)(frames))],
        "Doubled": [Doubled("b0", **SMALL)],
    }
    for name, refused in models.items():
        for model in refused:
            with pytest.raises(TypeError, match=f"is a {name}, which has a `call` of its own. Deploy the"):
                deploy(model)
