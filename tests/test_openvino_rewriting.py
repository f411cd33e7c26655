"""OpenVINO files, of which the slow parts that the converter makes are rewritten."""

import numpy as np
import pytest

from van_backbones.exporting.openvino_rewriting import mended_converter, rewrite_openvino

openvino = pytest.importorskip("openvino")
from openvino import opset11 as op  # noqa: E402


def test_a_file_is_written_anew(tmp_path):
    path, values = tmp_path / "model.xml", np.random.default_rng(0).normal(size=(2, 500)).astype("float32")
    given = op.parameter(values.shape, np.float32)
    weights = op.constant(np.random.default_rng(1).normal(size=(500, 500)).astype("float32"))
    best = op.topk(op.matmul(given, weights, False, False), op.constant(100), -1, "max", "value", "i32", True)
    openvino.serialize(openvino.Model(best.outputs(), [given]), path)
    core = openvino.Core()
    expected = core.compile_model(path, "CPU")(values)
    rewrite_openvino(path)
    assert 'stable="true"' not in path.read_text()
    received = core.compile_model(path, "CPU")(values)
    for index in (0, 1):
        np.testing.assert_array_equal(received[index], expected[index])


def test_a_file_without_slow_parts_stays(tmp_path):
    path, given = tmp_path / "model.xml", op.parameter((2, 3), np.float32)
    openvino.serialize(openvino.Model([op.relu(given)], [given]), path)
    written = path.stat().st_mtime_ns
    rewrite_openvino(path)
    assert path.stat().st_mtime_ns == written


def test_the_converter_finds_tensorflow_and_is_left_as_it_was():
    pytest.importorskip("tensorflow")
    from openvino.frontend.tensorflow import utils

    with mended_converter():
        assert "tensorflow" in utils.get_environment_setup("tf")  # fails on Python 3.13 without it
    assert "exec" not in vars(utils)
