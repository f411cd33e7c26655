import json

import numpy as np

from heads.metrics import save_scores, score_confusion


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def test_scores_are_percent_by_class_names(tmp_path):
    scores = score_confusion(np.array([[3, 1, 0], [0, 4, 0], [0, 0, 0]]))
    path = tmp_path / "new" / "scores.json"
    save_scores(
        {**scores, "confusion": np.eye(3), "per_picture_iou": np.ones(9)},
        path,
        ("wall", "tür", "roof"),
        model="best.keras",
    )
    content = read(path)
    assert list(content)[:2] == ["model", "unit"]
    assert (content["model"], content["unit"]) == ("best.keras", "percent")
    assert content["pixel_accuracy"] == 87.5
    assert content["per_class_iou"] == {"wall": 75.0, "tür": 80.0, "roof": None}
    assert "confusion" not in content
    assert "per_picture_iou" not in content
    assert "tür" in path.read_text(encoding="utf-8")


def test_dicts_arrays_and_numbers(tmp_path):
    scores = {"AP": np.float64(1 / 3), "AP_small": float("nan"), "f": np.array([0.5, np.nan])}
    save_scores({**scores, "AP_per_class": {"a": 0.25}, "per_class_PQ": np.array([0.1, 0.2])}, tmp_path / "s")
    assert read(tmp_path / "s") == {
        "unit": "percent",
        "AP": 33.3333,
        "AP_small": None,
        "f": [50.0, None],
        "AP_per_class": {"a": 25.0},
        "per_class_PQ": [10.0, 20.0],
    }


def test_classes_of_one_name_stay_apart(tmp_path):
    save_scores({"per_class_iou": np.array([0.1, 0.2, 0.3])}, tmp_path / "s", ("a", "b", "a"))
    assert read(tmp_path / "s")["per_class_iou"] == {"a (0)": 10.0, "b": 20.0, "a (2)": 30.0}
