"""Keras's own files as sources of weights."""

import json
import zipfile

import h5py
import keras
import numpy as np
import pytest
from conftest import SMALL, build_segmenter

from heads import SemanticFPN
from van_backbones import VANBackbone, VANClassifier, load_checkpoint
from van_backbones.checkpoints.keras_files import is_keras_file


def assert_equal(model, other):
    for one, two in zip(model.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("suffix", [".weights.h5", ".keras"])
def test_own_files(tmp_path, small_segmenter, segmenter_files, suffix):
    model = build_segmenter()
    load_checkpoint(model, segmenter_files[suffix])
    assert_equal(model, small_segmenter)
    # By its content, whatever its name.
    renamed = tmp_path / "weights.bin"
    renamed.write_bytes(segmenter_files[suffix].read_bytes())
    assert is_keras_file(renamed)
    backbone = VANBackbone("b0", weights=renamed, **SMALL)
    assert_equal(backbone, small_segmenter.backbone)

    other = build_segmenter(num_classes=4)
    fresh = keras.ops.convert_to_numpy(other.classifier.conv.kernel)
    with pytest.warns(UserWarning, match=r"number of classes.*decode_head\.conv_seg\.bias, .*start fresh"):
        load_checkpoint(other, segmenter_files[suffix])
    np.testing.assert_array_equal(other.classifier.conv.kernel, fresh)
    assert_equal(other.backbone, small_segmenter.backbone)

    larger = SemanticFPN(VANBackbone("b0", **SMALL | {"depths": (1, 2, 1, 1)}), 3, 8, pyramid_channels=8)
    before = larger.get_weights()
    with pytest.raises(ValueError, match=r"does not fit") as caught:
        load_checkpoint(larger, segmenter_files[suffix])
    assert "wrong shape: backbone.block2.1.attn.proj_1.bias (16,) for a variable of (8,)" in str(caught.value)
    for one, two in zip(before, larger.get_weights(), strict=True):
        np.testing.assert_array_equal(one, two)


def test_a_keras_file_brings_its_epsilon_and_is_not_run(tmp_path, segmenter_files):
    path = tmp_path / "changed.keras"
    with zipfile.ZipFile(segmenter_files[".keras"]) as archive, zipfile.ZipFile(path, "w") as changed:
        changed.writestr("model.weights.h5", archive.read("model.weights.h5"))
        config = {"class_name": "Evil", "module": "os", "config": {"layer_norm_epsilon": 1e-5}}
        changed.writestr("config.json", json.dumps(config))
    model = build_segmenter()
    load_checkpoint(model, path)
    assert model.backbone.layer_norm_epsilon == 1e-5


def test_the_variant_of_an_own_file_is_named(tmp_path):
    path = tmp_path / "b0.weights.h5"
    VANClassifier("b0", num_classes=3).save_weights(path)
    with pytest.raises(ValueError, match=r"of the file, here b0\. Received: .*b0\.weights\.h5") as caught:
        VANBackbone("b0", weights=path, **SMALL)
    assert "wrong shape: backbone.block1.0.attn.proj_1.bias (32,) for a variable of (8,)" in str(caught.value)


def test_links_to_other_files_are_refused(tmp_path, segmenter_files, other_segmenter):
    path = tmp_path / "linked.weights.h5"
    path.write_bytes(segmenter_files[".weights.h5"].read_bytes())
    with h5py.File(path, "r+") as file:
        del file["classifier/conv/vars/1"]
        file["classifier/conv/vars/1"] = h5py.ExternalLink(str(segmenter_files[".weights.h5"]), "classifier")
    with pytest.raises(ValueError, match=r"missing: decode_head\.conv_seg\.bias"):
        load_checkpoint(other_segmenter, path)


def test_an_archive_is_not_read_again_for_each_array(monkeypatch, segmenter_files, other_segmenter):
    # Steps back in HDF5's file made large heads take minutes.
    taken = []
    read = zipfile.ZipExtFile.read

    def count(member, *arguments):
        data = read(member, *arguments)
        taken.append(len(data))
        return data

    monkeypatch.setattr(zipfile.ZipExtFile, "read", count)
    load_checkpoint(other_segmenter, segmenter_files[".keras"])
    assert sum(taken) <= segmenter_files[".keras"].stat().st_size


def test_an_archive_that_unpacks_to_much_more_is_refused(tmp_path, other_segmenter):
    path = tmp_path / "bomb.keras"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("config.json", "{}")
        with archive.open("model.weights.h5", "w") as member:
            for _ in range(2**5):
                member.write(bytes(2**24))
    with pytest.raises(ValueError, match=r"unpacks to more than .*bomb\.keras"):
        load_checkpoint(other_segmenter, path)


@pytest.mark.parametrize("suffix", [".weights.h5", ".keras", ".safetensors"])
def test_damaged_files(tmp_path, segmenter_files, other_segmenter, suffix):
    content, random = segmenter_files[suffix].read_bytes(), np.random.default_rng(0)
    path = tmp_path / f"damaged{suffix}"
    for trial in range(10):
        damaged = bytearray(content)
        if trial % 2:
            del damaged[random.integers(len(damaged)) :]
        else:
            # Bytes of the file's structure rather than of its numbers.
            for place in random.integers(0, min(len(damaged), 8000), 20):
                damaged[place] = random.integers(256)
        path.write_bytes(damaged)
        message = path.name  # a change of a number only goes unnoticed
        try:
            load_checkpoint(other_segmenter, path)
        except ValueError as error:
            message = str(error)
        assert path.name in message
