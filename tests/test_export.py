"""Exports predict what the models predict, each in its own runtime, and are written whole or not at all."""

import gc
import importlib
import pathlib
import weakref
from unittest import mock

import contracts
import keras
import numpy as np
import pytest
import tensorflow as tf
from small_models import SMALL, build, draw_images, relative_error

from heads import (
    ATSS,
    EDN,
    GFL,
    CascadeMaskRCNN,
    FasterRCNN,
    Mask2Former,
    MaskRCNN,
    RetinaNet,
    SemanticFPN,
    SimpleBaseline,
    SparseRCNN,
    UPerNet,
)
from van_backbones import VANBackbone
from van_backbones.deployment import deploy
from van_backbones.exporting import export
from van_backbones.exporting.export import FORMATS, ServedModel, check_path, name_outputs, write_export
from van_backbones.exporting.runtimes import load_export, measure_export

exporting = importlib.import_module("van_backbones.exporting.export")  # the package has the function

PACKAGES = {"onnx": "onnxruntime", "openvino": "openvino", "litert": "ai_edge_litert"}


def export_to(tmp_path, model, format, **arguments):
    """Returns the answers of an export from its own runtime."""
    if format in PACKAGES:
        pytest.importorskip(PACKAGES[format])
        for package in FORMATS[format][1]:
            pytest.importorskip(package)
    path = tmp_path / f"model{FORMATS[format][0]}"
    export(model, path, format, **arguments)
    return load_export(path)


# OpenVINO and LiteRT run in test_runtimes.py, in the fast suite.
@pytest.mark.parametrize(
    "format",
    ["saved_model", "onnx", *(pytest.param(name, marks=pytest.mark.slow) for name in ("openvino", "litert"))],
)
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
    # The model itself is unchanged.
    assert all(isinstance(part.dtype_policy, keras.dtype_policies.DTypePolicy) for part in backbone.layers)
    assert backbone.trainable_variables


@pytest.mark.slow  # the backbone's exports are in the fast suite
@pytest.mark.parametrize("format", list(FORMATS))
def test_export_of_a_segmenter(format, tmp_path):
    model = build(UPerNet, num_classes=4, channels=8, auxiliary_channels=8)
    # Initially, the classifier predicts one class everywhere, that of the largest bias.
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
def test_export_of_a_saliency_model(format, tmp_path):
    model = build(EDN, channels=(8,) * 6, extra_channels=8)
    run = export_to(tmp_path, model, format)
    for size in ((64, 96), (70, 49)):  # in the second one, the coarsest level would be empty
        images = draw_images(size)
        answers = run(images)
        assert list(answers) == ["outputs"]
        expected = model.predict_on_batch(images.astype("float32"))
        assert expected.std() > 1e-3
        np.testing.assert_allclose(answers["outputs"], expected, atol=1e-3)


SMALL_HEADS = {
    SemanticFPN: {"channels": 8, "pyramid_channels": 8},
    RetinaNet: {"channels": 8, "num_convs": 1, "score_threshold": 0.001},
    GFL: {"channels": 8, "num_convs": 1, "score_threshold": 0.001},
    ATSS: {"channels": 8, "num_convs": 1, "score_threshold": 0.001},
    MaskRCNN: {"channels": 8, "num_proposals": 20, "score_threshold": 0.001},
    CascadeMaskRCNN: {"channels": 8, "num_proposals": 20, "score_threshold": 0.001},
    SparseRCNN: {"channels": 8, "num_proposals": 20, "num_stages": 2},
}


@pytest.mark.slow
@pytest.mark.parametrize("format", list(FORMATS))
@pytest.mark.parametrize("head", list(SMALL_HEADS))
def test_export_of_every_head(head, format, tmp_path):
    check_export_of_a_head(head, format, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("task", ["panoptic", "instance", "semantic"])
@pytest.mark.parametrize("format", list(FORMATS))
def test_export_of_mask2former(format, task, tmp_path):
    options = {"num_things": 2, "num_stuff": 2, "num_queries": 6, "channels": 16, "num_points": 64}
    layers = {"num_encoder_layers": 1, "num_decoder_layers": 2}
    model = build(Mask2Former, task=task, score_threshold=0.0, **options, **layers)
    # Initially, all queries have one class.
    model.classifier.kernel.assign(8.0 * model.classifier.kernel)
    run = export_to(tmp_path, model, format)
    for size in ((64, 96), (70, 49)):
        images = draw_images(size, 1)
        answers, expected = run(images), model.predict_on_batch(images.astype("float32"))
        expected = {"outputs": expected} if task == "semantic" else expected
        for name, values in expected.items():
            if name == "scores":
                np.testing.assert_allclose(answers[name], values, atol=1e-4)
            else:
                assert np.mean(answers[name] != values) < 1e-2, name


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"image_size": (64, 96), "batch_size": 2}], ids=["any", "fixed"])
def test_groups_of_regions_are_joined_in_openvino(options, tmp_path):
    model = build(FasterRCNN, num_classes=3, channels=8, num_proposals=100, score_threshold=0.001)
    run = export_to(tmp_path, model, "openvino", **options)  # 7 groups of 32
    images = draw_images((64, 96), 2)
    answers, expected = run(images), model.predict_on_batch(images.astype("float32"))
    np.testing.assert_allclose(answers["scores"], expected["scores"], rtol=1e-3, atol=1e-5)
    assert (expected["scores"] > 0).sum() > 10

    nodes = importlib.import_module("openvino").Core().read_model(tmp_path / "model.xml").get_ops()
    loops = [node for node in nodes if node.get_type_name() == "Loop"]
    outputs = [output for loop in loops for output in loop.get_output_descriptions()]
    assert sum(hasattr(output, "part_size") for output in outputs) == 1  # joined from the steps


@pytest.mark.slow
@pytest.mark.parametrize("head", [ATSS, CascadeMaskRCNN])
def test_openvino_finds_the_objects_of_one_picture_with_few_anchors(head, tmp_path):
    # Before `replace_gathers`, other objects, or the end of the process, depending on what is in memory.
    options = {"sizes": [(64, 64)], "count": 1, "image_size": (64, 64), "batch_size": 1}
    check_export_of_a_head(head, "openvino", tmp_path, **options)
    nodes = importlib.import_module("openvino").Core().read_model(tmp_path / "model.xml").get_ops()
    gathers = [node.get_attributes() for node in nodes if node.get_type_name() == "Gather"]
    assert gathers
    assert not any(attributes.get("batch_dims", 0) for attributes in gathers)


@pytest.mark.slow
def test_export_of_a_detector_with_frozen_weights(tmp_path):
    check_export_of_a_head(RetinaNet, "saved_model", tmp_path, freeze_weights=True)


def check_export_of_a_head(head, format, tmp_path, sizes=((64, 96), (70, 49)), count=2, **arguments):
    """Compares label maps, or the scores of detections in order, and their boxes if no near-ties may swap."""
    model = build(head, num_classes=3, **SMALL_HEADS[head])
    if head is SemanticFPN:
        model.classifier.conv.kernel.assign(100.0 * model.classifier.conv.kernel)
        logits = model(draw_images().astype("float32"))
        # So that no class wins everywhere.
        model.classifier.conv.bias.assign_sub(keras.ops.mean(logits, axis=(0, 1, 2)))
    run = export_to(tmp_path, model, format, **arguments)
    for size in sizes:
        images = draw_images(size, count)
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


@pytest.mark.slow
@pytest.mark.parametrize("format", list(FORMATS))
def test_export_of_a_pose_model(format, tmp_path):
    model = build(SimpleBaseline, num_keypoints=3, channels=8)
    for block in (*model.doublings, model):
        kernel = model.output_conv.kernel if block is model else block.conv.kernel
        kernel.assign(100.0 * kernel)  # heatmaps with visible peaks
    run = export_to(tmp_path, model, format)
    for size in ((64, 96), (70, 49)):
        images = draw_images(size)
        answers = run(images)
        expected = model.predict_on_batch(images.astype("float32"))
        assert set(answers) == {"keypoints", "scores"}
        np.testing.assert_allclose(answers["scores"], expected["scores"], rtol=1e-3, atol=1e-5)
        near = np.abs(answers["keypoints"] - expected["keypoints"]).max(-1) < 1e-3
        assert near.mean() > 0.8  # near-ties may swap


@pytest.mark.parametrize("freeze_weights", [True, False])
def test_saved_model_takes_encoded_pictures(freeze_weights, tmp_path):
    export(build(), tmp_path / "model", freeze_weights=freeze_weights)
    signatures = tf.saved_model.load(tmp_path / "model").signatures
    images = draw_images()
    encoded = tf.stack([tf.io.encode_png(image) for image in images])
    expected = signatures["serving_default"](images=tf.constant(images))
    for level, outputs in signatures["serve_encoded"](images=encoded).items():
        np.testing.assert_array_equal(outputs, expected[level])
    for images in (tf.constant([b"not a picture"]), encoded[0], encoded[None]):
        with pytest.raises(tf.errors.InvalidArgumentError):
            signatures["serve_encoded"](images=images)
    # Without a check in the graph, a missing axis would end the process, and one channel would pass for
    # three.
    for shape in ((64, 64, 3), (1, 64, 64, 1), (1, 64, 64, 4), (1, 1, 64, 64, 3)):
        with pytest.raises(tf.errors.InvalidArgumentError, match=r"is not compatible with expected shape"):
            signatures["serving_default"](images=tf.zeros(shape, tf.uint8))


@pytest.mark.parametrize("freeze_weights", [True, False])
@pytest.mark.parametrize("policy", ["float32", pytest.param("mixed_bfloat16", marks=pytest.mark.slow)])
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


@pytest.mark.slow
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
        ("model.onnx", "saved_model", r'a folder for format="saved_model": pass format="onnx" for this file'),
        ("model.keras", "saved_model", r'the name of a folder for format="saved_model". Received: .*keras'),
    ],
)
def test_wrong_arguments(path, format, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        export(build(), tmp_path / path, format)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image_size": 224}, r"image_size must be \(height, width\).*Received: 224"),
        ({"image_size": (0, 32)}, r"image_size must be .*Received: \(0, 32\)"),
        ({"image_size": (32, 32, 3)}, r"image_size must be .*Received: \(32, 32, 3\)"),
        ({"image_size": (32.0, None)}, r"image_size must be .*Received: \(32.0, None\)"),
        ({"batch_size": 0}, "batch_size must be a positive integer.*Received: 0"),
    ],
)
def test_sizes_that_are_none(arguments, message, served):
    with pytest.raises(ValueError, match=message):
        served.make_signature(**{"image_size": None, "batch_size": None, **arguments})


@pytest.fixture(scope="module")
def served():
    return ServedModel(deploy(build()))


@pytest.mark.parametrize("shapes", [[(64, 64, 3), (5,)], [(2, 64, 64, 3)], [(64, 64, None)], [(5,)]])
def test_models_of_other_inputs_are_refused(shapes):
    inputs = [keras.Input(shape) for shape in shapes]
    with pytest.raises(ValueError, match=r"model must have one input, images of shape.*Received: many with"):
        ServedModel(keras.Model(inputs, inputs, name="many"))


def test_outputs_get_names():
    assert name_outputs(1) == {"outputs": 1}
    assert name_outputs({"boxes": 1, "scores": 2}) == {"boxes": 1, "scores": 2}
    assert name_outputs([1, (2, 3)]) == {"output_0": 1, "output_1_0": 2, "output_1_1": 3}
    assert name_outputs({"a": {"b": 1}, "c": [2]}) == {"a_b": 1, "c_0": 2}


def test_input_in_a_dict_and_outputs_in_a_list():
    images = keras.Input((None, None, 3), name="picture")
    pooled = keras.layers.GlobalAveragePooling2D()(images)
    model = keras.Model({"picture": images}, [pooled, images])
    values = draw_images()
    outputs = ServedModel(model)(values)
    np.testing.assert_allclose(outputs["output_0"], values.mean(axis=(1, 2)), rtol=1e-5)
    np.testing.assert_array_equal(outputs["output_1"], values)


def test_traced_graphs_are_let_go(served):
    """Exports in a loop must not keep each graph: TensorFlow never releases that of a custom gradient."""
    function = tf.function(served.call, input_signature=[served.make_signature(None, None)], autograph=False)
    graph = weakref.ref(function.get_concrete_function().graph)
    del function
    gc.collect()
    assert graph() is None


# Files.


def write_text(served, path, format, signature):
    """Writes the files of which an export of a format consists."""
    for part in (path, path.with_suffix(".bin"))[: 2 if format == "openvino" else 1]:
        part.write_text(signature)


def write_half(served, path, format, signature):
    path.write_text("half")
    raise OSError("the disk is full")


@pytest.mark.parametrize("format", ["onnx", "openvino"])
def test_what_fails_leaves_the_earlier_files(format, tmp_path):
    path = tmp_path / "new" / f"model{FORMATS[format][0]}"
    served = keras.layers.Identity()
    for text in ("first", "second"):
        with mock.patch.object(exporting, "_convert", write_text):
            write_export(served, path, format, text)
        with (
            mock.patch.object(exporting, "_convert", write_half),
            pytest.raises(OSError, match="the disk is full"),
        ):
            write_export(served, path, format, None)
        assert {part.read_text() for part in path.parent.iterdir()} == {text}
        assert len(list(path.parent.iterdir())) == (2 if format == "openvino" else 1)


def write_folder(served, path, signature, freeze_weights):
    (path / "variables").mkdir(parents=True)
    (path / "variables" / signature).touch()
    (path / "saved_model.pb").write_text(signature)
    if freeze_weights:
        raise OSError("the disk is full")


def list_files(folder):
    return sorted(part.relative_to(folder).as_posix() for part in folder.rglob("*") if part.is_file())


def test_saved_models_replace_earlier_ones_whole(tmp_path):
    path = tmp_path / "model"
    path.mkdir()
    served = keras.layers.Identity()
    with mock.patch.object(exporting, "_write_saved_model", write_folder):
        write_export(served, path, "saved_model", "first")
        (path / "notes.txt").touch()
        check_path(path, "saved_model")
        write_export(served, path, "saved_model", "second")
        with pytest.raises(OSError, match="the disk is full"):
            write_export(served, path, "saved_model", "third", freeze_weights=True)
    assert (path / "saved_model.pb").read_text() == "second"
    assert list_files(tmp_path) == ["model/notes.txt", "model/saved_model.pb", "model/variables/second"]


def test_folders_of_other_things_are_not_replaced(tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ValueError, match=r"an earlier SavedModel.*Received: .*, which holds notes.txt"):
        check_path(tmp_path, "saved_model")
    with pytest.raises(ValueError, match="path must be the name of a folder"):
        check_path(tmp_path / "notes.txt", "saved_model")
    (tmp_path / "a.onnx").mkdir()
    with pytest.raises(ValueError, match="must be a file, not an existing folder"):
        check_path(pathlib.Path(tmp_path / "a.onnx"), "onnx")
