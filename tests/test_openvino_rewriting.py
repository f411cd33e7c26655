"""OpenVINO files, of which the slow parts that the converter makes are rewritten."""

import numpy as np
import pytest

from van_backbones.exporting.openvino_rewriting import (
    mended_converter,
    replace_gathers,
    rewrite_openvino,
    spell_out_slices,
)

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


def make_gather(shape, dtype=np.float32, axis=1, batch_dims=1):
    """Returns a graph of two inputs that takes 12 values or rows of each picture."""
    values, indices = op.parameter(shape, dtype), op.parameter((*shape[:batch_dims], 12), np.int32)
    taken = op.gather(values, indices, op.constant(axis), batch_dims)
    return openvino.Model([taken], [values, indices], "gather")


# With one row, OpenVINO's own operation reads other places, and may end the process.
@pytest.mark.parametrize("shape", [(1, 12), (1, 3), (1, 40), (2, 12), (1, 12, 4), (1, 1000, 4), (2, 12, 4)])
@pytest.mark.parametrize("dtype", [np.float32, np.int64, np.bool_])
def test_values_are_taken_from_their_own_row(dtype, shape):
    graph = make_gather(shape, dtype)
    assert replace_gathers(graph) == 1
    random = np.random.default_rng(0)
    values = random.integers(-50, 50, shape).astype(dtype)
    indices = random.integers(0, shape[1], (shape[0], 12)).astype("int32")
    found = openvino.compile_model(graph, "CPU")([values, indices])[0]
    np.testing.assert_array_equal(found, np.stack(list(map(np.take, values, indices, [0] * shape[0]))))


def test_rows_may_have_two_axes():
    graph = make_gather((1, 1, 20), axis=-1, batch_dims=2)
    assert replace_gathers(graph) == 1
    indices = np.arange(12, dtype="int32")[None, None, ::-1].copy()
    found = openvino.compile_model(graph, "CPU")([np.arange(20, dtype="float32")[None, None], indices])[0]
    np.testing.assert_array_equal(found, indices)


def test_gathers_inside_conditions_are_replaced():
    kinds = ((), bool), ((1, 12), np.float32), ((1, 12), np.int32)
    flag, values, indices = (op.parameter(*kind) for kind in kinds)
    branches = make_gather((1, 12)), make_gather((1, 12), axis=-1)
    choice = op.if_op(flag)
    choice.set_then_body(branches[0])
    choice.set_else_body(branches[1])
    for place, value in enumerate((values, indices)):
        choice.set_input(value.output(0), *(branch.get_parameters()[place] for branch in branches))
    chosen = choice.set_output(*(branch.get_results()[0] for branch in branches))
    graph = openvino.Model([chosen], [flag, values, indices], "condition")
    assert replace_gathers(graph) == 2
    order, numbers = np.arange(12, dtype="int32")[None, ::-1].copy(), np.arange(12, dtype="float32")[None]
    for answer in (True, False):
        found = openvino.compile_model(graph, "CPU")([np.array(answer), numbers, order])[0]
        np.testing.assert_array_equal(found, order)


def test_gathers_with_the_same_indices_for_all_rows_stay():
    values = op.parameter((1, 12, 4), np.float32)
    columns = op.gather(values, op.constant([0, 2]), op.constant(2))
    assert replace_gathers(openvino.Model([columns], [values], "columns")) == 0


def slice_in_many_ways(x):
    return [
        *(x[..., :2], x[..., 1], x[..., -1:], x[..., None], x[..., None, 1:3, ::2], x[..., 1, :, None]),
        *(x[:, None, ..., 0], x[0, ..., 2:], x[1, :, :, ..., 2], x[:, 1:]),
    ]


def test_slices_with_an_ellipsis_are_spelled_out():
    tf = pytest.importorskip("tensorflow")
    values = np.random.default_rng(0).normal(size=(2, 3, 4, 5)).astype("float32")
    function = tf.function(slice_in_many_ways, input_signature=[tf.TensorSpec(values.shape)])
    graph = openvino.convert_model(function.get_concrete_function())
    slices = [node for node in graph.get_ops() if node.get_type_name() == "StridedSlice"]
    assert spell_out_slices(graph) == len(slices) - 1 == 9  # the last one has no ellipsis
    found = openvino.compile_model(graph, "CPU")(values).values()
    for one, other in zip(found, slice_in_many_ways(values), strict=True):
        np.testing.assert_array_equal(one, other)


def test_masks_of_slices_may_end_before_their_ranges():
    values = op.parameter((2, 3, 6), np.float32)
    part = op.strided_slice(values, *map(op.constant, ([0, 1], [0, 5], [1, 2])), [0], [0], [], [], [1])
    graph = openvino.Model([part], [values], "slice")
    numbers = np.arange(36, dtype="float32").reshape(2, 3, 6)
    for count in (1, 0):
        assert spell_out_slices(graph) == count
        found = openvino.compile_model(graph, "CPU")(numbers)[0]
        np.testing.assert_array_equal(found, numbers[..., 1:5:2])


def test_the_converter_finds_tensorflow_and_is_left_as_it_was():
    pytest.importorskip("tensorflow")
    from openvino.frontend.tensorflow import utils

    with mended_converter():
        assert "tensorflow" in utils.get_environment_setup("tf")  # fails on Python 3.13 without it
    assert "exec" not in vars(utils)
