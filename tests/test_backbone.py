"""VANBackbone: what it returns, what KerasHub's suite requires of a backbone, and what it refuses."""

import json
import math

import keras
import numpy as np
import pytest
import tensorflow as tf

from van_backbones import VANBackbone

SMALL = {"widths": (8, 16, 24, 32), "depths": (1, 1, 2, 1)}
LEVELS = ["P2", "P3", "P4", "P5"]
SIZE = (97, 64)
STRIDES = {"P2": 4, "P3": 8, "P4": 16, "P5": 32}


def build_small(**kwargs):
    return VANBackbone("b0", **{**SMALL, **kwargs})


def randomize(model):
    """Gives norms and layer scales values that matter."""
    random = np.random.default_rng(1)
    for variable in model.weights:
        if variable.ndim == 1:
            # Larger layer scales would square the features away from block to block.
            factor = 0.1 if "layer_scale" in variable.name else 1.0
            variable.assign(factor * random.uniform(0.5, 1.5, variable.shape))


def expected_shapes(batch, height, width, widths=SMALL["widths"]):
    return {
        level: (batch, math.ceil(height / stride), math.ceil(width / stride), channels)
        for (level, stride), channels in zip(STRIDES.items(), widths, strict=True)
    }


def to_arrays(pyramid):
    return {level: np.asarray(keras.ops.cast(outputs, "float32")) for level, outputs in pyramid.items()}


def assert_equal_pyramids(pyramid, expected, tolerance=0.0):
    pyramid, expected = to_arrays(pyramid), to_arrays(expected)
    assert list(pyramid) == list(expected) == LEVELS
    for level in LEVELS:
        assert np.abs(pyramid[level] - expected[level]).max() <= tolerance * np.abs(expected[level]).max()


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).uniform(0, 255, (2, *SIZE, 3)).astype("float32")


@pytest.fixture(scope="module")
def backbone():
    keras.utils.set_random_seed(0)
    backbone = build_small()
    randomize(backbone)
    return backbone


@pytest.fixture(scope="module")
def pyramid(backbone, images):
    return to_arrays(backbone(images))


# KerasHub's suite, item by item.


def test_config_is_json_and_comes_back(backbone):
    config = backbone.get_config()
    text = json.dumps(config, sort_keys=True)
    for again in (
        VANBackbone.from_config(config),
        VANBackbone.from_config(json.loads(text)),
        keras.saving.deserialize_keras_object(
            json.loads(json.dumps(keras.saving.serialize_keras_object(backbone)))
        ),
    ):
        assert type(again) is VANBackbone
        assert json.dumps(again.get_config(), sort_keys=True) == text
        assert set(dir(again)) == set(dir(backbone))


def test_name_follows_the_class():
    assert build_small().name.startswith("van_backbone")
    assert build_small(name="mine").name == "mine"


def test_eager_call_gives_the_pyramid_in_order(pyramid):
    assert list(pyramid) == LEVELS
    assert {level: outputs.shape for level, outputs in pyramid.items()} == expected_shapes(2, *SIZE)
    # The features depend on the image; otherwise the comparisons below would prove nothing.
    assert all(outputs.std((0, 1, 2)).mean() > 0.1 for outputs in pyramid.values())


def test_compiled_predict_takes_arrays_and_datasets(backbone, images, pyramid):
    assert_equal_pyramids(backbone.predict(images, verbose=0), pyramid, 1e-5)
    dataset = tf.data.Dataset.from_tensor_slices(images).batch(2)
    assert_equal_pyramids(backbone.predict(dataset, verbose=0), pyramid, 1e-5)


@pytest.mark.parametrize("name", ["mixed_float16", "mixed_bfloat16", "bfloat16"])
def test_precision_follows_the_policy(images, pyramid, name):
    keras.utils.set_random_seed(0)
    policy = keras.dtype_policies.DTypePolicy(name)
    backbone = build_small(dtype=policy)
    for outputs in backbone(images).values():
        assert keras.backend.standardize_dtype(outputs.dtype) == policy.compute_dtype
    for spec in backbone.compute_output_spec(images).values():
        assert spec.dtype == policy.compute_dtype
    for variable in backbone.weights:
        assert variable.dtype == policy.variable_dtype
    for layer in backbone._flatten_layers():
        if isinstance(layer, keras.layers.InputLayer):
            continue
        assert layer.compute_dtype == policy.compute_dtype, layer.path
        assert layer.variable_dtype == policy.variable_dtype, layer.path
    again = VANBackbone.from_config(backbone.get_config())
    assert again.dtype_policy.name == name
    assert again.get_config() == backbone.get_config()


@pytest.mark.parametrize(("name", "tolerance"), [("mixed_float16", 1e-2), ("mixed_bfloat16", 5e-2)])
def test_half_precision_stays_near_float32(backbone, images, pyramid, name, tolerance):
    half = build_small(dtype=name)
    half.set_weights(backbone.get_weights())
    assert_equal_pyramids(half(images), pyramid, tolerance)
    # The same with the model that KerasHub's heads make, which casts the weights itself.
    keras.config.set_dtype_policy(name)
    try:
        model = keras.Model(half.input, half.pyramid_outputs)
        assert_equal_pyramids(model(images), pyramid, tolerance)
    finally:
        keras.config.set_dtype_policy("float32")


def test_global_policy_is_taken_up():
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        backbone = build_small()
    finally:
        keras.config.set_dtype_policy("float32")
    assert backbone.dtype_policy.name == "mixed_bfloat16"
    assert backbone.get_layer("stage1_block0").attention.conv0.compute_dtype == "bfloat16"


@pytest.mark.filterwarnings("ignore:Layer .* does not have a `quantize` method implemented:UserWarning")
@pytest.mark.filterwarnings("ignore:.*quantiz.*:UserWarning")
def test_int8_quantization_leaves_the_convolutions_alone(images, pyramid, backbone):
    quantized = build_small()
    quantized.set_weights(backbone.get_weights())
    quantized.quantize("int8")
    assert_equal_pyramids(quantized(images), pyramid, 1e-6)


@pytest.mark.filterwarnings("ignore:.*quantiz.*:UserWarning")
def test_int8_quantization_reaches_the_dense_layers_behind(images):
    backbone = build_small()
    pooled = keras.layers.GlobalAveragePooling2D()(backbone.pyramid_outputs["P5"])
    model = keras.Model(backbone.input, keras.layers.Dense(4, name="classifier")(pooled))
    exact = np.asarray(model(images))
    model.quantize("int8")
    assert model.get_layer("classifier").quantization_mode == "int8"
    np.testing.assert_allclose(model(images), exact, atol=0.1 * np.abs(exact).max())


def test_a_map_of_policies_goes_through_the_config(images):
    policies = keras.dtype_policies.DTypePolicyMap("float32")
    backbone = build_small(dtype=policies)
    backbone(images)
    again = VANBackbone.from_config(backbone.get_config())
    assert again.get_config() == backbone.get_config()
    again.set_weights(backbone.get_weights())


def test_pyramid_outputs_make_a_model(backbone, images, pyramid):
    model = keras.Model(backbone.input, backbone.pyramid_outputs)
    assert_equal_pyramids(model(images), pyramid)


def test_pyramid_level_inputs_name_layers_with_one_output(backbone, images, pyramid):
    levels = backbone.pyramid_level_inputs
    assert list(levels) == LEVELS
    outputs = {level: backbone.get_layer(name).output for level, name in levels.items()}
    assert_equal_pyramids(keras.Model(backbone.input, outputs)(images), pyramid)


def test_saved_model_keeps_class_and_outputs(backbone, images, pyramid, tmp_path):
    path = tmp_path / "backbone.keras"
    backbone.save(path)
    again = keras.models.load_model(path)
    assert type(again) is VANBackbone
    assert again.get_config() == backbone.get_config()
    assert_equal_pyramids(again(images), pyramid, 1e-6)


@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16"])
@pytest.mark.parametrize("size", [(97, 64), (32, 32), (33, 65)])
def test_symbolic_and_eager_outputs_agree(size, dtype):
    backbone = build_small(input_shape=(*size, 3), dtype=dtype)
    outputs = backbone(np.zeros((1, *size, 3), "float32"))
    for level in LEVELS:
        symbolic = backbone.pyramid_outputs[level]
        assert (None, *outputs[level].shape[1:]) == symbolic.shape
        assert keras.backend.standardize_dtype(outputs[level].dtype) == symbolic.dtype
    assert {level: tuple(x.shape) for level, x in outputs.items()} == expected_shapes(1, *size)


def test_one_training_step(images):
    keras.utils.set_random_seed(0)
    backbone = build_small(depths=(1, 1, 1, 1), drop_path_rate=0.0)
    images = images[:, :40, :33]
    before = [np.array(weight) for weight in backbone.weights]
    targets = {level: np.ones_like(outputs) for level, outputs in to_arrays(backbone(images)).items()}
    backbone.compile(optimizer=keras.optimizers.Adam(1e-3), loss="mse", run_eagerly=True)
    history = backbone.fit(images, targets, batch_size=2, epochs=1, verbose=0)
    assert np.isfinite(history.history["loss"]).all()
    unchanged = {
        w.path for w, old in zip(backbone.weights, before, strict=True) if (np.array(w) == old).all()
    }
    assert not unchanged


# Sizes.


def test_dynamic_and_fixed_sizes_give_the_same(backbone, images, pyramid):
    fixed = build_small(input_shape=(*SIZE, 3))
    fixed.set_weights(backbone.get_weights())
    assert_equal_pyramids(fixed(images), pyramid, 1e-6)
    shapes = {level: tuple(outputs.shape) for level, outputs in fixed.pyramid_outputs.items()}
    assert shapes == expected_shapes(None, *SIZE)
    half_fixed = build_small(input_shape=(None, SIZE[1], 3))
    assert tuple(half_fixed.pyramid_outputs["P3"].shape) == (None, None, 8, 16)


@pytest.mark.parametrize("size", [(64, 64), (65, 63), (33, 97), (1, 1), (4, 200)])
def test_any_size_is_rounded_up(backbone, size):
    images = np.ones((1, *size, 3), "float32")
    shapes = {level: outputs.shape for level, outputs in to_arrays(backbone(images)).items()}
    assert shapes == expected_shapes(1, *size)
    graph = {level: outputs.shape for level, outputs in backbone.predict(images, verbose=0).items()}
    assert graph == shapes


def test_samples_do_not_see_one_another(backbone, images, pyramid):
    alone = to_arrays(backbone(images[1:]))
    assert_equal_pyramids(alone, {level: outputs[1:] for level, outputs in pyramid.items()}, 1e-5)


# Arguments.


@pytest.mark.parametrize(
    ("normalization", "mean", "deviation"),
    [
        ("imagenet", (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)),
        ("inception", (127.5, 127.5, 127.5), (127.5, 127.5, 127.5)),
    ],
)
def test_normalization_happens_inside(backbone, images, normalization, mean, deviation):
    inside = build_small(normalization=normalization)
    outside = build_small(normalization=None)
    for model in (inside, outside):
        model.set_weights(backbone.get_weights())
    normalized = (images - np.array(mean, "float32")) / np.array(deviation, "float32")
    assert_equal_pyramids(inside(images), outside(normalized), 1e-5)
    pixels = images.astype("uint8")
    assert_equal_pyramids(inside(pixels), inside(pixels.astype("float32")))


def test_any_channels_without_normalization():
    backbone = build_small(normalization=None, input_shape=(None, None, 5))
    outputs = to_arrays(backbone(np.ones((1, 33, 40, 5), "float32")))
    assert {level: x.shape for level, x in outputs.items()} == expected_shapes(1, 33, 40)
    assert VANBackbone.from_config(backbone.get_config()).input_shape == (None, None, None, 5)


def test_widths_and_depths_replace_the_variants():
    backbone = VANBackbone("b1", widths=[4, 8, 12, 16], depths=[1, 2, 1, 3])
    assert backbone.widths == (4, 8, 12, 16)
    names = [layer.name for layer in backbone.layers if "block" in layer.name]
    assert names == [f"stage{s}_block{i}" for s, depth in enumerate((1, 2, 1, 3), 1) for i in range(depth)]
    assert [x.shape[-1] for x in backbone.pyramid_outputs.values()] == [4, 8, 12, 16]
    assert VANBackbone.from_config(backbone.get_config()).depths == (1, 2, 1, 3)


def test_layer_norm_epsilon_arrives():
    backbone = build_small(layer_norm_epsilon=1e-5)
    assert [backbone.get_layer(f"stage{stage}_norm").epsilon for stage in (1, 2, 3, 4)] == [1e-5] * 4


def test_drop_path_rates_rise_linearly():
    for given, last in ((None, 0.1), (0.4, 0.4), (0.0, 0.0)):
        backbone = VANBackbone("b0", drop_path_rate=given, **SMALL)
        rates = [layer.drop_path.rate for layer in backbone.layers if "block" in layer.name]
        np.testing.assert_allclose(rates, [last * index / 4 for index in range(5)], rtol=1e-12)
    assert VANBackbone("b3", **SMALL).drop_path_rate == 0.3


def test_drop_path_acts_in_training_only(images):
    keras.utils.set_random_seed(0)
    backbone = build_small(drop_path_rate=0.9)
    randomize(backbone)
    assert_equal_pyramids(backbone(images), backbone(images, training=False))
    first, second = (to_arrays(backbone(images, training=True))["P5"] for _ in range(2))
    assert np.abs(first - second).max() > 1e-3


def test_frozen_backbone_keeps_every_weight(images):
    backbone = build_small(drop_path_rate=0.0)
    randomize(backbone)
    inference = to_arrays(backbone(images))
    backbone.trainable = False
    before = backbone.get_weights()
    assert backbone.trainable_variables == []
    # Frozen batch norms use their statistics in training, too.
    assert_equal_pyramids(backbone(images, training=True), inference, 1e-5)
    for old, new in zip(before, backbone.get_weights(), strict=True):
        np.testing.assert_array_equal(new, old)


def test_trainable_goes_through_the_config():
    assert build_small(trainable=False).trainable_variables == []
    frozen = VANBackbone.from_config(build_small(trainable=False).get_config())
    assert not frozen.trainable
    assert frozen.trainable_variables == []


def test_initial_weights_are_the_official_codes():
    keras.utils.set_random_seed(0)
    backbone = VANBackbone("b0")
    seen = []
    for layer in backbone._flatten_layers():
        if isinstance(layer, (keras.layers.Conv2D, keras.layers.DepthwiseConv2D)):
            kernel, bias = (np.array(variable, "float64") for variable in (layer.kernel, layer.bias))
            height, width, _, out = kernel.shape
            fan_out = height * width * (1 if isinstance(layer, keras.layers.DepthwiseConv2D) else out)
            deviation = math.sqrt(2 / fan_out)
            assert abs(kernel.std() / deviation - 1) < 5 / math.sqrt(2 * kernel.size), layer.path
            assert abs(kernel.mean()) < 5 * deviation / math.sqrt(kernel.size), layer.path
            assert (bias == 0).all()
            seen.append(kernel)
        elif isinstance(layer, (keras.layers.BatchNormalization, keras.layers.LayerNormalization)):
            starts = (1, 0, 0, 1) if isinstance(layer, keras.layers.BatchNormalization) else (1, 0)
            assert [set(np.asarray(weight).tolist()) for weight in layer.weights] == [
                {start} for start in starts
            ]
    assert len(seen) == 4 + 13 * 8
    assert len({kernel.ravel()[:4].tobytes() for kernel in seen}) == len(seen)
    for layer in backbone.layers:
        if "block" in layer.name:
            np.testing.assert_allclose(layer.layer_scale_1, 1e-2)
            np.testing.assert_allclose(layer.layer_scale_2, 1e-2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"variant": "b7"}, r"variant must be one of \['b0', .*'b6'\]. Received: 'b7'"),
        ({"variant": None}, r"variant must be one of .* Received: None"),
        (
            {"normalization": "torch"},
            r"normalization must be one of \['imagenet', 'inception'\] or None.*'torch'",
        ),
        ({"input_shape": (64, 64)}, r"input_shape must be \(height, width, channels\).*Received: \(64, 64\)"),
        ({"input_shape": (64, 64, None)}, r"with known channels. Received: \(64, 64, None\)"),
        ({"input_shape": (64, 64, 3, 1)}, r"input_shape must be \(height, width, channels\)"),
        (
            {"input_shape": (None, None, 5)},
            r"normalization='imagenet' needs RGB.*normalization=None.*None, 5\)",
        ),
        ({"drop_path_rate": 1.0}, r"drop_path_rate must be in \[0, 1\). Received: 1.0"),
        ({"drop_path_rate": -0.1}, r"drop_path_rate must be in \[0, 1\). Received: -0.1"),
        ({"widths": (8, 8, 8)}, r"widths must be four positive integers.*Received: \(8, 8, 8\)"),
        ({"widths": (8, 8, 8, 0)}, r"widths must be four positive integers"),
        ({"widths": ()}, r"widths must be four positive integers"),
        ({"depths": (1, 1, 1, 1, 1)}, r"depths must be four positive integers.*\(1, 1, 1, 1, 1\)"),
        ({"depths": (1, 1, 1, -1)}, r"depths must be four positive integers"),
        ({"weights": "imagenet21k"}, r"release must be one of .*'imagenet22k'.*'imagenet21k'"),
        ({"weights": "nowhere.weights.h5"}, r"weights file not found. Received: 'nowhere.weights.h5'"),
    ],
    ids=str,
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        VANBackbone(**{"variant": "b0", **SMALL, **arguments})
