"""`python -m van_backbones.checkpoints`: lists, fetches, inspects and converts checkpoints."""

import importlib
import os
import pathlib
import sys
import zipfile

import numpy as np

from van_backbones.backbone import VANBackbone
from van_backbones.before_keras import CHECKPOINTS, parse_checkpoint_command
from van_backbones.checkpoints import releases
from van_backbones.checkpoints.file_kinds import describe_file, find_weights
from van_backbones.checkpoints.file_writing import write_beside
from van_backbones.checkpoints.formats import CLASSIFIER_NAMES, drop_prefix, read_state_dict
from van_backbones.checkpoints.keras_files import is_keras_file, name_damage, open_keras_file, read_array
from van_backbones.checkpoints.loading import load_checkpoint, save_state_dict, write_safetensors
from van_backbones.classifier import VANClassifier


def main(argv=None, program=CHECKPOINTS):
    """Runs one command; gives the exit code: 0, or 1 with the error on standard error."""
    commands = {
        "list": list_releases,
        "download": download,
        "inspect": inspect,
        "convert": convert,
        "export": export,
    }
    name, arguments = parse_checkpoint_command(argv, program)
    try:
        commands[name](*arguments)
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    return 0


def list_releases():
    """Prints the table of releases."""
    for release in releases.RELEASES.values():
        trained = ", ".join(text for text in (release.data, release.score) if text)
        print(f"{release.name:29} {release.variant}  {trained:24}  {release.address}")


def download(name):
    """Prints the path of a release, after downloading it if necessary."""
    print(releases.download(releases.find_release(name)))


def inspect(file):
    """Prints what a checkpoint file holds, and what is odd about it."""
    path = find_weights(file) if os.path.isdir(file) else file
    if os.path.isfile(path) and is_keras_file(path):
        inspect_keras_file(path)
        return
    found = read_state_dict(path)
    print(f"format: {found.format}")
    print(f"variant: {found.variant or 'none of the published ones'}")
    for part, arrays in _split_parts(found.arrays).items():
        trained = [array.size for name, array in arrays.items() if ".running_" not in name]
        print(f"{part}: {len(arrays)} arrays, {sum(trained):,} parameters")
    _print_oddities(found.arrays)
    if found.ignored:
        print(f"not used by any model: {len(found.ignored)} arrays, such as {found.ignored[0]}")


def inspect_keras_file(path):
    """Prints what a `.weights.h5` or `.keras` file holds, and what is odd about it."""
    with open_keras_file(path) as file, name_damage(path):
        print("format: Keras")
        print(f"variant: {file.find_variant() or 'none of the published ones'}")
        print(f"{len(file.datasets)} arrays, {sum(item.size for item in file.datasets.values()):,} values")
        _print_oddities({name: read_array(dataset) for name, dataset in file.datasets.items()})


def _print_oddities(arrays):
    for kind in sorted({str(array.dtype) for array in arrays.values()} - {"float32"}):
        names = [name for name, array in arrays.items() if str(array.dtype) == kind]
        print(f"odd: {len(names)} arrays of {kind}, such as {names[0]}")
    for name, array in arrays.items():
        if not np.isfinite(array.astype("float32")).all():
            print(f"odd: {name} holds values that are not finite")


def convert(input, output):
    """Writes a PyTorch file's weights under the reference's names, or as Keras weights."""
    if os.path.isfile(input) and is_keras_file(input):
        raise ValueError(
            f"the input must be a PyTorch or safetensors file; `export` writes a .keras model for PyTorch. "
            f"Received: {input!r}"
        )
    found = read_state_dict(input)
    if output.endswith(".safetensors"):
        write_safetensors(drop_prefix(found.arrays), output, found.layer_norm_epsilon)
    elif output.endswith(".weights.h5"):
        model = _build_model(found, input)
        with write_beside(output) as unfinished:
            model.save_weights(unfinished)
    else:
        raise ValueError(f"the output must end in .safetensors or .weights.h5. Received: {output!r}")
    print(output)


def export(input, output):
    """Writes a Keras model's weights for PyTorch."""
    if pathlib.Path(input).suffix != ".keras":
        raise ValueError(f"the input must be a model that `model.save` wrote as .keras. Received: {input!r}")
    save_state_dict(_load_model(input), output)
    print(output)


def _load_model(path):
    """Returns the model of a `.keras` file whose classes are Keras's, ours or those of our heads."""
    import keras

    import van_backbones  # noqa: F401  (registers the classes that the file names)

    if not os.path.isfile(path):
        raise ValueError(f"there is no such file. Received: {path!r}")
    if not is_keras_file(path):
        raise ValueError(f"{path!r} {describe_file(path) or 'is damaged'}. It is not a .keras model")
    try:
        with zipfile.ZipFile(path) as archive:
            names_heads = b'"van_backbones.heads>' in archive.read("config.json")
        if names_heads:
            # No package but this one and ours: a file must not choose what is imported.
            importlib.import_module("heads")
        return keras.saving.load_model(path, compile=False)
    except Exception as error:  # depending on the file, Keras raises TypeError, KeyError and others
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise ValueError(
            "the model could not be loaded; if it needs classes from outside van_backbones and heads, import "
            f"them in Python and call save_state_dict there. Received: {path!r} ({reason})"
        ) from error


def _split_parts(arrays):
    """Returns part ("backbone", "head", "decode_head" ...) -> its arrays."""
    parts = {}
    for name, array in arrays.items():
        parts.setdefault(name.partition(".")[0], {})[name] = array
    return parts


def _build_model(found, path):
    heads = {name for name in found.arrays if not name.startswith("backbone.")}
    if found.variant is None or heads not in (set(), set(CLASSIFIER_NAMES)):
        parts = sorted(_split_parts(found.arrays))
        raise ValueError(
            "only a backbone or an ImageNet classifier of a published size can be converted to .weights.h5 "
            "here; for other models, build the model in Python and call load_checkpoint. "
            f"Received: {path!r} with {parts}"
        )
    if heads:
        model = VANClassifier(found.variant, num_classes=len(found.arrays["head.bias"]))
    else:
        model = VANBackbone(found.variant)
    load_checkpoint(model, path)
    return model


if __name__ == "__main__":
    sys.exit(main())
