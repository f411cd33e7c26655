"""PyTorch checkpoint files -> arrays under one set of names, whatever code wrote the file.

The names are those of VAN-Segmentation: `backbone.` and the official name for the backbone, `head.` for the
ImageNet classifier, `decode_head.`, `auxiliary_head.`, `neck.` and so on for the heads of mmsegmentation.
"""

import json
import os
import re
from typing import NamedTuple

import numpy as np

from van_backbones.checkpoints.file_kinds import describe_file, find_weights
from van_backbones.checkpoints.torch_file import is_torch_file, load_torch_file
from van_backbones.variants import VARIANTS

# The keys of the weights in the dictionaries that training codes save, preferred ones first: trained weights
# before their moving average.
WRAPPERS = (
    *("state_dict", "model_state_dict", "model_state", "model", "net", "network", "module", "weights"),
    *("state_dict_ema", "ema_state_dict", "model_ema_state_dict", "model_ema", "ema_model", "ema"),
)

# What PyTorch's module wrappers (torch.compile, FSDP, checkpointing) insert anywhere into the names.
WRAPPED_MODULE = re.compile(r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")

# A name that every VAN has, one per code base; anything before it is the name of an outer module.
FIRST_NAMES = re.compile(
    r"(.*?\.)??(?:(?:backbone\.)?patch_embed1\.proj|backbone\.patch_embed1\.projection"
    r"|(?:van\.)?encoder\.stages\.0\.embeddings\.convolution)\.weight"
)

# The official code uses 1e-6 for classification and 1e-5 for segmentation, under the same names.
LAYER_NORM_EPSILONS = {"official": None, "Hugging Face": 1e-6, "mmpretrain": 1e-5, "mmsegmentation": 1e-5}

# The ImageNet classifier's last layer. Other models have names that start with `head.` as well.
CLASSIFIER_NAMES = ("head.weight", "head.bias")

# Hugging Face's names -> the official ones. `pre_normomalization` is how the library spells it.
HUGGING_FACE_PARTS = {
    "attention_scaling.weight": "layer_scale_1",
    "mlp_scaling.weight": "layer_scale_2",
    "pre_normomalization": "norm1",
    "post_normalization": "norm2",
    "attention.pre_projection.conv": "attn.proj_1",
    "attention.attention_layer.attention.depth_wise_dilated": "attn.spatial_gating_unit.conv_spatial",
    "attention.attention_layer.attention.depth_wise": "attn.spatial_gating_unit.conv0",
    "attention.attention_layer.attention.point_wise": "attn.spatial_gating_unit.conv1",
    "attention.post_projection": "attn.proj_2",
    "mlp.in_dense": "mlp.fc1",
    "mlp.depth_wise": "mlp.dwconv.dwconv",
    "mlp.out_dense": "mlp.fc2",
}


class StateDict(NamedTuple):
    """The weights of a file.

    Attributes:
        arrays: name -> NumPy array in PyTorch's layout; see this module's first lines for the names.
        format: who wrote it: "official", "Hugging Face", "mmpretrain" or "mmsegmentation".
        variant: the published size that the arrays have, "b0" .. "b6", or None.
        ignored: names of the file that no model has a use for.
        layer_norm_epsilon: the epsilon of the code that wrote the file, or None if it may be either.
    """

    arrays: dict
    format: str
    variant: str | None
    ignored: tuple
    layer_norm_epsilon: float | None


def read_state_dict(path):
    """Returns the weights of a PyTorch or safetensors file, recognised by its keys.

    Args:
        path: a `.bin`, `.pth`, `.pth.tar` or `.safetensors` file, a folder of Hugging Face's library, or its
            index of the parts of a file, `*.index.json`.

    Returns:
        A `StateDict`.

    Raises:
        ValueError: if the file has another format or holds no VAN weights.
    """
    path = os.fspath(path)
    if os.path.isdir(path):
        path = find_weights(path)
    if not os.path.isfile(path):
        raise ValueError(f"there is no such checkpoint file. Received: {path!r}")
    if path.endswith(".index.json"):
        content, metadata = _read_shards(path)
    else:
        content, metadata = _read_file(path)
    arrays, ignored = _strip_prefix(_unwrap(content, path), path)
    written_by = recognize_format(arrays)
    if written_by is None:
        shown = ", ".join(list(arrays)[:5])
        raise ValueError(
            f"{path!r} must hold VAN weights under the names of one of {list(LAYER_NORM_EPSILONS)}. "
            f"Received: {len(arrays)} arrays, the first are {shown}"
        )
    rename = {
        "official": _rename_official,
        "Hugging Face": _rename_hugging_face,
        "mmpretrain": _rename_mmpretrain,
        "mmsegmentation": str,
    }[written_by]
    renamed = {}
    for name, array in arrays.items():
        if name.endswith("num_batches_tracked") or name.removeprefix("van.").startswith("layernorm."):
            ignored.append(name)  # no counterpart in Keras; a layer that Hugging Face's model never calls
        else:
            renamed[rename(name)] = array
    epsilon = metadata.get("layer_norm_epsilon", LAYER_NORM_EPSILONS[written_by])
    try:
        epsilon = None if epsilon is None else float(epsilon)
    except ValueError:
        raise ValueError(
            f"layer_norm_epsilon in the metadata must be a number. Received: {epsilon!r} in {path!r}"
        ) from None
    return StateDict(renamed, written_by, find_variant(renamed), tuple(ignored), epsilon)


def recognize_format(names):
    """Returns who wrote a state dict with these names, or None."""
    if "patch_embed1.proj.weight" in names:
        return "official"
    if "backbone.patch_embed1.proj.weight" in names:
        return "mmsegmentation"
    if "backbone.patch_embed1.projection.weight" in names:
        return "mmpretrain"
    if any(name.removeprefix("van.").startswith("encoder.stages.0.embeddings.") for name in names):
        return "Hugging Face"
    return None


def find_variant(arrays):
    """Returns the variant, "b0" .. "b6", of arrays under the names of `read_state_dict`, or None.

    Args:
        arrays: name -> array.
    """
    widths, depths = [], []
    for stage in (1, 2, 3, 4):
        weight = arrays.get(f"backbone.patch_embed{stage}.proj.weight")
        pattern = re.compile(rf"backbone\.block{stage}\.(\d+)\.")
        blocks = [int(match[1]) for match in map(pattern.match, arrays) if match]
        if np.ndim(weight) != 4 or not blocks:
            return None
        widths.append(weight.shape[0])
        depths.append(max(blocks) + 1)
    for name, row in VARIANTS.items():
        if (row.widths, row.depths) == (tuple(widths), tuple(depths)):
            return name
    return None


def _read_file(path):
    """Returns the file's content, and its metadata."""
    if is_torch_file(path):
        return load_torch_file(path), {}
    what = describe_file(path)
    if what is not None:
        raise ValueError(f"{path!r} {what}. It is neither a PyTorch checkpoint nor a safetensors file")
    from safetensors import safe_open

    name = kind = None
    try:
        with safe_open(path, framework="numpy") as file:
            arrays = {}
            for name in file.keys():
                kind = file.get_slice(name).get_dtype()
                arrays[name] = file.get_tensor(name)
            return arrays, file.metadata() or {}
    except Exception as error:  # SafetensorError; for types that NumPy lacks also AttributeError and others
        if kind is not None and kind.startswith(("F8", "F4", "F6")):
            raise ValueError(
                f"{path!r} holds {name} as {kind}, which has no NumPy type: save it as float32, float16 or "
                "bfloat16 with PyTorch"
            ) from error
        raise ValueError(
            f"{path!r} is neither a PyTorch checkpoint nor a safetensors file, or is damaged: {error}"
        ) from error


def _read_shards(path):
    """Returns the content of all files that an index of Hugging Face's library names, and their metadata."""
    try:
        with open(path, encoding="utf-8") as file:
            places = json.load(file)["weight_map"]
        shards = sorted(set(places.values()))
        leaving = [shard for shard in shards if os.path.basename(shard) != shard or "\\" in shard]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"the index must be JSON with a `weight_map`, array -> file. Received: {path!r}"
        ) from error
    folder = os.path.dirname(path)
    missing = [shard for shard in shards if not os.path.isfile(os.path.join(folder, shard))]
    if leaving or missing or not shards:
        problem = f"outside of its folder: {leaving}" if leaving else f"that are missing: {missing}"
        raise ValueError(
            f"the index must name files beside it: download all of them. Received: {path!r}, which names "
            f"files {problem}"
        )
    content, metadata = {}, {}
    for shard in shards:
        arrays, more = _read_file(os.path.join(folder, shard))
        arrays = _unwrap(arrays, os.path.join(folder, shard))
        wanted = {name for name, place in places.items() if place == shard}
        if arrays.keys() != wanted:
            raise ValueError(
                f"{shard!r} must hold what the index says. Received: {path!r}, which differs in "
                f"{sorted(arrays.keys() ^ wanted)[:5]}"
            )
        content |= arrays
        metadata |= more
    return content, metadata


def _unwrap(content, path):
    """Returns name -> array, without what a training code saved around the weights."""
    for _ in range(4):
        inner = [content[name] for name in WRAPPERS if isinstance(content, dict) and name in content]
        inner = [item for item in inner if isinstance(item, dict) and item]
        if not inner:
            break
        content = inner[0]
    if not isinstance(content, dict):
        raise ValueError(f"{path!r} must hold a dictionary of weights. Received: {type(content).__name__}")
    arrays = {name: array for name, array in content.items() if isinstance(array, np.ndarray)}
    others = [name for name in content if name not in arrays]
    if not arrays or others or not all(isinstance(name, str) for name in arrays):
        raise ValueError(
            f"{path!r} must hold arrays, bare or under one of {list(WRAPPERS)}. "
            f"Received: {len(arrays)} arrays, and other things named {others[:5]}"
        )
    return arrays


def _strip_prefix(arrays, path):
    """Returns the arrays without an outer module's prefix, such as `model.`, and the names outside of it.

    PyTorch's wrappers (DistributedDataParallel, torch.compile) put `module.` and `_orig_mod.` before the
    names, Lightning the attribute that holds the model.
    """
    plain = {WRAPPED_MODULE.sub("", name): array for name, array in arrays.items()}
    if len(plain) != len(arrays):
        raise ValueError(f"{path!r} holds arrays twice, with and without torch.compile's `_orig_mod.`")
    prefixes = [match[1] or "" for match in map(FIRST_NAMES.fullmatch, plain) if match]
    if len(prefixes) > 1:  # a training code that keeps a moving average of the weights beside them
        averaged = re.compile(r"(?:^|[._])(?:ema|teacher|averaged?)(?:[._]|$)", re.IGNORECASE)
        prefixes = [prefix for prefix in prefixes if not averaged.search(prefix)] or prefixes
    if len(prefixes) > 1:
        raise ValueError(
            f"{path!r} must hold one VAN; save one of them alone. Received: several, behind {prefixes[:5]}"
        )
    if not prefixes:
        return plain, []
    found = {name.removeprefix(prefixes[0]): plain[name] for name in plain if name.startswith(prefixes[0])}
    return found, [name for name in plain if not name.startswith(prefixes[0])]


def add_prefix(arrays):
    """Returns the arrays with `backbone.` put before bare official names; heads have their own names."""
    if any(name.startswith("backbone.") for name in arrays):
        return arrays
    return {_rename_official(name): array for name, array in arrays.items()}


def drop_prefix(arrays):
    """Returns the arrays of a backbone or an ImageNet classifier without `backbone.`, others as they are."""
    if not all(name.startswith("backbone.") or name in CLASSIFIER_NAMES for name in arrays):
        return arrays
    return {name.removeprefix("backbone."): array for name, array in arrays.items()}


def _rename_official(name):
    return name if name.startswith("head.") else f"backbone.{name}"


def _rename_mmpretrain(name):
    name = re.sub(r"^head\.fc\.", "head.", name)
    name = name.replace(".projection.", ".proj.")
    name = re.sub(r"^backbone\.blocks(\d)", r"backbone.block\1", name)
    name = name.replace(".DW_conv.", ".conv0.").replace(".DW_D_conv.", ".conv_spatial.")
    return name.replace(".mlp.dwconv.", ".mlp.dwconv.dwconv.")


def _rename_hugging_face(name):
    name = name.removeprefix("van.")
    if name.startswith("classifier."):
        return name.replace("classifier.", "head.")
    match = re.fullmatch(r"encoder\.stages\.(\d)\.(.*)", name)
    if match is None:
        return name
    stage, rest = int(match[1]) + 1, match[2]
    rest = rest.replace("embeddings.convolution", f"patch_embed{stage}.proj")
    rest = rest.replace("embeddings.normalization", f"patch_embed{stage}.norm")
    rest = re.sub(r"^normalization", f"norm{stage}", rest)
    rest = re.sub(r"^layers", f"block{stage}", rest)
    for theirs, official in HUGGING_FACE_PARTS.items():
        rest = rest.replace(f".{theirs}", f".{official}")
    return f"backbone.{rest}"
