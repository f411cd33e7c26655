"""The classes of a model, the data that it is scored on, and the pictures: correct, or refused."""

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


def match_categories(names, ours, ids):
    data = types.SimpleNamespace(class_names=ours, category_ids=ids, num_classes=len(ours))
    return list(evaluate_detection.match_categories(types.SimpleNamespace(class_names=names), data))


def test_evaluation_finds_the_classes_by_their_names(capsys):
    assert match_categories(None, ("bar", "square"), (1, 2)) == [1, 2]
    assert match_categories(["square", "bar"], ("bar", "square"), (1, 2)) == [2, 1]
    assert capsys.readouterr().err == ""
    assert match_categories(["square", "bar"], ("bar", "ball"), (1, 2)) == [1, 2]
    assert "The classes of the data are not those of the model (square, bar)" in capsys.readouterr().err


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
        (lambda folder: change_truth(folder, '"iscrowd": 0', '"iscrowd": 1'), "leave nothing to learn"),
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


def test_category_ids_of_the_pictures_data_set(data_folder, tmp_path):
    """A model only knows the names."""
    found = detect.find_category_ids([data_folder / "images" / "val" / "0.png"], list(NAMES))
    assert found == list(CATEGORY_IDS)
    assert detect.find_category_ids([data_folder / "images" / "val" / "0.png"], list(NAMES[::-1])) is None
    assert detect.find_category_ids([tmp_path / "0.png"], list(NAMES)) is None


def test_deep_pictures_are_read_as_in_training(pictures):
    """All pictures have one reader: 16 bits of grey are not clipped to white."""
    grey = np.asarray(Image.open(pictures / "grey.png"))
    Image.fromarray(grey.astype("uint16") * 257).save(pictures / "grey.png")
    np.testing.assert_array_equal(detect.read_pixels(pictures / "grey.png", 3)[..., 0], grey)
