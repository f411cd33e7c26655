"""Files of all codes that publish VAN weights -> one set of names."""

import pathlib

import numpy as np
import pytest

from van_backbones import VANClassifier
from van_backbones.checkpoints.formats import (
    add_prefix,
    drop_prefix,
    find_variant,
    read_state_dict,
    recognize_format,
)
from van_backbones.checkpoints.loading import to_state_dict

KEYMAPS = pathlib.Path(__file__).resolve().parents[2] / "shared" / "golden" / "keymaps"
needs_keymaps = pytest.mark.skipif(not KEYMAPS.is_dir(), reason="the reference key lists are not at hand")
safetensors = pytest.importorskip("safetensors.numpy")


def read_keymap(name):
    """Returns the rows of a key list: (name, shape, dtype)."""
    rows = (line.split("\t") for line in (KEYMAPS / name).read_text().splitlines())
    return [
        (key, tuple(int(side) for side in shape.strip("()").split(",") if side), dtype)
        for key, shape, dtype in rows
    ]


def fill(rows):
    """Returns arrays that their values tell apart."""
    return {key: np.full(shape, index % 1000, dtype) for index, (key, shape, dtype) in enumerate(rows)}


@needs_keymaps
@pytest.mark.parametrize(
    ("file", "written_by", "pairs", "epsilon"),
    [
        ("official_cls_b0.txt", "official", None, None),
        ("hf_VanForImageClassification_b0.txt", "Hugging Face", "map_official_to_hf_b0.txt", 1e-6),
        ("mmpretrain_ImageClassifier_b0.txt", "mmpretrain", "map_official_to_mmpretrain_b0.txt", 1e-5),
    ],
)
def test_every_key_gets_its_official_name(tmp_path, file, written_by, pairs, epsilon):
    arrays = fill(read_keymap(file))
    safetensors.save_file(arrays, tmp_path / "weights.safetensors")
    found = read_state_dict(tmp_path / "weights.safetensors")
    assert found.format == written_by
    assert found.layer_norm_epsilon == epsilon
    assert find_variant(found.arrays) == "b0"
    if pairs is None:
        pairs = {key: key for key in arrays}
    else:
        lines = (KEYMAPS / pairs).read_text().splitlines()
        pairs = dict(line.split("\t")[:2] for line in lines)
    expected = {
        official if official.startswith("head.") else f"backbone.{official}": arrays[theirs]
        for official, theirs in pairs.items()
        if not official.endswith("num_batches_tracked")
    }
    assert found.arrays.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found.arrays[name], array)
    left = set(arrays) - {pairs[name.removeprefix("backbone.")] for name in expected}
    assert set(found.ignored) == left


@needs_keymaps
def test_export_has_the_official_keys():
    exported = to_state_dict(VANClassifier("b0"))
    expected = {key: (shape, dtype) for key, shape, dtype in read_keymap("official_cls_b0.txt")}
    assert {key: (array.shape, str(array.dtype)) for key, array in exported.items()} == expected


@needs_keymaps
def test_hugging_face_model_without_classifier(tmp_path):
    safetensors.save_file(fill(read_keymap("hf_VanModel_b0.txt")), tmp_path / "weights.safetensors")
    found = read_state_dict(tmp_path / "weights.safetensors")
    assert found.format == "Hugging Face"
    assert find_variant(found.arrays) == "b0"
    assert not any(name.startswith("head.") for name in found.arrays)
    assert all(name.startswith("backbone.") for name in found.arrays)


OFFICIAL = {"patch_embed1.proj.weight": np.ones((4, 3, 7, 7), "float32"), "head.bias": np.zeros(3, "float32")}


@pytest.mark.parametrize(
    "wrap",
    [
        lambda arrays: arrays,
        lambda arrays: {"state_dict": arrays, "epoch": 3, "arch": "van_b0"},
        lambda arrays: {"state_dict_ema": arrays, "epoch": 3},
        lambda arrays: {
            "state_dict": arrays,
            "state_dict_ema": {"wrong": arrays["head.bias"]},
            "optimizer": {},
        },
        lambda arrays: {"model": arrays},
        lambda arrays: {f"module.{name}": array for name, array in arrays.items()},
        lambda arrays: {"state_dict": {f"module.{name}": array for name, array in arrays.items()}},
    ],
)
@pytest.mark.parametrize("zip_format", [True, False])
def test_wrappers_of_training_codes(tmp_path, wrap, zip_format):
    torch = pytest.importorskip("torch")

    def to_tensors(item):
        if isinstance(item, dict):
            return {name: to_tensors(value) for name, value in item.items()}
        return torch.from_numpy(item) if isinstance(item, np.ndarray) else item

    path = tmp_path / "weights.pth.tar"
    torch.save(to_tensors(wrap(OFFICIAL)), path, _use_new_zipfile_serialization=zip_format)
    found = read_state_dict(path)
    assert found.format == "official"
    assert set(found.arrays) == {"backbone.patch_embed1.proj.weight", "head.bias"}
    np.testing.assert_array_equal(found.arrays["head.bias"], OFFICIAL["head.bias"])


def test_what_is_no_checkpoint(tmp_path):
    with pytest.raises(ValueError, match=r"no such checkpoint file. Received: .*missing.pth"):
        read_state_dict(tmp_path / "missing.pth")
    (tmp_path / "text.pth").write_text("not weights at all")
    with pytest.raises(ValueError, match="neither a PyTorch checkpoint nor a safetensors file"):
        read_state_dict(tmp_path / "text.pth")
    safetensors.save_file({"conv.weight": np.zeros((2, 2), "float32")}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"must hold VAN weights.*the first are conv.weight"):
        read_state_dict(tmp_path / "other.safetensors")


def test_metadata_gives_the_epsilon(tmp_path):
    path = tmp_path / "weights.safetensors"
    safetensors.save_file(OFFICIAL, path, metadata={"layer_norm_epsilon": "1e-05"})
    assert read_state_dict(path).layer_norm_epsilon == 1e-5


def test_recognize_format_and_variant_of_strangers():
    assert recognize_format({"conv.weight": 0}) is None
    assert find_variant({"backbone.patch_embed1.proj.weight": np.zeros((32, 3, 7, 7))}) is None


def test_only_the_classifiers_own_names_lose_the_prefix():
    """`head.` alone does not make a file an ImageNet classifier."""
    classifier = {"backbone.norm1.weight": 1, "head.weight": 2, "head.bias": 3}
    assert list(drop_prefix(classifier)) == ["norm1.weight", "head.weight", "head.bias"]
    assert add_prefix(drop_prefix(classifier)) == classifier
    detector = {"backbone.norm1.weight": 1, "head.conv.weight": 2}
    assert drop_prefix(detector) == detector
    assert drop_prefix({"backbone.norm1.weight": 1}) == {"norm1.weight": 1}
