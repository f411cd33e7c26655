"""Weights from files and arrays: reference names -> Keras variables."""

import os

import h5py
import keras
import numpy as np


def load_checkpoint(model, path):
    """Fills a model from a weights file.

    Args:
        model: a built Keras model.
        path: a `.weights.h5` file that `model.save_weights` wrote.

    Raises:
        ValueError: for any other kind of file or name, and where the file belongs to another variant.
    """
    path = os.fspath(path)
    if not path.endswith(".weights.h5"):
        raise ValueError(
            "weights must be None or the path of a `.weights.h5` file (`model.save_weights` writes one); "
            f"release names and PyTorch files are not read yet. Received: {path!r}"
        )
    if not os.path.exists(path):
        raise ValueError(f"weights file not found. Received: {path!r}")
    # Keras passes over what a file has too much, and fills half the model before it finds a wrong shape.
    found, wanted = _read_shapes(path), sorted(tuple(variable.shape) for variable in model.weights)
    if found != wanted:
        raise ValueError(
            f"the file does not fit {model.name!r}: it holds {len(found)} arrays for {len(wanted)}, or other "
            f"shapes; build the variant, widths and depths that wrote it. Received: {path!r}"
        )
    model.load_weights(path)


def _read_shapes(path):
    """Gives the sorted shapes of the arrays in a `.weights.h5` file, less an optimizer's state."""
    shapes = []

    def visit(name, item):
        if isinstance(item, h5py.Dataset) and not name.startswith("optimizer/"):
            shapes.append(item.shape)

    with h5py.File(path) as file:
        file.visititems(visit)
    return sorted(shapes)


def load_state_dict(model, arrays):
    """Fills a model from arrays under the names of the PyTorch reference.

    Every variable is filled exactly once and every array used exactly once, or nothing is changed.

    Args:
        model: a model with `reference_layers()`: see `name_variables`.
        arrays: reference name -> array in PyTorch's layout. Counters of batches (`num_batches_tracked`) are
            passed over: Keras has no counterpart.

    Raises:
        ValueError: lists missing, unexpected and wrong-shaped names.
    """
    variables = name_variables(model)
    arrays = {name: array for name, array in arrays.items() if not name.endswith("num_batches_tracked")}
    problems = [f"missing: {name}" for name in variables if name not in arrays]
    problems += [f"unexpected: {name}" for name in arrays if name not in variables]
    converted = {}
    for name in variables.keys() & arrays.keys():
        converted[name] = to_keras_layout(arrays[name], variables[name].shape)
        if converted[name] is None:
            shape = tuple(np.shape(arrays[name]))
            problems.append(f"wrong shape: {name} {shape} for a variable of {tuple(variables[name].shape)}")
    if problems:
        shown = "\n  ".join(sorted(problems)[:20])
        raise ValueError(f"the arrays do not fit {model.name!r} in {len(problems)} places:\n  {shown}")
    for name, array in converted.items():
        variables[name].assign(array)


def to_keras_layout(array, shape):
    """Gives a PyTorch weight in Keras's layout, or None if it does not fit.

    Args:
        array: convolution (out, in, height, width), depthwise (channels, 1, height, width), linear
            (out, in) or vector.
        shape: the Keras variable's shape.

    Returns:
        A NumPy array of `shape`.
    """
    array = np.asarray(array)
    if array.ndim == 4:
        # A depthwise weight has one input channel: only there do the two layouts differ in shape.
        for axes in ((2, 3, 1, 0), (2, 3, 0, 1)):
            if array.transpose(axes).shape == tuple(shape):
                return array.transpose(axes)
        return None
    array = array.T
    return array if array.shape == tuple(shape) else None


def name_variables(model):
    """Gives the variables of a model under the names of its PyTorch reference: name -> variable.

    Args:
        model: anything with `reference_layers()`, which gives reference name -> Keras layer (a convolution, a
            dense layer or a norm) or variable.
    """
    names = {}
    for name, part in model.reference_layers().items():
        if isinstance(part, keras.Variable):
            names[name] = part
            continue
        for suffix, attribute in _ATTRIBUTES:
            variable = getattr(part, attribute, None)
            if variable is not None:
                names[f"{name}.{suffix}"] = variable
    return names


# What PyTorch calls the variables of Keras's layers.
_ATTRIBUTES = (
    ("weight", "kernel"),
    ("bias", "bias"),
    ("weight", "gamma"),
    ("bias", "beta"),
    ("running_mean", "moving_mean"),
    ("running_var", "moving_variance"),
)
