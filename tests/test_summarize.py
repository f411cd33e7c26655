"""examples/summarize.py, `van-backbones summary`."""

import pathlib
import re
import sys

import pytest
from small_models import SMALL, build

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "examples"))

import summarize

from heads import RetinaNet
from van_backbones import VANBackbone


def read_table(text):
    """Returns the first line, and part -> (parameters, share, multiply-accumulates, share)."""
    title, _, *lines = text.splitlines()
    return title, {line.split("  ")[0]: re.split(r" {2,}", line)[1:] for line in lines}


def test_a_head(capsys):
    summarize.main(["--head", "semantic_fpn", "--variant", "b0", "--image-size", "512", "512"])
    title, parts = read_table(capsys.readouterr().out)
    assert title == "SemanticFPN at 512 x 512"
    assert list(parts)[:5] == ["stage 1", "stage 2", "stage 3", "stage 4", "neck"]
    assert parts["total"][0] == "7,984,374"
    assert parts["classifier"][2] == f"{128 * 128 * 128 * 150:,}"
    shares = [float(values[1].rstrip("%")) for name, values in parts.items() if name != "total"]
    assert sum(shares) == pytest.approx(100, abs=0.5)


def test_a_release_and_the_usual_sizes(capsys):
    """The structure of a release is known without its weights, which would have to be downloaded."""
    summarize.main(["b0_imagenet"])
    title, parts = read_table(capsys.readouterr().out)
    assert title == "VANClassifier at 224 x 224"
    assert parts["total"][::2] == ["4,105,800", "864,224,000"]
    summarize.main([])
    assert capsys.readouterr().out.startswith("VANBackbone at 512 x 512\n")
    summarize.main(["semantic_fpn_b0_ade20k"])
    assert "7,984,374" in capsys.readouterr().out


def test_a_file(tmp_path, capsys):
    path = tmp_path / "best.keras"
    build(RetinaNet, num_classes=3, channels=8).save(path)
    summarize.main([str(path), "--image-size", "64", "96"])
    title, parts = read_table(capsys.readouterr().out)
    assert title == "RetinaNet at 64 x 96"
    assert {"stage 1", "neck", "class_tower", "box_output"} <= parts.keys()
    VANBackbone("b0", **SMALL).save(path)
    summarize.main([str(path)])
    assert capsys.readouterr().out.startswith("VANBackbone at 512 x 512\n")


def test_classes(capsys):
    summarize.main(["--head", "classifier", "--num-classes", "7"])
    assert read_table(capsys.readouterr().out)[1]["head"][0] == f"{256 * 7 + 7:,}"


@pytest.mark.parametrize("head", summarize.HEADS)
def test_heads_exist(head, monkeypatch):
    monkeypatch.setattr(summarize, "VANBackbone", lambda variant: VANBackbone(variant, **SMALL))
    if head != "classifier":
        model = summarize.build_head(head, "b0")
        assert type(model).__name__ == summarize.HEADS[head][0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["no.keras"], "there is no model no.keras"),
        (["b9_imagenet"], "there is no file b9_imagenet, and no release of this name"),
        (["b0_imagenet", "--variant", "b1"], "pass either a model, or --head"),
        (["--head", "edn", "--num-classes", "3"], "--num-classes is for --head with classes"),
        (["--num-classes", "3"], "--num-classes is for --head with classes"),
        (["--image-size", "0", "3"], "at least 1. Received: '0'"),
    ],
)
def test_mistakes(options, message, capsys):
    with pytest.raises(SystemExit) as end:
        summarize.main(options)
    assert end.value.code == 2
    assert message in capsys.readouterr().err


def test_files_that_are_no_models(tmp_path, capsys):
    path = tmp_path / "text.keras"
    path.write_text("text")
    with pytest.raises(SystemExit):
        summarize.main([str(path)])
    assert f"cannot read the model {path}" in capsys.readouterr().err
