"""The script that scores segmenters, with a stand-in for the model, which knows everything but doors."""

import json
import pathlib
import sys

import numpy as np
import pytest
from PIL import Image

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "examples"))

import evaluate_segmentation
import predict_segmentation
from small_models import build

from heads import Resizing, SemanticFPN
from heads.metrics import count_confusion, score_confusion

NAMES = ("wall", "window", "door")


def write_data(root):
    for split, count in (("val", 2), ("test", 3)):
        for kind in ("images", "labels"):
            (root / kind / split).mkdir(parents=True)
        for index in range(count):
            label_map = np.zeros((40, 48), "uint8")
            label_map[:10] = 1
            label_map[20:30, :24] = 2
            label_map[39] = 255
            # Each class has its own grey.
            image = np.repeat(np.minimum(label_map, 3)[..., None] * 60, 3, -1).astype("uint8")
            Image.fromarray(image).save(root / "images" / split / f"{index}.png")
            Image.fromarray(label_map).save(root / "labels" / split / f"{index}.png")
    (root / "classes.txt").write_text("\n".join(NAMES) + "\n")
    return root


class Segmenter:
    """Reads the classes from the greys, and mistakes doors for walls."""

    num_classes, class_names, image_channels = 3, list(NAMES), 3

    def __init__(self):
        self.calls = []

    def predict_on_batch(self, images):
        label_maps = np.asarray(images)[..., 0].astype(int) // 60
        return np.where(label_maps >= 2, 0, label_maps)

    def segment(self, images, **options):
        raise AssertionError("scores are of what predict_pictures returns")

    def predict_pictures(self, picture, **options):
        self.calls.append(options)
        return [{"label_map": self.predict_on_batch(picture)}]


@pytest.fixture
def evaluate(tmp_path, monkeypatch):
    """Returns a function of options that runs the script and returns the model."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "best.keras").touch()
    write_data(tmp_path / "data")
    model = Segmenter()
    monkeypatch.setattr(evaluate_segmentation.keras.saving, "load_model", lambda *args, **options: model)

    def run(*options):
        places = [tmp_path / "run" / "best.keras", "--data", tmp_path / "data", *options]
        evaluate_segmentation.main(list(map(str, places)))
        return model

    return run


def test_scores_tables_and_pictures_lie_beside_the_model(evaluate, tmp_path, capsys):
    evaluate("--splits", "val", "test")
    printed = capsys.readouterr().out
    assert printed.count("all pixels") == 2
    assert "  door taken for wall: 100.0%" in printed
    for split, count in (("val", 2), ("test", 3)):
        folder = tmp_path / "run" / "evaluation-1" / split
        assert {path.name for path in folder.iterdir()} == {
            *("scores.json", "scores.txt", "confusion.png", "predictions.png", "worst.png", "report.html")
        }
        scores = json.loads((folder / "scores.json").read_text())
        assert scores["split"] == split
        assert scores["per_class_iou"]["door"] == 0
        assert scores["per_class_iou"]["window"] == 100
        assert scores["pixel_accuracy"] == pytest.approx(100 * (1 - 240 / (39 * 48)), abs=1e-3)
        assert f"{split}: {count} pictures" in printed
        assert (folder / "scores.txt").read_text() in printed


def test_evaluations_do_not_overwrite_each_other(evaluate, tmp_path):
    evaluate()
    evaluate()
    assert (tmp_path / "run" / "evaluation-2" / "val" / "scores.json").is_file()
    evaluate("--output", tmp_path / "mine")
    assert (tmp_path / "mine" / "val" / "confusion.png").is_file()


def test_the_file_of_scores_tells_the_views(evaluate, tmp_path):
    assert evaluate().calls[0] == {}
    model = evaluate("--crop-size", 32, 32, "--stride", 16, 32, "--scales", 1, 1.5, "--flip-test")
    assert model.calls[-1] == {"crop": (32, 32), "stride": (16, 32), "scales": (1.0, 1.5), "flip": True}
    plain, views = (
        json.loads((tmp_path / f"run/evaluation-{number}/val/scores.json").read_text()) for number in (1, 2)
    )
    given = {"crop_size": "[32, 32]", "stride": "[16, 32]", "scales": "[1.0, 1.5]", "flip_test": "True"}
    assert views == {**plain, **given}


def test_scores_are_of_what_is_predicted(tmp_path, monkeypatch):
    """The confusion of the label maps that predict_segmentation.py writes, with the same options."""
    data, resizing = write_data(tmp_path / "data"), Resizing((32, 32))
    model = build(SemanticFPN, num_classes=3, channels=8, class_names=NAMES, resizing=resizing)
    image = np.asarray(Image.open(data / "images/val/0.png"))[None]
    bias = model.classifier.conv.bias  # shifted, so that all classes are predicted
    bias.assign(bias - np.asarray(model(image)).mean(axis=(0, 1, 2)))
    (tmp_path / "model.keras").touch()
    monkeypatch.setattr(evaluate_segmentation.keras.saving, "load_model", lambda *args, **options: model)
    confusions = []
    for views in (
        (),
        ("--tiles", "32"),
        ("--crop-size", "24", "40"),
        ("--scales", "0.5", "1", "--flip-test"),
    ):
        output, begin = tmp_path / f"out{len(confusions)}", str(tmp_path / "model.keras")
        evaluate_segmentation.main([begin, "--data", str(data), "--output", str(output), *views])
        pictures = str(data / "images/val")
        assert predict_segmentation.main([begin, pictures, "--output", str(output / "maps"), *views]) == 0
        confusion = 0
        for path in sorted((data / "labels/val").iterdir()):
            maps = (np.asarray(Image.open(each)) for each in (path, output / "maps" / path.name))
            confusion += count_confusion(*maps, 3)
        assert np.count_nonzero(confusion.sum(axis=0)) > 1
        scores = json.loads((output / "val/scores.json").read_text())
        for name in ("mean_iou", "pixel_accuracy", "mean_accuracy"):
            assert scores[name] == pytest.approx(100 * score_confusion(confusion)[name], abs=1e-4)
        confusions.append(confusion)
    for index, confusion in enumerate(confusions):
        assert all((confusion != other).any() for other in confusions[:index])


def test_other_names_of_classes_are_told(evaluate, tmp_path, capsys):
    (tmp_path / "data" / "classes.txt").write_text("wall\nglass\ndoor\n")
    evaluate()
    assert (
        "The classes of the data are not those of the model (wall, window, door)" in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--splits", "nowhere"], "split must be one of ['test', 'val']"),
        (["--stride", "8", "8"], "--stride needs --crop-size"),
        (["--stride", "8", "9", "--crop-size", "8", "8"], "--stride 8 9, --crop-size 8 8"),
        (["--tiles", "8", "--crop-size", "8", "8"], "two ways to cut a picture"),
        (["--tiles", "8", "--scales", "1"], "--tiles takes no --scales"),
        (["--output", "FILE"], "--output must be a folder. Received: the file"),
        (["--class-names", "TWO"], "must be a semantic segmenter of the 2 classes"),
        (["--class-names", "FOUR"], "must be a semantic segmenter of the 4 classes"),
    ],
)
def test_what_is_refused(evaluate, tmp_path, capsys, options, message):
    (tmp_path / "two.txt").write_text("a\nb\n")
    (tmp_path / "four.txt").write_text("a\nb\nc\nd\n")
    places = {"FILE": tmp_path / "two.txt", "TWO": tmp_path / "two.txt", "FOUR": tmp_path / "four.txt"}
    with pytest.raises(SystemExit) as end, pytest.MonkeyPatch.context():
        evaluate(*(places.get(option, option) for option in options))
    assert message in str(end.value) + capsys.readouterr().err
    assert not list((tmp_path / "run").glob("evaluation-*"))
