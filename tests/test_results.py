"""Results in the forms of COCO and supervision."""

import json
import pathlib
import sys
import types

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as run_lengths
from pycocotools.coco import COCO

from heads import to_coco, to_supervision
from heads.data import PanopticDataset
from heads.data.panoptic import encode_ids
from heads.metrics import encode_mask


def make_objects(with_masks=True):
    found = {
        "path": None,
        "boxes": np.array([[1.5, 2, 11, 22], [3, 4, 5, 6]], "float32"),
        "scores": np.array([0.9, 0.25], "float32"),
        "labels": np.array([1, 0], "int32"),
        "names": ["dog", "cat"],
    }
    if with_masks:
        found["masks"] = np.zeros((2, 30, 20), bool)
        found["masks"][0, 2:22, 2:11] = found["masks"][1, 4:6, 3:5] = True
    return found


LABEL_MAP = np.array([[0, 0, 2], [255, 2, 2]], "int32")
SEGMENTS = {
    "path": pathlib.Path("folder/a.jpg"),
    "segments": np.array([[-1, 0, 0, 1], [-1, 0, 1, 1]], "int32"),
    "labels": np.array([2, 0], "int32"),
    "scores": np.array([0.5, 0.75], "float32"),
    "names": ["sky", "cat"],
}


def test_objects_by_hand():
    rows = to_coco(make_objects(with_masks=False), np.int64(7).item(), np.array([17, 44]))
    assert rows == [
        {"image_id": 7, "category_id": 44, "bbox": [1.5, 2, 9.5, 20], "score": pytest.approx(0.9)},
        {"image_id": 7, "category_id": 17, "bbox": [3, 4, 2, 2], "score": 0.25},
    ]
    assert json.loads(json.dumps(rows)) == rows
    assert [row["category_id"] for row in to_coco(make_objects(), 7)] == [2, 1]
    nothing = {name: values[:0] for name, values in make_objects().items() if name != "path"}
    assert to_coco(nothing, 7) == []


def test_masks_and_their_run_lengths_give_the_same_rows():
    found = make_objects()
    rows = to_coco(found, 7)
    for row, mask in zip(rows, found["masks"], strict=True):
        np.testing.assert_array_equal(run_lengths.decode(row["segmentation"]), mask)
    assert to_coco({**found, "masks": list(map(encode_mask, found["masks"]))}, 7) == rows


def test_a_row_for_each_class_of_a_label_map(tmp_path):
    rows = to_coco({"label_map": LABEL_MAP}, 7, (5, 6, 9))
    assert [row["category_id"] for row in rows] == [5, 9]
    masks = [run_lengths.decode(row["segmentation"]) for row in rows]
    np.testing.assert_array_equal(masks, [LABEL_MAP == 0, LABEL_MAP == 2])
    # COCO's own reader takes them.
    truth = COCO()
    truth.dataset = {"images": [{"id": 7}], "categories": [{"id": 5}, {"id": 9}], "annotations": []}
    truth.createIndex()
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(rows))
    assert [each["area"] for each in truth.loadRes(str(path)).dataset["annotations"]] == [2, 3]


def test_panoptic_segments_are_read_back(tmp_path):
    entry = to_coco(SEGMENTS, 7, (4, 6, 9))
    assert entry["file_name"] == "a.png"
    assert to_coco({**SEGMENTS, "path": None}, 7)["file_name"] == "7.png"
    assert entry["segments_info"] == [
        {"id": 1, "category_id": 9, "area": 3, "bbox": [1, 0, 2, 2], "iscrowd": 0, "score": 0.5},
        {"id": 2, "category_id": 4, "area": 3, "bbox": [2, 0, 2, 2], "iscrowd": 0, "score": 0.75},
    ]
    categories = [{"id": key, "name": str(key), "isthing": int(key == 4)} for key in (4, 6, 9)]
    picture = {"id": 7, "file_name": "a.jpg", "height": 2, "width": 4}
    content = {"images": [picture], "annotations": [entry], "categories": categories}
    (tmp_path / "panoptic.json").write_text(json.dumps(content))
    encode_ids(SEGMENTS["segments"] + 1).save(tmp_path / "a.png")
    Image.new("RGB", (4, 2)).save(tmp_path / "a.jpg")
    dataset = PanopticDataset(tmp_path / "panoptic.json", tmp_path, tmp_path)
    read = dataset.load_segments(0)
    np.testing.assert_array_equal(read["segments"], SEGMENTS["segments"])
    np.testing.assert_array_equal(read["labels"], SEGMENTS["labels"])


def test_what_has_no_rows_is_refused():
    with pytest.raises(
        ValueError, match=r"category_ids must have an id for each label, up to 1. Received: 1"
    ):
        to_coco(make_objects(), 7, (3,))
    with pytest.raises(ValueError, match=r"to_keypoint_results.* Received: \['boxes', 'keypoints'"):
        to_coco({"boxes": 0, "keypoints": 0, "scores": 0}, 7)
    with pytest.raises(ValueError, match=r"Received: \['saliency_map'\]"):
        to_coco({"saliency_map": np.zeros((2, 2))}, 7)


@pytest.fixture
def supervision(monkeypatch):
    """What we know about the library: the fields of its Detections, and its requirements."""

    class Detections:
        def __init__(self, xyxy, mask=None, confidence=None, class_id=None, tracker_id=None, data=None):
            assert xyxy.ndim == 2
            assert xyxy.shape[1] == 4
            count = len(xyxy)
            assert mask is None or (mask.dtype == bool and mask.ndim == 3 and len(mask) == count)
            for each in (confidence, class_id, *(data or {}).values()):
                assert each is None or each.shape == (count,)
            self.xyxy, self.mask, self.confidence, self.class_id = xyxy, mask, confidence, class_id
            self.data = data

    monkeypatch.setitem(sys.modules, "supervision", types.SimpleNamespace(Detections=Detections))


def test_objects_for_supervision(supervision):
    found = make_objects()
    detections = to_supervision(found)
    np.testing.assert_array_equal(detections.xyxy, found["boxes"])
    assert detections.xyxy.dtype == np.float32
    np.testing.assert_array_equal(detections.mask, found["masks"])
    np.testing.assert_array_equal(detections.confidence, found["scores"])
    np.testing.assert_array_equal(detections.class_id, [1, 0])
    assert detections.data["class_name"].tolist() == ["dog", "cat"]
    coded = to_supervision({**found, "masks": list(map(encode_mask, found["masks"]))})
    np.testing.assert_array_equal(coded.mask, found["masks"])
    assert to_supervision(make_objects(with_masks=False)).mask is None
    nothing = {name: values[:0] for name, values in found.items() if name != "path"}
    assert to_supervision(nothing).xyxy.shape == (0, 4)
    assert to_supervision({**nothing, "masks": []}).xyxy.shape == (0, 4)


def test_segments_and_classes_for_supervision(supervision):
    detections = to_supervision(SEGMENTS)
    np.testing.assert_array_equal(detections.xyxy, [[1, 0, 3, 2], [2, 0, 4, 2]])
    np.testing.assert_array_equal(detections.mask, [SEGMENTS["segments"] == row for row in (0, 1)])
    assert detections.data["class_name"].tolist() == ["sky", "cat"]
    classes = to_supervision({"label_map": LABEL_MAP}, ("road", "wall", "tree"))
    np.testing.assert_array_equal(classes.class_id, [0, 2])
    np.testing.assert_array_equal(classes.mask, [LABEL_MAP == 0, LABEL_MAP == 2])
    np.testing.assert_array_equal(classes.xyxy, [[0, 0, 2, 1], [1, 0, 3, 2]])
    assert classes.data["class_name"].tolist() == ["road", "tree"]
    assert classes.confidence is None
    assert to_supervision({"label_map": LABEL_MAP}).data == {}
    with pytest.raises(ValueError, match=r"Received: \['saliency_map'\]"):
        to_supervision({"saliency_map": np.zeros((2, 2))})


def test_without_supervision_the_way_out_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(ImportError, match="pip install supervision"):
        to_supervision(make_objects())
