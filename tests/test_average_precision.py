import builtins
import importlib.util
import io
import json
import pathlib
from contextlib import redirect_stdout

import numpy as np
import pytest
from coco_truths import make_results, make_truth, perfect_results
from pycocotools import mask as run_lengths
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from heads.metrics import (
    encode_mask,
    evaluate_coco,
    format_coco_scores,
    measure_precision,
    save_results,
    to_coco_results,
)

DATA = pathlib.Path(__file__).resolve().parents[2] / "shared" / "data"
TRUTHS = sorted(DATA.glob("*/annotations/instances_*.json"))
HAS_FAST = importlib.util.find_spec("faster_coco_eval") is not None
needs_fast = pytest.mark.skipif(not HAS_FAST, reason="faster-coco-eval is not installed")
both = pytest.mark.parametrize("use_fast", [False, pytest.param(True, marks=needs_fast)])


def flatten(scores):
    flat = {}
    for name, value in scores.items():
        flat.update(
            {f"{name} {key}": each for key, each in value.items()}
            if isinstance(value, dict)
            else {name: value}
        )
    return flat


def run_pycocotools(truth_path, results_path, kind):
    """Returns the twelve numbers of pycocotools alone, from files."""
    with redirect_stdout(io.StringIO()):
        truth = COCO(str(truth_path))
        evaluation = COCOeval(truth, truth.loadRes(str(results_path)), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return [value if value > -1 else np.nan for value in evaluation.stats]


# Average precision


@both
def test_scores_by_hand(use_fast):
    box, elsewhere = (10, 10, 40, 40), (100, 100, 50, 50)
    truth = make_truth([(1, 1, box), (1, 1, elsewhere), (2, 1, box)])
    results = make_results([(1, 1, box, 0.9), (2, 1, elsewhere, 0.8), (2, 1, box, 0.7)])
    scores = evaluate_coco(truth, results, use_fast=use_fast)
    # Recall 1/3 with precision 1, recall 2/3 with 2/3, read at 0, 0.01 .. 1: 34 and 33 of 101 points.
    expected = (34 + 33 * 2 / 3) / 101
    for name in ("AP", "AP50", "AP75", "AP_medium"):
        assert scores[f"bbox_{name}"] == pytest.approx(expected)
    assert scores["bbox_AR100"] == scores["bbox_AR10"] == pytest.approx(2 / 3)
    assert scores["bbox_AR1"] == pytest.approx(1 / 3)  # the best of image 2 is wrong
    assert np.isnan(scores["bbox_AP_small"])
    assert np.isnan(scores["bbox_AR_large"])
    assert scores["bbox_AP_per_class"] == {"class 1": pytest.approx(expected)}
    assert scores["bbox_AP50_per_class"] == {"class 1": pytest.approx(expected)}
    assert all(type(value) is float for value in flatten(scores).values())
    precision = measure_precision(truth, results, use_fast=use_fast)["class 1"]
    curve = np.repeat([1, 2 / 3, 0], [34, 33, 34])
    np.testing.assert_allclose(precision, np.tile(curve, (10, 1)))


@both
def test_precision_of_a_class_without_objects_is_not_a_number(use_fast):
    truth = make_truth([(1, 1, (0, 0, 20, 30))], category_ids=(1, 2))
    precision = measure_precision(truth, make_results([(1, 2, (0, 0, 20, 30), 0.5)]), use_fast=use_fast)
    assert list(precision) == ["class 1", "class 2"]
    assert (precision["class 1"] == 0).all()
    assert np.isnan(precision["class 2"]).all()


@both
def test_iou_thresholds_by_hand(use_fast):
    # 100 x 100 against its part of 100 x 64: an IoU of 0.64 is enough for 0.5, 0.55 and 0.6.
    truth = make_truth([(1, 1, (0, 0, 100, 100)), (1, 2, (0, 0, 20, 30))], category_ids=(1, 2))
    results = make_results([(1, 1, (0, 0, 100, 64), 0.5), (1, 2, (0, 0, 20, 30), 0.5)])
    scores = evaluate_coco(truth, results, use_fast=use_fast)
    assert scores["bbox_AP_per_class"] == {"class 1": pytest.approx(0.3), "class 2": pytest.approx(1)}
    assert scores["bbox_AP50_per_class"] == {"class 1": pytest.approx(1), "class 2": pytest.approx(1)}
    assert scores["bbox_AP"] == pytest.approx(0.65)
    assert scores["bbox_AP75"] == pytest.approx(0.5)
    assert scores["bbox_AP_small"] == pytest.approx(1)
    assert scores["bbox_AP_large"] == pytest.approx(0.3)
    assert scores["bbox_AR_large"] == pytest.approx(0.3)


@both
def test_class_zero_counts(use_fast):
    # KerasCV's callback drops class 0.
    box = (10, 10, 20, 20)
    truth = make_truth([(1, 0, box), (2, 1, box)], category_ids=(0, 1))
    right = evaluate_coco(truth, make_results([(1, 0, box, 0.9), (2, 1, box, 0.9)]), use_fast=use_fast)
    assert right["bbox_AP"] == pytest.approx(1)
    only_zero = evaluate_coco(truth, make_results([(1, 0, box, 0.9)]), use_fast=use_fast)
    assert only_zero["bbox_AP_per_class"] == {"class 0": pytest.approx(1), "class 1": 0}


@both
def test_images_without_detections_are_misses(use_fast):
    # KerasCV's callback leaves them out.
    box = (10, 10, 20, 20)
    truth = make_truth([(1, 1, box), (2, 1, box)])
    scores = evaluate_coco(truth, make_results([(1, 1, box, 0.9)]), use_fast=use_fast)
    assert scores["bbox_AP"] == pytest.approx(51 / 101)
    assert scores["bbox_AR100"] == pytest.approx(0.5)


@both
def test_gapped_ids(use_fast):
    # KerasCV's callback numbers the categories itself.
    box = (10, 10, 20, 20)
    truth = make_truth([(900, 13, box), (7, 90, box)], (900, 7, 31), (90, 13, 44))
    detections = {
        "boxes": np.full((2, 1, 4), [10, 10, 30, 30], "float32"),
        "scores": np.full((2, 1), 0.9, "float32"),
        "labels": np.array([[0], [2]], "int32"),
    }
    results = to_coco_results(detections, (900, 7), (13, 44, 90))
    scores = evaluate_coco(truth, results, use_fast=use_fast)
    assert scores["bbox_AP"] == pytest.approx(1)
    per_class = scores["bbox_AP_per_class"]
    assert list(per_class) == ["class 13", "class 44", "class 90"]
    assert np.isnan(per_class["class 44"])
    assert per_class["class 90"] == pytest.approx(1)


@both
def test_annotation_ids_do_not_matter(use_fast):
    # pycocotools takes a match with the object of id 0 for no match.
    box = (10, 10, 20, 20)
    truth = make_truth([(1, 1, box), (2, 1, box)])
    results = perfect_results(truth)
    for ids in ((0, 1), (7, 5), ("a", "b")):
        for annotation, new in zip(truth["annotations"], ids, strict=True):
            annotation["id"] = new
        assert evaluate_coco(truth, results, use_fast=use_fast)["bbox_AP"] == pytest.approx(1)


@both
def test_no_detection_at_all(use_fast):
    scores = evaluate_coco(make_truth([(1, 1, (5, 5, 50, 50))]), [], use_fast=use_fast)
    for name in ("AP", "AP50", "AP75", "AP_medium", "AR1", "AR10", "AR100", "AR_medium"):
        assert scores[f"bbox_{name}"] == 0
    assert scores["bbox_AP_per_class"] == {"class 1": 0}


@both
@pytest.mark.parametrize("results", [[], [(2, 1, (1, 1, 9, 9), 0.5)]])
def test_no_truth_at_all_is_not_a_number(use_fast, results):
    scores = evaluate_coco(make_truth([]), make_results(results), use_fast=use_fast)
    assert np.isnan(list(flatten(scores).values())).all()


@both
def test_results_on_an_image_without_truth_are_wrong(use_fast):
    box = (10, 10, 20, 20)
    truth = make_truth([(1, 1, box)])
    results = make_results([(2, 1, box, 0.95), (1, 1, box, 0.9)])
    assert evaluate_coco(truth, results, use_fast=use_fast)["bbox_AP"] == pytest.approx(0.5)
    scores = evaluate_coco(truth, results, use_fast=use_fast, image_ids=np.array([1]))
    assert scores["bbox_AP"] == pytest.approx(1)


@both
def test_crowds_are_neither_hit_nor_miss(use_fast):
    box, crowd = (10, 10, 20, 20), (100, 100, 80, 80)
    truth = make_truth([(1, 1, box), (1, 1, crowd)])
    inside = [(1, 1, (110, 110, 10, 10), 0.95), (1, 1, (150, 150, 10, 10), 0.94), (1, 1, box, 0.9)]
    counted = evaluate_coco(truth, make_results(inside), use_fast=use_fast)
    assert counted["bbox_AP"] < 0.5
    truth["annotations"][1]["iscrowd"] = 1
    assert evaluate_coco(truth, make_results(inside), use_fast=use_fast)["bbox_AP"] == pytest.approx(1)


@both
def test_max_detections(use_fast):
    boxes = [(12 * x, 12 * y, 10, 10) for x in range(12) for y in range(12)]
    truth = make_truth([(1, 1, box) for box in boxes], image_ids=(1,))
    results = perfect_results(truth)
    capped = evaluate_coco(truth, results, use_fast=use_fast)
    assert capped["bbox_AP"] == pytest.approx(70 / 101)  # recall up to 100 / 144 = 0.694
    scores = evaluate_coco(truth, results, max_detections=(200, 10), use_fast=use_fast)
    assert scores["bbox_AP"] == scores["bbox_AR200"] == pytest.approx(1)
    assert scores["bbox_AR10"] == pytest.approx(10 / 144)


@both
def test_area_of_the_truth_decides_the_size(use_fast):
    # COCO's areas are those of the masks: this one is small, although its box is not.
    truth = make_truth([(1, 1, (10, 10, 40, 40))])
    assert evaluate_coco(truth, perfect_results(truth), use_fast=use_fast)["bbox_AP_medium"] == pytest.approx(
        1
    )
    truth["annotations"][0]["area"] = 600
    scores = evaluate_coco(truth, perfect_results(truth), use_fast=use_fast)
    assert scores["bbox_AP_small"] == pytest.approx(1)
    assert np.isnan(scores["bbox_AP_medium"])


@both
def test_masks_and_not_their_boxes_are_scored(use_fast):
    lower, upper = np.tri(200, dtype=bool), ~np.tri(200, dtype=bool)
    truth = make_truth([(1, 1, (0, 0, 200, 200)), (2, 1, (0, 0, 200, 200))])
    truth["annotations"][0]["segmentation"] = [[0, 0, 200, 200, 0, 200]]
    truth["annotations"][1]["segmentation"] = encode_mask(upper)
    results = make_results([(1, 1, (0, 0, 200, 200), 0.9), (2, 1, (0, 0, 200, 200), 0.8)])
    results[0]["segmentation"], results[1]["segmentation"] = encode_mask(lower), encode_mask(lower)
    scores = evaluate_coco(truth, results, ("bbox", "segm"), use_fast=use_fast)
    assert scores["bbox_AP"] == pytest.approx(1)
    assert scores["segm_AP"] == pytest.approx(51 / 101)


def test_names_that_are_shared_or_missing():
    truth = make_truth([(1, 1, (5, 5, 50, 50))], category_ids=(1, 2, 3))
    truth["categories"][1]["name"] = "class 1"
    del truth["categories"][2]["name"]
    assert list(evaluate_coco(truth, [])["bbox_AP_per_class"]) == ["class 1 (1)", "class 1 (2)", "3"]


def test_nothing_is_printed_or_changed(capsys):
    truth = make_truth([(1, 1, (5, 5, 50, 50))])
    results = perfect_results(truth)
    before = json.dumps([truth, results])
    for use_fast in (False, None):
        evaluate_coco(truth, results, use_fast=use_fast)
    assert json.dumps([truth, results]) == before
    assert capsys.readouterr() == ("", "")


def test_bad_input_is_refused():
    truth = make_truth([(1, 1, (5, 5, 50, 50))])
    results = perfect_results(truth)
    with pytest.raises(ValueError, match=r"kinds must be a sequence of bbox and / or segm.*'bbox'"):
        evaluate_coco(truth, results, "bbox")
    with pytest.raises(ValueError, match="kinds must be"):
        evaluate_coco(truth, results, ())
    with pytest.raises(ValueError, match=r"max_detections.*\(0, 5\)"):
        evaluate_coco(truth, results, max_detections=(0, 5))
    with pytest.raises(ValueError, match=r"truth must be COCO JSON.*\['images'\]"):
        evaluate_coco({"images": []}, results)
    with pytest.raises(ValueError, match=r"image_id of the results.*\[9\]"):
        evaluate_coco(truth, [{**results[0], "image_id": 9}])
    with pytest.raises(ValueError, match=r"category_id of the results.*\[0\]"):
        evaluate_coco(truth, [{**results[0], "category_id": 0}])
    with pytest.raises(ValueError, match=r"image_ids must be.*\[3\]"):
        evaluate_coco(truth, results, image_ids=[1, 3])


def test_masks_that_are_missing_or_of_another_size_are_refused():
    truth = make_truth([(1, 1, (0, 0, 50, 50))])
    results = perfect_results(truth)
    with pytest.raises(ValueError, match=r'entry of the truth must have a "segmentation"'):
        evaluate_coco(truth, results, ("segm",))
    truth["annotations"][0]["segmentation"] = [[0, 0, 50, 0, 50, 50, 0, 50]]
    with pytest.raises(ValueError, match="entry of the results"):
        evaluate_coco(truth, results, ("segm",))
    results[0]["segmentation"] = encode_mask(np.ones((100, 200)))
    with pytest.raises(ValueError, match=r"of image 1: .* \[100, 200\], the picture \[200, 200\]"):
        evaluate_coco(truth, results, ("segm",))
    del truth["images"][1]["height"]
    with pytest.raises(ValueError, match=r'need "height".*\[2\]'):
        evaluate_coco(truth, results, ("segm",))


def test_without_the_fast_library(monkeypatch):
    truth = make_truth([(1, 1, (5, 5, 50, 50))])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    imported = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name.startswith("faster_coco_eval"):
            raise ModuleNotFoundError(name)
        return imported(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    assert evaluate_coco(truth, perfect_results(truth))["bbox_AP"] == pytest.approx(1)
    with pytest.raises(ImportError, match="fast-eval"):
        evaluate_coco(truth, perfect_results(truth), use_fast=True)


# The data sets


@pytest.mark.skipif(not TRUTHS, reason=f"no data sets at {DATA}")
@pytest.mark.parametrize("path", TRUTHS, ids=lambda path: f"{path.parts[-3]}-{path.stem}")
def test_truth_as_predictions_is_perfect(path):
    truth = json.loads(path.read_text(encoding="utf-8"))
    results = perfect_results(truth)
    kinds = ("bbox", "segm") if "segmentation" in results[0] else ("bbox",)
    # Some pictures of nuclei and facades have more than 100 objects of a class.
    scores = evaluate_coco(path, results, kinds, max_detections=(1, 10, 1000))
    for kind in kinds:
        assert scores[f"{kind}_AP"] == pytest.approx(1, abs=1e-12)
        per_class = np.array(list(scores[f"{kind}_AP_per_class"].values()))
        np.testing.assert_allclose(per_class[~np.isnan(per_class)], 1)
    if kinds == ("bbox",):
        with pytest.raises(ValueError, match="truth must have a"):
            evaluate_coco(truth, results, ("segm",))


def disturb(truth, seed=0):
    """Returns results that are partly right: moved, missed, doubled, of a wrong class."""
    random = np.random.default_rng(seed)
    results = []
    for result in perfect_results(truth) * 2:
        if random.random() < 0.6:
            box = np.array(result["bbox"]) * random.uniform(0.9, 1.1, 4)
            category = random.choice([category["id"] for category in truth["categories"]])
            keep = random.random() < 0.9
            results.append(
                {
                    **result,
                    "bbox": box.tolist(),
                    "score": round(random.random(), 2),  # ties
                    "category_id": result["category_id"] if keep else int(category),
                }
            )
    return results


@needs_fast
@pytest.mark.parametrize("name", ["bccd", "coco_cc"])
def test_fast_and_slow_agree(name):
    path = DATA / name / "annotations" / "instances_val.json"
    if not path.exists():
        pytest.skip(f"no data set at {path}")
    truth = json.loads(path.read_text(encoding="utf-8"))
    kinds = ("bbox", "segm") if name == "coco_cc" else ("bbox",)
    slow, fast = (
        flatten(evaluate_coco(truth, disturb(truth), kinds, use_fast=use_fast)) for use_fast in (False, True)
    )
    assert 0.05 < slow["bbox_AP"] < 0.95
    np.testing.assert_allclose(list(fast.values()), list(slow.values()), rtol=0, atol=1e-9)


def test_saved_results_score_the_same_by_pycocotools_alone(tmp_path):
    path = DATA / "coco_cc" / "annotations" / "instances_val.json"
    if not path.exists():
        pytest.skip(f"no data set at {path}")
    truth = json.loads(path.read_text(encoding="utf-8"))
    sizes = {image["id"]: (image["height"], image["width"]) for image in truth["images"]}
    results = disturb(truth)
    for result in results:
        if isinstance(result["segmentation"], list):
            polygons = run_lengths.frPyObjects(result["segmentation"], *sizes[result["image_id"]])
            result["segmentation"] = encode_mask(run_lengths.decode(run_lengths.merge(polygons)))
    save_results(results, tmp_path / "all.json")
    scores = evaluate_coco(path, tmp_path / "all.json", ("bbox", "segm"))
    assert flatten(scores).keys() == flatten(evaluate_coco(path, results, ("bbox", "segm"))).keys()
    for kind in ("bbox", "segm"):
        save_results(results, tmp_path / f"{kind}.json", kind)
        ours = [value for name, value in scores.items() if name.startswith(kind) and isinstance(value, float)]
        np.testing.assert_allclose(run_pycocotools(path, tmp_path / f"{kind}.json", kind), ours, atol=1e-12)
    theirs = run_pycocotools(path, tmp_path / "all.json", "bbox")
    np.testing.assert_allclose(theirs[:3], [scores[f"bbox_{name}"] for name in ("AP", "AP50", "AP75")])


# The table


def test_table_by_hand():
    truth = make_truth([(1, 1, (0, 0, 100, 100)), (1, 2, (0, 0, 20, 30))], category_ids=(1, 2, 3))
    truth["categories"][0]["name"] = "a long name"
    results = make_results([(1, 1, (0, 0, 100, 64), 0.5), (1, 2, (0, 0, 20, 30), 0.5)])
    lines = format_coco_scores(evaluate_coco(truth, results)).splitlines()
    assert [line.split() for line in lines] == [
        ["bbox"],
        ["AP", "65.00"],
        ["AP50", "100.00"],
        ["AP75", "50.00"],
        ["AP_small", "100.00"],
        ["AP_medium", "-"],
        ["AP_large", "30.00"],
        ["AR1", "65.00"],
        ["AR10", "65.00"],
        ["AR100", "65.00"],
        ["AR_small", "100.00"],
        ["AR_medium", "-"],
        ["AR_large", "30.00"],
        [],
        ["class", "bbox", "AP", "bbox", "AP50"],
        ["a", "long", "name", "30.00", "100.00"],
        ["class", "2", "100.00", "100.00"],
        ["class", "3", "-", "-"],
    ]
    assert len({len(line) for line in lines[:13]}) == len({len(line) for line in lines[14:]}) == 1


def test_table_of_boxes_and_masks():
    truth = make_truth([(1, 1, (0, 0, 200, 200))])
    truth["annotations"][0]["segmentation"] = encode_mask(np.ones((200, 200)))
    table = format_coco_scores(evaluate_coco(truth, perfect_results(truth), ("segm", "bbox")))
    assert table.splitlines()[0].split() == ["bbox", "segm"]
    assert table.splitlines()[1].split() == ["AP", "100.00", "100.00"]
    assert table.splitlines()[-1].split() == ["class", "1", *["100.00"] * 4]
