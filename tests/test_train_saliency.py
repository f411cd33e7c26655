"""The script that trains a saliency model, on generated pictures."""

import contextlib
import csv
import functools
import io
import pathlib
import shutil
import sys

import keras
import numpy as np
import pytest
from PIL import Image

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "examples"))

import train_saliency

from heads import EDN
from heads.data import SaliencyShapes
from van_backbones import VANBackbone

TinyVAN = functools.partial(VANBackbone, widths=(8, 8, 16, 16), depths=(1, 1, 1, 1))
SMALL = {"channels": (8, 8, 8, 8, 8, 8), "extra_channels": 8, "dilations": ((1, 2),) * 6}


@pytest.fixture(scope="module")
def data_folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    for split, count in (("train", 4), ("val", 2)):
        scenes = SaliencyShapes(count, (48, 64), seed=count)
        for kind in ("images", "masks"):
            (root / kind / split).mkdir(parents=True)
        for index in range(count):
            Image.fromarray(scenes[index]["image"]).save(root / "images" / split / f"{index}.jpg")
            mask = scenes[index]["semantic"].astype("uint8") * 255
            Image.fromarray(mask).save(root / "masks" / split / f"{index}.png")
    return root


def run(output, *options, make_backbone=TinyVAN, **head_options):
    """Runs the script with a small model and returns what it printed."""
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setattr(train_saliency, "VANBackbone", make_backbone)
        patch.setattr(train_saliency, "EDN", functools.partial(EDN, **(head_options or SMALL)))
        train_saliency.main(["--output", str(output), *options])
    return printed.getvalue()


def read_log(output):
    with open(output / "log.csv") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_a_folder_is_trained_on_scored_and_drawn(data_folder, tmp_path):
    options = ["--data", str(data_folder), "--image-sizes", "48", "64", "--batch-size", "2"]
    options += ["--evaluate-every", "2"]
    printed = run(tmp_path / "run", *options, "--steps", "4")
    for line in ("4 steps", "Before training: max F", "After training (best.keras): max F", "s per step"):
        assert line in printed
    log = read_log(tmp_path / "run")
    assert [row["epoch"] for row in log] == ["0", "1"]
    names = ("loss", "saliency_loss", "auxiliary_loss", "val_max_f", "val_mae")
    assert all(np.isfinite(float(row[name])) for row in log for name in names)
    assert np.asarray(Image.open(tmp_path / "run" / "predictions.png")).std() > 10
    model = keras.saving.load_model(tmp_path / "run" / "best.keras")
    assert isinstance(model, EDN)
    assert model.resizing.image_size == (64, 64)
    picture = data_folder / "images" / "val" / "0.jpg"
    assert model.predict_pictures(picture)[0]["saliency_map"].shape == (48, 64)

    shutil.copytree(tmp_path / "run", tmp_path / "other")
    printed = run(tmp_path / "other", *options, "--steps", "6", "--resume")
    assert "--resume goes on after epoch 2, step 4" in printed
    assert read_log(tmp_path / "other")[:2] == log
    assert [row["epoch"] for row in read_log(tmp_path / "other")] == ["0", "1", "2"]


@pytest.mark.slow
def test_the_embedded_data_is_learnt(tmp_path):
    """Objects against everything else: a far smaller model than the paper's, on small scenes."""
    widths = {"widths": (16, 32, 64, 64), "depths": (1, 1, 1, 1), "drop_path_rate": 0.0}
    head = {"channels": (16, 24, 32, 32, 32, 32), "extra_channels": 32}
    options = ["--image-sizes", "64", "--steps", "400", "--evaluate-every", "100", "--learning-rate", "3e-3"]
    run(tmp_path, *options, make_backbone=functools.partial(VANBackbone, **widths), **head)
    # 0.44 before training; the demo, which takes several times as long, reaches 0.84.
    assert max(float(row["val_max_f"]) for row in read_log(tmp_path)) > 0.68


@pytest.mark.parametrize(
    ("options", "image_sizes", "batch_size", "learning_rate", "warm_up"),
    [
        (["--data", "duts", "--weights", "imagenet"], (320, 352, 384), 24, 5e-5, 100),
        ([], (128,), 8, 1e-3, 100),
        (["--image-sizes", "96", "64", "--learning-rate", "1", "--warm-up", "0"], [96, 64], 8, 1.0, 0),
    ],
)
def test_recipe(options, image_sizes, batch_size, learning_rate, warm_up):
    arguments = train_saliency.parse_arguments(options)
    assert (arguments.image_sizes, arguments.batch_size) == (image_sizes, batch_size)
    optimizer = train_saliency.build_optimizer(arguments, 1000)
    assert (optimizer.beta_1, optimizer.beta_2, optimizer.weight_decay) == (0.9, 0.99, 1e-4)
    schedule = optimizer._learning_rate
    assert (schedule.learning_rate, schedule.warm_up, schedule.power) == (learning_rate, warm_up, 0.9)
    restored = type(optimizer).from_config(optimizer.get_config())
    assert restored.beta_2 == 0.99


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--ignored-value", "255"], "--ignored-value needs --data"),
        (["--ignored-value", "256"], "argument --ignored-value: must be a whole number, 0 .. 255"),
        (["--image-sizes", "0"], "argument --image-sizes: must be a whole number, at least 1"),
        (["--weight-decay", "-1"], "argument --weight-decay: must be a number, at least 0"),
    ],
)
def test_options_that_are_refused(options, message, capsys):
    with pytest.raises(SystemExit):
        train_saliency.parse_arguments(options)
    assert message in capsys.readouterr().err


def test_data_is_checked_first(data_folder, tmp_path):
    data = shutil.copytree(data_folder, tmp_path / "data")
    (data / "images/train/1.jpg").write_bytes(b"no picture")
    (data / "images/train/2.jpg").write_bytes(b"no picture")
    with pytest.raises(SystemExit, match=r"(?s)faulty files in 'train':.*1.jpg: .*2.jpg: "):
        run(tmp_path / "run", "--data", str(data))
