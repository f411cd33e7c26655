"""People with keypoints in files of COCO's format."""

import json
import pathlib

import numpy as np
import pytest
from PIL import Image

from heads.coco.keypoints import find_keypoint_category, read_points
from heads.data import CocoKeypoints, find_training_pictures
from heads.data.coco_keypoints import (
    COCO_KEYPOINT_NAMES,
    COCO_SIGMAS,
    COCO_UPPER_BODY,
    find_flip_pairs,
)

SHARED_DATA = pathlib.Path(__file__).resolve().parents[2] / "shared" / "data"
needs_data = pytest.mark.skipif(not SHARED_DATA.is_dir(), reason=f"needs the data sets in {SHARED_DATA}")
NAMES = ["nose", "left_hand", "right_hand"]
PERSON = {"id": 4, "name": "person", "keypoints": NAMES, "skeleton": [[1, 2], [1, 3]]}
CATEGORIES = [{"id": 1, "name": "dog"}, PERSON]
POINTS = [10, 12, 2, 20, 25, 1, 0, 0, 0]


def person(key, image_id=1, **fields):
    entry = {"id": key, "image_id": image_id, "category_id": 4, "bbox": [5, 6, 30, 22], "area": 330.0}
    return {**entry, "iscrowd": 0, "keypoints": POINTS, "num_keypoints": 2, **fields}


GOOD = [
    person(1),
    person(2, image_id=2, bbox=[-3, 2, 20, 100]),
    person(3, keypoints=[0] * 9),
    person(4, iscrowd=1),
    person(5, ignore=1),
    person(6, bbox=[4, 4, 0.5, 20]),
    {"id": 7, "image_id": 1, "category_id": 1, "bbox": [1, 1, 5, 5], "area": 25.0, "iscrowd": 0},
    person(8, keypoints=None),
]


def write(folder, annotations, categories=CATEGORIES):
    random = np.random.default_rng(0)
    folder.mkdir(exist_ok=True)
    images = []
    for key in (1, 2):
        Image.fromarray(random.integers(0, 256, (40, 50, 3), np.uint8)).save(folder / f"{key}.png")
        images.append({"id": key, "file_name": f"{key}.png", "height": 40, "width": 50})
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "people.json").write_text(json.dumps(content))
    return folder / "people.json", folder


def test_people_are_read_one_by_one(tmp_path, capsys):
    data = CocoKeypoints(*write(tmp_path, GOOD))
    assert len(data) == 2
    assert data.image_ids == [1, 2]
    assert [path.name for path in data.image_paths] == ["1.png", "2.png"]
    assert (data.num_unlabelled, data.num_regions, data.num_dropped) == (2, 2, 1)
    np.testing.assert_array_equal(data.boxes, [[5, 6, 35, 28], [0, 2, 17, 40]])
    np.testing.assert_array_equal(data.keypoints, [np.reshape(POINTS, (3, 3))] * 2)
    assert (data.keypoint_names, data.category_id, data.num_keypoints) == (tuple(NAMES), 4, 3)
    assert data.skeleton == [(0, 1), (0, 2)]
    assert data.flip_pairs == [[1, 2]]
    assert (data.sigmas, data.upper_body) == (None, ())
    np.testing.assert_array_equal(data.check(), [2, 2, 0])
    printed = capsys.readouterr()
    text = printed.out + printed.err
    assert "2 people with keypoints on 2 of 2 images; left out: 2 people without a labelled keypoint" in text
    assert "never labelled: right_hand" in text
    first = next(data.load().as_numpy_iterator())
    assert first["image"].shape == (40, 50, 3)
    np.testing.assert_array_equal(first["keypoints"], data.keypoints[0])
    assert find_training_pictures(data, 2, 0, shuffle=False) == [str(path) for path in data.image_paths]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"keypoints": [1, 2, 2]}, "annotation 1: the keypoints must be .*, 9 numbers for 3 of them.*, of 3"),
        ({"keypoints": ["1"] * 9}, "annotation 1: the keypoints must be"),
        (
            {"keypoints": [1, 2, 3] * 3},
            r"the visibility of a keypoint must be 0 .*\[1.0, 2.0, 3.0\]",
        ),
        ({"keypoints": [1, 2, 1, 70, 2, 2, 0, 0, 0]}, r"keypoint 1, \[70.0, 2.0, 2.0\], lies outside"),
        ({"keypoints": [1, float("nan"), 1, 0, 2, 2, 0, 0, 0]}, "keypoint 0, .* lies outside"),
        ({"bbox": [100, 2, 5, 5]}, r"the box \[100, 2, 5, 5\] lies outside of the picture"),
        ({"image_id": 9}, "unknown image id 9"),
    ],
)
def test_faulty_annotations_are_listed(tmp_path, fields, message):
    data = CocoKeypoints(*write(tmp_path, [person(1, **fields), person(2)]))
    assert len(data) == 1
    with pytest.raises(ValueError, match=rf"(?s)faulty files or annotations.*{message}"):
        data.check(progress=False)


def test_faulty_pictures_and_files_without_labels_are_told(tmp_path):
    arguments = write(tmp_path, [person(1)])
    (tmp_path / "2.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"2\.png: cannot be read"):
        CocoKeypoints(*arguments).check(progress=False)
    arguments = write(tmp_path, [person(1, keypoints=[0] * 9)])
    with pytest.raises(ValueError, match="1 people leave nothing to learn: 1 have no labelled"):
        CocoKeypoints(*arguments).check(progress=False)


@pytest.mark.parametrize(
    ("categories", "message"),
    [
        ([{"id": 4, "name": "person"}], 'one category with "keypoints", their names. Received: 0 of 1'),
        ([PERSON, {**PERSON, "id": 5}], "Received: 2 of 2 categories"),
        ([{**PERSON, "keypoints": [1, 2]}], '"keypoints" of a category must be names'),
        ([{**PERSON, "skeleton": [[0, 1]]}], '"skeleton" must be pairs of the numbers of keypoints, 1 .. 3'),
        ([{**PERSON, "skeleton": [[1]]}], '"skeleton" must be pairs'),
    ],
)
def test_faulty_categories_raise(tmp_path, categories, message):
    with pytest.raises(ValueError, match=message):
        CocoKeypoints(*write(tmp_path, [person(1)], categories))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sigmas": [0.1]}, "sigmas must be a number above 0 for each of the 3 keypoints"),
        ({"sigmas": [0.1, 0.1, 0.0]}, "sigmas must be a number above 0"),
        ({"flip_pairs": [(0, 3)]}, "flip_pairs must be pairs of different numbers 0 .. 2"),
        ({"upper_body": [3]}, "upper_body must be numbers of keypoints, 0 .. 2"),
    ],
)
def test_arguments_that_do_not_fit_raise(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        CocoKeypoints(*write(tmp_path, [person(1)]), **arguments)


def test_cocos_constants():
    from pycocotools.cocoeval import Params

    np.testing.assert_allclose(COCO_SIGMAS, Params("keypoints").kpt_oks_sigmas)
    assert find_flip_pairs(COCO_KEYPOINT_NAMES) == [(left, left + 1) for left in range(1, 17, 2)]
    assert COCO_KEYPOINT_NAMES[max(COCO_UPPER_BODY)] == "right_wrist"
    assert find_flip_pairs(["Left eye", "tail", "Right eye", "left"]) == [(0, 2)]


def test_points_without_a_picture_size_and_categories():
    np.testing.assert_array_equal(read_points([], 2, None), np.zeros((2, 3)))
    np.testing.assert_array_equal(read_points([900, 5, 2, 3, 4, 0], 2, None), [[900, 5, 2], [0, 0, 0]])
    assert find_keypoint_category({4: PERSON}, "x")[1] == tuple(NAMES)


@needs_data
def test_people_of_coco():
    root = SHARED_DATA / "coco_cc"
    for split, people, unlabelled in (("train", 51, 66), ("val", 24, 27)):
        path = root / f"annotations/person_keypoints_{split}.json"
        data = CocoKeypoints(path, root / "images" / split)
        assert (len(data), data.num_unlabelled) == (people, unlabelled)
        assert data.keypoint_names == COCO_KEYPOINT_NAMES
        assert data.sigmas == COCO_SIGMAS
        assert data.check(progress=False).sum() == (data.keypoints[..., 2] > 0).sum()
