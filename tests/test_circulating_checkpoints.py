"""Checkpoints as people pass them on: wrapped, in folders, cut, or no checkpoints at all."""

import io
import json
import pathlib
import struct
import zipfile

import h5py
import keras
import numpy as np
import pytest
from safetensors.numpy import save_file

from heads import SemanticFPN
from van_backbones import VANBackbone, VANClassifier, load_checkpoint
from van_backbones.checkpoints.__main__ import main
from van_backbones.checkpoints.file_kinds import describe_file
from van_backbones.checkpoints.file_writing import write_beside
from van_backbones.checkpoints.formats import read_state_dict
from van_backbones.checkpoints.keras_files import is_keras_file
from van_backbones.checkpoints.loading import save_state_dict, to_state_dict

ARRAYS = {"patch_embed1.proj.weight": np.ones((4, 3, 7, 7), "float32"), "head.bias": np.zeros(3, "float32")}
FOUND = {"backbone.patch_embed1.proj.weight", "head.bias"}
SMALL = {"widths": (8, 8, 16, 16), "depths": (1, 1, 1, 1), "drop_path_rate": 0.0}


def prefixed(prefix):
    return {prefix + name: array for name, array in ARRAYS.items()}


def build_segmenter(num_classes=3):
    return SemanticFPN(VANBackbone("b0", **SMALL), num_classes, channels=8, pyramid_channels=8)


@pytest.fixture(scope="module")
def segmenter():
    model = build_segmenter()
    random = np.random.default_rng(0)
    for variable in model.weights:
        variable.assign(random.uniform(0.1, 0.9, variable.shape))
    return model


@pytest.fixture(scope="module")
def files(segmenter, tmp_path_factory):
    """The same segmenter as safetensors, .weights.h5 and .keras: suffix -> path."""
    folder = tmp_path_factory.mktemp("files")
    save_state_dict(segmenter, folder / "model.safetensors")
    segmenter.save_weights(folder / "model.weights.h5")
    segmenter.save(folder / "model.keras")
    return {"".join(path.suffixes): path for path in folder.iterdir()}


@pytest.fixture(scope="module")
def target():
    return build_segmenter()


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


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "empty, 0 bytes"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 16490000\n", "git lfs pull"),
        (b"\n<!DOCTYPE html><html><body>Log in</body></html>", "web page"),
        (b'{"architectures": ["VanForImageClassification"]}', "JSON"),
        (b"not weights at all", "is text"),
        (b"\x1f\x8b\x08\x00", "gzip"),
        (b"\x93NUMPY\x01\x00", "NumPy array"),
        (b"\x80\x04\x95", "pickle that"),
        (b"PK\x03\x04 cut", "damaged or cut off"),
        (b"x" * 257 + b"ustar", "tar archive"),
    ],
)
@pytest.mark.parametrize("name", ["weights.bin", "weights.weights.h5", "weights.keras"])
def test_what_is_no_checkpoint_is_called_what_it_is(tmp_path, target, content, match, name):
    (tmp_path / name).write_bytes(content)
    before = target.get_weights()
    with pytest.raises(ValueError, match=match) as caught:
        load_checkpoint(target, tmp_path / name)
    assert name in str(caught.value)
    for one, two in zip(before, target.get_weights(), strict=True):
        np.testing.assert_array_equal(one, two)


def test_zip_files_of_others(tmp_path):
    path = tmp_path / "weights.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("van/weights.pth", b"")
    with pytest.raises(ValueError, match=r"zip file, but neither.*van/weights\.pth"):
        read_state_dict(path)
    with zipfile.ZipFile(path, "w") as archive:
        for member in ("data.pkl", "constants.pkl", "code/__torch__.py"):
            archive.writestr(f"van/{member}", b"\x80\x02}q\x00.")
    with pytest.raises(ValueError, match=r"TorchScript.*torch\.jit\.load.*weights\.pth"):
        read_state_dict(path)


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
def test_weights_that_are_not_finite_are_refused(tmp_path, files, target, value, capsys):
    torch_path, keras_path = tmp_path / "nan.safetensors", tmp_path / "nan.weights.h5"
    arrays = to_state_dict(target)
    arrays["decode_head.conv_seg.bias"] = np.full(3, value, "float32")
    save_file(arrays, torch_path)
    keras_path.write_bytes(files[".weights.h5"].read_bytes())
    with h5py.File(keras_path, "r+") as file:
        file["classifier/conv/vars/1"][:] = value
    before = target.get_weights()
    for path in (torch_path, keras_path):
        with pytest.raises(ValueError, match=r"not finite: decode_head\.conv_seg\.bias") as caught:
            load_checkpoint(target, path)
        assert path.name in str(caught.value)
        assert main(["inspect", str(path)]) == 0
        assert "not finite" in capsys.readouterr().out
    for one, two in zip(before, target.get_weights(), strict=True):
        np.testing.assert_array_equal(one, two)


def test_integers_are_no_weights(tmp_path, target):
    arrays = to_state_dict(target)
    arrays["decode_head.conv_seg.bias"] = np.zeros(3, "int8")
    save_file(arrays, tmp_path / "int8.safetensors")
    with pytest.raises(ValueError, match=r"wrong type: decode_head\.conv_seg\.bias holds int8"):
        load_checkpoint(target, tmp_path / "int8.safetensors")


@pytest.mark.parametrize("suffix", [".weights.h5", ".keras"])
def test_own_files(tmp_path, segmenter, files, suffix):
    model = build_segmenter()
    load_checkpoint(model, files[suffix])
    assert_equal(model, segmenter)
    # By content, whatever the name.
    renamed = tmp_path / "weights.bin"
    renamed.write_bytes(files[suffix].read_bytes())
    assert is_keras_file(renamed)
    backbone = VANBackbone("b0", weights=renamed, **SMALL)
    assert_equal(backbone, segmenter.backbone)

    other = build_segmenter(num_classes=4)
    fresh = keras.ops.convert_to_numpy(other.classifier.conv.kernel)
    with pytest.warns(UserWarning, match=r"number of classes.*decode_head\.conv_seg\.bias, .*start fresh"):
        load_checkpoint(other, files[suffix])
    np.testing.assert_array_equal(other.classifier.conv.kernel, fresh)
    assert_equal(other.backbone, segmenter.backbone)

    larger = SemanticFPN(VANBackbone("b0", **SMALL | {"depths": (1, 2, 1, 1)}), 3, 8, pyramid_channels=8)
    before = larger.get_weights()
    with pytest.raises(ValueError, match=r"does not fit") as caught:
        load_checkpoint(larger, files[suffix])
    assert "wrong shape: backbone.block2.1.attn.proj_1.bias (16,) for a variable of (8,)" in str(caught.value)
    for one, two in zip(before, larger.get_weights(), strict=True):
        np.testing.assert_array_equal(one, two)


def test_a_keras_file_brings_its_epsilon_and_is_not_run(tmp_path, files):
    path = tmp_path / "changed.keras"
    with zipfile.ZipFile(files[".keras"]) as archive, zipfile.ZipFile(path, "w") as changed:
        changed.writestr("model.weights.h5", archive.read("model.weights.h5"))
        config = {"class_name": "Evil", "module": "os", "config": {"layer_norm_epsilon": 1e-5}}
        changed.writestr("config.json", json.dumps(config))
    model = build_segmenter()
    load_checkpoint(model, path)
    assert model.backbone.layer_norm_epsilon == 1e-5


def test_the_variant_of_an_own_file_is_named(tmp_path):
    path = tmp_path / "b0.weights.h5"
    VANClassifier("b0", num_classes=3).save_weights(path)
    with pytest.raises(ValueError, match=r"wrote it, here b0\. Received: .*b0\.weights\.h5") as caught:
        VANBackbone("b0", weights=path, **SMALL)
    assert "wrong shape: backbone.block1.0.attn.proj_1.bias (32,) for a variable of (8,)" in str(caught.value)


def test_links_to_other_files_are_refused(tmp_path, files, target):
    path = tmp_path / "linked.weights.h5"
    path.write_bytes(files[".weights.h5"].read_bytes())
    with h5py.File(path, "r+") as file:
        del file["classifier/conv/vars/1"]
        file["classifier/conv/vars/1"] = h5py.ExternalLink(str(files[".weights.h5"]), "classifier")
    with pytest.raises(ValueError, match=r"missing: decode_head\.conv_seg\.bias"):
        load_checkpoint(target, path)


@pytest.mark.parametrize("suffix", [".weights.h5", ".keras", ".safetensors"])
def test_damaged_files(tmp_path, files, target, suffix):
    content, random = files[suffix].read_bytes(), np.random.default_rng(0)
    path = tmp_path / f"damaged{suffix}"
    for trial in range(10):
        damaged = bytearray(content)
        if trial % 2:
            del damaged[random.integers(len(damaged)) :]
        else:
            # The places of what is in the file, more than its numbers.
            for place in random.integers(0, min(len(damaged), 8000), 20):
                damaged[place] = random.integers(256)
        path.write_bytes(damaged)
        message = path.name  # a change of a number alone is not seen
        try:
            load_checkpoint(target, path)
        except ValueError as error:
            message = str(error)
        assert path.name in message


def test_writing_leaves_the_old_file_or_the_new_one(tmp_path):
    path = tmp_path / "out.safetensors"
    path.write_text("old")

    def fail():
        with write_beside(path) as unfinished:
            pathlib.Path(unfinished).write_text("half")
            raise OSError("No space left on device")

    with pytest.raises(OSError, match="No space"):
        fail()
    assert path.read_text() == "old"
    with write_beside(path) as unfinished:
        pathlib.Path(unfinished).write_text("new")
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_command_line_on_keras_files(tmp_path, segmenter, files, capsys):
    out = tmp_path / "out.safetensors"
    assert main(["export", str(files[".keras"]), str(out)]) == 0
    model = build_segmenter()
    load_checkpoint(model, out)
    assert_equal(model, segmenter)
    capsys.readouterr()
    for suffix in (".keras", ".weights.h5"):
        assert main(["inspect", str(files[suffix])]) == 0
        assert "format: Keras" in capsys.readouterr().out


def test_failures_of_the_command_line_take_one_line(tmp_path, files, capsys):
    plain = tmp_path / "plain.keras"
    keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)]).save(plain)
    strange = tmp_path / "strange.keras"
    with zipfile.ZipFile(files[".keras"]) as archive, zipfile.ZipFile(strange, "w") as changed:
        changed.writestr("model.weights.h5", archive.read("model.weights.h5"))
        changed.writestr("config.json", archive.read("config.json").replace(b"SemanticFPN", b"Unheard"))
    (tmp_path / "text.keras").write_text("text")
    safetensors, out = str(files[".safetensors"]), str(tmp_path / "out.safetensors")
    for arguments, match in (
        (["export", str(plain), out], "reference_layers"),
        (["export", str(strange), out], "could not be loaded"),
        (["export", str(tmp_path / "text.keras"), out], "is text"),
        (["export", str(tmp_path / "missing.keras"), out], "no such file"),
        (["export", str(files[".keras"]), str(tmp_path / "no" / "out.safetensors")], "folder must exist"),
        (["export", str(files[".keras"]), str(tmp_path / "out.onnx")], "must end in .safetensors"),
        (["convert", safetensors, str(tmp_path / "no" / "out.safetensors")], "folder must exist"),
        (["convert", safetensors, str(tmp_path / "out.weights.h5")], "only a backbone"),
        (["convert", str(files[".keras"]), out], "must be a PyTorch"),
        (["inspect", str(tmp_path)], "folder must hold one of"),
        (["download", "b9"], "release must be"),
    ):
        assert main(arguments) == 1, arguments
        error = capsys.readouterr().err
        assert match in error
        assert len(error.splitlines()) == 1
    assert not (tmp_path / "out.safetensors").exists()


def test_models_without_reference_names(tmp_path, monkeypatch, files):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    with pytest.raises(ValueError, match="reference_layers"):
        load_checkpoint(model, files[".safetensors"])
    (tmp_path / "imagenet").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="needs a variant"):  # not: the data set's folder is no checkpoint
        load_checkpoint(model, "imagenet")
    buffer = io.BytesIO()
    np.savez(buffer, a=np.zeros(2))
    files[".safetensors"].with_name("arrays.npz").write_bytes(buffer.getvalue())
    assert "zip file" in describe_file(files[".safetensors"].with_name("arrays.npz"))
