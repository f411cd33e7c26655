"""What a training noted beside its model, the data it is scored on, and the pictures: right, or refused."""

import functools
import pathlib
import shutil
import sys
import types

import numpy as np
import pytest
from PIL import Image

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "examples"))

import detect
import evaluate_detection
from coco_folder import CATEGORY_IDS, NAMES, draw_example, write_coco_folder

from heads import RetinaNet
from van_backbones import VANBackbone

TinyVAN = functools.partial(VANBackbone, widths=(8, 8, 16, 16), depths=(1, 1, 1, 1))


@pytest.fixture(scope="module")
def data_folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    write_coco_folder(root)
    return root


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("run") / "best.keras"
    RetinaNet(TinyVAN("b0"), 2, channels=8, num_convs=0).save(path)
    return path


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    image, _ = draw_example(np.random.default_rng(1))
    Image.fromarray(image[:, :, 0]).save(folder / "grey.png")
    return folder


def refuse(message):
    """Stands for a parser whose errors are not expected."""
    raise AssertionError(message)


def match_categories(model, notes, names, ids):
    data = types.SimpleNamespace(class_names=names, category_ids=ids, num_classes=len(names))
    parser = types.SimpleNamespace(error=refuse)
    return list(evaluate_detection.match_categories(parser, model, notes, data))


def test_evaluation_finds_the_classes_by_their_names(tmp_path, capsys):
    model = tmp_path / "best.keras"
    notes = {"categories": [{"id": 3, "name": "square"}, {"id": 7, "name": "bar"}]}
    assert match_categories(model, {}, ("bar", "square"), (1, 2)) == [1, 2]  # nothing was noted
    assert match_categories(model, notes, ("bar", "square"), (1, 2)) == [2, 1]
    (tmp_path / "classes.txt").write_text("square\nbar\n", encoding="utf-8-sig")
    assert match_categories(model, {}, ("bar", "square"), (1, 2)) == [2, 1]
    assert capsys.readouterr().err == ""
    assert match_categories(model, notes, ("bar", "ball"), (1, 2)) == [1, 2]
    assert "The classes of the data are not those of" in capsys.readouterr().err
    with pytest.raises(AssertionError, match=r"the model has 1 classes. Received: 2 names"):
        match_categories(model, notes, ("bar",), (1,))


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (lambda folder: (folder / "images/val/1.png").unlink(), r"1\.png: cannot be read \(No such file"),
        (
            lambda folder: change_truth(folder, '"height": 48', '"height": 47'),
            r"of its annotation, \(47, 64\)",
        ),
        (
            lambda folder: change_truth(folder, '"category_id": 3', '"category_id": 4'),
            "unknown category id 4",
        ),
        (lambda folder: change_truth(folder, '"iscrowd": 0', '"iscrowd": 1'), "nothing is left to learn"),
        (lambda folder: change_truth(folder, '"annotations"', '"notes"'), "nothing to score"),
    ],
)
def test_evaluation_checks_the_data_first(model, data_folder, tmp_path, monkeypatch, fault, message):
    data = shutil.copytree(data_folder, tmp_path / "data")
    fault(data)
    monkeypatch.setattr(evaluate_detection, "predict_coco_results", lambda *_, **__: pytest.fail("predicts"))
    options = (model, "--data", data, "--output", tmp_path / "results.json")
    with pytest.raises(SystemExit, match=message):
        evaluate_detection.main([str(option) for option in options])


def change_truth(folder, old, new):
    path = folder / "annotations" / "instances_val.json"
    path.write_text(path.read_text().replace(old, new))


@pytest.mark.parametrize(
    ("notes", "message"),
    [
        ("[", "settings.json must be a JSON file"),
        ('{"sizes": {"image_size": [0, 64]}}', "must note sizes of pictures"),
        ('{"sizes": {"short_side": 64}}', "must note sizes of pictures"),
        ('{"categories": [{"name": "square"}]}', "must note categories with id and name"),
        ('{"categories": [{"id": 3, "name": "square"}]}', "the model has 2 classes. Received: 1 names"),
    ],
)
def test_detect_refuses_notes_that_are_not_of_the_model(model, pictures, tmp_path, capsys, notes, message):
    shutil.copy(model, tmp_path / "last.keras")
    (tmp_path / "settings.json").write_text(notes)
    with pytest.raises(SystemExit):
        detect.main([str(tmp_path / "last.keras"), str(pictures), "--output", str(tmp_path / "out")])
    assert message in capsys.readouterr().err


def test_category_ids_of_the_pictures_data_set(data_folder, tmp_path):
    """For models whose training noted names alone."""
    found = detect.find_category_ids([data_folder / "images" / "val" / "0.png"], list(NAMES))
    assert found == list(CATEGORY_IDS)
    assert detect.find_category_ids([data_folder / "images" / "val" / "0.png"], list(NAMES[::-1])) is None
    assert detect.find_category_ids([tmp_path / "0.png"], list(NAMES)) is None


def test_deep_pictures_are_read_as_in_training(pictures):
    """One reader: 16 bits of grey are not clipped to white."""
    grey = np.asarray(Image.open(pictures / "grey.png"))
    Image.fromarray(grey.astype("uint16") * 257).save(pictures / "grey.png")
    np.testing.assert_array_equal(detect.read_picture(pictures / "grey.png")[..., 0], grey)
