"""Loops in OpenVINO that fill a list, as `keras.ops.map` does: each item is written once, not the list.

OpenVINO turns TensorFlow's list into a tensor that the loop carries along: each step expands it to its full
size, writes an item and passes it on, which copies it two or three times. With 32 groups of regions, 50 MB
together, that was a third of a two-stage detector's time. OpenVINO's own loops can concatenate the outputs of
their steps instead.
"""

import numpy as np


def replace_lists(model) -> int:
    """Replaces the lists that loops of an `openvino.Model` fill in order; returns how many."""
    from openvino.utils import replace_node

    count = 0
    for loop in [node for node in model.get_ops() if node.get_type_name() == "Loop"]:
        filled = {}
        for given in loop.get_input_descriptions():
            item = _find_item(loop, given)
            if item is not None:
                filled[given.body_parameter_index] = given, item
        if filled:
            replace_node(loop, _rebuild(loop, filled))
            count += len(filled)
    if count:
        model.validate_nodes_and_infer_types()
    return count


def _find_item(loop, given):
    """Returns what each step writes at the end of a list, (1, ...), or None where `given` is no such list."""
    body, descriptions = loop.get_function(), loop.get_input_descriptions()
    if not hasattr(given, "body_value_index"):
        return None
    write = body.get_results()[given.body_value_index].input_value(0).get_node()
    if write.get_type_name() != "ScatterUpdate" or len(write.output(0).get_target_inputs()) != 1:
        return None
    spread, place, item, axis = (value.get_node() for value in write.input_values())
    parameter = body.get_parameters()[given.body_parameter_index]
    if spread.get_type_name() == "Broadcast":
        spread = spread.input_value(0).get_node()
    while place.get_type_name() in ("Reshape", "Convert", "Unsqueeze"):
        place = place.input_value(0).get_node()
    if not (spread == parameter and _holds(axis, 0)):
        return None
    counters = [each for each in descriptions if _counts_steps(loop, each)]
    if place not in [body.get_parameters()[each.body_parameter_index] for each in counters]:
        return None
    others = [result for result in body.get_results() if result.input_value(0).get_node() != write]
    return None if parameter in _find_sources([item, *others]) else item.output(0)


def _counts_steps(loop, given):
    """Returns whether a value of a loop is 0, 1, 2, ..."""
    body = loop.get_function()
    if not hasattr(given, "body_value_index") or not _holds(
        loop.input_value(given.input_index).get_node(), 0
    ):
        return False
    step = body.get_results()[given.body_value_index].input_value(0).get_node()
    if step.get_type_name() != "Add":
        return False
    parameter = body.get_parameters()[given.body_parameter_index]
    first, second = (value.get_node() for value in step.input_values())
    return (first == parameter and _holds(second, 1)) or (second == parameter and _holds(first, 1))


def _holds(node, number):
    return node.get_type_name() == "Constant" and bool(np.all(node.get_data() == number))


def _find_sources(nodes):
    """Returns all nodes that the given ones depend on, themselves included."""
    found, waiting = {}, list(nodes)
    while waiting:
        node = waiting.pop()
        if node.get_name() not in found:
            found[node.get_name()] = node
            waiting += [value.get_node() for value in node.input_values()]
    return list(found.values())


def _rebuild(loop, filled):
    """Returns the outputs of a loop that gives items instead of carrying lists.

    Args:
        loop: the old one, whose body is used up.
        filled: the body's index of a list -> (its input description, the item).
    """
    import openvino
    from openvino import opset13 as op

    body = loop.get_function()
    parameters, results = body.get_parameters(), list(body.get_results())
    counter, condition = loop.get_special_body_ports()
    for given, item in filled.values():
        results[given.body_value_index] = op.result(item)
    kept = [parameter for index, parameter in enumerate(parameters) if index not in filled]
    new = op.loop(loop.input_value(0), loop.input_value(1))
    new.set_function(openvino.Model(results, kept, body.get_friendly_name()))
    new.set_special_body_ports([kept.index(parameters[counter]) if counter >= 0 else -1, condition])
    new.set_friendly_name(loop.get_friendly_name())
    lists = {}  # index of the body's result -> the list before the loop
    for given in loop.get_input_descriptions():
        value, parameter = loop.input_value(given.input_index), parameters[given.body_parameter_index]
        if given.body_parameter_index in filled:
            lists[given.body_value_index] = value
        elif hasattr(given, "body_value_index"):
            new.set_merged_input(parameter, value, results[given.body_value_index].output(0))
        elif hasattr(given, "part_size"):
            options = given.start, given.stride, given.part_size, given.end, given.axis
            new.set_sliced_input(parameter, value, *options)
        else:
            new.set_invariant_input(parameter, value)
    outputs = {}
    for taken in loop.get_output_descriptions():
        result = results[taken.body_value_index].output(0)
        if taken.body_value_index in lists:
            items = new.get_concatenated_slices(result, 0, 1, 1, -1, 0)
            before = lists[taken.body_value_index]
            outputs[taken.output_index] = _check_length(items, before, loop.output(taken.output_index))
        elif hasattr(taken, "part_size"):
            options = taken.start, taken.stride, taken.part_size, taken.end, taken.axis
            outputs[taken.output_index] = new.get_concatenated_slices(result, *options)
        else:
            outputs[taken.output_index] = new.get_iter_value(result, taken.iteration)
    return [outputs[index] for index in range(len(outputs))]


def _check_length(items, before, after):
    """Returns joined items in the shape of the list; the model fails if their number differs."""
    from openvino import opset13 as op

    shape = after.get_partial_shape()
    if shape.is_static:
        return op.reshape(items, op.constant(np.array(shape.to_shape(), "int64")), False).output(0)
    zero, one = (op.constant(np.array([number], "int64")) for number in (0, 1))
    length = op.slice(op.shape_of(before), zero, one, one)
    rest = op.slice(op.shape_of(items), one, op.constant(np.array([99], "int64")), one)
    return op.reshape(items, op.concat([length, rest], 0), False).output(0)
