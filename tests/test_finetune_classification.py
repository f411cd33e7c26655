"""The script that fine-tunes a classifier, on generated pictures."""

import contextlib
import csv
import functools
import io
import json
import pathlib
import re
import shutil
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "examples"))

import evaluate_classification
import finetune_classification

from van_backbones import VANBackbone, VANClassifier

COLOURS = {"blue": (30, 60, 200), "green": (30, 180, 60), "red": (200, 40, 30)}
TinyVAN = functools.partial(VANBackbone, widths=(8, 8, 16, 16), depths=(1, 1, 1, 1))


def write_pictures(root, count=6, size=(40, 48)):
    random = np.random.default_rng(len(str(root)))
    for name, colour in COLOURS.items():
        (root / name).mkdir(parents=True)
        for index in range(count):
            noise = random.normal(0, 15, (*size, 3))
            Image.fromarray(np.clip(colour + noise, 0, 255).astype("uint8")).save(
                root / name / f"{index}.jpg"
            )
    return root


def run(data, output, *options):
    """Runs the script with a tiny network and returns what it printed."""
    arguments = [
        "--data",
        str(data),
        "--output",
        str(output),
        "--image-size",
        "32",
        "--batch-size",
        "4",
        *options,
    ]
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setattr("van_backbones.classifier.VANBackbone", TinyVAN)
        finetune_classification.main(arguments)
    return printed.getvalue()


def read_log(output):
    with open(output / "log.csv") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Returns (the folder of the data, that of the results, what was printed)."""
    root = tmp_path_factory.mktemp("classification")
    data = write_pictures(root / "data")
    printed = run(data, root / "run", "--steps", "24", "--evaluate-every", "8", "--area-range", "0.5", "1")
    return data, root / "run", printed


@pytest.mark.slow
def test_training_learns_scores_and_draws(trained, monkeypatch):
    data, output, printed = trained
    assert "3 classes, 15 pictures to learn from, 3 to score" in printed
    top_1 = float(re.search(r"best.keras\): 3 pictures, top-1 ([\d.]+)", printed)[1])
    assert [row["epoch"] for row in read_log(output)] == ["0", "1", "2"]
    assert top_1 > 60
    assert top_1 == pytest.approx(100 * max(float(row["val_top_1"]) for row in read_log(output)), abs=0.01)
    scores = json.loads((output / "scores.json").read_text())
    assert scores["top_1"] == pytest.approx(top_1, abs=0.01)
    assert list(scores["per_class_top_1"]) == ["blue", "green", "red"]
    assert np.asarray(Image.open(output / "curves.png")).std() > 5
    settings = json.loads((output / "settings.json").read_text())
    assert settings["classes"] == ["blue", "green", "red"]
    assert settings["data"] == str(data)
    assert np.asarray(Image.open(output / "confusion.png")).std() > 10
    monkeypatch.setattr("van_backbones.classifier.VANBackbone", TinyVAN)  # its sizes are not in the file
    best = keras.saving.load_model(output / "best.keras")
    assert isinstance(best, VANClassifier)
    assert best.num_classes == 3


@pytest.mark.slow
def test_resuming_and_weights_from_a_file(trained, tmp_path, capsys, monkeypatch):
    data, output, _ = trained
    shutil.copytree(output, tmp_path / "run")
    options = ("--evaluate-every", "8", "--area-range", "0.5", "1")
    printed = run(data, tmp_path / "run", "--steps", "32", "--resume", *options)
    assert "--resume goes on after epoch 3, step 24" in printed
    assert [row["epoch"] for row in read_log(tmp_path / "run")] == ["0", "1", "2", "3"]
    assert read_log(tmp_path / "run")[:3] == read_log(output)
    printed = run(data, tmp_path / "run", "--steps", "32", "--resume", *options)
    assert "No step was left to train" in printed

    # The file works in another training, and in the script that scores.
    shutil.copytree(data, tmp_path / "two", ignore=shutil.ignore_patterns("red"))
    with pytest.warns(UserWarning, match="head"):
        run(tmp_path / "two", tmp_path / "other", "--steps", "1", "--weights", str(output / "best.keras"))
    monkeypatch.setattr("van_backbones.classifier.VANBackbone", TinyVAN)
    options = ["--weights", str(output / "best.keras"), "--num-classes", "3", "--image-size", "32"]
    assert evaluate_classification.main(["--data", str(data), *options]) == 0
    assert float(re.search(r"18 pictures: top-1 ([\d.]+)", capsys.readouterr().out)[1]) > 50
    assert json.loads((output / "evaluation-1" / "scores.json").read_text())["top_1"] > 50


@pytest.mark.slow
def test_train_and_val_folders(tmp_path):
    for split in ("train", "val"):
        write_pictures(tmp_path / "data" / split, 2)
    printed = run(tmp_path / "data", tmp_path / "run", "--epochs", "1", "--mixed-precision", "--mixup", "0.8")
    keras.config.set_dtype_policy("float32")
    assert "3 classes, 6 pictures to learn from, 6 to score" in printed
    assert [row["epoch"] for row in read_log(tmp_path / "run")] == ["0"]


@pytest.mark.parametrize(
    ("options", "learning_rate", "warm_up"),
    [
        (["--weights", "imagenet"], 5e-5, 100),
        ([], 1e-3, 100),
        (["--learning-rate", "0.5", "--warm-up", "0"], 0.5, 0),
    ],
)
def test_recipe(options, learning_rate, warm_up):
    arguments = finetune_classification.parse_arguments(["--data", "data", *options])
    assert (arguments.batch_size, finetune_classification.EPOCHS) == (16, 100)
    optimizer = finetune_classification.build_optimizer(arguments, 1000)
    assert optimizer.weight_decay == 5e-4
    rates = [float(optimizer._learning_rate(step)) for step in (warm_up, (1000 + warm_up) // 2, 1000)]
    np.testing.assert_allclose(rates, [learning_rate, learning_rate / 2, 0], rtol=1e-4, atol=1e-9)
    assert 0 < float(optimizer._learning_rate(0)) <= learning_rate


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--val-share", "1"], "--val-share must be below 1. Received: 1.0"),
        (["--val-share", "0"], "argument --val-share: must be a number, above 0"),
        (["--area-range", "0.5", "0.2"], "--area-range must be LOWEST HIGHEST, at most 1"),
        (["--image-size", "16"], "argument --image-size: must be a whole number, at least 32"),
        (["--mixup", "1", "--batch-size", "5"], "a --batch-size that is a multiple of 2. Received: 5"),
        (["--mixup", "1", "--batch-size", "6", "--processes", "2"], "a multiple of 4. Received: 6"),
        (["--epochs", "0"], "argument --epochs: must be a whole number, at least 1"),
    ],
)
def test_options_that_are_refused(options, message, capsys):
    with pytest.raises(SystemExit):
        finetune_classification.parse_arguments(["--data", "data", *options])
    assert message in capsys.readouterr().err


def test_a_share_of_folders_that_are_split_already_is_refused(tmp_path, capsys):
    for split in ("train", "val"):
        write_pictures(tmp_path / split, 1)
    with pytest.raises(SystemExit):
        finetune_classification.parse_arguments(["--data", str(tmp_path), "--val-share", "0.1"])
    assert "--val-share is for data without splits: leave it out. Received: " in capsys.readouterr().err


def test_all_faulty_pictures_are_named_at_once(tmp_path):
    data = write_pictures(tmp_path / "data", 2)
    for name in ("blue", "red"):
        (data / name / "0.jpg").write_bytes(b"no picture")
    with pytest.raises(SystemExit, match=r"(?s)blue/0.jpg: cannot be read.*red/0.jpg: cannot be read"):
        finetune_classification.main(["--data", str(data), "--output", str(tmp_path / "run")])
    with pytest.raises(SystemExit, match=r"(?s)--weights must be a file that exists"):
        finetune_classification.main(
            ["--data", str(data), "--weights", "no.pth", "--output", str(tmp_path / "run")]
        )


def make_plain_batches():
    """Returns batches of eight pictures, each in the colour of its class."""
    labels = np.tile(np.arange(4, dtype="int32"), 2)
    images = np.broadcast_to(50.0 * labels[:, None, None, None], (8, 4, 5, 3)).astype("float32")
    return tf.data.Dataset.from_tensors((images, labels)).repeat(20), labels


def test_pictures_and_labels_are_mixed_alike():
    batches, _ = make_plain_batches()
    mixed = finetune_classification.mix_pictures(batches, 4, alpha=0.8, seed=0, first_step=0)
    shares = []
    for images, labels in mixed.as_numpy_iterator():
        np.testing.assert_allclose(labels.sum(-1), 1.0, rtol=1e-5)
        expected = np.broadcast_to((labels @ [0, 50, 100, 150])[:, None, None, None], images.shape)
        np.testing.assert_allclose(images, expected, atol=1e-3)
        shares.extend(labels.max(-1))
    assert np.mean(np.array(shares) < 0.99) > 0.3


def test_a_training_that_goes_on_mixes_the_same_pairs():
    batches, _ = make_plain_batches()
    options = {"num_classes": 4, "alpha": 0.8, "seed": 3}
    whole = list(finetune_classification.mix_pictures(batches, first_step=0, **options).as_numpy_iterator())
    rest = finetune_classification.mix_pictures(batches.skip(1), first_step=1, **options)
    for (images, labels), (same_images, same_labels) in zip(whole[1:], rest.as_numpy_iterator(), strict=True):
        np.testing.assert_array_equal(images, same_images)
        np.testing.assert_array_equal(labels, same_labels)
    assert len(whole) > 1


def test_processes_mix_their_shares_as_one_process_would(monkeypatch):
    batches, _ = make_plain_batches()
    options = {"num_classes": 4, "alpha": 0.8, "seed": 3, "first_step": 0}
    whole = finetune_classification.mix_pictures(batches, **options)
    for index in (0, 1):
        monkeypatch.setattr(finetune_classification, "find_place", lambda index=index: (index, 2))
        share = slice(4 * index, 4 * index + 4)
        own = batches.map(lambda images, labels, share=share: (images[share], labels[share]))
        mixed = finetune_classification.mix_pictures(own, **options)
        for found, expected in zip(mixed.as_numpy_iterator(), whole.as_numpy_iterator(), strict=True):
            np.testing.assert_array_equal(found[0], expected[0][share])
            np.testing.assert_array_equal(found[1], expected[1][share])


def test_without_mixing_labels_are_of_one_class():
    batches, labels = make_plain_batches()
    images, shares = next(finetune_classification.mix_pictures(batches, 4, 0.0, 0, 0).as_numpy_iterator())
    np.testing.assert_array_equal(shares, np.eye(4)[labels])
    np.testing.assert_array_equal(images[:, 0, 0, 0], 50 * labels)
