"""int8 exports: what calibrates them, what becomes int8, and what stays in float."""

import importlib
import itertools
import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from small_models import SMALL, build, draw_images

from heads import MaskRCNN, Resizing, RetinaNet, SemanticFPN, SimpleBaseline
from van_backbones import VANBackbone
from van_backbones.exporting import export, load_export, measure_export
from van_backbones.exporting.quantization import (
    MOST_PICTURES,
    check_calibration,
    find_kernel_sizes,
    needs_fixed_sizes,
    read_calibration,
)

quantization = importlib.import_module("van_backbones.exporting.quantization")
runtimes = importlib.import_module("van_backbones.exporting.runtimes")
IMAGES = draw_images((64, 96), 6)


def need(*packages):
    for package in packages:
        pytest.importorskip(package, reason="pip install 'van-backbones[int8,export]'")


def read(calibration, shape=(None, None, None, 3), dtype="uint8", model=None):
    return read_calibration(calibration, model or VANBackbone("b0", **SMALL), tf.TensorSpec(shape, dtype))


# Calibration data.


@pytest.mark.parametrize(
    "calibration",
    [
        IMAGES[:4],  # a batch must have four axes; each element of an array of pictures has three
        [IMAGES[:3], IMAGES[3:4]],
        [(IMAGES[:4], "labels")],
        [({"images": IMAGES[:4], "image_sizes": None}, {"boxes": None})],
        ({"images": images[None]} for images in IMAGES[:4]),
        [np.minimum(IMAGES[:4].astype("float32") + 0.25, 255)],
        tf.data.Dataset.from_tensor_slices((IMAGES[:4].astype("float32"), range(4))).batch(3),
    ],
    ids=["array", "batches", "tuples", "nested", "generator", "floats", "pipeline"],
)
def test_batches_in_every_form(calibration):
    calibration = [calibration] if isinstance(calibration, np.ndarray) else calibration
    batches = read(calibration)
    np.testing.assert_array_equal(np.concatenate(batches), IMAGES[:4])
    assert {batch.shape[0] for batch in batches} == {1}
    assert {batch.dtype for batch in batches} == {np.dtype("uint8")}


def test_endless_pipelines_end():
    assert len(read(tf.data.Dataset.from_tensors(IMAGES[:2, :32, :32]).repeat())) == MOST_PICTURES


def test_batches_of_the_size_of_the_export():
    batches = read([IMAGES[:3], IMAGES[3:]], (4, 64, 96, 3))
    assert len(batches) == 1  # the last two do not fill a batch
    np.testing.assert_array_equal(batches[0], IMAGES[:4])


def test_pictures_of_any_size():
    shapes = [batch.shape for batch in read([IMAGES[:2], IMAGES[:1, :32]])]
    assert shapes == [(1, 64, 96, 3), (1, 64, 96, 3), (1, 32, 96, 3)]


def test_normalised_images_stay_as_they_are():
    images = np.random.default_rng(0).normal(size=(1, 32, 32, 2)).astype("float32")
    (batch,) = read([images], (None, None, None, 2), "float32")
    np.testing.assert_array_equal(batch, images)


@pytest.mark.parametrize(
    ("calibration", "message"),
    [
        ([], r"at least 1 pictures.*Received: \[\], which has fewer"),
        ([np.zeros((0, 64, 96, 3), "uint8")], "at least 1 pictures"),
        (7, r"be an iterable of batches of images, or the path of pictures. Received: 7"),
        (IMAGES, r"uint8 of shape \(None, 64, 96, 3\).*Received: uint8 of shape \(64, 96, 3\)"),
        ([IMAGES[:, :32]], r"Received: uint8 of shape \(6, 32, 96, 3\)"),
        ([IMAGES.astype("int32")], r"Received: int32 of shape"),
        ([IMAGES / np.float32(255)], r"float32 may be 0 .. 255 instead of uint8. Received.*0 .. 1"),
        ([-IMAGES.astype("float32")], r"Received: float32"),
        ([{"pictures": IMAGES}], r"have \"images\" in its dicts. Received: \['pictures'\]"),
        ([()], "have images in its tuples. Received: an empty one"),
        ("pictures", "only heads do. Received: 'pictures' for van_backbone"),
    ],
)
def test_wrong_pictures(calibration, message):
    with pytest.raises(ValueError, match=rf"(?s)^calibration must .*{message}"):
        read(calibration, (None, 64, 96, 3))


def test_too_few_for_a_batch():
    with pytest.raises(ValueError, match="at least 8 pictures"):
        read([IMAGES], (8, 64, 96, 3))


# Pictures in a folder, which a head reads.


@pytest.fixture
def folder(tmp_path):
    for index in range(3):
        Image.fromarray(IMAGES[index]).save(tmp_path / f"{index}.png")
    return tmp_path


def test_a_folder_is_read_as_for_predictions(folder):
    model = build(SemanticFPN, num_classes=3, channels=8, pyramid_channels=8)
    for given in (folder, str(folder)):
        batches = read(given, model=model)
        np.testing.assert_array_equal(np.concatenate(batches), IMAGES[:3])
    model.resizing = Resizing(image_size=(32, 64))
    assert [batch.shape for batch in read(folder, model=model)] == [(1, 32, 64, 3)] * 3
    # If the export has a fixed size, that one counts.
    batches = read(folder, (1, 128, 96, 3), model=model)
    assert [batch.shape for batch in batches] == [(1, 128, 96, 3)] * 3
    np.testing.assert_array_equal(batches[0][0, :64], IMAGES[0])
    assert {tuple(pixel) for pixel in batches[0][0, 64:].reshape(-1, 3)} == {(124, 116, 104)}


def test_a_folder_without_pictures(tmp_path):
    model = build(SemanticFPN, num_classes=3, channels=8, pyramid_channels=8)
    with pytest.raises(ValueError, match="the folder must hold pictures"):
        read(tmp_path, model=model)


def test_pose_models_want_crops(folder):
    with pytest.raises(ValueError, match=r"cut out around people.*Received: .*"):
        read(folder, model=build(SimpleBaseline, num_keypoints=2, channels=8))


# Arguments.


@pytest.mark.parametrize(
    ("format", "arguments", "message"),
    [
        ("saved_model", {"calibration": [IMAGES]}, r'"saved_model" has no int8: pass one of \[.openvino.'),
        ("openvino", {"max_drop": 0.5}, "max_drop and evaluate are for int8"),
        ("onnx", {"evaluate": len}, "max_drop and evaluate are for int8"),
        ("openvino", {"calibration": [IMAGES], "max_drop": 0.5}, "need each other"),
        ("openvino", {"calibration": [IMAGES], "evaluate": len}, "need each other"),
        ("openvino", {"calibration": [IMAGES], "max_drop": -1, "evaluate": len}, "at least 0. Received: -1"),
        ("openvino", {"calibration": [IMAGES], "max_drop": "a", "evaluate": len}, "Received: 'a'"),
        ("openvino", {"calibration": [IMAGES], "max_drop": True, "evaluate": len}, "Received: True"),
        ("openvino", {"calibration": [IMAGES], "max_drop": 1, "evaluate": 3}, "function. Received: 3"),
        ("onnx", {"calibration": [IMAGES], "max_drop": 1, "evaluate": len}, 'for format="openvino" only'),
    ],
)
def test_wrong_arguments(format, arguments, message, tmp_path):
    arguments = {"calibration": None, "max_drop": None, "evaluate": None, **arguments}
    with pytest.raises(ValueError, match=message):
        check_calibration(format, **arguments)
    if format == "saved_model":
        with pytest.raises(ValueError, match=message):
            export(VANBackbone("b0", **SMALL), tmp_path / "model", format, **arguments)
        assert not list(tmp_path.iterdir())


def test_missing_tools_are_named(monkeypatch):
    monkeypatch.setitem(quantization.TOOLS, "openvino", ("no_such_tool",))
    with pytest.raises(ImportError, match=r"needs no_such_tool: run pip install \"van-backbones\[int8\]"):
        check_calibration("openvino", [IMAGES], None, None)


def test_kernel_sizes():
    model = keras.Sequential([keras.Input((4, 4, 6)), keras.layers.Conv2D(3, 1), keras.layers.Dense(2)])
    assert find_kernel_sizes(model) == {(2, 3)}


# Exports.


def cosine(ours, theirs):
    ours, theirs = (np.asarray(values, "float64").ravel() for values in (ours, theirs))
    return ours @ theirs / np.sqrt((ours @ ours) * (theirs @ theirs))


def list_operations(path):
    import openvino

    return openvino.Core().read_model(path).get_ordered_ops()


def find_layers(path):
    return [node for node in list_operations(path) if node.get_type_name() in quantization.CONVOLUTIONS]


def find_weights(layer):
    """Returns the constant from which an OpenVINO layer's weights are computed."""
    node = layer.input_value(1).get_node()
    while node.get_input_size():
        node = node.input_value(0).get_node()
    return node


@pytest.fixture(scope="module")
def segmenter():
    keras.utils.set_random_seed(0)
    backbone = VANBackbone("b0", widths=(32, 32, 64, 96), depths=(1, 1, 1, 1))
    return SemanticFPN(backbone, num_classes=4, channels=32, pyramid_channels=32)


@pytest.fixture(scope="module")
def exports(segmenter, tmp_path_factory):
    """Returns the paths of the segmenter's exports to OpenVINO, in float32 and in int8."""
    need("openvino", "nncf")
    folder = tmp_path_factory.mktemp("exports")
    paths = [folder / name for name in ("float32.xml", "int8.xml")]
    assert export(segmenter, paths[0], "openvino", (64, 96), 1) is None
    assert export(segmenter, paths[1], "openvino", (64, 96), 1, calibration=[IMAGES]) == []
    assert sorted(path.name for path in folder.iterdir()) == [
        "float32.bin",
        "float32.xml",
        "int8.bin",
        "int8.xml",
    ]
    return paths


@pytest.mark.slow
def test_openvino_gives_the_same_labels(exports):
    functions = [load_export(path) for path in exports]
    images = draw_images((64, 96), 8)[6:]
    for image in images[:, None]:
        expected, found = (run(image)["outputs"] for run in functions)
        assert found.dtype == expected.dtype
        assert len(np.unique(expected)) > 1
        assert np.mean(found == expected) > 0.9


@pytest.mark.slow
def test_openvino_weights_are_int8(exports):
    sizes = [path.with_suffix(".bin").stat().st_size for path in exports]
    assert sizes[1] < 0.3 * sizes[0]
    assert measure_export(exports[1]) < measure_export(exports[0])
    layers = find_layers(exports[1])
    assert len(layers) > 40
    for layer in layers:
        assert find_weights(layer).get_element_type().get_type_name() == "i8"
        node = layer.input_value(0).get_node()
        while node.get_type_name() in quantization.MOVES:
            node = node.input_value(0).get_node()
        assert node.get_type_name() == "FakeQuantize"


@pytest.mark.slow
def test_openvino_computes_the_rest_in_float(exports):
    num_ranges = 0
    for node in list_operations(exports[1]):
        if node.get_type_name() != "FakeQuantize":
            continue
        num_ranges += 1
        (output,) = node.outputs()
        kinds = {target.get_node().get_type_name() for target in output.get_target_inputs()}
        assert kinds <= {*quantization.CONVOLUTIONS, *quantization.MOVES}, kinds
    assert num_ranges > 20


SMALL_DETECTORS = {RetinaNet: {"num_convs": 1}, MaskRCNN: {"num_proposals": 20, "score_threshold": 0.001}}


@pytest.mark.slow
@pytest.mark.parametrize("head", list(SMALL_DETECTORS))
def test_openvino_of_a_detector(head, tmp_path):
    need("openvino", "nncf")
    detector = build(head, num_classes=3, channels=16, **SMALL_DETECTORS[head])
    paths = [tmp_path / name for name in ("float32.xml", "int8.xml")]
    export(detector, paths[0], "openvino", (64, 96), 1)
    export(detector, paths[1], "openvino", (64, 96), 1, calibration=[IMAGES])
    expected, found = (load_export(path)(IMAGES[:1]) for path in paths)
    assert cosine(found["scores"], expected["scores"]) > 0.9
    for node in list_operations(paths[1]):
        if node.get_type_name() == "FakeQuantize":
            kinds = {target.get_node().get_type_name() for target in node.output(0).get_target_inputs()}
            dense = {"MatMul"} if head is MaskRCNN else set()
            assert kinds <= {*quantization.CONVOLUTIONS, *quantization.MOVES} | dense, kinds


@pytest.mark.slow
def test_any_size_and_number_of_images(tmp_path, capfd, monkeypatch):
    need("openvino", "nncf")
    # Where OpenVINO cannot run such a model, it ends the process.
    fixed_sizes = needs_fixed_sizes(importlib.import_module("openvino").Core())
    monkeypatch.setattr(runtimes, "needs_fixed_sizes", lambda core: fixed_sizes or next(answers))
    answers = itertools.cycle([False, True])
    backbone = build()
    paths = [tmp_path / name for name in ("float32.xml", "int8.xml")]
    export(backbone, paths[0], "openvino")
    export(backbone, paths[1], "openvino", calibration=[IMAGES[:2], IMAGES[2:, :32]])
    assert "Not adding" not in capfd.readouterr().out  # a line for each operation in float
    run_expected, *runs = (load_export(path) for path in (*paths, paths[1]))  # int8 in both ways
    for images in (draw_images((49, 70), 2), draw_images((64, 33), 1), draw_images((49, 70), 1)):
        expected, found, fixed = (run(images) for run in (run_expected, *runs))
        for level, values in expected.items():
            assert cosine(found[level], values) > 0.9, level
            assert cosine(fixed[level], found[level]) > 0.99, level
    assert next(answers) is False  # asked for int8 only


@pytest.mark.slow
def test_a_detector_of_any_size_is_compiled_for_each(tmp_path, monkeypatch):
    need("openvino", "nncf")
    import openvino

    monkeypatch.setattr(runtimes, "needs_fixed_sizes", lambda core: True)
    shapes = []

    class Core(openvino.Core):
        def compile_model(self, model, *options):
            shapes.append(model.input(0).get_partial_shape().to_string())
            return super().compile_model(model, *options)

    detector = build(RetinaNet, num_classes=3, channels=16, num_convs=1)
    paths = [tmp_path / name for name in ("float32.xml", "int8.xml")]
    export(detector, paths[0], "openvino")
    export(detector, paths[1], "openvino", calibration=[IMAGES])
    monkeypatch.setattr(openvino, "Core", Core)
    run_expected, run = map(load_export, paths)
    for size in ((64, 96), (33, 70), (64, 96)):
        expected, found = (each(draw_images(size, 1)) for each in (run_expected, run))
        assert cosine(found["scores"], expected["scores"]) > 0.9
    assert shapes == ["[?,?,?,3]", "[1,64,96,3]", "[1,33,70,3]"]


def test_accuracy_control_of_any_size_is_refused_where_it_may_crash(tmp_path, monkeypatch):
    need("openvino", "nncf")
    monkeypatch.setattr(quantization, "needs_fixed_sizes", lambda core: True)
    options = {"calibration": [IMAGES], "max_drop": 1, "evaluate": lambda run: 0.0}
    message = r"max_drop needs a fixed image_size and batch_size.*Received: images of shape \[\?,\?,\?,3\]"
    with pytest.raises(ValueError, match=message):
        export(VANBackbone("b0", **SMALL), tmp_path / "int8.xml", "openvino", **options)
    assert not list(tmp_path.iterdir())


def test_accuracy_control_of_a_fixed_size_may_have_other_sizes_inside(monkeypatch):
    need("openvino", "nncf")
    import nncf
    import openvino
    from openvino import opset13 as op

    images = op.parameter([1, 8, 8, 3])
    model = openvino.Model([op.result(op.non_zero(images))], [images])
    assert model.is_dynamic()
    monkeypatch.setattr(quantization, "needs_fixed_sizes", lambda core: True)
    monkeypatch.setattr(nncf, "quantize_with_accuracy_control", lambda model, _, __, score, **options: model)
    scores = iter([80.0])
    calibration = quantization.Calibration([], frozenset(), 1, lambda run: next(scores))
    assert quantization._limit_drop(model, nncf.Dataset([]), calibration, {}) == (model, 0.0)


@pytest.mark.slow
def test_onnx(tmp_path):
    need("onnx", "onnxruntime", "tf2onnx")
    import onnx

    keras.utils.set_random_seed(0)
    backbone = VANBackbone("b0", widths=(32, 32, 64, 96), depths=(1, 1, 1, 1))
    paths = [tmp_path / name for name in ("float32.onnx", "int8.onnx")]
    export(backbone, paths[0], "onnx", batch_size=1)
    assert export(backbone, paths[1], "onnx", batch_size=1, calibration=[IMAGES]) == []
    assert sorted(tmp_path.iterdir()) == paths
    for images in (draw_images((49, 70), 1), draw_images((64, 33), 1)):
        expected, found = (load_export(path)(images) for path in paths)
        for level, values in expected.items():
            assert cosine(found[level], values) > 0.9, level
    assert measure_export(paths[1]) < 0.4 * measure_export(paths[0])
    model = onnx.load(paths[1])
    kernels = [each for each in model.graph.initializer if len(each.dims) == 4 and np.prod(each.dims) > 1000]
    assert len(kernels) > 20
    assert {each.data_type for each in kernels} == {onnx.TensorProto.INT8}


@pytest.mark.slow
@pytest.mark.parametrize("max_drop", [100.0, 0.003])
def test_accuracy_control(max_drop, tmp_path):
    need("openvino", "nncf")
    model = VANBackbone("b0", widths=(8, 8, 8, 8), depths=(1, 1, 1, 1))
    export(model, tmp_path / "float32.xml", "openvino", (32, 32), 1)
    images = IMAGES[:2, :32, :32]
    expected = load_export(tmp_path / "float32.xml")(images[:1])["P2"]
    scores = []

    def evaluate(run):
        scores.append(100 * cosine(run(images[:1])["P2"], expected))
        return scores[-1]

    options = {"calibration": [images], "max_drop": max_drop, "evaluate": evaluate}
    kept = export(model, tmp_path / "int8.xml", "openvino", (32, 32), 1, **options)
    assert scores[0] > 99.999
    score = evaluate(load_export(tmp_path / "int8.xml"))
    assert score >= 100 - max_drop
    layers = find_layers(tmp_path / "int8.xml")
    num_floats = sum(find_weights(layer).get_element_type().get_type_name() == "f32" for layer in layers)
    assert len(kept) == num_floats
    assert (num_floats > 0) == (max_drop < 1)
    assert len(layers) == 36
    assert all(re.match(r"(Group)?Convolution \[", layer) for layer in kept)


@pytest.mark.slow
def test_a_limit_that_cannot_be_kept(tmp_path, monkeypatch):
    need("openvino", "nncf")
    import nncf
    import openvino

    def control(model, dataset, _, score, *, max_drop, ignored_scope, subset_size, **options):
        score(openvino.compile_model(model, "CPU"), dataset.get_data())
        return nncf.quantize(model, dataset, ignored_scope=ignored_scope, subset_size=subset_size)

    monkeypatch.setattr(nncf, "quantize_with_accuracy_control", control)
    scores = iter([80.0, 78.5])
    options = {"calibration": [IMAGES[:1]], "max_drop": 1, "evaluate": lambda run: next(scores)}
    model = VANBackbone("b0", widths=(8, 8, 8, 8), depths=(1, 1, 1, 1))
    message = r"int8 costs 1.5 points even with 0 of 36 layers in float.*Received: max_drop=1$"
    with pytest.raises(ValueError, match=message):
        export(model, tmp_path / "int8.xml", "openvino", (64, 96), 1, **options)
    assert not list(tmp_path.iterdir())


# LiteRT.


def list_litert_layers(path):
    """Returns kind, type of the weights and type of the input of each convolution and dense layer."""
    from ai_edge_quantizer.qtyping import TensorType
    from ai_edge_quantizer.utils import tfl_flatbuffer_utils as files

    model, kinds = files.read_model(path.read_bytes()), files.TFL_OP_CODE_TO_NAME
    names = {value: name for name, value in vars(TensorType).items()}
    graph, found = model.subgraphs[0], []
    for operation in graph.operators:
        kind = kinds.get(model.operatorCodes[operation.opcodeIndex].builtinCode)
        if kind is not None and ("CONV" in kind or kind == "FULLY_CONNECTED"):
            places = operation.inputs[1], operation.inputs[2 if kind == "CONV_2D_TRANSPOSE" else 0]
            found.append((str(kind.value), *(names[graph.tensors[place].type] for place in places)))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [((64, 96), 1), (None, None)])
def test_litert(sizes, segmenter, tmp_path):
    need("ai_edge_quantizer", "ai_edge_litert")
    paths = [tmp_path / name for name in ("float32.tflite", "int8.tflite")]
    for path, calibration in zip(paths, (None, [IMAGES]), strict=True):
        export(segmenter, path, "litert", *sizes, calibration=calibration)
    assert measure_export(paths[1]) < 0.5 * measure_export(paths[0])
    functions = [load_export(path) for path in paths]
    for image in draw_images((64, 96), 8)[6:, None]:
        expected, found = (run(image)["outputs"] for run in functions)
        assert found.dtype == expected.dtype
        assert len(np.unique(expected)) > 1
        assert np.mean(found == expected) > 0.9
    layers = list_litert_layers(paths[1])
    assert {each for each in layers if each[0] == "CONV_2D"} == {("CONV_2D", "INT8", "INT8")}
    assert {each for each in layers if each[0] == "DEPTHWISE_CONV_2D"} == {
        ("DEPTHWISE_CONV_2D", "FLOAT32", "FLOAT32")
    }
    assert {each[1] for each in list_litert_layers(paths[0])} == {"FLOAT32"}


@pytest.mark.slow
@pytest.mark.parametrize("head", [MaskRCNN, SimpleBaseline])
def test_litert_of_dense_layers_and_transposed_convolutions(head, tmp_path):
    need("ai_edge_quantizer", "ai_edge_litert")
    options = {"num_keypoints": 3, "channels": 16} if head is SimpleBaseline else {"num_classes": 3}
    model = build(head, **{"channels": 16, **options, **SMALL_DETECTORS.get(head, {})})
    paths = [tmp_path / name for name in ("float32.tflite", "int8.tflite")]
    for path, calibration in zip(paths, (None, [IMAGES]), strict=True):
        export(model, path, "litert", (64, 96), 1, calibration=calibration)
    expected, found = (load_export(path)(IMAGES[:1]) for path in paths)
    assert cosine(found["scores"], expected["scores"]) > 0.9
    kinds = {kind for kind, weights, _ in list_litert_layers(paths[1]) if weights == "INT8"}
    dense = {"FULLY_CONNECTED"} if head is MaskRCNN else set()
    assert kinds == {"CONV_2D", "CONV_2D_TRANSPOSE"} | dense


@pytest.mark.slow
def test_what_litert_cannot_run_is_not_written(tmp_path, monkeypatch):
    need("ai_edge_quantizer", "ai_edge_litert")

    def fail(*_):
        raise RuntimeError("failed to create XNNPACK runtime")

    monkeypatch.setattr(quantization, "_run_litert", fail)
    message = "LiteRT cannot run this model in int8: export it in float32.*failed to create XNNPACK runtime"
    with pytest.raises(ValueError, match=message):
        export(build(), tmp_path / "int8.tflite", "litert", (64, 96), 1, calibration=[IMAGES])
    assert not list(tmp_path.iterdir())


def test_what_fails_leaves_the_earlier_export(tmp_path, monkeypatch):
    need("openvino", "nncf")
    path = tmp_path / "model.xml"
    for part in (path, path.with_suffix(".bin")):
        part.write_text("earlier")

    def fail(*_):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(quantization, "_quantize_openvino", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        export(VANBackbone("b0", **SMALL), path, "openvino", (64, 96), 1, calibration=[IMAGES])
    assert {part.name: part.read_text() for part in tmp_path.iterdir()} == dict.fromkeys(
        ("model.xml", "model.bin"), "earlier"
    )
