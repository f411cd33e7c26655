"""Weights from files, releases and arrays into models, and back.

`python -m van_backbones.checkpoints --help` does the same from the command line.
"""

import os
import sys
import warnings

import h5py
import keras
import numpy as np

from van_backbones import releases
from van_backbones.state_dicts import find_variant, read_state_dict
from van_backbones.variants import VARIANTS

# What PyTorch calls the variables of Keras's layers.
ATTRIBUTES = (
    ("weight", "kernel"),
    ("bias", "bias"),
    ("weight", "gamma"),
    ("bias", "beta"),
    ("running_mean", "moving_mean"),
    ("running_var", "moving_variance"),
)


def load_checkpoint(model, path):
    """Fills a backbone, a classifier or a whole head model, completely or not at all.

    The format is recognised by the file's keys: the official code, Hugging Face transformers, mmpretrain,
    mmsegmentation (PyTorch or safetensors files, read without PyTorch), or our own `.weights.h5`. A backbone
    takes its part of a larger model's file. Where a file has another number of classes than the model, the
    layers that depend on it are left as they are, with a warning. Files of mmsegmentation and mmpretrain set
    the backbone's layer norm epsilon to theirs, 1e-5.

    Args:
        model: a built Keras model: ours with `reference_layers()`, or any for a `.weights.h5` file.
        path: a file, a release's name (`van_backbones.releases.RELEASES`), or "imagenet" for the release of
            the model's variant.

    Raises:
        ValueError: for a file that does not fit; lists missing, unexpected and wrong-shaped names.
        van_backbones.releases.DownloadError: where a release cannot be fetched.
    """
    path = os.fspath(path)
    if path.endswith(".weights.h5"):
        _load_own(model, path)
        return
    backbone = getattr(model, "backbone", model)
    if not os.path.exists(path):
        if os.path.splitext(path)[1] or os.path.basename(path) != path:
            raise ValueError(f"weights file not found. Received: {path!r}")
        release = releases.find_release(path, backbone.variant)
        _check_variant(release.variant, backbone, path)
        path = releases.download(release)
    found = read_state_dict(path)
    _check_variant(find_variant(found.arrays), backbone, path)
    load_state_dict(model, found.arrays)
    if found.layer_norm_epsilon is not None:
        backbone.set_layer_norm_epsilon(found.layer_norm_epsilon)


def load_state_dict(model, arrays):
    """Fills a model from arrays under the names of the PyTorch reference.

    Every variable is filled exactly once and every array used exactly once, or nothing is changed. A backbone
    passes over the heads' arrays; see `load_checkpoint` for another number of classes.

    Args:
        model: a model with `reference_layers()`: see `name_variables`.
        arrays: reference name -> array in PyTorch's layout, the backbone's names with or without `backbone.`.
            Counters of batches (`num_batches_tracked`) are passed over: Keras has no counterpart.

    Raises:
        ValueError: lists missing, unexpected and wrong-shaped names.
    """
    variables = name_variables(model)
    arrays = {name: array for name, array in arrays.items() if not name.endswith("num_batches_tracked")}
    if any(name.startswith("backbone.") for name in variables):
        arrays = _add_prefix(arrays)
    if all(name.startswith("backbone.") for name in variables):
        arrays = {name: array for name, array in arrays.items() if name.startswith("backbone.")}
    fresh = _find_other_classes(model, variables, arrays)
    variables = {name: variable for name, variable in variables.items() if name not in fresh}
    arrays = {name: array for name, array in arrays.items() if name not in fresh}

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
    if fresh:
        warnings.warn(
            "the checkpoint has another number of classes than the model: "
            f"{', '.join(sorted(fresh))} were not loaded and start fresh",
            stacklevel=2,
        )


def to_state_dict(model):
    """Gives a model's weights as its PyTorch reference would save them.

    Args:
        model: a model with `reference_layers()`: see `name_variables`.

    Returns:
        A dict name -> NumPy array. The names of a backbone or an ImageNet classifier have no `backbone.`
        prefix, as in the official code; those of a whole segmenter have it, as in mmsegmentation.
    """
    arrays = {}
    for name, part in model.reference_layers().items():
        for suffix, variable in _named_variables(part):
            array = keras.ops.convert_to_numpy(variable)
            if array.ndim == 4:
                depthwise = isinstance(part, keras.layers.DepthwiseConv2D)
                array = array.transpose((2, 3, 0, 1) if depthwise else (3, 2, 0, 1))
            arrays[name + suffix] = np.ascontiguousarray(array.T if array.ndim == 2 else array)
            if suffix == ".running_var":
                arrays[f"{name}.num_batches_tracked"] = np.zeros((), "int64")
    if all(name.startswith(("backbone.", "head.")) for name in arrays):
        arrays = {name.removeprefix("backbone."): array for name, array in arrays.items()}
    return arrays


def save_state_dict(model, path):
    """Writes a model's weights as a safetensors file that PyTorch's reference code loads.

    Args:
        model: a model with `reference_layers()`.
        path: where to write, `.safetensors`.
    """
    from safetensors.numpy import save_file

    path = os.fspath(path)
    if not path.endswith(".safetensors"):
        raise ValueError(f"path must end in .safetensors. Received: {path!r}")
    epsilon = getattr(model, "backbone", model).layer_norm_epsilon
    save_file(to_state_dict(model), path, metadata={"format": "pt", "layer_norm_epsilon": repr(epsilon)})


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

    Returns:
        A dict; a backbone's names start with `backbone.`.
    """
    named = model.reference_layers().items()
    return {name + suffix: variable for name, part in named for suffix, variable in _named_variables(part)}


def _check_variant(variant, backbone, path):
    """Raises where weights of a published variant meet a backbone of another size."""
    row = VARIANTS.get(variant)
    if row is not None and (row.widths, row.depths) != (backbone.widths, backbone.depths):
        raise ValueError(
            f"this is {variant}: build the model with VANBackbone({variant!r}). Received: {path!r} for "
            f"widths {backbone.widths}, depths {backbone.depths}"
        )


def _add_prefix(arrays):
    """Gives `arrays` with bare official names put behind `backbone.`."""
    if any(name.startswith("backbone.") for name in arrays):
        return arrays
    return {name if name.startswith("head.") else f"backbone.{name}": arrays[name] for name in arrays}


def _named_variables(part):
    """Gives (suffix of the name, variable) of a layer or a variable."""
    if isinstance(part, keras.Variable):
        return [("", part)]
    found = [(f".{suffix}", getattr(part, attribute, None)) for suffix, attribute in ATTRIBUTES]
    return [(suffix, variable) for suffix, variable in found if variable is not None]


def _find_other_classes(model, variables, arrays):
    """Gives the names of the layers that differ from the file in nothing but the number of classes."""
    fresh = set()
    for layer in getattr(model, "class_layers", ()):
        for name in (f"{layer}.weight", f"{layer}.bias"):
            if name not in variables or name not in arrays:
                continue
            theirs, ours = np.shape(arrays[name]), tuple(variables[name].shape)
            ours = (ours[-1], ours[-2], *ours[:-2]) if len(ours) > 1 else ours
            if theirs != ours and theirs[1:] == ours[1:]:
                fresh.add(name)
    return fresh


def _load_own(model, path):
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


if __name__ == "__main__":
    from van_backbones.command_line import main

    sys.exit(main())
