"""Checkpoints as they circulate: wrapped, in folders, truncated, or no checkpoints at all."""

import io
import json
import struct

import h5py
import keras
import numpy as np
import pytest
from safetensors.numpy import save_file

from van_backbones import load_checkpoint
from van_backbones.checkpoints.__main__ import main
from van_backbones.checkpoints.file_kinds import describe_file
from van_backbones.checkpoints.formats import read_state_dict
from van_backbones.checkpoints.loading import to_state_dict

ARRAYS = {"patch_embed1.proj.weight": np.ones((4, 3, 7, 7), "float32"), "head.bias": np.zeros(3, "float32")}
FOUND = {"backbone.patch_embed1.proj.weight", "head.bias"}


def prefixed(prefix):
    return {prefix + name: array for name, array in ARRAYS.items()}


def assert_equal(model, other):
    for one, two in zip(model.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize(
    "prefix",
    [
        *("module.", "model.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "model._orig_mod."),
        *("net.module.", "encoder.", "_fsdp_wrapped_module."),
    ],
)
def test_names_behind_outer_modules(tmp_path, prefix):
    save_file(prefixed(prefix), tmp_path / "weights.safetensors")
    found = read_state_dict(tmp_path / "weights.safetensors")
    assert found.format == "official"
    assert set(found.arrays) == FOUND


def test_other_codes_behind_outer_modules(tmp_path):
    path = tmp_path / "weights.safetensors"
    arrays = {"backbone._orig_mod.patch_embed1.proj.weight": 1, "backbone._orig_mod.norm1.bias": 2}
    arrays["decode_head.conv_seg.bias"] = 3
    for names, format in (
        ([f"model.{name}" for name in arrays], "mmsegmentation"),
        (
            ["model.van.encoder.stages.0.embeddings.convolution.weight"],
            "Hugging Face",
        ),
        (["model.backbone.patch_embed1.projection.weight", "model.head.fc.bias"], "mmpretrain"),
    ):
        save_file({name: np.zeros(2, "float32") for name in names}, path)
        found = read_state_dict(path)
        assert found.format == format
        assert found.ignored == ()
        assert "backbone.patch_embed1.proj.weight" in found.arrays


def test_arrays_outside_of_the_model_are_told(tmp_path):
    path = tmp_path / "weights.safetensors"
    save_file(prefixed("model.") | {"criterion.weight": np.ones(3, "float32")} | prefixed("model_ema."), path)
    found = read_state_dict(path)
    assert set(found.arrays) == FOUND
    assert "criterion.weight" in found.ignored
    save_file(prefixed("first.") | prefixed("second."), path)
    with pytest.raises(ValueError, match=r"weights\.safetensors.*must hold one VAN"):
        read_state_dict(path)
    save_file(prefixed("") | prefixed("_orig_mod."), path)
    with pytest.raises(ValueError, match="twice"):
        read_state_dict(path)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda arrays: {"epoch": 3, "model_state_dict": arrays, "optimizer_state_dict": {}, "loss": 0.5},
        lambda arrays: {"ema_state_dict": arrays},
        lambda arrays: {"model_ema": arrays, "epoch": 1},
        lambda arrays: {"model": {"state_dict": arrays}},
        lambda arrays: {"module": arrays, "global_steps": 3},
        lambda arrays: {"state_dict": {f"model.{name}": array for name, array in arrays.items()}},
    ],
)
def test_wrappers(tmp_path, wrap):
    torch = pytest.importorskip("torch")
    tensors = {name: torch.from_numpy(array) for name, array in ARRAYS.items()}
    torch.save(wrap(tensors), tmp_path / "weights.pth")
    assert set(read_state_dict(tmp_path / "weights.pth").arrays) == FOUND


def test_folders(tmp_path):
    folder = tmp_path / "van-tiny"
    folder.mkdir()
    with pytest.raises(ValueError, match=r"folder must hold one of.*Received: .*van-tiny"):
        read_state_dict(folder)
    for number, name in enumerate(ARRAYS, 1):
        save_file({name: ARRAYS[name]}, folder / f"model-0000{number}-of-00002.safetensors")
    places = {name: f"model-0000{number}-of-00002.safetensors" for number, name in enumerate(ARRAYS, 1)}
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    assert set(read_state_dict(folder).arrays) == FOUND
    assert set(read_state_dict(index).arrays) == FOUND
    save_file(ARRAYS, folder / "model.safetensors")
    assert set(read_state_dict(folder).arrays) == FOUND
    for changed, match in (
        ({"weight_map": {**places, "norm1.bias": "model-3.safetensors"}}, r"missing: \['model-3"),
        ({"weight_map": {**places, "norm1.bias": "../model.safetensors"}}, "outside of its folder"),
        ({"weight_map": {**places, "norm1.bias": places["head.bias"]}}, r"differs in \['norm1.bias'\]"),
        ({"weight_map": {"norm1.bias": 3}}, "weight_map"),
        ({"weight_map": {}}, "must name files"),
        ([], "weight_map"),
    ):
        index.write_text(json.dumps(changed))
        with pytest.raises(ValueError, match=match) as caught:
            read_state_dict(index)
        assert "index.json" in str(caught.value)


@pytest.mark.parametrize("kind", ["F8_E4M3", "F8_E5M2", "F4", "F8_E8M0"])
def test_types_that_numpy_lacks(tmp_path, kind, capsys):
    header = {"patch_embed1.proj.weight": {"dtype": kind, "shape": [8], "data_offsets": [0, 8]}}
    if kind == "F4":
        header["patch_embed1.proj.weight"]["shape"] = [16]
    content = json.dumps(header).encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(content)) + content + bytes(8))
    with pytest.raises(ValueError, match=r"model\.safetensors"):
        read_state_dict(path)
    assert main(["inspect", str(path)]) == 1
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused(tmp_path, segmenter_files, other_segmenter, value, capsys):
    torch_path, keras_path = tmp_path / "nan.safetensors", tmp_path / "nan.weights.h5"
    arrays = to_state_dict(other_segmenter)
    arrays["decode_head.conv_seg.bias"] = np.full(3, value, "float32")
    save_file(arrays, torch_path)
    keras_path.write_bytes(segmenter_files[".weights.h5"].read_bytes())
    with h5py.File(keras_path, "r+") as file:
        file["classifier/conv/vars/1"][:] = value
    before = other_segmenter.get_weights()
    for path in (torch_path, keras_path):
        with pytest.raises(ValueError, match=r"not finite: decode_head\.conv_seg\.bias") as caught:
            load_checkpoint(other_segmenter, path)
        assert path.name in str(caught.value)
        assert main(["inspect", str(path)]) == 0
        assert "not finite" in capsys.readouterr().out
    for one, two in zip(before, other_segmenter.get_weights(), strict=True):
        np.testing.assert_array_equal(one, two)


def test_integers_are_no_weights(tmp_path, other_segmenter):
    arrays = to_state_dict(other_segmenter)
    arrays["decode_head.conv_seg.bias"] = np.zeros(3, "int8")
    save_file(arrays, tmp_path / "int8.safetensors")
    with pytest.raises(ValueError, match=r"wrong type: decode_head\.conv_seg\.bias holds int8"):
        load_checkpoint(other_segmenter, tmp_path / "int8.safetensors")


def test_models_without_reference_names(tmp_path, monkeypatch, segmenter_files):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    with pytest.raises(ValueError, match="reference_layers"):
        load_checkpoint(model, segmenter_files[".safetensors"])
    (tmp_path / "imagenet").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="needs a variant"):  # not: this folder is no checkpoint
        load_checkpoint(model, "imagenet")
    buffer = io.BytesIO()
    np.savez(buffer, a=np.zeros(2))
    segmenter_files[".safetensors"].with_name("arrays.npz").write_bytes(buffer.getvalue())
    assert "zip file" in describe_file(segmenter_files[".safetensors"].with_name("arrays.npz"))
