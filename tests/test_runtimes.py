import concurrent.futures
import functools
import importlib
import shutil
import sys
from unittest import mock

import numpy as np
import pytest

from van_backbones import VANBackbone
from van_backbones.exporting import export
from van_backbones.exporting.export import FORMATS
from van_backbones.exporting.runtimes import load_export, measure_export

RUNTIMES = {
    "saved_model": "tensorflow",
    "onnx": "onnxruntime",
    "openvino": "openvino",
    "litert": "ai_edge_litert.interpreter",
}
TinyVAN = functools.partial(VANBackbone, "b0", widths=(8, 8, 16, 16), depths=(1, 1, 1, 1))


@pytest.fixture(scope="module")
def model():
    return TinyVAN()


@pytest.fixture(scope="module")
def write_export(model, tmp_path_factory):
    """Returns a function: format -> the path of the model's export, for a height of 32 and any width."""
    folder = tmp_path_factory.mktemp("exports")

    @functools.cache
    def write(format):
        for package in (*FORMATS[format][1], RUNTIMES[format]):
            pytest.importorskip(package, reason="pip install 'van-backbones[export]'")
        path = folder / f"tiny{FORMATS[format][0]}"
        export(model, path, format, image_size=(32, None))
        return path

    return write


def draw_images(*shape):
    return np.random.default_rng(len(shape)).integers(0, 256, shape, dtype=np.uint8)


def assert_near(outputs, expected, tolerance=1e-4):
    assert outputs.keys() == expected.keys()
    for name, values in outputs.items():
        assert isinstance(values, np.ndarray)
        assert values.dtype == np.float32
        np.testing.assert_allclose(
            values, expected[name], rtol=0, atol=tolerance * np.abs(expected[name]).max()
        )


@pytest.mark.parametrize("format", FORMATS)
def test_answers_are_those_of_the_model(format, model, write_export):
    run = load_export(write_export(format))
    kept = []
    for shape in ((1, 32, 48, 3), (2, 32, 32, 3)):
        images = draw_images(*shape)
        before = images.copy()
        outputs = run(images)
        np.testing.assert_array_equal(images, before)
        assert_near(outputs, model.predict_on_batch(images.astype("float32")))
        kept.append((outputs, {name: values.copy() for name, values in outputs.items()}))
    run(draw_images(2, 32, 32, 3)[:, ::-1])  # a view, which is not contiguous
    for outputs, copies in kept:
        for name, values in outputs.items():  # a call does not overwrite the result of the one before
            np.testing.assert_array_equal(values, copies[name])


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(
    "images",
    [
        np.zeros((1, 33, 32, 3), "uint8"),
        np.zeros((1, 32, 32, 4), "uint8"),
        np.zeros((32, 32, 3), "uint8"),
        np.zeros((1, 32, 32, 3), "float32"),
    ],
    ids=lambda images: f"{images.dtype}{images.shape}",
)
def test_other_images_are_refused(format, images, write_export):
    """Otherwise LiteRT would take any size and OpenVINO any dtype."""
    with pytest.raises(ValueError, match=r"images must be uint8 of shape \(None, 32, None, 3\).*Received: "):
        load_once(write_export(format))(images)


@functools.cache
def load_once(path):
    return load_export(path)


def test_images_that_are_normalised_already(tmp_path):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("tf2onnx")
    model = TinyVAN(input_shape=(None, None, 2), normalization=None)
    export(model, tmp_path / "model.onnx", "onnx", image_size=(32, 32), batch_size=1)
    images = np.random.default_rng(0).normal(size=(1, 32, 32, 2)).astype("float32")
    assert_near(load_export(tmp_path / "model.onnx")(images), model.predict_on_batch(images))


@pytest.mark.parametrize("format", FORMATS)
def test_answers_to_several_threads(format, write_export):
    """Each thread gets its own answer, although a runtime has one buffer for the answers of all."""
    run = load_export(write_export(format))
    images = [draw_images(1, 32, 32 + 8 * (index % 2), 3) + np.uint8(30 * index) for index in range(4)]
    expected = [run(each) for each in images]

    def ask(index):
        for step in range(index, index + 12):
            assert_near(run(images[step % 4]), expected[step % 4])

    with concurrent.futures.ThreadPoolExecutor(4) as threads:
        for asked in [threads.submit(ask, index) for index in range(4)]:
            asked.result()


# Settings of the runtimes.


def test_options_of_onnx_runtime(write_export):
    path = write_export("onnx")
    onnxruntime = importlib.import_module("onnxruntime")
    with mock.patch.object(onnxruntime, "InferenceSession", wraps=onnxruntime.InferenceSession) as session:
        load_export(path, num_threads=3)
    assert session.call_args.args[1].intra_op_num_threads == 3
    assert session.call_args.kwargs["providers"] == ["CPUExecutionProvider"]


@pytest.mark.parametrize(("precision", "hint"), [("float32", "f32"), ("bfloat16", "bf16")])
def test_options_of_openvino(precision, hint, model, write_export):
    path = write_export("openvino")
    core = importlib.import_module("openvino").Core
    with mock.patch.object(
        core, "compile_model", autospec=True, side_effect=core.compile_model
    ) as compile_model:
        run = load_export(str(path), 1, precision)
    assert compile_model.call_args.args[3] == {
        "INFERENCE_PRECISION_HINT": hint,
        "INFERENCE_NUM_THREADS": 1,
        "PERFORMANCE_HINT": "LATENCY",
    }
    images = draw_images(1, 32, 32, 3)
    expected = model.predict_on_batch(images.astype("float32"))
    assert_near(run(images), expected, 1e-4 if precision == "float32" else 0.1)


def test_options_of_litert(write_export):
    path = write_export("litert")
    litert = importlib.import_module("ai_edge_litert.interpreter")
    with mock.patch.object(litert, "Interpreter", wraps=litert.Interpreter) as interpreter:
        load_export(path, num_threads=3)
    assert interpreter.call_args.kwargs["num_threads"] == 3


def test_threads_of_a_saved_model_are_those_of_the_process(write_export):
    path = write_export("saved_model")
    with pytest.raises(ValueError, match=r"set_intra_op_parallelism_threads\(1234\) before.*its default"):
        load_export(path, num_threads=1234)
    threading = "tensorflow.config.threading.get_intra_op_parallelism_threads"
    with mock.patch(threading, return_value=1234):
        load_export(path, num_threads=1234)


# What is refused.


@pytest.mark.parametrize(
    ("name", "precision"), [("tiny.xml", "float16"), ("tiny.onnx", "bfloat16"), ("tiny.tflite", "bfloat16")]
)
def test_precisions_that_a_runtime_lacks(name, precision, tmp_path):
    for part in (tmp_path / name, tmp_path / "tiny.bin"):
        part.touch()
    with pytest.raises(ValueError, match=rf'"bfloat16" for OpenVINO.*Received: {precision!r} for .*{name}'):
        load_export(tmp_path / name, precision=precision)


def test_less_than_one_thread(tmp_path):
    (tmp_path / "tiny.onnx").touch()
    with pytest.raises(ValueError, match=r"num_threads must be at least 1, or None. Received: 0"):
        load_export(tmp_path / "tiny.onnx", num_threads=0)


@pytest.mark.parametrize(
    ("path", "missing"),
    [
        ("no.onnx", "no.onnx"),
        ("no_folder", "saved_model.pb"),
        ("empty", "saved_model.pb"),
        ("lonely.xml", "lonely.bin"),
    ],
)
def test_missing_files_are_named(path, missing, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "lonely.xml").touch()
    with pytest.raises(FileNotFoundError, match=f"there is no export at .*{path}.*{missing}' is missing"):
        load_export(tmp_path / path)


def test_unknown_suffix(tmp_path):
    with pytest.raises(ValueError, match=r"one of \['.onnx', '.tflite', '.xml'\]. Received: .*model.keras"):
        load_export(tmp_path / "model.keras")


@pytest.mark.parametrize("format", FORMATS)
def test_missing_runtimes_are_named(format, tmp_path, monkeypatch):
    path = tmp_path / f"model{FORMATS[format][0]}"
    if format == "saved_model":
        path.mkdir()
        (path / "saved_model.pb").touch()
    else:
        path.touch()
        path.with_suffix(".bin").touch()
    monkeypatch.setitem(sys.modules, RUNTIMES[format], None)
    package = RUNTIMES[format].split(".")[0].replace("_", "-")
    message = rf'{package} is not installed: run pip install "van-backbones\[export\]"'
    with pytest.raises(ImportError, match=message):
        load_export(path)


def test_size_counts_all_files(tmp_path):
    for name, count in (
        ("a.xml", 1),
        ("a.bin", 10),
        ("a.onnx", 100),
        ("folder/b/c", 1000),
        ("folder/d", 10000),
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(count))
    names = ("a.xml", "a.onnx", "folder")
    assert [measure_export(str(tmp_path / name)) for name in names] == [11, 100, 11000]


def test_exports_can_be_moved(write_export, tmp_path):
    """Nothing in an OpenVINO export names the place that it was written to."""
    path = write_export("openvino")
    for part in (path, path.with_suffix(".bin")):
        shutil.copy(part, tmp_path / f"moved{part.suffix}")
    images = draw_images(1, 32, 32, 3)
    assert_near(load_export(tmp_path / "moved.xml")(images), load_export(path)(images), 1e-6)
