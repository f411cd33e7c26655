"""export_model.py --int8 and benchmark_exports.py --int8."""

import pathlib
import sys
from unittest import mock

import keras
import numpy as np
import pytest
from PIL import Image

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "examples"))

import benchmark_exports
import export_model
from small_models import SMALL, build, draw_images

from heads import SemanticFPN
from van_backbones import VANBackbone
from van_backbones.exporting.export import FORMATS


@pytest.fixture
def folder(tmp_path):
    """Returns a folder with a segmenter, "model.keras", and four pictures in "pictures"."""
    build(SemanticFPN, num_classes=3, channels=8, pyramid_channels=8).save(tmp_path / "model.keras")
    (tmp_path / "pictures").mkdir()
    for index, image in enumerate(draw_images((64, 96), 4)):
        Image.fromarray(image).save(tmp_path / "pictures" / f"{index}.png")
    return tmp_path


def run(folder, *options, format="openvino"):
    output = str(folder / "out" / f"model{FORMATS[format][0]}")
    words = ["--format", format, "--output", output, "--image-size", "64", "96", *options]
    return export_model.main([str(folder / "model.keras"), *map(str, words)])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--int8"], "--int8 and --calibration FOLDER need each other"),
        (["--calibration", "FOLDER"], "--int8 and --calibration FOLDER need each other"),
        (
            ["--int8", "--calibration", "missing"],
            "--calibration must be a folder of pictures. Received: missing",
        ),
        (["--max-drop", "1"], "--max-drop needs --int8 and --format openvino"),
        (
            ["--int8", "--calibration", "FOLDER", "--format", "onnx", "--max-drop", "1"],
            "--max-drop needs --int8 and --format openvino",
        ),
        (
            ["--int8", "--calibration", "FOLDER", "--format", "saved_model"],
            "--int8 needs --format litert or onnx or openvino. Received: --format saved_model",
        ),
    ],
)
def test_options_that_make_no_sense(options, message, folder, capsys):
    with pytest.raises(SystemExit):
        run(folder, *(folder / "pictures" if option == "FOLDER" else option for option in options))
    assert message in capsys.readouterr().err


def test_what_the_export_is_given(folder, capsys):
    """The pictures, and a score: the share of the model's own answers that is found."""
    model = keras.saving.load_model(folder / "model.keras", compile=False)
    pictures = draw_images((64, 96), 4)
    expected = model.predict_on_batch(pictures.astype("float32"))
    given = {}

    def export(model, path, *sizes, **options):
        path.parent.mkdir()
        path.touch()
        given.update(options)
        answers = iter([expected[:1], expected[1:2] + 1, expected[2:3], expected[3:] + 1])
        given["score"] = options["evaluate"](lambda images: {"outputs": next(answers)})
        return ["Convolution [1,8,16,24]"]

    with (
        mock.patch.object(export_model, "export", export),
        mock.patch.object(export_model, "measure_export", return_value=1e6),
        mock.patch.object(export_model, "load_export", side_effect=ImportError("none here")),
    ):
        assert run(folder, "--int8", "--calibration", folder / "pictures", "--max-drop", "1.5") == 0
    np.testing.assert_array_equal(np.concatenate(given["calibration"]), pictures)
    assert given["max_drop"] == 1.5
    assert given["score"] == 50.0
    printed = capsys.readouterr().out
    assert "openvino, int8, 1.0 MB" in printed
    assert "stayed in float: Convolution [1,8,16,24]" in printed


def test_pictures_for_a_classifier_are_cut_to_size(folder):
    batches = list(export_model.fit_pictures(folder / "pictures", (32, 32)))
    assert [(batch.shape, batch.dtype) for batch in batches] == [((1, 32, 32, 3), np.dtype("uint8"))] * 4


def test_agreement_by_hand():
    measure = export_model.measure_agreement
    logits = np.array([[0.0, 1.0], [1.0, 0.0]])
    assert measure({"outputs": logits}, {"outputs": logits[:, ::-1]}) == 0
    assert measure({"outputs": logits}, {"outputs": 2 * logits}) == 100
    objects = {
        "boxes": np.array([[[0, 0, 10, 10], [20, 20, 40, 40], [5, 5, 9, 9]]], "float32"),
        "scores": np.array([[0.9, 0.8, 0.1]]),
        "labels": np.array([[0, 1, 0]]),
    }
    assert measure(objects, objects) == 100
    # The second object has another label, the third one's score is too low to count.
    assert measure(objects, {**objects, "labels": np.array([[0, 0, 1]])}) == 50
    with pytest.raises(ValueError, match=r"labels or objects. Received: one that predicts P2, P3"):
        measure({"P2": logits, "P3": logits}, {})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("format", "packages"),
    [
        ("openvino", ("openvino", "nncf")),
        ("onnx", ("tf2onnx", "onnxruntime")),
        ("litert", ("ai_edge_quantizer",)),
    ],
)
def test_export_in_int8(format, packages, folder, capsys):
    for package in packages:
        pytest.importorskip(package, reason="pip install 'van-backbones[int8]'")
    run(folder, "--int8", "--calibration", folder / "pictures", format=format)
    assert f"{format}, int8" in capsys.readouterr().out


def test_benchmark_shows_int8(capsys):
    calibrations = []

    def export(model, path, format, *sizes, calibration=None):
        path.parent.mkdir(exist_ok=True)
        path.touch()
        path.with_suffix(".bin").touch()
        calibrations.append(calibration)

    def load_export(path, *_):
        return lambda images: {"P5": np.zeros((2, 1, 1, 16))}

    with (
        mock.patch.object(benchmark_exports, "VANBackbone", return_value=VANBackbone("b0", **SMALL)),
        mock.patch.object(benchmark_exports, "export", export),
        mock.patch.object(benchmark_exports, "load_export", load_export),
        mock.patch.object(benchmark_exports, "measure_error", return_value=0.0),
    ):
        options = ["--image-size", "32", "32", "--batch-size", "2", "--rounds", "1"]
        formats = ["--formats", "openvino", "saved_model"]
        benchmark_exports.main(["--variant", "b0", "--int8", *formats, *options])
    lines = [line.split(" | ")[0] for line in capsys.readouterr().out.splitlines()]
    rows = [line.strip("| ") for line in lines if line.startswith("| ")][1:]
    assert rows == [
        "Keras",
        "Keras, deployed",
        "openvino",
        "openvino, bfloat16",
        "openvino, int8",
        "saved_model",
    ]
    found = [calibration for calibration in calibrations if calibration is not None]
    assert [each.shape for each in found] == [(8, 2, 32, 32, 3)]
