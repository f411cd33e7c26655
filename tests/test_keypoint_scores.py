import json
import pathlib

import keras
import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from heads.data import CocoKeypoints, KeypointShapes, pose_evaluation_batches
from heads.metrics import (
    KeypointScores,
    evaluate_keypoints,
    format_keypoint_scores,
    predict_keypoint_results,
    to_keypoint_results,
)
from heads.metrics.keypoint_precision import SCORE_NAMES

SHARED_DATA = pathlib.Path(__file__).resolve().parents[2] / "shared" / "data"
SIGMAS = (0.05, 0.1, 0.08)


def make_truth(people, num_images=2, **category):
    """`people`: (image id, 9 numbers, fields)."""
    category = {"id": 7, "name": "person", "keypoints": ["a", "b", "c"], **category}
    return {
        "images": [{"id": key, "height": 200, "width": 200} for key in range(num_images)],
        "categories": [category],
        "annotations": [
            {"id": number, "image_id": image, "category_id": 7, "keypoints": points, **fields}
            for number, (image, points, fields) in enumerate(people)
        ],
    }


BOX = {"bbox": [10, 10, 80, 90], "area": 3600.0}
POINTS = [20, 20, 2, 60, 30, 1, 40, 90, 2]
TRUTH = make_truth([(0, POINTS, BOX), (1, [0] * 9, BOX), (1, [50, 60, 2, 0, 0, 0, 0, 0, 0], BOX)])


def result(image_id, points, score=0.9):
    return {"image_id": image_id, "category_id": 7, "keypoints": points, "score": score}


PERFECT = [result(0, POINTS), result(1, [50, 60, 2, 9, 9, 9, 8, 8, 8])]


def similarity(points, truth, area):
    """Returns COCO's object keypoint similarity, from a loop."""
    total, count = 0.0, 0
    for (x, y, _), (true_x, true_y, visible), sigma in zip(points, truth, SIGMAS, strict=True):
        if visible:
            distance = (x - true_x) ** 2 + (y - true_y) ** 2
            total += np.exp(-distance / (2 * area * (2 * sigma) ** 2))
            count += 1
    return total / count


@pytest.mark.parametrize("use_fast", [False, True])
def test_the_truth_is_perfect(use_fast):
    scores = evaluate_keypoints(TRUTH, PERFECT, SIGMAS, use_fast)
    assert list(scores) == [f"keypoints_{name}" for name in SCORE_NAMES]
    assert scores["keypoints_AP"] == scores["keypoints_AR"] == 1.0
    assert scores["keypoints_AP_medium"] == 1.0
    assert np.isnan(scores["keypoints_AP_large"])
    assert evaluate_keypoints(TRUTH, [], SIGMAS, use_fast)["keypoints_AP"] == 0.0
    assert evaluate_keypoints(TRUTH, PERFECT[:1], SIGMAS, image_ids=[0])["keypoints_AR"] == 1.0


@pytest.mark.parametrize("use_fast", [False, True])
@pytest.mark.parametrize("offset", [1.0, 4.0, 7.0, 10.0])
def test_similarities_reach_the_thresholds_that_they_should(offset, use_fast):
    points = np.reshape(POINTS, (3, 3)) + np.array([offset, 0, 0])
    reached = similarity(points, np.reshape(POINTS, (3, 3)), 3600.0)
    truth = make_truth([(0, POINTS, BOX)])
    scores = evaluate_keypoints(truth, [result(0, points.ravel().tolist())], SIGMAS, use_fast)
    thresholds = np.linspace(0.5, 0.95, 10)
    assert scores["keypoints_AP"] == pytest.approx(np.mean(reached >= thresholds))


@pytest.mark.skipif(not SHARED_DATA.is_dir(), reason=f"needs the data sets in {SHARED_DATA}")
@pytest.mark.parametrize("split", ["train", "val"])
def test_scores_of_coco_equal_pycocotools(split):
    root = SHARED_DATA / "coco_cc"
    path = root / f"annotations/person_keypoints_{split}.json"
    data = CocoKeypoints(path, root / "images" / split)
    truth = data.to_coco()
    people = [each for each in truth["annotations"] if each["num_keypoints"] and not each["iscrowd"]]
    perfect = [{**result(each["image_id"], each["keypoints"], 1.0), "category_id": 1} for each in people]
    assert evaluate_keypoints(path, perfect, data.sigmas)["keypoints_AP"] == 1.0
    random = np.random.default_rng(0)
    for each in perfect:
        points = np.reshape(each["keypoints"], (-1, 3))
        points[:, :2] += random.normal(size=(len(points), 2)) * random.choice([1, 4, 12])
        each["keypoints"], each["score"] = points.ravel().tolist(), float(random.random())
    objects = COCO(path)
    evaluation = COCOeval(objects, objects.loadRes(perfect), "keypoints")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    expected = evaluation.stats
    assert 0.2 < expected[0] < 0.95
    for use_fast in (False, True):
        scores = evaluate_keypoints(path, perfect, data.sigmas, use_fast)
        np.testing.assert_allclose(list(scores.values()), np.where(expected < 0, np.nan, expected), atol=1e-9)


def test_missing_areas_are_those_of_the_boxes():
    box = {"bbox": [10, 10, 60, 60]}
    points = (np.reshape(POINTS, (3, 3)) + np.array([6, 0, 0])).ravel().tolist()
    scores = [
        evaluate_keypoints(make_truth([(0, POINTS, fields)]), [result(0, points)], SIGMAS)
        for fields in (box, {**box, "area": 3600.0})
    ]
    assert 0.2 < scores[0]["keypoints_AP"] < 1
    np.testing.assert_array_equal(*(list(each.values()) for each in scores))


def test_scores_as_text():
    text = format_keypoint_scores(evaluate_keypoints(TRUTH, PERFECT, SIGMAS)).splitlines()
    assert text[0].split() == ["keypoints"]
    assert text[1].split() == ["AP", "100.00"]
    assert text[5].split() == ["AP_large", "-"]


@pytest.mark.parametrize(
    ("truth", "results", "message"),
    [
        (TRUTH, {}, "results must be a list of dicts"),
        (TRUTH, [result(5, POINTS)], "image_id of the results must be those of the truth"),
        (TRUTH, [{**PERFECT[0], "category_id": 8}], "category_id of the results must be those of the truth"),
        (
            TRUTH,
            [result(0, POINTS[:6])],
            r'result at position 0, of image 0: "keypoints" must be',
        ),
        (TRUTH, [result(0, [float("nan")] * 9)], '"keypoints" must be'),
        (TRUTH, [result(0, POINTS, None)], '"score" must be a finite number. Received: None'),
        (
            make_truth([(0, POINTS[:3], BOX)]),
            [],
            "(?s)truth has faulty annotations:.*annotation 0: the",
        ),
        (make_truth([], keypoints=["a", "b"]), [], "sigmas must be a number for each of the 2 keypoints"),
        (make_truth([], keypoints=[]), [], 'truth must hold one category with "keypoints"'),
    ],
)
def test_faults_are_refused(truth, results, message):
    with pytest.raises(ValueError, match=message):
        evaluate_keypoints(truth, results, SIGMAS)


@pytest.mark.parametrize("sigmas", [(), None, (0.1, 0.0, 0.1), ("a", 0.1, 0.1)])
def test_faulty_sigmas_are_refused(sigmas):
    with pytest.raises(ValueError, match="sigmas must be a number above 0 for each keypoint"):
        evaluate_keypoints(TRUTH, [], sigmas)


# Results of models.


def test_results_have_mmposes_scores():
    found = {
        "keypoints": np.arange(12, dtype="float32").reshape(2, 3, 2),
        "scores": np.array([[0.5, 0.1, 0.9], [0.1, 0.19, 0.0]], "float32"),
    }
    results = to_keypoint_results(found, np.array([3, 4]), 7, [1.0, 0.5])
    assert results[0]["score"] == pytest.approx(0.7)
    assert results[1]["score"] == 0.0
    assert results[0]["image_id"] == 3
    np.testing.assert_allclose(results[0]["keypoints"], [0, 1, 0.5, 2, 3, 0.1, 4, 5, 0.9])
    json.dumps(results)
    (half,) = to_keypoint_results({name: rows[:1] for name, rows in found.items()}, [3], 7, [0.5])
    assert half["score"] == pytest.approx(0.35)


class Oracle:
    """Knows the truth: in a crop it finds the targets of the batch."""

    def __init__(self, shapes):
        self.keypoints = iter(shapes.keypoints)

    def predict_on_batch(self, inputs):
        points = np.stack([next(self.keypoints) for _ in inputs["images"]])
        return {"keypoints": points[..., :2], "scores": (points[..., 2] > 0).astype("float32")}


@pytest.fixture(scope="module")
def shapes():
    return KeypointShapes(8, (64, 64), seed=1)


def test_whoever_knows_the_truth_scores_1(shapes):
    batches = pose_evaluation_batches(shapes, 4, (32, 32))
    results = predict_keypoint_results(Oracle(shapes), batches, shapes.image_ids, shapes.category_id)
    assert len(results) == len(shapes)
    assert evaluate_keypoints(shapes.to_coco(), results, shapes.sigmas)["keypoints_AP"] == 1.0
    for ids in (shapes.image_ids[:-1], [*shapes.image_ids, 1]):
        with pytest.raises(ValueError, match="image_ids must have one id for each"):
            predict_keypoint_results(Oracle(shapes), batches, ids, shapes.category_id)
    with pytest.raises(ValueError, match="box_scores must have one for each of"):
        predict_keypoint_results(Oracle(shapes), batches, shapes.image_ids, 1, box_scores=[1.0])


def make_callback(shapes, **arguments):
    batches = pose_evaluation_batches(shapes, 4, (32, 32))
    callback = KeypointScores(batches, shapes.to_coco(), shapes.image_ids, shapes.sigmas, **arguments)
    callback.set_model(Oracle(shapes))
    callback.set_params({"verbose": 1})
    return callback


def test_the_callback_scores_every_other_epoch(shapes, tmp_path, capsys):
    callback = make_callback(shapes, every=2, results_path=tmp_path / "new" / "results.json")
    callback.on_train_begin()
    logs = {"loss": 1.0}
    callback.on_epoch_end(0, logs)
    assert logs["val_keypoints_AP"] == 1.0
    assert "Epoch 1: keypoints AP 100.00%, AP50 100.00%" in capsys.readouterr().out
    assert len(json.loads((tmp_path / "new" / "results.json").read_text())) == len(shapes)
    callback.set_model(Oracle(shapes))
    again = {}
    callback.on_epoch_end(1, again)
    callback.on_epoch_end(2, again)
    assert again["val_keypoints_AP"] == 1.0
    assert all(value == value for value in again.values())


def test_the_callback_refuses(shapes):
    for arguments, message in (
        ({"every": 0}, r"every must be at least 1\. Received: 0"),
        ({"results_path": "/"}, "results_path must be a file"),
    ):
        with pytest.raises(ValueError, match=message):
            make_callback(shapes, **arguments)
    with pytest.raises(ValueError, match="image_ids must be those of the truth"):
        KeypointScores([], shapes.to_coco(), [99], shapes.sigmas)
    callback = make_callback(shapes)
    callback.model.num_keypoints = 3
    with pytest.raises(ValueError, match="sigmas must have one for each of the model's 3 keypoints"):
        callback.on_train_begin()
    empty = {**shapes.to_coco(), "annotations": []}
    with pytest.raises(ValueError, match="truth must have people with labelled keypoints"):
        KeypointScores([], empty, shapes.image_ids, shapes.sigmas)


def test_the_flip_test_asks_the_model(shapes):
    class Flipping(Oracle):
        asked = False

        def with_flip_test(self):
            self.asked = True
            return self

    callback = make_callback(shapes, flip_test=True)
    model = Flipping(shapes)
    callback.predict(model)
    assert model.asked
    assert isinstance(callback, keras.callbacks.Callback)
