"""The command line, `python -m van_backbones.checkpoints`."""

import os
import subprocess
import sys
import zipfile

import keras
import numpy as np
import pytest
from checkpoint_models import assert_equal_weights, randomize, write_torch
from conftest import build_segmenter
from small_models import SMALL, build

from heads import RetinaNet
from van_backbones import VANBackbone, VANClassifier, load_checkpoint
from van_backbones.checkpoints import RELEASES
from van_backbones.checkpoints.__main__ import main
from van_backbones.checkpoints.loading import to_state_dict


def assert_equal(model, other):
    for one, two in zip(model.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(one, two)


def test_command_line_on_keras_files(tmp_path, small_segmenter, segmenter_files, capsys):
    out = tmp_path / "out.safetensors"
    assert main(["export", str(segmenter_files[".keras"]), str(out)]) == 0
    model = build_segmenter()
    load_checkpoint(model, out)
    assert_equal(model, small_segmenter)
    capsys.readouterr()
    for suffix in (".keras", ".weights.h5"):
        assert main(["inspect", str(segmenter_files[suffix])]) == 0
        assert "format: Keras" in capsys.readouterr().out


def test_failures_of_the_command_line_take_one_line(tmp_path, segmenter_files, capsys):
    plain = tmp_path / "plain.keras"
    keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)]).save(plain)
    strange = tmp_path / "strange.keras"
    with zipfile.ZipFile(segmenter_files[".keras"]) as archive, zipfile.ZipFile(strange, "w") as changed:
        changed.writestr("model.weights.h5", archive.read("model.weights.h5"))
        changed.writestr("config.json", archive.read("config.json").replace(b"SemanticFPN", b"Unheard"))
    (tmp_path / "text.keras").write_text("text")
    safetensors, out = str(segmenter_files[".safetensors"]), str(tmp_path / "out.safetensors")
    for arguments, match in (
        (["export", str(plain), out], "reference_layers"),
        (["export", str(strange), out], "could not be loaded"),
        (["export", str(tmp_path / "text.keras"), out], "is text"),
        (["export", str(tmp_path / "missing.keras"), out], "no such file"),
        (
            ["export", str(segmenter_files[".keras"]), str(tmp_path / "no" / "out.safetensors")],
            "folder must exist",
        ),
        (["export", str(segmenter_files[".keras"]), str(tmp_path / "out.onnx")], "must end in .safetensors"),
        (["convert", safetensors, str(tmp_path / "no" / "out.safetensors")], "folder must exist"),
        (["convert", safetensors, str(tmp_path / "out.weights.h5")], "only a backbone"),
        (["convert", str(segmenter_files[".keras"]), out], "must be a PyTorch"),
        (["inspect", str(tmp_path)], "folder must hold one of"),
        (["download", "b9"], "release must be"),
    ):
        assert main(arguments) == 1, arguments
        error = capsys.readouterr().err
        assert match in error
        assert len(error.splitlines()) == 1
    assert not (tmp_path / "out.safetensors").exists()


def test_command_line(tmp_path, capsys):
    model = VANClassifier("b0", num_classes=6)
    randomize(model)
    path = str(write_torch(to_state_dict(model), tmp_path / "van.pth"))
    assert main(["list"]) == 0
    assert "b2_imagenet " in capsys.readouterr().out
    assert main(["inspect", path]) == 0
    shown = capsys.readouterr().out
    assert "format: official" in shown
    assert "variant: b0" in shown
    assert "3,848,800 parameters" in shown
    assert main(["convert", path, str(tmp_path / "van.safetensors")]) == 0
    assert main(["convert", path, str(tmp_path / "van.weights.h5")]) == 0
    target = VANClassifier("b0", num_classes=6, weights=tmp_path / "van.weights.h5")
    assert_equal_weights(model, target)
    load_checkpoint(target, tmp_path / "van.safetensors")
    model.save(tmp_path / "van.keras")
    assert main(["export", str(tmp_path / "van.keras"), str(tmp_path / "back.safetensors")]) == 0
    load_checkpoint(target, tmp_path / "back.safetensors")
    assert_equal_weights(model, target)
    capsys.readouterr()
    assert main(["inspect", str(tmp_path / "missing.pth")]) == 1
    assert "no such checkpoint file" in capsys.readouterr().err
    assert main(["convert", path, str(tmp_path / "van.onnx")]) == 1


def test_command_line_as_a_module():
    command = [sys.executable, "-m", "van_backbones.checkpoints", "list"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stderr == ""  # nothing of TensorFlow's either
    lines = done.stdout.splitlines()
    assert len(lines) == len(RELEASES)
    assert any(line.startswith("b0_imagenet ") and "ImageNet-1k, top-1 75.4 " in line for line in lines)
    assert any(line.startswith("b4_imagenet22k ") and "b4  ImageNet-22k  " in line for line in lines)
    (line,) = (line for line in lines if line.startswith("upernet_b2_ade20k "))
    assert "ADE20K, mIoU 49.35 " in line
    assert line.endswith("-19c58aee.pth")


@pytest.mark.parametrize(
    ("words", "code", "shown"),
    [
        (["--help"], 0, "usage: python -m van_backbones.checkpoints "),
        (["convert", "-h"], 0, "usage: python -m van_backbones.checkpoints convert "),
        ([], 2, "required: command"),
        (["convert", "a"], 2, "required: output"),
        (["lst"], 2, "invalid choice: 'lst'"),
    ],
)
@pytest.mark.parametrize("form", [["-m", "van_backbones.checkpoints"], ["-mvan_backbones.checkpoints"]])
def test_help_and_mistakes_are_answered_before_keras_is_loaded(words, code, shown, form):
    command = [sys.executable, "-X", "importtime", *form, *words]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == code
    assert shown in done.stdout + done.stderr
    assert "| keras" not in done.stderr


def test_other_modules_parse_for_themselves(tmp_path):
    """A program that imports the package gets its own options."""
    (tmp_path / "program_package").mkdir()
    (tmp_path / "program_package/__init__.py").write_text("import van_backbones, sys\nprint(sys.argv)")
    (tmp_path / "program_package/__main__.py").touch()
    command = [sys.executable, "-m", "program_package", "--help", "van_backbones.checkpoints"]
    paths = os.pathsep.join([str(tmp_path), *sys.path])
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": paths})
    assert done.returncode == 0
    assert done.stdout.strip() == "['-m', '--help', 'van_backbones.checkpoints']"


def test_the_file_of_a_detector(tmp_path, capsys):
    model = build(RetinaNet, num_classes=3, channels=8)
    model.compile("adamw")
    path, out = tmp_path / "best.keras", tmp_path / "best.safetensors"
    model.save(path)
    assert main(["inspect", str(path)]) == 0
    assert "format: Keras" in capsys.readouterr().out
    assert main(["export", str(path), str(out)]) == 0
    again = build(RetinaNet, num_classes=3, channels=8)
    load_checkpoint(again, out)
    assert_equal(again, model)
    assert_equal(VANBackbone("b0", weights=path, **SMALL), model.backbone)
