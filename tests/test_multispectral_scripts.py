"""The scripts on TIFF files of five channels: trained, scored, used and looked into."""

import functools
import json
import pathlib
import re
import sys

import keras
import numpy as np
import pytest
from PIL import Image
from small_models import SMALL

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "examples"))

import detect
import evaluate_classification
import evaluate_detection
import evaluate_segmentation
import finetune_classification
import finetune_segmentation
import predict_segmentation
import serve
import show_feature_maps
import train_detection
from shown_pixels import check_bands, describe_channels, show_pixels

from heads import RetinaNet
from heads.drawing import draw_bands
from heads.metrics import count_confusion, score_confusion
from van_backbones import VANBackbone

tifffile = pytest.importorskip("tifffile", reason="pip install 'van-backbones[multispectral]'")

NAMES = ("soil", "plants")


def write_fields(root, num_bands=5, splits=("train", "val")):
    """Writes three pictures a split, in whose last channel plants are bright."""
    random = np.random.default_rng(0)
    for split in splits:
        for kind in ("images", "labels"):
            (root / kind / split).mkdir(parents=True)
        for index in range(3):
            label_map = random.integers(0, 2, (3, 4), "uint8").repeat(16, 0).repeat(16, 1)[:47, :61]
            bands = random.integers(200, 800, (47, 61, num_bands), "uint16")
            bands[label_map == 1, -1] += 2000
            path = root / f"images/{split}/{index}.tif"
            tifffile.imwrite(path, bands, planarconfig="contig", photometric="minisblack")
            Image.fromarray(label_map).save(root / f"labels/{split}/{index}.png")
    (root / "classes.txt").write_text("\n".join(NAMES))
    return root


SIZES = ("--crop-size", "32", "32", "--batch-size", "2", "--steps", "2", "--channels", "8")


def train(*options, sizes=SIZES, script=finetune_segmentation):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(script, "VANBackbone", functools.partial(VANBackbone, **SMALL))
        script.main([*map(str, options), *sizes])


@pytest.fixture(scope="module")
def fields(tmp_path_factory):
    return write_fields(tmp_path_factory.mktemp("fields"))


@pytest.fixture(scope="module")
def run(fields, tmp_path_factory):
    """A training of two steps: the folder of its results."""
    output = tmp_path_factory.mktemp("run")
    train("--data", fields, "--output", output, "--bands", 4, 2, 0)
    return output


def test_training_finds_the_channels(run, fields, tmp_path, capsys):
    model = keras.saving.load_model(run / "best.keras")
    assert model.image_channels == 5
    assert model.backbone.get_config()["normalization"] is None
    for name in ("predictions.png", "worst.png", "features.png", "confusion.png", "report.html"):
        assert (run / name).is_file(), name
    # The picture shows the bands that were asked for.
    page = np.asarray(Image.open(run / "features.png"))
    shown = draw_bands(tifffile.imread(fields / "images/val/0.tif"), (4, 2, 0))
    assert {tuple(colour) for colour in shown[::9, ::9].reshape(-1, 3)} <= {
        tuple(colour) for colour in page[: page.shape[0] // 3].reshape(-1, 3)
    }


def test_scores_and_predictions_are_of_the_same_pixels(run, fields, tmp_path, capsys):
    evaluate_segmentation.main([str(run / "best.keras"), "--data", str(fields), "--output", str(tmp_path)])
    assert "5 channels, of which 0 1 2 are shown" in capsys.readouterr().out
    places = [str(run / "best.keras"), str(fields / "images/val"), "--output", str(tmp_path / "maps")]
    assert predict_segmentation.main([*places, "--bands", "4", "0", "1"]) == 0
    assert "3 of 3 pictures are segmented" in capsys.readouterr().out
    confusion = 0
    for path in (fields / "labels/val").iterdir():
        pair = (np.asarray(Image.open(each)) for each in (path, tmp_path / "maps" / path.name))
        confusion += count_confusion(*pair, 2)
    scores = json.loads((tmp_path / "val/scores.json").read_text())
    assert scores["mean_iou"] == pytest.approx(100 * score_confusion(confusion)["mean_iou"], abs=1e-4)
    training = json.loads((run / "scores.json").read_text())
    assert scores["mean_iou"] == training["mean_iou"]
    assert (tmp_path / "val/predictions.png").is_file()
    overlay = np.asarray(Image.open(tmp_path / "maps/0.overlay.png"))
    assert overlay.shape[2] == 3
    assert overlay.std() > 10


def test_feature_maps(run, fields, tmp_path, monkeypatch):
    pages, draw = [], show_feature_maps.draw_feature_maps

    def watch(*args, **options):
        pages.append(options)
        return draw(*args, **options)

    monkeypatch.setattr(show_feature_maps, "draw_feature_maps", watch)
    picture, output = str(fields / "images/val/1.tif"), str(tmp_path / "maps.png")
    show_feature_maps.main(
        [str(run / "best.keras"), picture, "--class", "plants", "--image-size", "80", "--output", output]
    )
    (options,) = pages
    assert options["shown"].shape == (62, 80, 3)
    assert options["class_maps"]["plants"]["P2"].shape == (16, 20)
    assert np.asarray(Image.open(output)).std() > 10


@pytest.mark.slow
def test_feature_maps_of_two_models_and_receptive_fields(run, fields, tmp_path):
    model, output = str(run / "best.keras"), str(tmp_path / "maps.png")
    picture = str(fields / "images/val/1.tif")
    show_feature_maps.main([model, picture, "--compare", str(run / "last.keras"), "--output", output])
    assert np.asarray(Image.open(output)).std() > 10
    folder = str(fields / "images/val")
    show_feature_maps.main([model, "--receptive-field", folder, "--image-size", "64", "--output", output])
    assert np.asarray(Image.open(output)).std() > 10


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--weights", "imagenet"), "--weights imagenet is for RGB pictures, those of .* have 5 channels"),
        (("--bands", "0", "1", "5"), r"--bands must be three of 0 \.\. 4.* Received: --bands 0 1 5"),
        (("--splits", "train", "four"), "both splits must have as many channels. Received: 5 and 4"),
    ],
)
def test_training_refuses(tmp_path, options, message):
    write_fields(tmp_path / "data")
    write_fields(tmp_path / "data", 4, ["four"])
    with pytest.raises(SystemExit, match=message):
        train("--data", tmp_path / "data", "--output", tmp_path / "run", *options)


def test_weights_of_other_channels_are_refused(fields, tmp_path):
    VANBackbone("b0", **SMALL).save_weights(tmp_path / "rgb.weights.h5")
    with pytest.raises(SystemExit, match=r"\(7, 7, 3, 8\)|\(7, 7, 5, 8\)"):
        train("--data", fields, "--output", tmp_path / "run", "--weights", tmp_path / "rgb.weights.h5")


def test_bands_are_for_multispectral_pictures(tmp_path, capsys):
    options = ("--crop-size", "32", "32", "--steps", "1")
    with pytest.raises(SystemExit, match="--bands is for pictures of other than 3 channels"):
        train("--output", tmp_path, "--bands", 0, 1, 2, sizes=options)


@pytest.mark.parametrize(
    ("script", "options", "message"),
    [
        (
            evaluate_segmentation,
            ("--data", "FOUR"),
            "must take pictures of the 4 channels of .*five.* 5 channels",
        ),
        (evaluate_segmentation, ("--data", "FIVE", "--bands", "0", "1", "9"), "--bands must be three of 0"),
        (predict_segmentation, ("PICTURES", "--bands", "0", "1", "9"), "--bands must be three of 0"),
        (serve, (), "must take RGB pictures, as browsers send them.* takes 5 channels"),
        (show_feature_maps, (), "needs a picture: the synthetic scene is RGB"),
        (show_feature_maps, ("RGB",), "cannot read the picture"),
        (show_feature_maps, ("PICTURE", "--compare", "OTHER"), "as many channels. Received: 5 and 3"),
    ],
)
def test_what_the_other_scripts_refuse(run, fields, tmp_path, capsys, script, options, message):
    Image.fromarray(np.zeros((40, 40, 3), "uint8")).save(tmp_path / "rgb.png")
    if "OTHER" in options:
        VANBackbone("b0", **SMALL).save(tmp_path / "other.keras")
    if "FOUR" in options:
        write_fields(tmp_path / "four", 4, ["val"])
    (tmp_path / "five.keras").symlink_to(run / "best.keras")
    pictures = fields / "images/val"
    places = {"FIVE": fields, "FOUR": tmp_path / "four", "PICTURES": pictures, "PICTURE": pictures / "0.tif"}
    places |= {"RGB": tmp_path / "rgb.png", "OTHER": tmp_path / "other.keras"}
    with pytest.raises(SystemExit):
        script.main([str(tmp_path / "five.keras"), *(str(places.get(each, each)) for each in options)])
    assert re.search(message, capsys.readouterr().err)


@pytest.fixture(scope="module")
def objects(fields, tmp_path_factory):
    """The fields with a box around the middle of each picture, in COCO's format."""
    root = tmp_path_factory.mktemp("objects")
    (root / "images").symlink_to(fields / "images")
    (root / "annotations").mkdir()
    for split in ("train", "val"):
        images = [{"id": place, "file_name": f"{place}.tif", "height": 47, "width": 61} for place in range(3)]
        box = {"category_id": 5, "bbox": [16, 16, 20, 20], "area": 400, "iscrowd": 0}
        annotations = [{"id": place, "image_id": place, **box} for place in range(3)]
        content = {"images": images, "annotations": annotations, "categories": [{"id": 5, "name": "field"}]}
        (root / f"annotations/instances_{split}.json").write_text(json.dumps(content))
    return root


@pytest.mark.slow
def test_detectors(objects, tmp_path, capsys):
    sizes = ("--image-size", "64", "--batch-size", "2", "--steps", "2", "--channels", "8", "--num-convs", "1")
    options = ("--data", objects, "--output", tmp_path / "run", "--bands", 4, 1, 0)
    train(*options, sizes=sizes, script=train_detection)
    assert "5 channels, of which 4 1 0 are shown" in capsys.readouterr().out
    path = tmp_path / "run/best.keras"
    model = keras.saving.load_model(path)
    assert model.image_channels == 5
    model.score_threshold = 0.0
    model.save(path)
    for views in ((), ("--slices", "40")):
        output = tmp_path / f"scores{len(views)}"
        evaluate_detection.main([str(path), "--data", str(objects), "--output", str(output), *views])
        assert np.asarray(Image.open(output / "val/predictions.png")).std() > 10
        found = tmp_path / f"found{len(views)}"
        detect.main(
            [str(path), str(objects / "images/val"), "--output", str(found), "--score-threshold", "0", *views]
        )
        results = json.loads((output / "val/results.json").read_text())
        detections = json.loads((found / "detections.json").read_text())["annotations"]
        assert len(detections) == len(results) > 0
        np.testing.assert_allclose(
            [row["score"] for row in detections], [row["score"] for row in results], rtol=1e-5
        )
        assert np.asarray(Image.open(found / "0.png")).std() > 10
    capsys.readouterr()
    for script, words, message in (
        (evaluate_detection, ("--data", objects, "--bands", 0, 1, 5), "--bands must be three of 0"),
        (detect, (objects / "images/val", "--bands", 0, 1, 5), "--bands must be three of 0"),
    ):
        with pytest.raises(SystemExit):
            script.main([str(path), *map(str, words)])
        assert message in capsys.readouterr().err
    with pytest.raises(SystemExit, match="--weights imagenet is for RGB pictures"):
        train(*options[:3], tmp_path / "no", "--weights", "imagenet", sizes=sizes, script=train_detection)


def test_detectors_of_other_channels_are_refused(objects, tmp_path, capsys):
    RetinaNet(VANBackbone("b0", **SMALL), 1, channels=8).save(tmp_path / "rgb.keras")
    with pytest.raises(SystemExit):
        evaluate_detection.main([str(tmp_path / "rgb.keras"), "--data", str(objects)])
    message = r"must take pictures of the 5 channels of .*instances_val.json.* 3 channels"
    assert re.search(message, capsys.readouterr().err)
    assert detect.main([str(tmp_path / "rgb.keras"), str(objects / "images/val"), "--output", str(tmp_path)])
    assert "0.tif: cannot be read" in capsys.readouterr().err


@pytest.mark.slow
def test_classifiers(tmp_path, monkeypatch, capsys):
    random = np.random.default_rng(0)
    for number, name in enumerate(NAMES):
        (tmp_path / "data" / name).mkdir(parents=True)
        for index in range(4):
            bands = random.integers(200, 800, (40, 48, 5), "uint16")
            bands[..., -1] += 2000 * number
            path = tmp_path / "data" / name / f"{index}.tif"
            tifffile.imwrite(path, bands, planarconfig="contig", photometric="minisblack")
    monkeypatch.setattr("van_backbones.classifier.VANBackbone", functools.partial(VANBackbone, **SMALL))
    options = ["--data", str(tmp_path / "data"), "--image-size", "32", "--batch-size", "4"]
    refused = ["--output", str(tmp_path / "no"), "--weights", "imagenet"]
    with pytest.raises(
        SystemExit, match=r"--weights imagenet is for RGB pictures, those of .* have 5 channels"
    ):
        finetune_classification.main([*options, *refused])
    run, length = tmp_path / "run", ["--steps", "20", "--area-range", "0.5", "1"]
    finetune_classification.main([*options, *length, "--output", str(run)])
    printed = capsys.readouterr().out
    assert "Pictures of 5 channels" in printed
    assert "2 pictures, top-1" in printed
    assert keras.saving.load_model(run / "best.keras").get_config()["input_shape"] == (None, None, 5)
    options += ["--num-classes", "2", "--weights", str(run / "best.keras")]
    assert evaluate_classification.main([*options, "--output", str(tmp_path / "scores")]) == 0
    assert "8 pictures: top-1 100.00%" in capsys.readouterr().out


def test_what_is_shown():
    bands = np.arange(4 * 6 * 2, dtype="uint16").reshape(4, 6, 2)
    np.testing.assert_array_equal(show_pixels(bands), draw_bands(bands, (0, 1, 1)))
    np.testing.assert_array_equal(show_pixels(bands[..., :1]), draw_bands(bands, (0, 0, 0)))
    np.testing.assert_array_equal(show_pixels(bands, (1, 1, 0)), draw_bands(bands, (1, 1, 0)))
    rgb = np.random.default_rng(0).integers(0, 256, (4, 6, 3)).astype("float32")
    np.testing.assert_array_equal(show_pixels(rgb), rgb)
    assert describe_channels(3) == ""
    assert describe_channels(2).startswith("2 channels, of which 0 1 1 are shown as red")
    assert "of which 5 3 1 are shown" in describe_channels(6, [5, 3, 1])
    check_bands(None, 3)
    check_bands([1, 1, 0], 2)
    with pytest.raises(ValueError, match=r"three of 0 \.\. 1, .* Received: --bands 0 1 2"):
        check_bands([0, 1, 2], 2)
