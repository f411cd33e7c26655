"""OpenVINO's sorts against NumPy's stable one."""

import numpy as np
import pytest

from van_backbones.exporting.openvino_sorting import LEAST_COUNT, MOST_COUNT, replace_sorts

openvino = pytest.importorskip("openvino")
from openvino import opset11 as op  # noqa: E402


def make_model(shape, count, dtype="float32", index_dtype="i32", **options):
    """Returns a model that finds the best of the last axis, as OpenVINO makes it from TensorFlow's."""
    values = op.parameter(shape, np.dtype(dtype))
    options = {"mode": "max", "sort": "value", "stable": True, "axis": -1} | options
    if count == "half":  # of unknown length
        length = op.gather(op.shape_of(values, "i32"), op.constant(np.int32(-1)), op.constant(np.int32(0)))
        count = op.minimum(op.divide(length, op.constant(np.int32(2))), op.constant(np.int32(1000)))
    elif count == "all":
        count = op.gather(op.shape_of(values, "i32"), op.constant(np.int32(-1)), op.constant(np.int32(0)))
    else:
        count = op.constant(np.int32(count))
    best = op.topk(
        values, count, options["axis"], options["mode"], options["sort"], index_dtype, options["stable"]
    )
    best.output(0).get_tensor().set_names({"values"})
    best.output(1).get_tensor().set_names({"indices"})
    return openvino.Model(best.outputs(), [values])


def run(model, values):
    options = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(model, "CPU", options)
    found = compiled(values)
    return found["values"], found["indices"]


def make_values(shape, kind, dtype="float32"):
    values = np.random.default_rng(0).normal(size=shape)
    if kind == "ties":
        values = np.round(values, 1)
    elif kind == "zeros":  # as scores below a threshold are
        values = np.maximum(values - 2.0, 0.0)
    elif kind == "equal":
        values = np.full(shape, 0.25)
    elif kind == "signs":  # 0 and -0 are equal
        values = np.where(values > 0, 0.0, -0.0)
    elif kind == "infinities":
        values = np.where(values > 1, np.inf, np.where(values < -1, -np.inf, values))
    return (100 * values).astype(dtype)


def check(model, values, count):
    assert replace_sorts(model) == 1
    best, indices = run(model, values)
    expected = np.argsort(-values, axis=-1, kind="stable")[..., :count]
    np.testing.assert_array_equal(indices, expected)
    np.testing.assert_array_equal(best, np.take_along_axis(values, expected, -1))


@pytest.mark.parametrize("kind", ["random", "ties", "zeros", "equal", "signs", "infinities"])
@pytest.mark.parametrize(("length", "count"), [(3000, 1000), (700, 700), (40, 17)])
def test_equals_a_stable_sort(length, count, kind):
    check(make_model((2, length), count), make_values((2, length), kind), count)


@pytest.mark.parametrize("shape", [(50,), (2, 3, 50)])
def test_ranks_and_integers(shape):
    check(make_model(shape, 20, "int32"), make_values(shape, "ties", "int32"), 20)
    check(make_model(shape, 20, index_dtype="i64"), make_values(shape, "ties"), 20)


def test_lengths_that_are_not_known():
    for length in (2, 30, 2000, 3000):
        check(make_model([-1, -1], "half"), make_values((2, length), "ties"), min(length // 2, 1000))


def test_one_model_at_many_lengths():
    model = make_model([-1, -1], "half")
    assert replace_sorts(model) == 1
    compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    for length in (40, 2, 7, 3000, 40, 100, 2400, 24):
        values = make_values((3, length), "ties")
        expected = np.argsort(-values, axis=-1, kind="stable")[:, : min(length // 2, 1000)]
        np.testing.assert_array_equal(compiled(values)["indices"], expected)


def test_a_count_without_a_bound_is_left():
    assert replace_sorts(make_model([-1, -1], "all")) == 0


def test_the_largest_count():
    values = make_values((1, MOST_COUNT + 10), "random")
    check(make_model(values.shape, MOST_COUNT), values, MOST_COUNT)


@pytest.mark.parametrize(
    ("count", "options"),
    [
        (LEAST_COUNT - 1, {}),
        (MOST_COUNT + 1, {}),
        (100, {"stable": False}),
        (100, {"mode": "min"}),
        (100, {"sort": "index", "stable": False}),
    ],
)
def test_others_are_left(count, options):
    assert replace_sorts(make_model((1, MOST_COUNT + 10), count, **options)) == 0


def test_another_axis_is_left():
    assert replace_sorts(make_model((200, 30), 100, axis=0)) == 0
    assert replace_sorts(make_model((30, 200), 100, axis=1)) == 1
