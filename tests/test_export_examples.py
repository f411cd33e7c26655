import contextlib
import functools
import pathlib
import re
import sys
from unittest import mock

import keras
import numpy as np
import pytest
from PIL import Image

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "examples"))

import benchmark_exports
import export_model

from heads import RetinaNet, SemanticFPN
from van_backbones import VANBackbone

TinyVAN = functools.partial(VANBackbone, widths=(8, 8, 16, 16), depths=(1, 1, 1, 1))


def need(*packages):
    for package in packages:
        pytest.importorskip(package, reason="pip install 'van-backbones[export]'")


def build_classifier(variant, weights):
    """Replaces each VANClassifier by a tiny network, because the script is tested, not the model."""
    backbone = TinyVAN(variant)
    return keras.Model(backbone.input, keras.layers.GlobalAveragePooling2D()(backbone.output["P5"]))


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Returns a folder of models: "detector.keras", "segmenter.keras" and one without a VAN in it."""
    folder = tmp_path_factory.mktemp("models")
    keras.utils.set_random_seed(0)
    detector = RetinaNet(TinyVAN("b0"), 3, channels=16, num_convs=1, max_detections=20)
    # A new detector's scores are nearly equal, so that rounding would decide their order.
    kernel = detector.class_output.kernel
    kernel.assign(keras.random.normal(kernel.shape, stddev=3.0, seed=0))
    detector.save(folder / "detector.keras")
    SemanticFPN(TinyVAN("b0"), 4, channels=16, pyramid_channels=16).save(folder / "segmenter.keras")
    keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)]).save(folder / "stranger.keras")
    return folder


# Exporting.


@pytest.mark.slow
def test_detector(models, tmp_path, capsys):
    need("openvino")
    path = tmp_path / "new" / "detector.xml"
    options = ["--format", "openvino", "--output", str(path), "--image-size", "64", "96", "--batch-size", "2"]
    assert export_model.main([str(models / "detector.keras"), *options]) == 0
    assert path.exists()
    printed = capsys.readouterr().out
    for pattern in (
        r"detector\.xml: openvino, \d+\.\d MB, images uint8 \(2, 64, 96, 3\)",
        r"40 detections in both, 0\.0% of the model's are missing",
        r"boxes: float32 \(2, 20, 4\), largest difference \S+ of the largest value",
        r"labels: int32 \(2, 20\), 100\.0000% equal",
        r"One call: \d+\.\d ms; with the Keras model: \d+\.\d ms",
    ):
        assert re.search(pattern, printed), pattern


def test_segmenter_on_a_picture(models, tmp_path, capsys, monkeypatch):
    need("onnxruntime", "onnx", "tf2onnx")
    monkeypatch.chdir(tmp_path)
    noise = np.random.default_rng(0).integers(0, 256, (70, 90, 3), dtype=np.uint8)
    Image.fromarray(noise).save("picture.png")
    options = ["--format", "onnx", "--image-size", "32", "48", "--picture", "picture.png"]
    assert export_model.main([str(models / "segmenter.keras"), *options]) == 0
    assert (tmp_path / "runs" / "exports" / f"{models.name}-segmenter.onnx").exists()
    printed = capsys.readouterr().out
    assert "images uint8 (1, 32, 48, 3)" in printed
    assert re.search(r"outputs: int32 \(1, 32, 48\), (100\.0|99\.)\d+% equal", printed)


def test_variant_of_any_size(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(export_model, "VANClassifier", build_classifier)
    assert export_model.main(["--variant", "b1"]) == 0
    assert (tmp_path / "runs" / "exports" / "van_b1" / "saved_model.pb").exists()
    printed = capsys.readouterr().out
    assert "images uint8 (1, 224, 288, 3)" in printed
    assert re.search(r"outputs: float32 \(1, 16\), largest difference (\S+e-0[5-9]|0\.0e\+00) of", printed)


@contextlib.contextmanager
def imagined_export(outputs):
    """Lets the script find these answers in the export, or this error, without an export."""
    loaded = (
        {"side_effect": outputs} if isinstance(outputs, Exception) else {"return_value": lambda _: outputs}
    )
    with (
        mock.patch.object(export_model, "VANClassifier", build_classifier),
        mock.patch.object(export_model, "export", lambda model, path, *_: path.touch()),
        mock.patch.object(export_model, "load_export", **loaded),
    ):
        yield


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        ({"outputs": np.full((1, 16), 9.0)}, r"outputs by \S+ of the largest, allowed is 1e-03"),
        ({"outputs": np.full((1, 16), np.nan)}, r"outputs by nan of the largest"),
        ({"other": np.zeros((1, 16))}, r"the model returns {'outputs': \(1, 16\)}, the export {'other'"),
    ],
)
def test_wrong_answers_are_told(outputs, message, tmp_path, capsys):
    with imagined_export(outputs):
        options = ["--format", "onnx", "--output", str(tmp_path / "a.onnx"), "--image-size", "32", "32"]
        assert export_model.main(["--variant", "b0", *options]) == 1
    assert re.search(f"Differs by more than rounding explains: {message}", capsys.readouterr().err)


def test_without_the_runtime_nothing_is_compared(tmp_path, capsys):
    with imagined_export(ImportError("no such runtime")):
        options = ["--format", "onnx", "--output", str(tmp_path / "a.onnx"), "--image-size", "32", "32"]
        assert export_model.main(["--variant", "b0", *options]) == 0
    assert "Not compared: no such runtime" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "pass either a model's file or --variant"),
        (["DETECTOR", "--variant", "b0"], "pass either a model's file or --variant"),
        (["missing.keras"], "there is no model missing.keras"),
        (
            ["DETECTOR", "--format", "onnx", "--output", "a.xml"],
            "--output must end in .onnx for --format onnx",
        ),
        (["DETECTOR", "--output", "a.onnx"], 'pass format="onnx" for this file'),
        (["DETECTOR", "--output", "FULL"], "which holds notes.txt"),
        (["DETECTOR", "--output", "DETECTOR"], "--output must be a folder for --format saved_model"),
        (["DETECTOR", "--format", "onnx", "--output", "FOLDER"], "--output must be a file for --format onnx"),
        (
            ["DETECTOR", "--image-size", "32", "16"],
            "argument --image-size: must be a whole number, at least 32. Received: '16'",
        ),
        (
            ["DETECTOR", "--batch-size", "0"],
            "argument --batch-size: must be a whole number, at least 1. Received: '0'",
        ),
        (["DETECTOR", "--picture", "DETECTOR"], "cannot read the picture"),
        (["STRANGER"], "model must be a VANBackbone"),
    ],
)
def test_export_refuses(options, message, models, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "folder.onnx"
    folder.mkdir()
    full = tmp_path / "full"
    full.mkdir()
    (full / "notes.txt").touch()
    places = {"DETECTOR": models / "detector.keras", "STRANGER": models / "stranger.keras"}
    places |= {"FOLDER": folder, "FULL": full}
    with pytest.raises(SystemExit):
        export_model.main([str(places.get(option, option)) for option in options])
    assert message in capsys.readouterr().err


def test_export_refuses_without_the_converter(models, tmp_path, capsys):
    with (
        mock.patch.object(export_model, "export", side_effect=ImportError('run pip install "x"')),
        pytest.raises(SystemExit),
    ):
        export_model.main([str(models / "segmenter.keras"), "--output", str(tmp_path / "a")])
    assert 'run pip install "x"' in capsys.readouterr().err


def test_images_that_are_normalised_already(tmp_path, capsys):
    """Any numbers will do, because such a model takes no pictures."""
    TinyVAN("b0", normalization=None, input_shape=(None, None, 2)).save(tmp_path / "model.keras")
    options = ["--format", "onnx", "--output", str(tmp_path / "a.onnx"), "--image-size", "32", "32"]
    with imagined_export({}):
        assert export_model.main([str(tmp_path / "model.keras"), *options]) == 1
        assert "images float32 (1, 32, 32, 2)" in capsys.readouterr().out
        with pytest.raises(SystemExit):
            export_model.main([str(tmp_path / "model.keras"), *options, "--picture", "any.png"])
    assert "--picture is for models that normalise" in capsys.readouterr().err


# Comparing.


def make_detections():
    """Returns ten detections and two empty rows for each of two images."""
    random = np.random.default_rng(0)
    scores = -np.sort(-random.uniform(0.1, 1.0, (2, 12)))
    labels = random.integers(0, 3, (2, 12))
    boxes = random.uniform(0, 100, (2, 12, 4))
    scores[:, 10:], labels[:, 10:], boxes[:, 10:] = 0.0, -1, 0.0
    scores[0, 4] = scores[0, 3] - 1e-6
    detections = {
        "scores": scores,
        "labels": labels,
        "boxes": boxes,
        "masks": random.uniform(size=(2, 12, 7, 7)),
    }
    return detections, {name: values.copy() for name, values in detections.items()}


def compare(expected, received):
    return export_model.compare_answers(expected, received, *export_model.TOLERANCES["float32"])


def test_near_ties_may_swap(capsys):
    expected, received = make_detections()
    for values in received.values():
        values[0, [3, 4]] = values[0, [4, 3]]
    assert compare(expected, received) == []
    printed = capsys.readouterr().out
    assert "20 detections in both, 0.0% of the model's are missing" in printed
    assert "labels: int64 (2, 12), 100.0000% equal" in printed
    assert "masks: float64 (2, 12, 7, 7), largest difference 0.0e+00" in printed


@pytest.mark.parametrize(
    ("name", "change", "messages"),
    [
        ("boxes", 0.01, []),
        ("boxes", 5.0, ["60.0% of the detections are missing, allowed is 10%"]),
        ("labels", 1, ["60.0% of the detections are missing, allowed is 10%"]),
        ("scores", 0.1, ["sorted scores by", "60.0% of the detections are missing"]),
        ("scores", np.nan, ["sorted scores by nan", "60.0% of the detections are missing"]),
        ("masks", 0.1, ["masks by"]),
    ],
)
def test_other_detections_are_found(name, change, messages):
    expected, received = make_detections()
    received[name][:, :6] += change
    problems = compare(expected, received)
    assert len(problems) == len(messages)
    for problem, message in zip(problems, messages, strict=True):
        assert message in problem


def test_no_detections_are_no_difference():
    expected, received = make_detections()
    for arrays in (expected, received):
        arrays["labels"][:], arrays["scores"][:], arrays["boxes"][:] = -1, 0.0, 0.0
    assert compare(expected, received) == []


@pytest.mark.parametrize(
    ("num_others", "problems"), [(1, []), (2, ["outputs in 2.0% of the entries, allowed is 1%"])]
)
def test_label_maps(num_others, problems):
    expected = np.arange(100).reshape(1, 10, 10)
    received = np.where(expected < num_others, 7, expected)
    assert compare({"outputs": expected}, {"outputs": received}) == problems


# Measuring.


def read_rows(printed):
    """Returns name -> cells of the table."""
    lines = [line.strip("| ").split(" | ") for line in printed.splitlines() if line.startswith("| ")]
    return {name: [float(cell) for cell in cells] for name, *cells in lines[2:]}


@pytest.mark.slow
def test_benchmark_of_a_variant(capsys):
    need("openvino", "onnxruntime", "onnx", "tf2onnx")
    keras.utils.set_random_seed(0)
    with mock.patch.object(benchmark_exports, "VANBackbone", TinyVAN):
        # On smaller images, norms over one or two positions would magnify bfloat16's errors.
        options = ["--formats", "onnx", "openvino", "--image-size", "96", "128", "--rounds", "2"]
        benchmark_exports.main(["--variant", "b1", *options])
    printed = capsys.readouterr().out
    assert "1 x 96 x 128, medians of 2 rounds" in printed
    rows = read_rows(printed)
    assert list(rows) == ["Keras", "Keras, deployed", "onnx", "openvino", "openvino, bfloat16"]
    for name, (milliseconds, ratio, megabytes, error) in rows.items():
        assert milliseconds > 0
        assert ratio > 0
        assert megabytes > 0
        assert error < (1e-4 if "bfloat16" not in name else 0.2)
    assert rows["Keras"][3] == 0.0
    assert rows["onnx"][3] > 0.0


def test_table_by_hand(capsys):
    answers = {"Keras": {"outputs": np.array([1.0, 4.0])}, "onnx": {"outputs": np.array([1.0, 3.0])}}
    benchmark_exports.print_table(answers, {"Keras": 30.0, "onnx": 12.0}, {"Keras": 2.04, "onnx": 1.0})
    assert capsys.readouterr().out.splitlines() == [
        "| | ms | times as fast | MB | error |",
        "| --- | ---: | ---: | ---: | ---: |",
        "| Keras | 30.0 | 1.00 | 2.0 | 0.0e+00 |",
        "| onnx | 12.0 | 2.50 | 1.0 | 2.5e-01 |",
    ]


def test_benchmark_of_a_file_leaves_out_what_is_missing(models, capsys):
    def load_export(path, *_):
        if path.suffix == ".tflite":
            raise ImportError("no such runtime")
        return lambda images: {"outputs": np.zeros(images.shape[:3], "int32")}

    with (
        mock.patch.object(benchmark_exports, "export", lambda model, path, *_: path.touch()),
        mock.patch.object(benchmark_exports, "load_export", load_export),
    ):
        options = [
            "--formats",
            "litert",
            "onnx",
            "--image-size",
            "32",
            "32",
            "--batch-size",
            "2",
            "--rounds",
            "1",
        ]
        benchmark_exports.main([str(models / "segmenter.keras"), *options])
    printed = capsys.readouterr().out
    assert "litert is left out: no such runtime" in printed
    assert "2 x 32 x 32" in printed
    rows = read_rows(printed)
    assert list(rows) == ["Keras", "Keras, deployed", "onnx"]
    assert rows["Keras, deployed"][3] < 0.01
    assert rows["onnx"][3] > 0.1


def test_errors_by_hand():
    measure = benchmark_exports.measure_error
    expected = {"a": np.array([1.0, -4.0]), "b": np.array([8.0])}
    assert measure(expected, {"a": np.array([1.0, -3.0]), "b": np.array([8.0])}) == 0.25
    assert measure({"outputs": np.array([1, 2, 3, 4])}, {"outputs": np.array([1, 2, 0, 4])}) == 0.25
    assert measure({"scores": np.array([0.5]), "labels": np.array([1])}, {"scores": np.array([0.5])}) == 0.0


def test_weights_matter():
    """Every norm and every branch of the untrained backbone matters."""
    backbone = TinyVAN("b0", drop_path_rate=0.0)
    images = benchmark_exports.make_scenes(1, (32, 64))
    assert images.shape == (1, 32, 64, 3)
    benchmark_exports.make_weights_matter(backbone, images)
    for variable in backbone.variables:
        if "layer_scale" in variable.path:
            assert variable.numpy().min() >= 0.1
        elif variable.path.endswith(("gamma", "beta", "moving_mean", "moving_variance")):
            assert variable.numpy().std() > 0, variable.path
    fresh = TinyVAN("b0").reference_layers()
    for name, part in backbone.reference_layers().items():
        assert getattr(part, "momentum", None) == getattr(fresh[name], "momentum", None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "pass either a model's file or --variant"),
        (["missing.keras"], "there is no model missing.keras"),
        (
            ["--variant", "b0", "--image-size", "16", "32"],
            "argument --image-size: must be a whole number, at least 32",
        ),
        (
            ["--variant", "b0", "--batch-size", "0"],
            "argument --batch-size: must be a whole number, at least 1. Received: '0'",
        ),
        (
            ["--variant", "b0", "--threads", "0"],
            "argument --threads: must be a whole number, at least 1. Received: '0'",
        ),
        (
            ["--variant", "b0", "--rounds", "0"],
            "argument --rounds: must be a whole number, at least 1. Received: '0'",
        ),
        (["--variant", "b0", "--threads", "1234"], "TensorFlow is running already"),
        (["STRANGER"], "model must be a VANBackbone"),
    ],
)
def test_benchmark_refuses(options, message, models, capsys):
    keras.ops.zeros(1) + 1  # TensorFlow is running
    with pytest.raises(SystemExit):
        benchmark_exports.main([str(models / "stranger.keras") if o == "STRANGER" else o for o in options])
    assert message in capsys.readouterr().err
