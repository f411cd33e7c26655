"""Loops that fill lists, as OpenVINO's converter makes them from TensorFlow's."""

import numpy as np
import pytest

from van_backbones.exporting.openvino_lists import replace_lists

openvino = pytest.importorskip("openvino")
from openvino import opset13 as op  # noqa: E402

VALUES = np.random.default_rng(0).normal(size=(5, 3)).astype("float32")


def constant(number, shape=()):
    return op.constant(np.full(shape, number, "int32"))


def fill_list(num_values, order="forwards"):
    """Returns a model whose loop carries a list and sums the values, and the way in which its body writes."""
    values = op.parameter([num_values, 3], np.float32, "values")
    count = op.gather(op.shape_of(values, "i32"), constant(0), constant(0))
    empty = op.broadcast(op.constant(np.float32(0)), op.shape_of(values))

    step = op.parameter([], np.int32, "step")
    written = op.parameter([-1, 3], np.float32, "written")
    total = op.parameter([1, 3], np.float32, "total")
    value = op.parameter([1, 3], np.float32, "value")
    place = step
    if order == "backwards":
        place = op.subtract(constant(4), step)
    item = op.multiply(value, op.convert(op.add(step, constant(1)), "f32"))
    if order == "looking back":
        item = op.add(item, op.reduce_sum(written, constant(0), True))
    spread = op.broadcast(written, op.shape_of(written))
    write = op.scatter_update(spread, op.reshape(place, constant(1, (1,)), False), item, constant(0))
    results = [op.result(each) for each in (op.add(step, constant(1)), write, op.add(total, value))]
    results.append(op.result(op.constant(np.array(True))))

    loop = op.loop(count, op.constant(np.array(True)))
    loop.set_function(openvino.Model(results, [step, written, total, value], "body"))
    loop.set_special_body_ports([-1, 3])
    loop.set_merged_input(step, constant(0 if order != "from one" else 1).output(0), results[0].output(0))
    loop.set_merged_input(written, empty.output(0), results[1].output(0))
    loop.set_merged_input(total, op.constant(np.zeros((1, 3), "float32")).output(0), results[2].output(0))
    loop.set_sliced_input(value, values.output(0), 0, 1, 1, -1, 0)
    outputs = [loop.get_iter_value(results[index].output(0), -1) for index in (1, 2)]
    return openvino.Model([op.result(output) for output in outputs], [values], "model")


def run(model, values=VALUES):
    compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return [np.array(value) for value in compiled(values).values()]


@pytest.mark.parametrize("num_values", [5, -1])
def test_a_list_is_joined(num_values):
    expected = VALUES * np.arange(1, 6)[:, None], VALUES.sum(0, keepdims=True)
    model = fill_list(num_values)
    for value, wanted in zip(run(model), expected, strict=True):
        np.testing.assert_allclose(value, wanted, rtol=1e-5)
    shapes = [output.partial_shape for output in model.outputs]
    assert replace_lists(model) == 1
    assert [output.partial_shape for output in model.outputs] == shapes
    (loop,) = [node for node in model.get_ops() if node.get_type_name() == "Loop"]
    assert "ScatterUpdate" not in [node.get_type_name() for node in loop.get_function().get_ops()]
    for value, wanted in zip(run(model), expected, strict=True):
        np.testing.assert_allclose(value, wanted, rtol=1e-5)
    assert replace_lists(model) == 0


def test_a_list_of_one_and_of_many():
    model = fill_list(-1)
    replace_lists(model)
    for values in (VALUES[:1], np.repeat(VALUES, 20, axis=0), VALUES):
        np.testing.assert_allclose(run(model, values)[0], values * np.arange(1, len(values) + 1)[:, None])


@pytest.mark.parametrize("order", ["backwards", "looking back", "from one"])
def test_other_lists_stay(order):
    model = fill_list(5, order)
    assert replace_lists(model) == 0
