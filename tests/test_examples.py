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

import finetune_segmentation
import predict_segmentation
import show_feature_maps

import heads.training.run as run_module
from heads import SemanticFPN, UPerNet
from heads.data import SemanticShapes
from van_backbones import VANBackbone

NAMES = ("wall", "window", "door")
TinyVAN = functools.partial(VANBackbone, widths=(8, 8, 16, 16), depths=(1, 1, 1, 1))


def draw_facade(generator, size=(48, 64)):
    """Returns a wall with bright windows and a dark door, and its labels."""
    label_map = np.zeros(size, "uint8")
    for left in (6, 26, 46):
        label_map[8:20, left : left + 10] = 1
    label_map[30:, 28:38] = 2
    label_map[0] = 255
    colours = np.array([[150, 90, 70], [210, 220, 240], [40, 30, 20]])[
        np.where(label_map == 255, 0, label_map)
    ]
    image = np.clip(colours + generator.normal(0, 10, (*size, 3)), 0, 255).astype("uint8")
    return image, label_map


@pytest.fixture(scope="module")
def data_folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    generator = np.random.default_rng(0)
    for split, count in (("train", 4), ("val", 2)):
        for kind in ("images", "labels"):
            (root / kind / split).mkdir(parents=True)
        for index in range(count):
            image, label_map = draw_facade(generator)
            Image.fromarray(image).save(root / "images" / split / f"{index}.jpg")
            Image.fromarray(label_map).save(root / "labels" / split / f"{index}.png")
    (root / "classes.txt").write_text("\n".join(NAMES) + "\n")
    return root


@contextlib.contextmanager
def small_backbones():
    """Replaces each variant by a tiny backbone, because the script is tested, not the model."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finetune_segmentation, "VANBackbone", TinyVAN)
        patch.setattr(show_feature_maps, "VANBackbone", TinyVAN)
        yield patch


def finetune(output, *options, data=None):
    """Runs the script and returns what it printed."""
    arguments = ["--output", str(output), "--crop-size", "32", "48", "--batch-size", "2", *options]
    arguments += ["--channels", "8", "--evaluate-every", "2"]
    arguments += ["--data", str(data)] if data else []
    printed = io.StringIO()
    with small_backbones(), contextlib.redirect_stdout(printed):
        finetune_segmentation.main(arguments)
    return printed.getvalue()


@pytest.fixture(scope="module")
def run(data_folder, tmp_path_factory):
    """One training of four steps: (the folder of its results, what was printed)."""
    output = tmp_path_factory.mktemp("run")
    return output, finetune(output, "--steps", "4", data=data_folder)


@contextlib.contextmanager
def without_scores():
    """Leaves out scores and drawings, except for the titles, to save time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finetune_segmentation, "print_scores", lambda title, *args: sys.stdout.write(title))
        patch.setattr(finetune_segmentation, "draw_pictures", lambda *args: None)
        yield patch


def read_log(output):
    with open(output / "log.csv") as file:
        return list(csv.DictReader(file))


def read_weights(output):
    model = keras.saving.load_model(output / "last.keras")
    return [weight.numpy() for weight in model.weights]


def test_finetune_writes_models_pictures_and_logs(run):
    output, _ = run
    assert (output / "report.html").read_text("utf-8").count("<img ") == 5
    for name in ("predictions.png", "features.png", "confusion.png", "curves.png", "worst.png"):
        picture = np.asarray(Image.open(output / name))
        assert picture.ndim == 3
        assert picture.std() > 10
    assert [row["epoch"] for row in read_log(output)] == ["0", "1"]
    for row in read_log(output):
        for name in ("loss", "segmentation_loss", "mean_iou", "val_loss", "val_mean_iou"):
            assert np.isfinite(float(row[name])), name
    assert list((output / "tensorboard").rglob("events.out.tfevents.*"))
    assert keras.saving.load_model(output / "best.keras").class_names == list(NAMES)
    scores = json.loads((output / "scores.json").read_text())
    assert scores["unit"] == "percent"
    assert scores["mean_iou"] == pytest.approx(
        100 * max(float(row["val_mean_iou"]) for row in read_log(output)), abs=0.01
    )
    assert list(scores["per_class_iou"]) == list(NAMES)
    assert (output / "scores.txt").read_text().splitlines()[-1].startswith("all pixels")
    assert json.loads((output / "settings.json").read_text())["crop_size"] == [32, 48]
    assert not (output / "interrupted.keras").exists()


def test_finetune_saves_the_best_and_the_last_model(run):
    output, _ = run
    for name in ("best.keras", "last.keras"):
        model = keras.saving.load_model(output / name)
        assert isinstance(model, SemanticFPN)
        assert model.num_classes == 3
        assert model.channels == 8
    assert int(keras.saving.load_model(output / "last.keras").optimizer.iterations) == 4


def test_finetune_prints_scores(run):
    _, printed = run
    assert "3 classes: wall, window, door" in printed
    table = printed.partition("class")[2].splitlines()
    assert "train: pixels" in table[0]
    assert "val: pixels" in table[0]
    assert [line.split()[0] for line in table[1:4]] == list(NAMES)
    assert printed.count("all pixels") == 2
    for line in ("Before training", "After training (best.keras)", "s per step (median)"):
        assert line in printed
    for name in NAMES:
        assert sum(line.startswith(f"{name} ") for line in printed.splitlines()) == 3


@pytest.mark.slow
def test_resuming_goes_on(run, data_folder, tmp_path):
    """Four steps, then eight with --resume: exactly four more, and the log and the optimizer continue."""
    output = shutil.copytree(run[0], tmp_path / "run")
    before = read_log(output)
    timers = []
    with without_scores() as patch:
        timer_class = run_module.StepTimer
        patch.setattr(run_module, "StepTimer", lambda: timers.append(timer_class()) or timers[-1])
        printed = finetune(output, "--steps", "8", "--resume", data=data_folder)
    assert "Before training" not in printed  # the weights have changed
    assert "After training" in printed
    assert len(timers[0].seconds) == 4
    log = read_log(output)
    assert [row["epoch"] for row in log] == ["0", "1", "2", "3"]
    assert log[:2] == before
    optimizer = keras.saving.load_model(output / "last.keras").optimizer
    assert int(optimizer.iterations) == 8
    # At the end of the schedule almost nothing is learnt: step 7 of 8 has (1 - 7 / 8)^0.9 of the rate.
    np.testing.assert_allclose(optimizer._learning_rate(7), 2e-3 * (1 / 8) ** 0.9, rtol=1e-5)


@pytest.mark.slow
def test_resuming_a_finished_run_trains_nothing(run, data_folder, tmp_path):
    output = shutil.copytree(run[0], tmp_path / "run")
    before, log = read_weights(output), read_log(output)
    with without_scores():
        printed = finetune(output, "--steps", "4", "--resume", data=data_folder)
    assert "No step was left to train" in printed
    assert read_log(output) == log
    for ours, theirs in zip(before, read_weights(output), strict=True):
        np.testing.assert_array_equal(ours, theirs)


class Interruption(keras.callbacks.Callback):
    """Ctrl-C in the third step."""

    def on_train_batch_end(self, batch, logs=None):
        if int(self.model.optimizer.iterations) == 3:
            raise KeyboardInterrupt


@pytest.mark.slow
def test_ctrl_c_leaves_a_model(tmp_path):
    """Embedded data, UPerNet and mixed precision are run once."""
    policy = keras.config.dtype_policy()
    make_loggers = run_module.make_loggers
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_module, "make_loggers", lambda folder: [*make_loggers(folder), Interruption()])
        patch.setattr(
            finetune_segmentation, "SemanticShapes", lambda _, *args, **kw: SemanticShapes(4, *args, **kw)
        )
        try:
            options = ("--steps", "4", "--head", "upernet", "--mixed-precision")
            printed = finetune(tmp_path, *options)
        finally:
            keras.config.set_dtype_policy(policy)
    assert "Stopped" in printed
    assert "--resume" in printed
    assert "After training" not in printed
    model = keras.saving.load_model(tmp_path / "interrupted.keras")
    assert isinstance(model, UPerNet)
    assert int(model.optimizer.iterations) == 3
    assert model.predict_on_batch(np.zeros((1, 32, 48, 3), "float32")).shape == (1, 32, 48)
    assert len(read_log(tmp_path)) == 1


# The recipe.


@pytest.mark.parametrize(
    ("options", "learning_rate", "weight_decay", "power", "warm_up"),
    [
        ([], 2e-3, 1e-4, 0.9, 200),
        (["--weights", "w.weights.h5"], 2e-4, 1e-4, 0.9, 200),
        (["--head", "upernet", "--weights", "w.weights.h5", "--steps", "160000"], 6e-5, 0.01, 1.0, 1500),
        (["--learning-rate", "0.5", "--warm-up", "7", "--steps", "3"], 0.5, 1e-4, 0.9, 7),
        (["--steps", "3"], 2e-3, 1e-4, 0.9, 1),
        (["--head", "upernet"], 1e-3, 0.01, 1.0, 200),
        (["--learning-rate", "0", "--warm-up", "0"], 0.0, 1e-4, 0.9, 0),
    ],
)
def test_recipe(options, learning_rate, weight_decay, power, warm_up):
    optimizer = finetune_segmentation.build_optimizer(finetune_segmentation.parse_arguments(options))
    schedule = optimizer._learning_rate
    assert (schedule.learning_rate, schedule.power, schedule.warm_up) == (learning_rate, power, warm_up)
    assert optimizer.weight_decay == weight_decay
    assert (optimizer.beta_1, optimizer.beta_2) == (0.9, 0.999)


def test_the_pictures_of_a_step():
    augment = finetune_segmentation.choose_augmentation(finetune_segmentation.parse_arguments([]))
    assert (augment.scale_range, augment.base_size, augment.photometric) == ((0.5, 2.0), None, True)
    options = ["--crop-size", "64", "96", "--scale-range", "0.5", "1.25", "--base-size", "200", "100"]
    augment = finetune_segmentation.choose_augmentation(finetune_segmentation.parse_arguments(options), 5)
    assert (augment.crop_size, augment.scale_range, augment.base_size) == ((64, 96), (0.5, 1.25), (200, 100))
    assert not augment.photometric  # five channels have no hue


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--steps", "-1"], "argument --steps: must be a whole number, at least 1. Received: '-1'"),
        (["--evaluate-every", "0"], "argument --evaluate-every: must be a whole number, at least 1"),
        (["--crop-size", "0", "64"], "argument --crop-size: must be a whole number, at least 1"),
        (["--learning-rate", "nan"], "argument --learning-rate: must be a number, at least 0"),
        (["--warm-up", "-3"], "argument --warm-up: must be a whole number, at least 0"),
        (["--seed", "-3"], "argument --seed: must be a whole number, 0 .. "),
        (["--reduce-zero-label"], "need --data"),
        (["--base-size", "512", "2048"], "--base-size must be LONG SHORT"),
        (["--scale-range", "2", "0.5"], "--scale-range must be LOWEST HIGHEST. Received: 2 0.5"),
        (["--scale-range", "0", "1"], "argument --scale-range: must be a number, above 0"),
        (["--class-colours", "table.txt"], "need --data"),
        (["--val-share", "0.2"], "--val-share splits the pictures of --data: pass --data"),
        (["--data", "mine", "--splits", "a", "b", "--val-share", "0.2"], "--data, and leave out --splits"),
        (["--data", "mine", "--val-share", "1"], "--val-share must be below 1. Received: 1.0"),
    ],
)
def test_finetuning_refuses(options, message, capsys):
    with pytest.raises(SystemExit):
        finetune_segmentation.parse_arguments(options)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--weights", "missing.pth"], "(?s)--weights must be a file.*missing.pth"),
        (["--weights", "imagine"], "(?s)--weights must be a file.*imagine"),
        (["--output", "FILE"], "--output must be a folder that can be written to"),
    ],
)
def test_finetuning_refuses_before_it_reads_data(options, message, tmp_path):
    (tmp_path / "file").touch()
    options = [str(tmp_path / "file") if option == "FILE" else option for option in options]
    with pytest.raises(SystemExit, match=message):
        finetune_segmentation.main(["--data", "missing", "--output", str(tmp_path / "run"), *options])


def test_validation_data_without_labels_is_refused(data_folder, tmp_path):
    data = shutil.copytree(data_folder, tmp_path / "data")
    arguments = finetune_segmentation.parse_arguments(["--data", str(data)])
    finetune_segmentation.open_data(arguments)
    for path in (data / "labels" / "val").iterdir():
        Image.fromarray(np.full((48, 64), 255, "uint8")).save(path)
    with pytest.raises(ValueError, match="nothing to learn in 'val': no class occurs in its labels"):
        finetune_segmentation.open_data(arguments)


def test_coloured_labels_without_splits(data_folder, tmp_path, capsys):
    """The same labels in colours, six pictures in one folder: the same batches, and a third held out."""
    colours = np.array([(200, 0, 0), (0, 200, 0), (0, 0, 200)], "uint8")
    for kind in ("images", "labels"):
        (tmp_path / kind).mkdir()
        for path in data_folder.glob(f"{kind}/*/*"):
            pixels = np.asarray(Image.open(path))
            if kind == "labels":
                pixels = np.where((pixels == 255)[..., None], 0, colours[pixels % 255]).astype("uint8")
            Image.fromarray(pixels).save(tmp_path / kind / f"{path.parent.name}_{path.stem}.png")
    rows = [" ".join(map(str, (name, *colour))) for name, colour in zip(NAMES, colours, strict=True)]
    (tmp_path / "table.txt").write_text("\n".join([*rows, "void 0 0 0"]))
    options = ["--data", str(tmp_path), "--class-colours", str(tmp_path / "table.txt"), "--val-share", "0.34"]
    train, val, counts = finetune_segmentation.open_data(finetune_segmentation.parse_arguments(options))
    assert train.class_names == NAMES
    assert (len(train), len(val), len(counts)) == (4, 2, 3)
    printed = capsys.readouterr().out
    assert "Found images and labels: 6 pictures" in printed
    assert "2 of 6 pictures are held out to score" in printed
    for part in (train, val):
        for (image_path, _), (_, label) in zip(part.pairs, part.load(), strict=True):
            split, name = image_path.stem.split("_")
            wanted = np.asarray(Image.open(data_folder / "labels" / split / f"{name}.png"))
            np.testing.assert_array_equal(label, wanted)


def test_weight_decay_leaves_out_norms_and_biases():
    """If all gradients are zero, only the weight decay moves a weight."""
    model = SemanticFPN(TinyVAN("b0"), 3, channels=8, pyramid_channels=8)
    arguments = finetune_segmentation.parse_arguments(["--learning-rate", "1", "--steps", "1000"])
    optimizer = finetune_segmentation.build_optimizer(arguments)
    for variable in model.trainable_variables:
        variable.assign(np.ones(variable.shape))
    gradients = [np.zeros(variable.shape, "float32") for variable in model.trainable_variables]
    optimizer.apply(gradients, model.trainable_variables)
    names = {True: set(), False: set()}
    for variable in model.trainable_variables:
        names[bool((variable.numpy() != 1.0).any())].add(variable.path.split("/")[-1])
    assert names[False] == {"gamma", "beta", "bias"}
    assert names[True] == {"kernel", "layer_scale_1", "layer_scale_2"}


# Prediction and pictures.


@pytest.fixture
def pictures(tmp_path):
    """Writes two good pictures of different sizes, one of them grey, one broken picture, and a text file."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    image, _ = draw_facade(np.random.default_rng(1))
    Image.fromarray(image).save(folder / "colour.jpg")
    Image.fromarray(image[:33, :49, 0]).save(folder / "grey.png")
    (folder / "broken.jpg").write_bytes(b"no picture")
    (folder / "notes.txt").write_text("not a picture")
    return folder


def test_predict_writes_label_maps(run, pictures, tmp_path, capsys, data_folder):
    output = tmp_path / "out"
    arguments = [str(run[0] / "best.keras"), str(pictures), "--output", str(output)]
    assert predict_segmentation.main([*arguments, "--class-names", str(data_folder / "classes.txt")]) == 1
    written = {path.name for path in output.iterdir()}
    assert written == {"colour.png", "colour.overlay.png", "grey.png", "grey.overlay.png"}
    for name, size in (("colour", (48, 64)), ("grey", (33, 49))):
        label_map = np.asarray(Image.open(output / f"{name}.png"))
        assert label_map.shape == size
        assert label_map.dtype == np.uint8
        assert label_map.max() < 3
        assert np.asarray(Image.open(output / f"{name}.overlay.png")).shape[2] == 3
    printed = capsys.readouterr()
    assert "2 of 3 pictures are segmented" in printed.out
    assert "unreadable" in printed.err
    assert "broken.jpg" in printed.err

    model = keras.saving.load_model(run[0] / "best.keras")
    image = np.asarray(Image.open(pictures / "colour.jpg"))[None]
    np.testing.assert_array_equal(np.asarray(Image.open(output / "colour.png")), model.segment(image)[0])


def test_predict_one_picture_with_windows(run, pictures, tmp_path):
    options = [
        "--crop-size",
        "32",
        "32",
        "--stride",
        "16",
        "20",
        "--flip-test",
        "--output",
        str(tmp_path / "out"),
    ]
    path = pictures / "colour.jpg"
    assert predict_segmentation.main([str(run[0] / "last.keras"), str(path), *options]) == 0
    model = keras.saving.load_model(run[0] / "last.keras")
    expected = model.segment(np.asarray(Image.open(path))[None], (32, 32), (16, 20), flip=True)[0]
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "out" / "colour.png")), expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["MODEL", "PICTURES", "--stride", "8", "8"], "--stride needs --crop-size"),
        (["missing.keras", "PICTURES"], "there is no model missing.keras"),
        (["MODEL", "EMPTY"], "the folder must hold pictures"),
        (["MODEL", "PICTURES", "--output", "PICTURES"], "must not be the folder of the pictures"),
    ],
)
def test_predict_refuses(run, pictures, tmp_path, capsys, options, message):
    (tmp_path / "empty").mkdir()
    places = {"MODEL": run[0] / "last.keras", "PICTURES": pictures, "EMPTY": tmp_path / "empty"}
    with pytest.raises(SystemExit):
        predict_segmentation.main([str(places.get(option, option)) for option in options])
    assert message in capsys.readouterr().err


def test_feature_maps_of_a_picture(pictures, tmp_path):
    output = tmp_path / "new" / "maps.png"
    with small_backbones():
        options = ["--image-size", "40", "--output", str(output)]
        show_feature_maps.main([str(pictures / "colour.jpg"), *options])
    assert np.asarray(Image.open(output)).std() > 10


def test_feature_maps_without_a_picture(tmp_path, capsys):
    with small_backbones():
        show_feature_maps.main(["--output", str(tmp_path / "maps.png")])
    assert (tmp_path / "maps.png").exists()
    assert "random" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--image-size", "16"], "argument --image-size: must be a whole number, at least 32"),
        (["broken.jpg"], "cannot read the picture"),
    ],
)
def test_feature_maps_refuse(pictures, capsys, options, message):
    options = [str(pictures / option) if option.endswith(".jpg") else option for option in options]
    with pytest.raises(SystemExit):
        show_feature_maps.main(options)
    assert message in capsys.readouterr().err
