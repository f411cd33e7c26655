"""The best k of many in OpenVINO: the same result, hundreds of times as fast where k is large.

TensorFlow's top-k gives equal values by index. OpenVINO's `TopK` is told so, and then takes a bubble sort,
whose time grows with the product of both lengths: 0.3 s for 1,000 of 80,000. Its heap sort takes a
millisecond, but of equal values any are chosen, in any order. So here it sorts what is unique:

    the k-th value        from a heap sort, which is right about values
    who is chosen         what is above it, then what equals it, from the left
    in which order        sorted by value, then each run of equal values by index
"""

import numpy as np

# Fewer than that a bubble sort finds as quickly. With more, the last keys would not fit into 32 bits.
LEAST_COUNT, MOST_COUNT = 16, 46_340


def quicken_sorting(path):
    """Replaces the slow sorts of an OpenVINO export.

    Args:
        path: the `.xml` file, which is written anew with its `.bin`.
    """
    import openvino

    core = openvino.Core()
    core.set_property({"ENABLE_MMAP": False})  # the file of weights is written while the model lives
    model = core.read_model(str(path))
    if replace_sorts(model):
        openvino.serialize(model, str(path))


def replace_sorts(model) -> int:
    """Replaces each stable `TopK` of an `openvino.Model` whose k may be large; returns how many."""
    from openvino.utils import replace_node

    slow = [node for node in model.get_ops() if node.get_type_name() == "TopK" and _is_slow(node)]
    for node in slow:
        values, indices = _find_any(node)
        replace_node(node, [values, _convert(indices, node.get_attributes()["index_element_type"])])
    if slow:
        model.validate_nodes_and_infer_types()
    return len(slow)


def _is_slow(node):
    attributes = node.get_attributes()
    shape = node.output(0).get_partial_shape()
    is_last = shape.rank.is_static and attributes["axis"] in (-1, len(shape) - 1)
    if not (
        is_last and attributes.get("stable") and (attributes["mode"], attributes["sort"]) == ("max", "value")
    ):
        return False
    return shape[-1].is_dynamic or LEAST_COUNT <= shape[-1].get_length() <= MOST_COUNT


def _find_any(node):
    """Returns the values and indices of `find_best`, with OpenVINO's own sort where k turns out too large."""
    import openvino
    from openvino import opset13 as op

    given = [node.input_value(index) for index in (0, 1)]
    if node.output(0).get_partial_shape()[-1].is_static:
        return find_best(*given)
    choice = op.if_op(op.less_equal(op.convert(given[1], "i32"), _make_constant(MOST_COUNT)).output(0))
    inputs, outputs = [], []
    for find, set_body in ((find_best, choice.set_then_body), (_sort_stably, choice.set_else_body)):
        inputs.append([op.parameter(each.get_partial_shape(), each.get_element_type()) for each in given])
        outputs.append([op.result(found) for found in find(*(each.output(0) for each in inputs[-1]))])
        set_body(openvino.Model(outputs[-1], inputs[-1]))
    for value, *parameters in zip(given, *inputs, strict=True):
        choice.set_input(value, *parameters)
    return [choice.set_output(*results) for results in zip(*outputs, strict=True)]


def find_best(values, count):
    """Returns the best of the last axis, equal ones by index: (values, int32 indices), outputs of nodes.

    Args:
        values: output of a node, (..., n).
        count: output of a node, how many: a scalar, at most n and `MOST_COUNT`.
    """
    from openvino import opset13 as op

    count = op.convert(count, "i32")
    last, axes = _make_constant(-1), _make_constant([-1])
    length = op.gather(op.shape_of(values, "i32"), last, _make_constant(0))

    # Who is chosen: of those that equal the k-th value, as many as are missing.
    least = op.reduce_min(_sort(values, count)[0], axes, keep_dims=True)
    above, equal = op.greater(values, least), op.equal(values, least)
    missing = op.subtract(count, op.reduce_sum(op.convert(above, "i32"), axes, keep_dims=True))
    is_early = op.less_equal(op.cum_sum(op.convert(equal, "i32"), last), missing)
    chosen = op.logical_or(above, op.logical_and(equal, is_early))
    numbers = op.range(_make_constant(0), length, _make_constant(1), "i32")
    keys = op.select(chosen, op.subtract(length, numbers), op.negative(numbers))
    indices = _sort(keys, count)[1]  # rising

    # In which order: by the number of a value among the different ones, then by index. The first value is
    # compared with the last, which counts for all alike.
    ranked, places = _sort(op.gather_elements(values, indices, -1), count)
    changes = op.not_equal(ranked, op.roll(ranked, _make_constant([1]), axes))
    groups = op.cum_sum(op.convert(changes, "i32"), last)
    order = _sort(op.add(op.multiply(groups, count), places), count, mode="min")[1]
    indices = op.gather_elements(indices, op.gather_elements(places, order, -1), -1)
    return op.gather_elements(values, indices, -1).output(0), indices.output(0)


def _sort(values, count, mode="max", stable=False):
    from openvino import opset11 as op

    return op.topk(values, count, -1, mode, "value", "i32", stable=stable).outputs()


def _sort_stably(values, count):
    return _sort(values, count, stable=True)


def _make_constant(value):
    from openvino import opset13 as op

    return op.constant(np.array(value, "int32"))


def _convert(indices, dtype):
    from openvino import opset13 as op

    return indices if dtype == "i32" else op.convert(indices, dtype).output(0)
