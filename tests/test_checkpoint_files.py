"""Whole files into models and back: wrappers, variants, classes, round trips."""

import warnings

import keras
import numpy as np
import pytest
from checkpoint_models import assert_equal_weights, randomize, write_torch
from golden_reference import check, checkpoint, load

from heads import SemanticFPN, UPerNet
from van_backbones import VANBackbone, VANClassifier, load_checkpoint
from van_backbones.checkpoints.loading import load_state_dict, name_variables, save_state_dict, to_state_dict

SMALL = {"widths": (8, 8, 16, 16), "depths": (1, 1, 2, 1)}


@pytest.mark.parametrize("head", [SemanticFPN, UPerNet])
def test_segmenters_take_every_wrapper(tmp_path, head):
    def build():
        backbone = VANBackbone("b0", drop_path_rate=0.0, **SMALL)
        return head(backbone, num_classes=5, channels=8)

    source, target = build(), build()
    randomize(source)
    arrays = to_state_dict(source)
    files = [
        write_torch(arrays, tmp_path / "bare.pth"),
        write_torch(
            arrays, tmp_path / "mmseg.pth", lambda tensors: {"meta": {"epoch": 1}, "state_dict": tensors}
        ),
        write_torch(arrays, tmp_path / "legacy.pth", _use_new_zipfile_serialization=False),
        write_torch({f"module.{name}": array for name, array in arrays.items()}, tmp_path / "ddp.pth"),
    ]
    save_state_dict(source, tmp_path / "own.safetensors")
    for seed, path in enumerate([*files, tmp_path / "own.safetensors"], 1):
        randomize(target, seed)
        load_checkpoint(target, path)
        assert_equal_weights(source, target)
    # mmsegmentation's files set its epsilon, ours remember the model's.
    assert target.backbone.layer_norm_epsilon == 1e-6
    load_checkpoint(target, files[1])
    assert target.backbone.layer_norm_epsilon == 1e-5
    assert target.backbone.get_layer("stage4_norm").epsilon == 1e-5
    assert target.backbone.get_config()["layer_norm_epsilon"] == 1e-5


@pytest.mark.parametrize(
    ("name", "head"),
    [("semfpn_b0", SemanticFPN), pytest.param("upernet_b0", UPerNet, marks=pytest.mark.slow)],
)
def test_reference_segmenters_from_files(tmp_path, name, head):
    arrays = checkpoint(name)
    model = head(VANBackbone("b0", normalization=None), num_classes=150)
    reference = load(f"{name}/forward_odd.npz")
    images = reference["input"].transpose(0, 2, 3, 1)
    styles = [
        {"wrap": lambda tensors: tensors},
        {"wrap": lambda tensors: {"meta": {"mmseg_version": "0.12"}, "state_dict": tensors, "optimizer": {}}},
        {"wrap": lambda tensors: {f"module.{key}": tensor for key, tensor in tensors.items()}},
        {"wrap": lambda tensors: {"state_dict": tensors}, "_use_new_zipfile_serialization": False},
    ]
    for style in styles:
        randomize(model)
        load_checkpoint(model, write_torch(arrays, tmp_path / "iter_160000.pth", **style))
        logits = keras.ops.convert_to_numpy(model(images))
        check(reference["resized_logits_first8ch"], logits.transpose(0, 3, 1, 2)[:, :8])


def test_other_number_of_classes_keeps_the_rest(tmp_path):
    source = UPerNet(VANBackbone("b0", **SMALL), num_classes=5, channels=8)
    target = UPerNet(VANBackbone("b0", **SMALL), num_classes=3, channels=8)
    randomize(source)
    path = write_torch(to_state_dict(source), tmp_path / "weights.pth")
    before = target.classifier.conv.kernel.numpy()
    with pytest.warns(
        UserWarning, match=r"another number of classes.*auxiliary_head\.conv_seg\.bias.*start fresh"
    ):
        load_checkpoint(target, path)
    np.testing.assert_array_equal(target.classifier.conv.kernel.numpy(), before)
    ours, theirs = name_variables(target), name_variables(source)
    for name in ours:
        if "conv_seg" not in name:
            np.testing.assert_array_equal(ours[name].numpy(), theirs[name].numpy())
    # Any other difference in shape is an error, and nothing is changed by it.
    narrow = UPerNet(VANBackbone("b0", **SMALL), num_classes=3, channels=4)
    weights = [variable.numpy() for variable in narrow.variables]
    with pytest.raises(ValueError, match=r"wrong shape: (auxiliary|decode)_head"):
        load_checkpoint(narrow, path)
    for variable, value in zip(narrow.variables, weights, strict=True):
        np.testing.assert_array_equal(variable.numpy(), value)


def test_a_backbone_takes_its_part(tmp_path):
    source = SemanticFPN(VANBackbone("b0", **SMALL), num_classes=5, channels=8)
    randomize(source)
    path = write_torch(to_state_dict(source), tmp_path / "weights.pth")
    backbone = VANBackbone("b0", weights=path, **SMALL)
    assert_equal_weights(source.backbone, backbone)
    model = SemanticFPN(VANBackbone("b0", **SMALL), num_classes=5, channels=8)
    bare = write_torch(to_state_dict(backbone), tmp_path / "backbone.pth")
    with pytest.raises(ValueError, match=r"missing: decode_head\.conv_seg\.bias"):
        load_checkpoint(model, bare)


def test_classifier_files(tmp_path):
    source = VANClassifier("b0", num_classes=7)
    randomize(source)
    arrays = to_state_dict(source)
    assert "patch_embed1.proj.weight" in arrays
    assert arrays["head.weight"].shape == (7, 256)
    path = write_torch(arrays, tmp_path / "van.pth.tar", lambda tensors: {"state_dict": tensors, "epoch": 1})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_equal_weights(source, VANClassifier("b0", num_classes=7, weights=path))
        assert_equal_weights(source.backbone, VANBackbone("b0", weights=path))
    with pytest.warns(UserWarning, match=r"head\.bias, head\.weight were not loaded"):
        VANClassifier("b0", num_classes=3, weights=path)
    with pytest.raises(
        ValueError, match=r"this is b0: build the model with VANBackbone\('b0'\).*van\.pth\.tar"
    ):
        VANBackbone("b1", weights=path)


def test_load_state_dict_lists_problems_and_changes_nothing():
    backbone = VANBackbone("b0", **SMALL)
    arrays = to_state_dict(backbone)
    weights = [variable.numpy() for variable in backbone.variables]
    del arrays["norm4.bias"]
    arrays["norm5.bias"] = np.zeros(3, "float32")
    arrays["norm1.bias"] = np.zeros(9, "float32")
    with pytest.raises(ValueError, match="in 3 places") as error:
        load_state_dict(backbone, arrays)
    for line in (
        "missing: backbone.norm4.bias",
        "unexpected: backbone.norm5.bias",
        "wrong shape: backbone.norm1",
    ):
        assert line in str(error.value)
    for variable, value in zip(backbone.variables, weights, strict=True):
        np.testing.assert_array_equal(variable.numpy(), value)


def test_release_names_are_checked_before_any_download():
    with pytest.raises(ValueError, match="imagenet"):
        VANBackbone("b6", weights="imagenet", **SMALL)
    with pytest.raises(ValueError, match="b1_imagenet"):
        VANBackbone("b0", weights="imagenet21k", **SMALL)
    with pytest.raises(ValueError, match="this is b0"):
        VANBackbone("b0", weights="imagenet", **SMALL)
    with pytest.raises(ValueError, match="file not found"):
        VANBackbone("b0", weights="folder/van.pth", **SMALL)


def test_export_goes_back_to_the_same_arrays(tmp_path):
    torch = pytest.importorskip("torch")
    model = VANClassifier("b0", num_classes=4)
    randomize(model)
    first = to_state_dict(model)
    save_state_dict(model, tmp_path / "van.safetensors")
    target = VANClassifier("b0", num_classes=4)
    load_checkpoint(target, tmp_path / "van.safetensors")
    second = to_state_dict(target)
    assert first.keys() == second.keys()
    for name, array in first.items():
        np.testing.assert_array_equal(array, second[name])
    # PyTorch's layouts: the arrays run in PyTorch's own convolutions.
    kernel = torch.from_numpy(first["block1.0.attn.spatial_gating_unit.conv0.weight"])
    assert tuple(kernel.shape) == (32, 1, 5, 5)
    assert first["patch_embed1.norm.num_batches_tracked"].dtype == np.int64
    with pytest.raises(ValueError, match=r"must end in \.safetensors"):
        save_state_dict(model, tmp_path / "van.pth")
