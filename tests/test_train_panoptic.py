"""The script that trains a panoptic segmenter, on generated pictures."""

import contextlib
import csv
import functools
import io
import json
import pathlib
import shutil
import sys

import keras
import numpy as np
import pytest
from PIL import Image

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "examples"))

import train_panoptic

from heads import Mask2Former
from heads.data import PanopticShapes
from heads.data.panoptic import encode_ids
from van_backbones import VANBackbone

TinyVAN = functools.partial(VANBackbone, widths=(8, 8, 16, 16), depths=(1, 1, 1, 1))
SMALL = ["--channels", "16", "--num-queries", "12", "--num-points", "64", "--num-encoder-layers", "1"]
SMALL += ["--num-decoder-layers", "2", "--image-size", "64", "--batch-size", "2", "--score-threshold", "0.1"]


@pytest.fixture(scope="module")
def data_folder(tmp_path_factory):
    """Writes scenes of 48 x 64 in COCO's panoptic format."""
    root = tmp_path_factory.mktemp("data")
    (root / "annotations").mkdir()
    for split, count in (("train", 4), ("val", 2)):
        scenes = PanopticShapes(count, (48, 64), seed=count)
        for kind in ("images", "panoptic"):
            (root / kind / split).mkdir(parents=True)
        images, annotations = [], []
        for index, example in enumerate(scenes.load().as_numpy_iterator()):
            Image.fromarray(example["image"]).save(root / "images" / split / f"{index}.jpg")
            encode_ids(1000 * (example["segments"] + 1)).save(root / "panoptic" / split / f"{index}.png")
            images.append({"id": index, "file_name": f"{index}.jpg", "height": 48, "width": 64})
            infos = [
                {"id": 1000 * (row + 1), "category_id": int(label) + 1, "iscrowd": 0}
                for row, label in enumerate(example["labels"])
            ]
            annotations.append({"image_id": index, "file_name": f"{index}.png", "segments_info": infos})
        categories = [
            {"id": label + 1, "name": name, "isthing": int(label < scenes.num_things)}
            for label, name in enumerate(scenes.class_names)
        ]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (root / f"annotations/panoptic_{split}.json").write_text(json.dumps(content))
    return root


def run(output, *options):
    """Runs the script with a small backbone and returns what it printed."""
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setattr(train_panoptic, "VANBackbone", TinyVAN)
        train_panoptic.main(["--output", str(output), *SMALL, *options])
    return printed.getvalue()


def read_log(output):
    with open(output / "log.csv") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_a_folder_is_trained_on_scored_and_drawn(data_folder, tmp_path):
    options = ["--data", str(data_folder), "--evaluate-every", "2"]
    printed = run(tmp_path / "run", *options, "--steps", "4")
    for line in ("7 things, 3 stuff: ball, ", "4 steps", "After training (best.keras)", "s per step"):
        assert line in printed
    log = read_log(tmp_path / "run")
    assert [row["epoch"] for row in log] == ["0", "1"]
    names = ("loss", "class_loss", "mask_loss", "dice_loss", "val_PQ")
    assert all(np.isfinite(float(row[name])) for row in log for name in names)
    assert np.asarray(Image.open(tmp_path / "run" / "predictions.png")).std() > 10
    model = keras.saving.load_model(tmp_path / "run" / "best.keras")
    assert isinstance(model, Mask2Former)
    assert model.resizing.image_size == (64, 64)
    assert model.class_names[-3:] == ["sky", "ground", "water"]
    (result,) = model.predict_pictures(data_folder / "images/val/0.jpg")
    assert result["segments"].shape == (48, 64)

    shutil.copytree(tmp_path / "run", tmp_path / "other")
    printed = run(tmp_path / "other", *options, "--steps", "6", "--resume")
    assert "--resume goes on after epoch 2, step 4" in printed
    assert read_log(tmp_path / "other")[:2] == log
    assert [row["epoch"] for row in read_log(tmp_path / "other")] == ["0", "1", "2"]


@pytest.mark.parametrize(
    ("options", "rate", "clip_norm", "warm_up"),
    [
        (["--data", "coco", "--weights", "imagenet"], 1e-4, 0.01, 0),
        ([], 1e-3, 1.0, 100),
        (["--learning-rate", "0.5", "--clip-norm", "0", "--warm-up", "7"], 0.5, None, 7),
    ],
)
def test_recipe(options, rate, clip_norm, warm_up):
    arguments = train_panoptic.parse_arguments(options)
    assert arguments.image_size == (1024 if "--data" in options else 128)
    optimizer = train_panoptic.build_optimizer(arguments, 1000)
    assert (optimizer.weight_decay, optimizer.global_clipnorm) == (0.05, clip_norm)
    schedule = optimizer._learning_rate
    assert (schedule.learning_rate, schedule.warm_up) == (rate, warm_up)
    assert list(schedule.milestones) == [888, 962]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--splits", "a", "b"], "--splits, --annotations and --images need --data"),
        (["--segments", "a"], "--segments needs --data"),
        (["--scale-range", "2", "1"], "--scale-range must be LOWEST HIGHEST"),
        (["--score-threshold", "1"], "--score-threshold must be below 1"),
        (["--num-points", "3"], "argument --num-points: must be a whole number, at least 4"),
    ],
)
def test_options_that_are_refused(options, message, capsys):
    with pytest.raises(SystemExit):
        train_panoptic.parse_arguments(options)
    assert message in capsys.readouterr().err


def test_data_is_checked_first(data_folder, tmp_path):
    data = shutil.copytree(data_folder, tmp_path / "data")
    (data / "images/train/1.jpg").write_bytes(b"no picture")
    (data / "panoptic/train/2.png").unlink()
    with pytest.raises(SystemExit, match=r"(?s)faulty files or annotations.*1\.jpg: .*2\.png: "):
        run(tmp_path / "run", "--data", str(data))


def test_splits_of_other_classes_are_refused(data_folder, tmp_path):
    data = shutil.copytree(data_folder, tmp_path / "data")
    path = data / "annotations/panoptic_val.json"
    content = json.loads(path.read_text())
    content["categories"][0]["name"] = "cube"
    path.write_text(json.dumps(content))
    with pytest.raises(SystemExit, match="Both splits must have the same classes, things first"):
        run(tmp_path / "run", "--data", str(data))


def test_the_truth_is_drawn_at_the_size_of_the_model():
    truth = {"segments": np.repeat(np.arange(4, dtype="int32"), 4).reshape(4, 4), "labels": np.arange(4)}
    resized = train_panoptic.resize_truth(truth, (2, 4))
    assert resized["segments"].shape == (2, 4)
    assert set(np.unique(resized["segments"])) <= set(range(4))
