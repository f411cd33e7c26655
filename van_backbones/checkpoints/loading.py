"""Weights from files, releases and arrays into models, and back.

`python -m van_backbones.checkpoints --help` does the same from the command line.
"""

import os
import warnings

import keras
import numpy as np

from van_backbones.checkpoints.file_kinds import find_weights
from van_backbones.checkpoints.file_writing import write_beside
from van_backbones.checkpoints.formats import add_prefix, drop_prefix, read_state_dict
from van_backbones.checkpoints.keras_files import (
    is_keras_file,
    name_damage,
    name_keras_variables,
    open_keras_file,
    read_array,
)
from van_backbones.checkpoints.layouts import name_parts, name_variables, to_keras, to_torch
from van_backbones.checkpoints.releases import RELEASES, SHORTHANDS, download, find_release
from van_backbones.variants import VARIANTS


def load_checkpoint(model, path):
    """Fills a backbone, a classifier or a whole head model, completely or not at all.

    The format is recognised by the content: the official code, Hugging Face transformers, mmpretrain,
    mmsegmentation (PyTorch or safetensors files, read without PyTorch), or Keras's own `.weights.h5` and
    `.keras`, whose configuration is not run. A backbone takes its part of a larger model's file. If a file
    has another number of classes than the model, the layers that depend on it are left as they are, with a
    warning. The backbone's layer norm epsilon is set to that of the file: 1e-5 for mmsegmentation and
    mmpretrain, the saved model's for `.keras`.

    Args:
        model: a built Keras model: ours with `reference_layers()`, or any for Keras's own files.
        path: a release's name (`van_backbones.checkpoints.RELEASES`), "imagenet" (b0 .. b3) or "imagenet22k"
            (b4 .. b6) for the release of the model's variant, a file, or a folder of Hugging Face's library.
            Write "./imagenet" for a file or folder with the name of a release.

    Raises:
        ValueError: for a file that does not fit, is damaged, is not a checkpoint or holds values that are not
            finite; lists missing, unexpected and wrong-shaped names.
        van_backbones.checkpoints.DownloadError: where a release cannot be fetched.
    """
    path = os.fspath(path)
    backbone = getattr(model, "backbone", model)
    is_name = not os.path.splitext(path)[1] and os.path.basename(path) == path
    if path in (*RELEASES, *SHORTHANDS) or (is_name and not os.path.exists(path)):
        release = find_release(path, getattr(backbone, "variant", None))
        _check_variant(release.variant, backbone, path)
        path = download(release)
    elif not os.path.exists(path):
        raise ValueError(f"weights file not found. Received: {path!r}")
    if os.path.isdir(path):
        path = find_weights(path)
    if is_keras_file(path):
        epsilon = _load_keras_file(model, path)
    else:
        found = read_state_dict(path)
        _check_variant(found.variant, backbone, path)
        try:
            load_state_dict(model, found.arrays)
        except ValueError as error:
            raise ValueError(f"{error}\nReceived: {path!r}") from None
        epsilon = found.layer_norm_epsilon
    if epsilon is not None and hasattr(backbone, "set_layer_norm_epsilon"):
        backbone.set_layer_norm_epsilon(epsilon)


def load_state_dict(model, arrays):
    """Fills a model from arrays under the names of the PyTorch reference.

    Every variable is filled exactly once and every array used exactly once, or nothing is changed. A backbone
    ignores the heads' arrays; see `load_checkpoint` for another number of classes.

    Args:
        model: a model with `reference_layers()`: see `name_variables`.
        arrays: reference name -> array in PyTorch's layout, the backbone's names with or without `backbone.`.
            Counters of batches (`num_batches_tracked`) are ignored: Keras has no counterpart.

    Raises:
        ValueError: lists missing, unexpected and wrong-shaped names, and those whose values are not finite.
    """
    parts = name_parts(model)
    variables = {name: variable for name, (variable, _) in parts.items()}
    arrays = {name: array for name, array in arrays.items() if not name.endswith("num_batches_tracked")}
    if any(name.startswith("backbone.") for name in variables):
        arrays = add_prefix(arrays)
    if all(name.startswith("backbone.") for name in variables):
        arrays = {name: array for name, array in arrays.items() if name.startswith("backbone.")}
    moved = {name: to_keras(array, parts.get(name, (None, None))[1]) for name, array in arrays.items()}
    fresh = _find_other_classes(model, variables, moved)
    converted, problems = _convert_all(variables, moved, fresh, np.asarray, arrays)
    if problems:
        shown = "\n  ".join(problems[:20])
        raise ValueError(f"the arrays do not fit {model.name!r} in {len(problems)} places:\n  {shown}")
    _assign(variables, converted, fresh)


def to_state_dict(model):
    """Returns a model's weights as its PyTorch reference would save them.

    Args:
        model: a model with `reference_layers()`: see `name_variables`.

    Returns:
        A dict name -> NumPy array. The names of a backbone or an ImageNet classifier have no `backbone.`
        prefix, as in the official code; those of a whole segmenter have it, as in mmsegmentation.
    """
    arrays = {}
    for name, (variable, part) in name_parts(model).items():
        arrays[name] = to_torch(keras.ops.convert_to_numpy(variable), part)
        if name.endswith(".running_var"):
            arrays[f"{name.removesuffix('.running_var')}.num_batches_tracked"] = np.zeros((), "int64")
    return drop_prefix(arrays)


def save_state_dict(model, path):
    """Writes a model's weights as a safetensors file that PyTorch's reference code loads.

    Args:
        model: a model with `reference_layers()`.
        path: where to write, `.safetensors`.
    """
    path = os.fspath(path)
    if not path.endswith(".safetensors"):
        raise ValueError(f"path must end in .safetensors. Received: {path!r}")
    epsilon = getattr(getattr(model, "backbone", model), "layer_norm_epsilon", None)
    write_safetensors(to_state_dict(model), path, epsilon)


def write_safetensors(arrays, path, layer_norm_epsilon=None):
    """Writes arrays as a safetensors file for PyTorch, whole or not at all.

    Args:
        arrays: name -> array.
        path: where to write.
        layer_norm_epsilon: kept in the file's metadata; None keeps none.

    Raises:
        ValueError: where the folder does not exist or the arrays cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    metadata = {"format": "pt"}
    if layer_norm_epsilon is not None:
        metadata["layer_norm_epsilon"] = repr(layer_norm_epsilon)
    arrays = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    with write_beside(path) as unfinished:
        try:
            save_file(arrays, unfinished, metadata=metadata)
        except SafetensorError as error:
            raise ValueError(f"the file could not be written: {error}. Received: {path!r}") from error


def _check_variant(variant, backbone, path):
    """Raises where weights of a published variant meet a backbone of another size."""
    row = VARIANTS.get(variant)
    if row is None or not hasattr(backbone, "widths"):
        return
    if (row.widths, row.depths) != (backbone.widths, backbone.depths):
        raise ValueError(
            f"this is {variant}: build the model with VANBackbone({variant!r}). Received: {path!r} for "
            f"widths {backbone.widths}, depths {backbone.depths}"
        )


def _find_other_classes(model, variables, arrays):
    """Returns the names of the layers that differ from the file only in the number of classes.

    Args:
        model: a model; without the attribute `class_layers` nothing is found.
        variables: reference name -> variable.
        arrays: reference name -> anything with the shape in the file, in Keras's layout.
    """
    fresh = set()
    for layer in getattr(model, "class_layers", ()):
        for name in (f"{layer}.weight", f"{layer}.bias"):
            if name in variables and name in arrays:
                theirs, ours = tuple(arrays[name].shape), tuple(variables[name].shape)
                if theirs != ours and theirs[:-1] == ours[:-1] and len(theirs) == len(ours):
                    fresh.add(name)
    return fresh


def _convert_all(variables, arrays, fresh, read, stored=None):
    """Returns name -> array for every variable that is not fresh, and a text for each that is missing or bad.

    Args:
        variables: name -> variable.
        arrays: name -> anything with a shape, in Keras's layout.
        fresh: names to leave out.
        read: turns one of `arrays` into a NumPy array.
        stored: name -> the array in the file's layout, for the messages. Default: `arrays`.
    """
    problems = [f"missing: {name}" for name in variables if name not in arrays]
    problems += [f"unexpected: {name}" for name in arrays if name not in variables]
    converted = {}
    for name in (name for name in variables if name in arrays and name not in fresh):
        wanted = tuple(variables[name].shape)
        if tuple(arrays[name].shape) != wanted:
            shape = tuple(np.shape((stored or arrays)[name]))
            problems.append(f"wrong shape: {name} {shape} for a variable of {wanted}")
            continue
        array = read(arrays[name])
        if _is_float(variables[name].dtype) != _is_float(array.dtype):
            wanted = "floats" if _is_float(variables[name].dtype) else variables[name].dtype
            problems.append(f"wrong type: {name} holds {array.dtype}, not {wanted}")
        elif _is_float(variables[name].dtype) and not np.isfinite(array).all():
            problems.append(f"not finite: {name} holds NaN or infinite values: the training diverged")
        converted[name] = array
    # Wrong shapes first: of the thousand differences to another variant they say the most.
    return converted, sorted(problems, key=lambda problem: (not problem.startswith("wrong shape"), problem))


def _is_float(dtype):
    try:
        return keras.backend.is_float_dtype(keras.backend.standardize_dtype(dtype))
    except ValueError:  # a type that Keras does not know
        return False


def _assign(variables, converted, fresh):
    for name, array in converted.items():
        variables[name].assign(array)
    if fresh:
        warnings.warn(
            "the checkpoint has another number of classes than the model: "
            f"{', '.join(sorted(fresh))} were not loaded and start fresh",
            stacklevel=4,
        )


def _load_keras_file(model, path):
    """Fills a model from a `.weights.h5` or `.keras` file; returns the layer norm epsilon, or None."""
    variables = name_keras_variables(model)
    if len(variables) != len(model.weights) or not variables:
        raise ValueError(
            "to load a Keras file, model must be built and keep its weights as Keras layers do. "
            f"Received: {model!r} for {path!r}"
        )
    is_ours = hasattr(model, "reference_layers")
    labels = {id(variable): name for name, variable in name_variables(model).items()} if is_ours else {}
    labels = {name: labels.get(id(variable), name) for name, variable in variables.items()}
    with open_keras_file(path) as file:
        datasets = file.datasets
        if labels and all(label.startswith("backbone.") for label in labels.values()):
            datasets = _take_part(datasets, variables, path)
        datasets = {labels.get(name, name): dataset for name, dataset in datasets.items()}
        variables = {labels[name]: variable for name, variable in variables.items()}
        with name_damage(path):
            fresh = _find_other_classes(model, variables, datasets)
            converted, problems = _convert_all(variables, datasets, fresh, read_array)
            variant = file.find_variant()
        if problems:
            shown = "\n  ".join(problems[:20])
            raise ValueError(
                f"the file does not fit {model.name!r} in {len(problems)} places; build the model with the "
                f"variant, widths and depths of the file{f', here {variant}' if variant else ''}. "
                f"Received: {path!r}\n  {shown}"
            )
    _assign(variables, converted, fresh)
    return file.layer_norm_epsilon


def _take_part(datasets, variables, path):
    """Returns the backbone's arrays of a larger model's file, by their places in the backbone's own file."""
    first = next(iter(variables))
    prefixes = {name.removesuffix(first) for name in datasets if f"/{name}".endswith(f"/{first}")}
    if len(prefixes) > 1:
        raise ValueError(f"the file must hold one backbone. Received: {path!r} with {sorted(prefixes)}")
    prefix = next(iter(prefixes), "")
    return {name.removeprefix(prefix): item for name, item in datasets.items() if name.startswith(prefix)}
