"""People with keypoints: files, the embedded ones, moves and batches."""

import json
import pathlib

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from heads.coco.keypoints import find_keypoint_category, read_points
from heads.data import (
    CocoKeypoints,
    KeypointShapes,
    PersonMove,
    PoseAugmentation,
    find_training_pictures,
    move_person,
    pose_evaluation_batches,
    pose_training_batches,
)
from heads.data.coco_keypoints import (
    COCO_KEYPOINT_NAMES,
    COCO_SIGMAS,
    COCO_UPPER_BODY,
    find_flip_pairs,
)
from heads.data.person_moves import choose_half, draw_cut_normal
from heads.data.shapes.keypoints import FLIP_PAIRS
from heads.data.shapes.scenes import draw_scene
from heads.person_crops import warp_points

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
    with pytest.raises(ValueError, match="nothing is left to learn of 1 people: 1 have no labelled"):
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


# The embedded people.


@pytest.fixture(scope="module")
def shapes():
    return KeypointShapes(12, (64, 64), seed=3)


def test_shapes_are_the_people_of_the_scenes(shapes):
    assert 3 < len(shapes) < 40
    person_number = 0
    for index in range(12):
        scene = draw_scene((3, index), (64, 64))
        for thing in np.flatnonzero(scene["labels"] == 6):
            points = scene["keypoints"][thing]
            if points[:, 2].any():
                assert shapes.image_ids[person_number] == index + 1
                np.testing.assert_array_equal(shapes.boxes[person_number], scene["boxes"][thing])
                labelled = points[:, 2] > 0
                ours = shapes.keypoints[person_number]
                np.testing.assert_allclose(ours[labelled, :2], points[labelled, :2] - 0.5)
                np.testing.assert_array_equal(ours[:, 2], points[:, 2])
                person_number += 1
    assert person_number == len(shapes)
    assert find_flip_pairs(shapes.keypoint_names) == FLIP_PAIRS


def test_shapes_written_as_coco_are_read_back(shapes, tmp_path):
    content = shapes.to_coco()
    (tmp_path / "people.json").write_text(json.dumps(content))
    for entry in content["images"]:
        scene = draw_scene((3, entry["id"] - 1), (64, 64))
        Image.fromarray(scene["image"]).save(tmp_path / entry["file_name"])
    read = CocoKeypoints(tmp_path / "people.json", tmp_path, sigmas=shapes.sigmas)
    np.testing.assert_array_equal(read.check(progress=False), shapes.check())
    assert (read.skeleton, read.sigmas) == (shapes.skeleton, shapes.sigmas)
    augment = PoseAugmentation((64, 32))
    batches = (pose_training_batches(source, 2, augment).take(2) for source in (shapes, read))
    for first, second in zip(*batches, strict=True):
        tf.nest.map_structure(np.testing.assert_array_equal, first, second)


# Moves.


def test_a_move_carries_pixels_and_keypoints():
    pixels = np.zeros((40, 50, 3), np.uint8)
    keypoints = np.array([[12, 9, 2], [30, 20, 1], [0, 0, 0]], np.float32)
    pixels[9, 12] = 255
    identity = np.array([[1.0, 0, 0], [0, 1, 0]])
    crop, points, weights = move_person(PersonMove(identity), pixels, keypoints, (40, 50), np.arange(3))
    np.testing.assert_array_equal(crop, pixels)
    np.testing.assert_array_equal(points, keypoints[:, :2])
    np.testing.assert_array_equal(weights, [1, 1, 0])
    mirror = np.array([[-1.0, 0, 49], [0, 1, 0]])
    order = np.array([0, 2, 1])
    crop, points, weights = move_person(PersonMove(mirror, True), pixels, keypoints, (40, 50), order)
    np.testing.assert_array_equal(crop, pixels[:, ::-1])
    np.testing.assert_array_equal(points, [[37, 9], [0, 0], [19, 20]])
    np.testing.assert_array_equal(weights, [1, 0, 1])


def test_without_chance_a_box_gives_the_crop_of_evaluation():
    augment = PoseAugmentation((64, 48), False, 0.0, 0.0, (1.0, 1.0), 0.0)
    box, keypoints = np.array([5, 6, 35, 28.0]), np.ones((3, 3))
    move = augment((40, 50), box, keypoints, (), np.random.default_rng(0))
    assert not move.is_mirrored
    # 1.25 times the box, widened to the ratio of 3 to 4.
    corners = warp_points([(20 - 18.75, 17 - 25), (20 + 18.75, 17 + 25)], move.warp)
    np.testing.assert_allclose(corners, [(0, 0), (48, 64)], atol=1e-9)


def test_what_is_drawn_has_the_ranges_of_the_recipe():
    augment = PoseAugmentation((64, 64), half_body_share=0.0)
    random = np.random.default_rng(0)
    box, keypoints = np.array([100, 100, 140, 140.0]), np.zeros((17, 3))
    moves = [augment((300, 400), box, keypoints, COCO_UPPER_BODY, random) for _ in range(2000)]
    mirrored = np.array([move.is_mirrored for move in moves])
    assert 0.45 < mirrored.mean() < 0.55
    turns = np.array([move.warp[:, :2] for move in moves])
    scales = np.sqrt(np.abs(np.linalg.det(turns)))
    sides = 64 / scales / 50  # 50 is 1.25 times the side of the box
    assert 0.5 <= sides.min() < 0.53
    assert 1.47 < sides.max() <= 1.5
    assert 0.98 < sides.mean() < 1.02
    angles = np.rad2deg(np.arctan2(turns[:, 0, 1], turns[:, 1, 1]))
    assert 0.37 < np.mean(np.abs(angles) < 1e-9) < 0.43
    assert 76 < np.abs(angles).max() <= 80
    # The middle of the crop, mirrored back.
    middles = np.array([np.linalg.solve(move.warp[:, :2], 32 - move.warp[:, 2]) for move in moves])
    shifts = np.abs(middles - 120) / 50
    shifted = (shifts > 1e-9).any(1)
    assert 0.26 < shifted.mean() < 0.34
    assert 0.14 < shifts.max() <= 0.16


def test_halves_of_people():
    random = np.random.default_rng(0)
    labelled = np.ones(17, bool)
    chosen = [choose_half(labelled, COCO_UPPER_BODY, 0.3, random) for _ in range(2000)]
    halves = [tuple(half) for half in chosen if half is not None]
    assert 0.26 < len(halves) / 2000 < 0.34
    assert set(halves) == {tuple(range(11)), tuple(range(11, 17))}
    assert 0.63 < halves.count(tuple(range(11))) / len(halves) < 0.77
    few_below = labelled.copy()
    few_below[[11, 12, 13, 14]] = False
    assert choose_half(few_below, COCO_UPPER_BODY, 1.0, random).tolist() == list(range(11))
    few = np.arange(17) < 8
    assert choose_half(few, COCO_UPPER_BODY, 1.0, random) is None
    assert choose_half(labelled, (), 1.0, random) is None
    # The window is 1.5 times as wide as the half, around the mean of its keypoints.
    keypoints = np.concatenate([random.uniform(50, 90, (17, 2)), np.full((17, 1), 2.0)], axis=1)
    augment = PoseAugmentation((64, 64), False, 1.0, 0.0, (1.0, 1.0), 0.0)
    few_below = np.where(few_below[:, None], keypoints, 0.0)
    move = augment((100, 100), np.array([0, 0, 100, 100.0]), few_below, COCO_UPPER_BODY, random)
    upper = keypoints[:11, :2]
    np.testing.assert_allclose(warp_points(upper.mean(0), move.warp), (32, 32))
    assert 64 / move.warp[0, 0] == pytest.approx(1.5 * np.ptp(upper, axis=0).max())


def test_numbers_of_the_normal_distribution_are_cut():
    drawn = draw_cut_normal(np.random.default_rng(0), 5000)
    assert len(drawn) == 5000
    assert np.abs(drawn).max() <= 1
    assert np.std(drawn) == pytest.approx(0.54, abs=0.02)  # of the cut normal distribution


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image_size": (0, 3)}, "image_size must be"),
        ({"half_body_share": 1.5}, "half_body_share must be a number from 0 to 1"),
        ({"scale_range": (2, 1)}, "scale_range must be"),
        ({"rotation": 200}, "rotation must be 0 .. 180 degrees. Received: 200"),
        ({"padding": 0}, "padding must be"),
        ({"flip": 0.5}, "flip must be True or False"),
    ],
)
def test_augmentation_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        PoseAugmentation(**arguments)


# Batches.


def test_training_batches(shapes):
    batches = pose_training_batches(shapes, 4, PoseAugmentation((64, 32)), seed=5)
    inputs, targets = next(iter(batches))
    assert {name: tuple(spec.shape) for name, spec in inputs.items()} == {"images": (4, 64, 32, 3)}
    assert inputs["images"].dtype == tf.float32
    assert tuple(targets["keypoints"].shape) == (4, 7, 2)
    assert set(np.unique(targets["weights"])) <= {0.0, 1.0}
    again, _ = next(iter(pose_training_batches(shapes, 4, PoseAugmentation((64, 32)), seed=5)))
    np.testing.assert_array_equal(inputs["images"], again["images"])
    other, _ = next(iter(pose_training_batches(shapes, 4, PoseAugmentation((64, 32)), seed=6)))
    assert np.any(inputs["images"] != other["images"])
    _, second = list(pose_training_batches(shapes, 4, PoseAugmentation((64, 32)), seed=5).take(2))
    resumed = pose_training_batches(shapes, 4, PoseAugmentation((64, 32)), seed=5, first_step=1)
    np.testing.assert_array_equal(next(iter(resumed))[0]["images"], second[0]["images"])


def test_evaluation_batches_map_back_to_the_picture(shapes):
    batches = list(pose_evaluation_batches(shapes, 4, (64, 32)))
    assert sum(len(inputs["images"]) for inputs, _ in batches) == len(shapes)
    inputs, targets = batches[0]
    ones = np.concatenate([targets["keypoints"], np.ones((4, 7, 1))], axis=-1)
    points = np.einsum("nij,nkj->nki", inputs["to_pictures"], ones)
    labelled = np.asarray(targets["weights"]) > 0
    np.testing.assert_allclose(points[labelled], shapes.keypoints[:4, :, :2][labelled], atol=1e-3)
    np.testing.assert_array_equal(labelled, shapes.keypoints[:4, :, 2] > 0)
