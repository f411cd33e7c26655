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
from pycocotools import mask as run_lengths

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "examples"))

import detect
import evaluate_detection
import train_detection
from coco_folder import CATEGORY_IDS, NAMES, draw_example, write_coco_folder

import heads.training.run as run_module
from heads import MaskRCNN, RetinaNet, detect_in_slices, detect_in_views, to_coco
from heads.data import CocoDataset, DetectionShapes
from heads.metrics import encode_mask, evaluate_coco
from van_backbones import VANBackbone
from van_backbones.checkpoints.loading import save_state_dict

TinyVAN = functools.partial(VANBackbone, widths=(8, 8, 16, 16), depths=(1, 1, 1, 1))


@pytest.fixture(scope="module")
def data_folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    write_coco_folder(root)
    return root


def build_model(*arguments, build=train_detection.build_model):
    model = build(*arguments)
    model.score_threshold = 0.0
    return model


@contextlib.contextmanager
def small_backbones():
    """Replaces each variant by a tiny backbone, because the script is tested, not the model.

    It also lets RetinaNet, which starts with scores of 0.01, have detections from the first step on.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_detection, "build_model", build_model)
        patch.setattr(train_detection, "VANBackbone", TinyVAN)
        patch.setattr(evaluate_detection, "VANBackbone", TinyVAN)
        yield patch


def train(output, *options, data=None, sizes=("--image-size", "64", "--scale-range", "0.8", "1.25")):
    """Runs the script and returns what it printed."""
    arguments = ["--output", str(output), "--batch-size", "2", *sizes, *options]
    arguments += ["--channels", "8", "--evaluate-every", "2"]
    arguments += ["--data", str(data)] if data else []
    printed = io.StringIO()
    with small_backbones(), contextlib.redirect_stdout(printed):
        train_detection.main(arguments)
    return printed.getvalue()


@pytest.fixture(scope="module")
def run(data_folder, tmp_path_factory):
    """One training of four steps: (the folder of its results, what was printed)."""
    output = tmp_path_factory.mktemp("run")
    return output, train(output, "--steps", "4", "--num-convs", "1", data=data_folder)


@pytest.fixture(scope="module")
def mask_run(tmp_path_factory):
    """Mask R-CNN on the embedded data in mixed precision: (the folder of its results, what was printed)."""
    output = tmp_path_factory.mktemp("mask_run")
    policy = keras.config.dtype_policy()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_detection, "DetectionShapes", lambda _, *args: DetectionShapes(2, *args))
        try:
            # Resuming with nothing to resume leaves out the scores before training, which saves time.
            options = ("--head", "mask_rcnn", "--steps", "2", "--mixed-precision", "--resume")
            return output, train(output, *options, "--num-samples", "16", "--num-proposals", "20")
        finally:
            keras.config.set_dtype_policy(policy)


@pytest.fixture(scope="module")
def mask_model(tmp_path_factory):
    """Returns the path of an untrained Mask R-CNN of seven classes, whose scores are about an eighth."""
    keras.utils.set_random_seed(0)
    path = tmp_path_factory.mktemp("mask_model") / "model.keras"
    MaskRCNN(TinyVAN("b0"), 7, channels=8, num_proposals=20).save(path)
    return path


@contextlib.contextmanager
def without_scores():
    """Leaves out scores and drawings, except for the titles, to save time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_detection, "print_scores", lambda title, *args: sys.stdout.write(title) and [])
        patch.setattr(train_detection, "draw_pictures", lambda *args, **options: None)
        yield patch


def read_log(output):
    with open(output / "log.csv") as file:
        return list(csv.DictReader(file))


def read_weights(output):
    model = keras.saving.load_model(output / "last.keras")
    return [weight.numpy() for weight in model.weights]


# Training.


def test_training_writes_models_results_pictures_and_logs(run):
    output, _ = run
    assert (output / "report.html").read_text("utf-8").count("<img ") == 5
    assert "boxes with a score of" in (output / "scores.txt").read_text()
    for name in ("predictions.png", "curves.png", "confusion.png", "precision_recall.png", "worst.png"):
        picture = np.asarray(Image.open(output / name))
        assert picture.ndim == 3
        assert picture.std() > 5
    scores = json.loads((output / "scores.json").read_text())
    assert set(scores["bbox_AP_per_class"]) == set(NAMES)
    settings = json.loads((output / "settings.json").read_text())
    assert settings["resizing"]["image_size"] == [64, 64]
    assert settings["classes"] == list(NAMES)
    assert [row["epoch"] for row in read_log(output)] == ["0", "1"]
    for row in read_log(output):
        for name in ("loss", "class_loss", "box_loss", "val_bbox_AP", "val_bbox_AP50"):
            assert np.isfinite(float(row[name])), name
    assert list((output / "tensorboard").rglob("events.out.tfevents.*"))
    assert not (output / "interrupted.keras").exists()
    for name in ("best.keras", "last.keras"):
        model = keras.saving.load_model(output / name)
        assert isinstance(model, RetinaNet)
        assert (model.num_classes, model.channels, model.num_convs) == (2, 8, 1)
        assert model.class_names == list(NAMES)
        assert model.resizing.image_size == (64, 64)
    assert int(keras.saving.load_model(output / "last.keras").optimizer.iterations) == 4


def test_training_prints_scores(run):
    _, printed = run
    assert "2 classes: square, bar" in printed
    for line in ("Before training", "After training (best.keras)", "s per step (median)"):
        assert line in printed
    for name, count in (*((name, 4) for name in NAMES), ("AP50", 2)):
        assert sum(line.startswith(f"{name} ") for line in printed.splitlines()) == count, name
    assert "train: objects" in printed


@pytest.mark.slow
def test_mask_rcnn_writes_masks(mask_run):
    output, printed = mask_run
    assert isinstance(keras.saving.load_model(output / "best.keras"), MaskRCNN)
    (row,) = read_log(output)
    for name in ("mask_loss", "val_bbox_AP", "val_segm_AP"):
        assert np.isfinite(float(row[name])), name
    assert "segm AP50" in printed
    assert "7 classes: ball, box" in printed


@pytest.mark.slow
def test_resuming_goes_on(run, data_folder, tmp_path):
    """Four steps, then eight with --resume: exactly four more, and the log and the optimizer continue."""
    output = shutil.copytree(run[0], tmp_path / "run")
    before = read_log(output)
    timers = []
    with without_scores() as patch:
        timer_class = run_module.StepTimer
        patch.setattr(run_module, "StepTimer", lambda: timers.append(timer_class()) or timers[-1])
        printed = train(output, "--steps", "8", "--num-convs", "1", "--resume", data=data_folder)
    assert "Before training" not in printed  # the weights have changed
    assert "After training" in printed
    assert len(timers[0].seconds) == 4
    log = read_log(output)
    assert [row["epoch"] for row in log] == ["0", "1", "2", "3"]
    assert log[:2] == before
    optimizer = keras.saving.load_model(output / "last.keras").optimizer
    assert int(optimizer.iterations) == 8
    # 8 of 12 and 11 of 12 of the steps, rounded: 5 and 7.
    rates = [float(optimizer._learning_rate(step)) for step in (4, 6, 7)]
    np.testing.assert_allclose(rates, [2e-3, 2e-4, 2e-5], rtol=1e-5)


@pytest.mark.slow
def test_resuming_a_finished_run_trains_nothing(run, data_folder, tmp_path):
    output = shutil.copytree(run[0], tmp_path / "run")
    before, log = read_weights(output), read_log(output)
    with without_scores():
        printed = train(output, "--steps", "4", "--num-convs", "1", "--resume", data=data_folder)
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
def test_ctrl_c_leaves_a_model(data_folder, tmp_path):
    """Frozen stages, COCO's layout and pictures of two sizes are run once."""
    data = tmp_path / "coco"
    shutil.copytree(data_folder / "annotations", data / "annotations")
    for split in ("train", "val"):
        shutil.copytree(data_folder / "images" / split, data / f"{split}2017")
        annotations = data / "annotations" / f"instances_{split}.json"
        annotations.rename(annotations.with_stem(f"instances_{split}2017"))
    make_loggers = run_module.make_loggers
    with without_scores() as patch:
        patch.setattr(run_module, "make_loggers", lambda folder: [*make_loggers(folder), Interruption()])
        layout = ("--splits", "train2017", "val2017", "--images", "{split}")
        options = ("--steps", "4", "--num-convs", "1", "--frozen-stages", "1", "--frozen-batch-norms")
        sizes = ("--short-sides", "48", "56", "--long-side", "96")
        printed = train(tmp_path / "run", *layout, *options, data=data, sizes=sizes)
    assert "Stopped" in printed
    assert "--resume" in printed
    assert "After training" not in printed
    settings = json.loads((tmp_path / "run" / "settings.json").read_text())
    assert settings["resizing"] == {"image_size": None, "short_side": 56, "long_side": 96}
    model = keras.saving.load_model(tmp_path / "run" / "interrupted.keras")
    frozen = {part.name for part in model.backbone._flatten_layers() if not part.trainable}
    assert {"stage1_norm", "norm1", "norm2"} <= frozen
    assert "stage2_norm" not in frozen
    assert int(model.optimizer.iterations) == 3
    assert len(read_log(tmp_path / "run")) == 1


def test_training_refuses_splits_of_other_classes(data_folder, tmp_path):
    data = shutil.copytree(data_folder, tmp_path / "data")
    path = data / "annotations" / "instances_val.json"
    path.write_text(path.read_text().replace('"bar"', '"rod"'))
    with pytest.raises(SystemExit, match="same classes"):
        train(tmp_path / "run", data=data)


def test_validation_data_without_objects_is_refused(data_folder, tmp_path):
    data = shutil.copytree(data_folder, tmp_path / "data")
    arguments = train_detection.parse_arguments(["--data", str(data)])
    train_detection.open_data(arguments)
    path = data / "annotations" / "instances_val.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "annotations": []}))
    with pytest.raises(SystemExit, match=r"instances_val.json has no annotations of objects"):
        train_detection.open_data(arguments)


# Scores of a saved model.


def evaluate(*options):
    printed = io.StringIO()
    with small_backbones(), contextlib.redirect_stdout(printed):
        evaluate_detection.main([str(option) for option in options])
    return printed.getvalue()


def test_evaluation_gives_the_results_of_the_training(run, data_folder, tmp_path):
    """The sizes are in the model's file, so the results are equal; they go into a new folder beside it."""
    printed = evaluate(run[0] / "best.keras", "--data", data_folder, "--batch-size", "2")
    folder = run[0] / "evaluation-1" / "val"
    results = json.loads((folder / "results.json").read_text())
    assert len(results) > 100
    assert {result["category_id"] for result in results} == set(CATEGORY_IDS)
    assert results == json.loads((run[0] / "results.json").read_text())
    assert "image_size" in printed
    assert "4 pictures" in printed
    assert "segm" not in printed
    scores = json.loads((folder / "scores.json").read_text())
    assert scores.pop("model") == str(run[0] / "best.keras")
    assert scores.pop("data").endswith("instances_val.json")
    assert scores == json.loads((run[0] / "scores.json").read_text())
    assert (folder / "scores.txt").read_text() == (run[0] / "scores.txt").read_text()
    assert np.asarray(Image.open(folder / "predictions.png")).std() > 10


def test_evaluation_of_two_splits(run, data_folder, tmp_path):
    output = tmp_path / "new" / "scores"
    options = ("--splits", "val", "train", "val", "--output", output)
    printed = evaluate(run[0] / "best.keras", "--data", data_folder, *options)
    assert printed.count("bbox AP50") == 2
    assert {path.name for path in output.iterdir()} == {"val", "train"}
    for split in output.iterdir():
        assert {path.name for path in split.iterdir()} == {
            *("scores.json", "scores.txt", "results.json", "predictions.png", "worst.png"),
            *("confusion.png", "precision_recall.png", "report.html"),
        }


@pytest.mark.parametrize(
    ("options", "detect", "views"),
    [
        (
            ("--slices", "40"),
            functools.partial(detect_in_slices, slice_size=40, overlap=0.2),
            {"slices": "40", "overlap": "0.2"},
        ),
        pytest.param(
            ("--flip-test", "--scales", "1", "1.5"),
            functools.partial(detect_in_views, scales=(1, 1.5), flip=True),
            {"scales": "[1.0, 1.5]", "flip_test": "True"},
            marks=pytest.mark.slow,
        ),
    ],
)
def test_scores_in_several_views_are_of_what_is_found(run, data_folder, tmp_path, options, detect, views):
    evaluate(run[0] / "best.keras", "--data", data_folder, "--output", tmp_path, *options)
    dataset = CocoDataset(data_folder / "annotations/instances_val.json", data_folder / "images/val")
    model = keras.saving.load_model(run[0] / "best.keras")
    found = detect(model, dataset.image_paths)
    rows = [to_coco(*each, dataset.category_ids) for each in zip(found, dataset.image_ids, strict=True)]
    expected = [row for each in rows for row in each]
    results = json.loads((tmp_path / "val" / "results.json").read_text())
    assert results == expected
    assert results != json.loads((run[0] / "results.json").read_text())
    scores = json.loads((tmp_path / "val" / "scores.json").read_text())
    assert views.items() <= scores.items()
    # Slices may find more than a hundred objects, and all of them count.
    most = 1000 if "slices" in views else 100
    for name, score in evaluate_coco(dataset.to_coco(), expected, max_detections=(1, 10, most)).items():
        if isinstance(score, float) and score == score:
            assert scores[name] == pytest.approx(100 * score, abs=1e-4)
    assert f"bbox_AR{most}" in scores
    # The pictures show what was scored.
    plain, drawn = (np.asarray(Image.open(path / "predictions.png")) for path in (run[0], tmp_path / "val"))
    assert plain.shape != drawn.shape or (plain != drawn).any()


@pytest.mark.slow
def test_evaluation_of_a_checkpoint(data_folder, tmp_path):
    """A file with reference names scores like the model; sizes and kinds come from the options."""
    keras.utils.set_random_seed(3)
    model = RetinaNet(TinyVAN("b0"), 2, num_convs=4)
    for output in (model.class_output, model.box_output):
        output.bias.assign(keras.random.normal(output.bias.shape))
    path = tmp_path / "retinanet.safetensors"
    save_state_dict(model, path)
    results_path = tmp_path / "out" / "val" / "results.json"
    options = ("--data", data_folder, "--short-side", "48", "--output", tmp_path / "out")
    printed = evaluate(path, "--head", "retinanet", *options)
    assert "bbox AP50" in printed
    results = json.loads(results_path.read_text())
    picture = np.asarray(Image.open(data_folder / "images" / "val" / "0.png"), "float32")
    padded = np.full((1, 64, 64, 3), (123.675, 116.28, 103.53), "float32")
    padded[0, :48] = picture
    inputs = {"images": padded, "image_sizes": np.array([[48, 64]])}
    expected = {name: values[0] for name, values in model.decode(model(inputs)).items()}
    first = [result for result in results if result["image_id"] == 10]
    assert len(first) == 100
    np.testing.assert_allclose([result["score"] for result in first], expected["scores"], rtol=1e-4)
    assert [result["category_id"] for result in first] == [
        CATEGORY_IDS[k] for k in expected["labels"].numpy()
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["missing.keras"], "there is no model missing.keras"),
        (["MODEL", "--head", "retinanet"], "knows its head"),
        (["CHECKPOINT"], "needs --head"),
        (["MASK_MODEL"], "must be a detector of the 2 classes"),
        (["MODEL", "--variant", "b0"], "knows its backbone. Received: --variant b0"),
        (["MODEL", "--kinds", "segm"], "--kinds segm needs a model with masks"),
        (["MODEL", "--batch-size", "0"], "at least 1. Received: '0'"),
        (["MODEL", "--short-side", "-3"], "at least 1. Received: '-3'"),
        (["MODEL", "--short-side", "64", "--image-size", "64"], "not allowed with"),
        (["MODEL", "--output", "CHECKPOINT"], "--output must be a folder. Received: the file"),
    ],
)
def test_evaluation_refuses(run, mask_model, data_folder, tmp_path, capsys, options, message):
    (tmp_path / "van.pth").touch()
    places = {"MODEL": run[0] / "last.keras", "CHECKPOINT": tmp_path / "van.pth"}
    places |= {"MASK_MODEL": mask_model, "DATA": data_folder}
    with pytest.raises(SystemExit):
        evaluate("--data", data_folder, *(places.get(option, option) for option in options))
    assert message in capsys.readouterr().err


# Pictures.


@pytest.fixture
def pictures(tmp_path):
    """Writes two good pictures of different sizes, one of them grey, one broken picture, and a text file."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    image, _ = draw_example(np.random.default_rng(1))
    Image.fromarray(image).save(folder / "colour.jpg")
    Image.fromarray(image[:33, :49, 0]).save(folder / "grey.png")
    (folder / "broken.jpg").write_bytes(b"no picture")
    (folder / "notes.txt").write_text("not a picture")
    (folder / "._colour.jpg").write_bytes(b"what macOS notes of a picture")
    return folder


def detect_objects(model, *options):
    """Returns the exit code, and the content of detections.json."""
    options = [str(option) for option in options]
    code = detect.main([str(model), *options])
    return code, json.loads(
        pathlib.Path(options[options.index("--output") + 1], "detections.json").read_text()
    )


def test_detect_writes_pictures_and_coco(mask_model, pictures, tmp_path, capsys):
    output = tmp_path / "out"
    options = (
        pictures,
        "--image-size",
        "64",
        "--output",
        output,
        "--score-threshold",
        "0.05",
        "--class-names",
    )
    names = tmp_path / "names.txt"
    names.write_text("\n".join("abcdefg"))
    code, content = detect_objects(mask_model, *options, names)
    assert code == 1
    assert {path.name for path in output.iterdir()} == {"colour.png", "grey.png", "detections.json"}
    for name in ("colour", "grey"):
        assert np.asarray(Image.open(output / f"{name}.png")).std() > 10
    printed = capsys.readouterr()
    assert "in 2 of 3 pictures" in printed.out
    assert "unreadable" in printed.err
    assert "broken.jpg" in printed.err

    assert [category["name"] for category in content["categories"]] == list("abcdefg")
    files = [(image["file_name"], image["height"], image["width"]) for image in content["images"]]
    assert files == [(str(pictures / "colour.jpg"), 48, 64), (str(pictures / "grey.png"), 33, 49)]
    assert content["annotations"]
    sizes = {image["id"]: [image["height"], image["width"]] for image in content["images"]}
    for annotation in content["annotations"]:
        assert annotation["score"] >= 0.05
        assert annotation["segmentation"]["size"] == sizes[annotation["image_id"]]
    # What was found can be read as truth and scored, except for masks that an untrained model left empty.
    path = output / "detections.json"
    content["annotations"] = [
        found for found in content["annotations"] if run_lengths.area(found["segmentation"]) > 0
    ]
    path.write_text(json.dumps(content))
    assert len(CocoDataset(path, "/", with_masks=True)) == 2
    assert evaluate_coco(path, content["annotations"], kinds=("bbox", "segm"))["bbox_AP"] == 1.0


@pytest.mark.parametrize(
    "views",
    [
        ("--slices", "32", "--overlap", "0.5"),
        pytest.param(("--flip-test", "--scales", "1", "2"), marks=pytest.mark.slow),
    ],
)
def test_detect_looks_at_several_views(mask_model, pictures, tmp_path, views):
    options = (pictures / "colour.jpg", "--output", tmp_path / "out", "--score-threshold", "0.1")
    plain = detect_objects(mask_model, *options)[1]["annotations"]
    code, content = detect_objects(mask_model, *options, *views)
    assert code == 0
    boxes = [[round(value, 2) for value in found["bbox"]] for found in content["annotations"]]
    assert boxes
    assert boxes != [[round(value, 2) for value in found["bbox"]] for found in plain]
    assert all(found["segmentation"]["size"] == [48, 64] for found in content["annotations"])


def test_pictures_with_many_masks_are_drawn_smaller():
    image = np.arange(60 * 40 * 3, dtype="uint8").reshape(60, 40, 3)
    masks = np.zeros((3, 60, 40), bool)
    masks[0, 10:31, 6:21] = masks[1, 40:50, :5] = True
    found = {"boxes": np.array([[6.0, 10, 21, 31], [0, 40, 5, 50], [0, 0, 1, 1]]), "labels": [0, 1, 0]}
    found["masks"] = list(map(encode_mask, masks))
    assert detect.shrink(image, found)[1] is found
    assert detect.shrink(image, {"boxes": found["boxes"]}, 1)[0] is image
    small, less = detect.shrink(
        image, found, most_pixels=3 * 60 * 40 / 5
    )  # one of five pixels, or a third per side
    assert small.shape == (20, 14, 3)
    np.testing.assert_array_equal(less["boxes"], found["boxes"] / 3)
    np.testing.assert_array_equal(less["masks"], masks[:, ::3, ::3])
    assert less["labels"] == [0, 1, 0]


def test_detect_gives_the_results_of_the_evaluation(run, data_folder, tmp_path):
    """Class names and sizes are in the model's file."""
    path = tmp_path / "scores" / "val" / "results.json"
    evaluate(run[0] / "best.keras", "--data", data_folder, "--output", tmp_path / "scores")
    folder = data_folder / "images" / "val"
    options = ("--output", tmp_path / "out", "--score-threshold", "0")
    code, content = detect_objects(run[0] / "best.keras", folder, *options)
    assert code == 0
    categories = [{"id": key, "name": name} for key, name in zip(CATEGORY_IDS, NAMES, strict=True)]
    assert content["categories"] == categories
    expected = json.loads(path.read_text())
    assert len(content["annotations"]) == len(expected) > 100
    for ours, theirs in zip(content["annotations"], expected, strict=True):
        assert ours["image_id"] + 9 == theirs["image_id"]
        assert ours["category_id"] == theirs["category_id"]
        assert ours["score"] == pytest.approx(theirs["score"], rel=1e-5)
        np.testing.assert_allclose(ours["bbox"], theirs["bbox"], atol=1e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["missing.keras", "PICTURES"], "there is no model missing.keras"),
        (["MODEL", "EMPTY"], "the folder must hold pictures"),
        (["MODEL", "PICTURES", "--output", "PICTURES"], "must not be the folder of the pictures"),
        (["MODEL", "PICTURES", "PICTURES"], "different names"),
        (["MODEL", "PICTURES", "--class-names", "NAMES"], "of the model's 2 classes. Received: 1 names"),
        (["MODEL", "PICTURES", "--class-names", "none.txt"], "Received: none.txt (No such file"),
        (["MODEL", "PICTURES", "--class-names", "LATIN"], "must be UTF-8 text"),
        (["MODEL", "PICTURES", "--score-threshold", "30"], "--score-threshold must be 0 .. 1"),
        (["MODEL", "PICTURES", "--score-threshold", "-1"], "Received: '-1'"),
        (["MODEL", "PICTURES", "--image-size", "0"], "at least 1. Received: '0'"),
        (["MODEL", "PICTURES", "--long-side", "64"], "--long-side needs --short-side"),
        (["MODEL", "PICTURES", "--short-side", "64", "--long-side", "60"], "must not be above --long-side"),
        (["MODEL", "PICTURES", "--output", "NAMES"], "--output must be a folder. Received: the file"),
        (["MODEL", "PICTURES", "--overlap", "0.3"], "--overlap needs --slices"),
        (
            ["MODEL", "PICTURES", "--slices", "64", "--overlap", "1"],
            "--overlap must be below 1. Received: 1.0",
        ),
        (
            ["MODEL", "PICTURES", "--slices", "64", "--flip-test"],
            "--slices cannot be combined with --scales or --flip-test",
        ),
        (["MODEL", "PICTURES", "--scales", "0"], "above 0. Received: '0'"),
    ],
)
def test_detect_refuses(run, pictures, tmp_path, capsys, options, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "names.txt").write_text("one\n")
    places = {"MODEL": run[0] / "last.keras", "PICTURES": pictures, "EMPTY": tmp_path / "empty"}
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9\nb\n")
    places |= {"NAMES": tmp_path / "names.txt", "LATIN": tmp_path / "latin.txt"}
    with pytest.raises(SystemExit):
        detect.main([str(places.get(option, option)) for option in options])
    assert message in capsys.readouterr().err
