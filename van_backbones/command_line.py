"""`python -m van_backbones.checkpoints`: lists, fetches, inspects and converts checkpoints."""

import argparse
import pathlib
import sys

import numpy as np

from van_backbones import releases
from van_backbones.state_dicts import find_variant, read_state_dict


def main(argv=None):
    """Runs one command; gives the exit code: 0, or 1 with the error on standard error."""
    parser = argparse.ArgumentParser(prog="python -m van_backbones.checkpoints", description=__doc__)
    commands = parser.add_subparsers(required=True)

    def add(name, run, description, *arguments):
        command = commands.add_parser(name, help=description, description=description)
        for argument in arguments:
            command.add_argument(argument)
        command.set_defaults(run=run, arguments=arguments)

    add("list", list_releases, "the named releases")
    add("download", download, "fetches a release and prints its path", "name")
    add("inspect", inspect, "says what a checkpoint file holds", "file")
    add(
        "convert",
        convert,
        "a PyTorch file -> .safetensors (reference names) or .weights.h5",
        "input",
        "output",
    )
    add("export", export, "a .keras model -> .safetensors for PyTorch", "input", "output")
    parsed = parser.parse_args(argv)
    try:
        parsed.run(*(getattr(parsed, name) for name in parsed.arguments))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def list_releases():
    """Prints the table of releases."""
    for release in releases.RELEASES.values():
        source = f"{release.repository}/{release.file}"
        print(f"{release.name:24} {release.variant}  {release.data}, top-1 {release.top_1}  {source}")


def download(name):
    """Prints the path of a release, fetched if need be."""
    print(releases.download(releases.find_release(name)))


def inspect(file):
    """Prints what a checkpoint file holds, and what is odd about it."""
    found = read_state_dict(file)
    variant = find_variant(found.arrays)
    print(f"format: {found.format}")
    print(f"variant: {variant or 'none of the published ones'}")
    for part, arrays in _split_parts(found.arrays).items():
        trained = [array.size for name, array in arrays.items() if ".running_" not in name]
        print(f"{part}: {len(arrays)} arrays, {sum(trained):,} parameters")
    for kind in sorted({str(array.dtype) for array in found.arrays.values()} - {"float32"}):
        names = [name for name, array in found.arrays.items() if str(array.dtype) == kind]
        print(f"odd: {len(names)} arrays of {kind}, such as {names[0]}")
    for name, array in found.arrays.items():
        if not np.isfinite(array.astype("float32")).all():
            print(f"odd: {name} holds values that are not finite")
    if found.ignored:
        print(f"not used by any model: {len(found.ignored)} arrays, such as {found.ignored[0]}")


def convert(input, output):
    """Writes a PyTorch file's weights under the reference's names, or as Keras weights."""
    found = read_state_dict(input)
    parts = set(_split_parts(found.arrays))
    if output.endswith(".safetensors"):
        from safetensors.numpy import save_file

        arrays = found.arrays
        if parts <= {"backbone", "head"}:
            arrays = {name.removeprefix("backbone."): array for name, array in arrays.items()}
        arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
        metadata = {"format": "pt"}
        if found.layer_norm_epsilon is not None:
            metadata["layer_norm_epsilon"] = repr(found.layer_norm_epsilon)
        save_file(arrays, output, metadata=metadata)
    elif output.endswith(".weights.h5"):
        _build_model(found, parts, input).save_weights(output)
    else:
        raise ValueError(f"the output must end in .safetensors or .weights.h5. Received: {output!r}")
    print(output)


def export(input, output):
    """Writes a Keras model's weights for PyTorch."""
    import keras

    import van_backbones  # noqa: F401  (registers the classes that the file names)
    from van_backbones.checkpoints import save_state_dict

    if pathlib.Path(input).suffix != ".keras":
        raise ValueError(f"the input must be a model that `model.save` wrote as .keras. Received: {input!r}")
    save_state_dict(keras.saving.load_model(input, compile=False), output)
    print(output)


def _split_parts(arrays):
    """Gives part ("backbone", "head", "decode_head" ...) -> its arrays."""
    parts = {}
    for name, array in arrays.items():
        parts.setdefault(name.partition(".")[0], {})[name] = array
    return parts


def _build_model(found, parts, path):
    from van_backbones import VANBackbone, VANClassifier
    from van_backbones.checkpoints import load_checkpoint

    variant = find_variant(found.arrays)
    if variant is None or not parts <= {"backbone", "head"}:
        raise ValueError(
            "only a backbone or an ImageNet classifier of a published size becomes .weights.h5 here; build "
            f"other models in Python and call load_checkpoint. Received: {path!r} with {sorted(parts)}"
        )
    if "head" in parts:
        model = VANClassifier(variant, num_classes=len(found.arrays["head.bias"]))
    else:
        model = VANBackbone(variant)
    load_checkpoint(model, path)
    return model
