import contextlib
import csv
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

import contracts
import predict_pose
import train_pose

from heads import Resizing, RetinaNet, SimpleBaseline
from heads.data import KeypointShapes
from heads.metrics import evaluate_keypoints


@keras.saving.register_keras_serializable(package="tests")
class SmallBackbone(contracts.PooledBackbone):
    """Replaces each variant, because the script is tested, not the model."""

    def freeze(self, stages, batch_norms):
        assert (stages, batch_norms) == (0, False)


def make_backbone(variant, weights=None):
    return SmallBackbone()


@pytest.fixture(scope="module")
def data_folder(tmp_path_factory):
    """Writes the embedded people as a data set of files: four scenes for each split."""
    root = tmp_path_factory.mktemp("data")
    (root / "annotations").mkdir()
    for split, seed in (("train", 0), ("val", 1)):
        shapes = KeypointShapes(4, (64, 64), seed)
        content = shapes.to_coco()
        (root / f"annotations/person_keypoints_{split}.json").write_text(json.dumps(content))
        (root / f"images/{split}").mkdir(parents=True)
        blank = np.zeros((64, 64, 3), "uint8")
        for entry in content["images"]:
            image = shapes._images.get(entry["id"], blank)
            Image.fromarray(image).save(root / f"images/{split}" / entry["file_name"])
    return root


def train(output, *options, data=None):
    """Runs the script and returns what it printed."""
    arguments = ["--output", str(output), "--batch-size", "2", "--image-size", "64", "32"]
    arguments += ["--channels", "8", "--evaluate-every", "2", *options]
    arguments += ["--data", str(data), "--sigmas", *["0.1"] * 7] if data else []
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setattr(train_pose, "VANBackbone", make_backbone)
        patch.setattr(train_pose, "KeypointShapes", lambda _, seed: KeypointShapes(3, (64, 64), seed))
        train_pose.main(arguments)
    return printed.getvalue()


@pytest.fixture(scope="module")
def run(data_folder, tmp_path_factory):
    """One training of four steps: (the folder of its results, what was printed)."""
    output = tmp_path_factory.mktemp("run")
    return output, train(output, "--steps", "4", data=data_folder)


def read_log(output):
    with open(output / "log.csv") as file:
        return list(csv.DictReader(file))


def test_training_writes_models_results_pictures_and_logs(run, data_folder):
    output, printed = run
    assert np.asarray(Image.open(output / "predictions.png")).std() > 10
    settings = json.loads((output / "settings.json").read_text())
    assert settings["keypoints"][:2] == ["head", "neck"]
    assert [row["epoch"] for row in read_log(output)] == ["0", "1"]
    for row in read_log(output):
        for name in ("loss", "keypoint_loss", "val_keypoints_AP", "val_keypoints_AR"):
            assert np.isfinite(float(row[name])), name
    for name in ("best.keras", "last.keras"):
        model = keras.saving.load_model(output / name)
        assert isinstance(model, SimpleBaseline)
        assert (model.num_keypoints, model.channels, model.crop_size) == (7, 8, (64, 32))
        assert model.find_counterparts() == [0, 1, 3, 2, 4, 6, 5]
        assert model.keypoint_names[0] == "head"
    assert int(keras.saving.load_model(output / "last.keras").optimizer.iterations) == 4
    for line in ("7 keypoints: head, neck", "Before training", "After training (best.keras)", "s per step"):
        assert line in printed
    truth = json.loads((data_folder / "annotations/person_keypoints_val.json").read_text())
    results = json.loads((output / "results.json").read_text())
    assert len(results) == len(truth["annotations"])
    assert 0 <= evaluate_keypoints(truth, results, [0.1] * 7)["keypoints_AP"] <= 1


@pytest.mark.slow
def test_resuming_goes_on(run, data_folder, tmp_path):
    output = shutil.copytree(run[0], tmp_path / "run")
    before = read_log(output)
    train(output, "--steps", "8", "--resume", data=data_folder)
    log = read_log(output)
    assert [row["epoch"] for row in log] == ["0", "1", "2", "3"]
    assert log[:2] == before
    optimizer = keras.saving.load_model(output / "last.keras").optimizer
    assert int(optimizer.iterations) == 8


@pytest.mark.slow
def test_embedded_people_in_mixed_precision_with_the_flip_test(tmp_path):
    policy = keras.config.dtype_policy()
    try:
        printed = train(tmp_path, "--steps", "2", "--mixed-precision", "--flip-test", "--resume")
    finally:
        keras.config.set_dtype_policy(policy)
    assert "AP_medium" in printed
    assert (tmp_path / "predictions.png").exists()


@pytest.mark.parametrize(
    ("options", "rate", "clip_norm", "warm_up"),
    [
        ([], 2e-3, 1.0, 100),
        (["--weights", "w.h5"], 5e-4, None, 100),
        (["--weights", "w.h5", "--batch-size", "16", "--warm-up", "7"], 1.25e-4, None, 7),
        (["--learning-rate", "0.5", "--clip-norm", "0"], 0.5, None, 100),
    ],
)
def test_recipe(options, rate, clip_norm, warm_up):
    arguments = train_pose.parse_arguments(options)
    optimizer = train_pose.build_optimizer(arguments, 1000, [800])
    schedule = optimizer._learning_rate
    assert (schedule.learning_rate, schedule.warm_up) == (rate, warm_up)
    assert optimizer.global_clipnorm == clip_norm
    # The rate falls after 170 and 200 of 210 epochs.
    assert train_pose.plan_steps(train_pose.parse_arguments(["--batch-size", "10"]), 95)[::2] == (
        2100,
        [1700, 2000],
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--splits", "a", "b"], "need --data"),
        (["--sigmas", "0.1"], "need --data"),
        (["--image-size", "60", "64"], "--image-size must be multiples of 32. Received: [60, 64]"),
        (["--scale-range", "2", "1"], "--scale-range must be LOWEST HIGHEST"),
        (["--rotation", "200"], "--rotation must be at most 180"),
        (["--steps", "0"], "argument --steps: must be a whole number, at least 1"),
    ],
)
def test_training_refuses(options, message, capsys):
    with pytest.raises(SystemExit):
        train_pose.parse_arguments(options)
    assert message in capsys.readouterr().err


def test_training_refuses_data_that_it_cannot_use(data_folder, tmp_path):
    with pytest.raises(SystemExit, match=r"(?s)--weights must be a file.*imagine"):
        train_pose.main(["--weights", "imagine", "--output", str(tmp_path / "run")])
    with pytest.raises(SystemExit, match=r"--sigmas must be given for keypoints that are not COCO's: 7"):
        train_pose.open_data(train_pose.parse_arguments(["--data", str(data_folder)]))
    data = shutil.copytree(data_folder, tmp_path / "data")
    path = data / "annotations/person_keypoints_val.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "annotations": []}))
    arguments = train_pose.parse_arguments(["--data", str(data), "--sigmas", *["0.1"] * 7])
    with pytest.raises(SystemExit, match=r"person_keypoints_val.json has no people with labelled keypoints"):
        train_pose.open_data(arguments)
    path.write_text(json.dumps(content).replace('"neck"', '"throat"'))
    with pytest.raises(SystemExit, match="the same keypoints"):
        train_pose.open_data(arguments)


# Prediction.


@pytest.fixture(scope="module")
def model_path(tmp_path_factory):
    """Returns the path of an untrained model of three keypoints."""
    keras.utils.set_random_seed(0)
    path = tmp_path_factory.mktemp("model") / "model.keras"
    names = {"keypoint_names": ["a", "b", "c"], "skeleton": [(0, 1)], "flip_pairs": [(1, 2)]}
    SimpleBaseline(SmallBackbone(), 3, channels=8, resizing=Resizing((64, 32)), **names).save(path)
    return path


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    image = np.random.default_rng(1).integers(0, 256, (48, 64, 3)).astype("uint8")
    Image.fromarray(image).save(folder / "colour.jpg")
    Image.fromarray(image[:33, :49, 0]).save(folder / "grey.png")
    (folder / "broken.jpg").write_bytes(b"no picture")
    return folder


def predict(*options):
    """Returns the exit code, and the content of keypoints.json."""
    options = [str(option) for option in options]
    code = predict_pose.main(options)
    output = pathlib.Path(options[options.index("--output") + 1])
    return code, json.loads((output / "keypoints.json").read_text())


def test_predict_takes_boxes_of_a_file(model_path, pictures, tmp_path, capsys):
    boxes = {
        "categories": [{"id": 3, "name": "person"}, {"id": 4, "name": "dog"}],
        "images": [{"id": 8, "file_name": "elsewhere/colour.jpg"}],
        "annotations": [
            {"image_id": 8, "category_id": 3, "bbox": [5, 6, 20, 30], "score": 0.5},
            {"image_id": 8, "category_id": 3, "bbox": [5, 6, 20, 30], "score": 0.1},
            {"image_id": 8, "category_id": 4, "bbox": [1, 1, 9, 9]},
        ],
    }
    (tmp_path / "boxes.json").write_text(json.dumps(boxes))
    output = tmp_path / "out"
    code, content = predict(
        model_path, pictures, "--boxes", tmp_path / "boxes.json", "--output", output, "--flip-test"
    )
    assert code == 1
    assert {path.name for path in output.iterdir()} == {"colour.png", "grey.png", "keypoints.json"}
    (found,) = content["annotations"]
    assert found["bbox"] == [5, 6, 20, 30]
    assert len(found["keypoints"]) == 9
    assert content["categories"][0]["skeleton"] == [[1, 2]]
    printed = capsys.readouterr()
    assert "1 people in 2 of 3 pictures" in printed.out
    assert "grey.png is not in" in printed.err
    assert "broken.jpg" in printed.err


def test_predict_without_boxes_takes_each_picture_for_a_person(model_path, pictures, tmp_path):
    code, content = predict(model_path, pictures / "grey.png", "--output", tmp_path / "out")
    assert code == 0
    (found,) = content["annotations"]
    assert found["bbox"] == [0, 0, 49, 33]
    model = keras.saving.load_model(model_path)
    image = np.asarray(Image.open(pictures / "grey.png").convert("RGB"))
    (expected,) = model.predict_pictures(image, [[[0, 0, 49, 33]]])
    ours = np.reshape(found["keypoints"], (3, 3))
    np.testing.assert_allclose(ours[:, :2], expected["keypoints"][0], rtol=1e-4, atol=1e-3)


@pytest.mark.slow
def test_predict_asks_a_detector(model_path, pictures, tmp_path):
    keras.utils.set_random_seed(0)
    detector = RetinaNet(SmallBackbone(), 2, channels=8, num_convs=1, score_threshold=0.0, max_detections=5)
    detector.class_names = ["dog", "person"]
    detector.save(tmp_path / "detector.keras")
    options = ("--detector", tmp_path / "detector.keras", "--box-threshold", "0")
    picture = pictures / "colour.jpg"
    code, content = predict(model_path, picture, *options, "--output", tmp_path / "out")
    assert code == 0
    (found,) = detector.predict_pictures(picture)
    assert len(content["annotations"]) == (found["labels"] == 1).sum()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["missing.keras", "PICTURES"], "there is no model missing.keras"),
        (["MODEL", "PICTURES", "--boxes", "missing.json"], "there is no file missing.json"),
        (["MODEL", "PICTURES", "--boxes", "MODEL"], "--boxes must be"),
        (["MODEL", "PICTURES", "--boxes", "EMPTY"], "--boxes must have a category 'person'"),
        (["MODEL", "PICTURES", "--boxes", "EMPTY", "--detector", "MODEL"], "not allowed with"),
        (["MODEL", "PICTURES", "--detector", "MODEL"], "--detector must have a class 'person'"),
        (["MODEL", "PICTURES", "--output", "PICTURES"], "must not be the folder of the pictures"),
    ],
)
def test_predict_refuses(model_path, pictures, tmp_path, capsys, options, message):
    empty = tmp_path / "empty.json"
    empty.write_text(json.dumps({"categories": [], "images": [], "annotations": []}))
    places = {"MODEL": model_path, "PICTURES": pictures, "EMPTY": empty}
    with pytest.raises(SystemExit):
        predict_pose.main([str(places.get(option, option)) for option in options])
    assert message in capsys.readouterr().err
