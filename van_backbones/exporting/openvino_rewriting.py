"""Repairs OpenVINO's converter, and rewrites parts of its graphs that are slow or that it runs wrongly."""

import contextlib

import numpy as np

from van_backbones.exporting.openvino_lists import replace_lists
from van_backbones.exporting.openvino_sorting import replace_sorts

# What OpenVINO says of the axes of a slice, beside where its ellipsis is.
MASKS = ("begin_mask", "end_mask", "new_axis_mask", "shrink_axis_mask")


def rewrite_openvino(path):
    """Rewrites an OpenVINO export: its sorts, the lists that its loops fill, and what takes values by row.

    Args:
        path: the `.xml` file, which is written anew with its `.bin`.
    """
    import openvino

    core = openvino.Core()
    core.set_property({"ENABLE_MMAP": False})  # the file of weights is written while the model lives
    model = core.read_model(str(path))
    if replace_sorts(model) + replace_lists(model) + replace_gathers(model):
        openvino.serialize(model, str(path))


def replace_gathers(model) -> int:
    """Replaces each `Gather` that has its own indices for each row; returns how many.

    `keras.ops.take_along_axis` becomes one. With a single row of known length, OpenVINO 2026.4 (also 2026.3)
    reads other places if fewer than 16 values are taken, on CPUs with AVX-512 at least: it returns wrong
    values or ends the process. `GatherND` does not, and is as quick.
    """
    from openvino import opset13 as op
    from openvino.utils import replace_node

    count = 0
    for graph in _find_graphs(model):
        for node in [node for node in graph.get_ops() if _gathers_by_row(node)]:
            values, indices, _ = node.input_values()
            places = op.unsqueeze(indices, op.constant(np.int32(-1)))
            replace_node(node, op.gather_nd(values, places, node.get_attributes()["batch_dims"]))
            count += 1
        graph.validate_nodes_and_infer_types()
    return count


def _find_graphs(model):
    """Yields the bodies of a model's loops and conditions, the inner ones first, and then the model."""
    for node in model.get_ops():
        kind = node.get_type_name()
        if kind in ("Loop", "TensorIterator"):
            yield from _find_graphs(node.get_function())
        elif kind == "If":
            for branch in (0, 1):
                yield from _find_graphs(node.get_function(branch))
    yield model


def _gathers_by_row(node):
    """Returns whether a `Gather` takes along the first axis behind those that both inputs share."""
    if node.get_type_name() != "Gather" or node.get_attributes().get("batch_dims", 0) <= 0:
        return False
    axis, shape = node.input_value(2).get_node(), node.input_value(0).get_partial_shape()
    if axis.get_type_name() != "Constant" or shape.rank.is_dynamic:
        return False
    return int(axis.get_data()) % len(shape) == node.get_attributes()["batch_dims"]


def spell_out_slices(model) -> int:
    """Gives slices as `x[..., :2]` a range for each axis instead of the ellipsis; returns how many.

    OpenVINO 2026.4 moves the scales of int8 behind slices, and does not compile where it misreads one with
    an ellipsis: "StridedSliceTransformation ... Argument shapes are inconsistent".
    """
    from openvino import opset13 as op
    from openvino.utils import replace_node

    count = 0
    for node in [node for node in model.get_ops() if _has_ellipsis(node)]:
        data, *ranges = node.input_values()
        ranges = [value.get_node().get_data().tolist() for value in ranges]
        length = len(ranges[0])
        masks = {  # may end before the ranges do
            name: [int(each) for each in mask] + [0] * (length - len(mask))
            for name, mask in node.get_attributes().items()
        }
        place = masks["ellipsis_mask"].index(1)
        skipped = len(data.get_partial_shape()) - (length - 1 - sum(masks["new_axis_mask"]))

        def spell_out(values, of_whole_axis, place=place, skipped=skipped):
            return values[:place] + [of_whole_axis] * skipped + values[place + 1 :]

        ranges = [
            op.constant(np.array(spell_out(values, number), "int32"))
            for values, number in zip(ranges, (0, 0, 1), strict=True)
        ]
        spelled = {name: spell_out(masks[name], int(name in ("begin_mask", "end_mask"))) for name in MASKS}
        replace_node(node, op.strided_slice(data, *ranges, **spelled))
        count += 1
    model.validate_nodes_and_infer_types()
    return count


def _has_ellipsis(node):
    """Returns whether a `StridedSlice` has an ellipsis for a known number of axes."""
    if node.get_type_name() != "StridedSlice" or 1 not in node.get_attributes()["ellipsis_mask"]:
        return False
    data, *ranges = node.input_values()
    is_known = data.get_partial_shape().rank.is_static and len(ranges) == 3
    return is_known and all(value.get_node().get_type_name() == "Constant" for value in ranges)


@contextlib.contextmanager
def mended_converter():
    """Lets OpenVINO convert models on Python 3.13 and later.

    Version 2026.4 looks up TensorFlow's version between `exec("import tensorflow")` and `exec("del
    tensorflow")`, in a function, where the second no longer sees the name from the first. Both do nothing
    here, since TensorFlow is imported already.
    """
    from openvino.frontend.tensorflow import utils

    utils.exec = lambda code: None
    try:
        yield
    finally:
        del utils.exec
