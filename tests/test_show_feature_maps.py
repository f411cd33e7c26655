"""examples/show_feature_maps.py, `van-backbones features`."""

import pathlib
import sys

import numpy as np
import pytest
from PIL import Image
from small_models import SMALL, build, draw_images

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "examples"))

import show_feature_maps
from show_feature_maps import find_label, main

from heads import RetinaNet, SemanticFPN, SimpleBaseline
from heads.picture_sizes import Resizing
from van_backbones import VANBackbone, VANClassifier

NAMES = ("wall", "window", "door")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Returns a folder with saved models and two pictures."""
    folder = tmp_path_factory.mktemp("features")
    options = {"channels": 8, "pyramid_channels": 8, "num_classes": 3}
    build(SemanticFPN, **options, class_names=NAMES, resizing=Resizing(short_side=32)).save(
        folder / "one.keras"
    )
    build(SemanticFPN, **options).save(folder / "other.keras")
    build(RetinaNet, num_classes=3, channels=8).save(folder / "boxes.keras")
    build(SimpleBaseline, num_keypoints=3, channels=8).save(folder / "pose.keras")
    VANBackbone("b0", **SMALL).save(folder / "backbone.keras")
    (folder / "pictures").mkdir()
    for index, image in enumerate(draw_images((48, 64), 2)):
        Image.fromarray(image).save(folder / "pictures" / f"{index}.png")
    return folder


@pytest.fixture
def pages(monkeypatch):
    """Returns what the pages were drawn of: (function, positional and named arguments)."""
    found = []

    def watch(name):
        draw = getattr(show_feature_maps, name)

        def drawn(*args, **kwargs):
            found.append((name, args, kwargs))
            return draw(*args, **kwargs)

        monkeypatch.setattr(show_feature_maps, name, drawn)

    for name in ("draw_feature_maps", "draw_feature_comparison", "draw_receptive_fields"):
        watch(name)
    return found


def run(folder, tmp_path, *words):
    output = tmp_path / "maps.png"
    main([*(str(folder / word) if "." in word else word for word in words), "--output", str(output)])
    return np.asarray(Image.open(output))


def test_a_segmenter_of_ones_own(folder, tmp_path, pages, capsys):
    run(folder, tmp_path, "one.keras", "pictures/0.png", "--class", "door", "--point", "63", "47")
    ((_, (_, image), options),) = pages
    assert image.shape == (32, 43, 3)  # the size in the model's file
    assert options["point"] == (42, 31)
    assert list(options["class_maps"]) == ["door"]
    assert options["class_maps"]["door"]["P2"].shape == (8, 11)
    assert "what speaks for door" in capsys.readouterr().out


def test_the_class_that_stands_out(folder, tmp_path, pages):
    run(folder, tmp_path, "boxes.keras", "pictures/0.png", "--image-size", "40")
    ((_, (_, image), options),) = pages
    assert image.shape == (30, 40, 3)
    ((name, maps),) = options["class_maps"].items()
    assert name in ("class 0", "class 1", "class 2")
    assert list(maps) == ["P3", "P4", "P5"]


@pytest.mark.parametrize("model", ["backbone.keras", "pose.keras"])
def test_models_without_classes(folder, tmp_path, pages, model):
    run(folder, tmp_path, model)
    ((_, (backbone, _image), options),) = pages
    assert options["class_maps"] is None
    assert isinstance(backbone, VANBackbone)


def test_a_classifier(tmp_path, pages, monkeypatch, capsys):
    run(pathlib.Path(), tmp_path, "--classifier", "--image-size", "32", "--class", "great_grey_owl")
    ((_, (_backbone, _image), options),) = pages
    assert list(options["class_maps"]) == ["great_grey_owl"]
    assert not options["class_maps"]["great_grey_owl"]["P2"].any()
    assert "random" in capsys.readouterr().out


def test_a_saved_classifier_names_its_best_class(folder, tmp_path, pages):
    model = VANClassifier("b0", num_classes=4)
    model.get_layer("head").bias.assign([0.0, 0.0, 50.0, 0.0])
    model.save(tmp_path / "classes.keras")
    run(tmp_path, tmp_path, "classes.keras", "--image-size", "32")
    ((_, _, options),) = pages
    assert list(options["class_maps"]) == ["class 2"]


def test_two_models(folder, tmp_path, pages):
    run(folder, tmp_path, "one.keras", "pictures/0.png", "--compare", "other.keras")
    ((name, (backbones, _image), _),) = pages
    assert name == "draw_feature_comparison"
    assert list(backbones) == ["other", "one"]  # --compare's model comes first: before, after


def test_files_of_one_name_are_told_apart(folder):
    names = [
        list(show_feature_maps.name_models(pathlib.Path(one), pathlib.Path(other)))
        for one, other in (("runs/a/best.keras", "runs/b/best.keras"), ("a/best.keras", "a/best.keras"))
    ]
    assert names == [["a/best", "b/best"], ["a/best (first)", "a/best (second)"]]


def test_receptive_fields(folder, tmp_path, pages):
    run(folder, tmp_path, "one.keras", "--receptive-field", str(folder / "pictures"), "--image-size", "64")
    ((_, (fields, count, backbone), _),) = pages
    assert count == 2
    assert {level: field.shape for level, field in fields.items()} == dict.fromkeys(
        ("P2", "P3", "P4", "P5"), (64, 64)
    )
    assert backbone.name.startswith("van_backbone")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["no.keras"], "there is no model"),
        (["one.keras", "pictures/9.png"], "cannot read the picture"),
        (["one.keras", "--variant", "b1"], "pass either a model's file, or --variant"),
        (["one.keras", "--compare", "no.keras"], "there is no model"),
        (["one.keras", "--compare", "other.keras", "--point", "1", "1"], "not for --compare"),
        (
            ["one.keras", "--compare", "boxes.keras", "--receptive-field", "x"],
            "cannot be combined with a picture",
        ),
        (["--receptive-field", "no/folder"], "must be a folder of pictures. Received: no/folder"),
        (["--receptive-field", "one.keras"], "must be a folder of pictures"),
        (
            ["one.keras", "pictures/0.png", "--point", "64", "0"],
            "within the picture of 64 x 48 pixels. Received: [64, 0]",
        ),
        (["one.keras", "--class", "roof"], "--class must be one of wall, window, door, or a number below 3"),
        (
            ["pose.keras", "--class", "0"],
            "--class needs a model that predicts classes. Received: a SimpleBaseline",
        ),
        (["pictures/0.png", "--compare", "backbone.keras"], "same levels and channels"),
        (["one.keras", "--receptive-field", "."], "must hold pictures"),
    ],
)
def test_mistakes(folder, tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(folder)
    with pytest.raises(SystemExit) as end:
        main([*words, "--output", str(tmp_path / "maps.png")])
    assert end.value.code == 2
    assert message in capsys.readouterr().err


def test_a_file_without_a_van_is_refused(tmp_path, capsys):
    import keras

    keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)]).save(tmp_path / "dense.keras")
    (tmp_path / "text.keras").write_text("text")
    for name, message in (
        ("dense", "must be a head, a classifier or a VANBackbone"),
        ("text", "cannot read the model"),
    ):
        with pytest.raises(SystemExit):
            main([str(tmp_path / f"{name}.keras")])
        assert message in capsys.readouterr().err


def test_classes_by_number_and_name():
    assert find_label(None, "door", list(NAMES)) == 2
    assert find_label(None, "1", list(NAMES)) == 1
    assert find_label(None, "0", ["1", "0"]) == 1  # a name takes precedence
