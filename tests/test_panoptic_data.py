"""COCO panoptic files, their batches, and the embedded scenes as segments."""

import json
import pathlib

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from heads.data import (
    DetectionAugmentation,
    Move,
    PanopticDataset,
    PanopticShapes,
    SemanticShapes,
    panoptic_evaluation_batches,
    panoptic_training_batches,
)
from heads.data.detection_moves import move_segments
from heads.data.panoptic import encode_ids

FACADES = pathlib.Path(__file__).resolve().parents[2] / "shared" / "data" / "facades"
CATEGORIES = [
    {"id": 9, "name": "sky", "isthing": 0},
    {"id": 4, "name": "cat", "isthing": 1},
    {"id": 2, "name": "sea", "isthing": 0},
    {"id": 7, "name": "dog", "isthing": 1},
]
IDS = np.array([[0, 5, 5, 300], [70000, 70000, 5, 300]])


@pytest.fixture
def folder(tmp_path):
    """Writes two pictures of 2 x 4; the second has no segment."""
    for name, ids in (("a", IDS), ("b", IDS * 0)):
        Image.new("RGB", (4, 2), "red").save(tmp_path / f"{name}.jpg")
        encode_ids(ids).save(tmp_path / f"{name}.png")
    return tmp_path


def make_content():
    infos = [
        {"id": 300, "category_id": 9, "iscrowd": 0},
        {"id": 5, "category_id": 7, "iscrowd": 1},
        {"id": 70000, "category_id": 4, "iscrowd": 0},
    ]
    return {
        "images": [{"id": n, "file_name": f"{n}.jpg", "height": 2, "width": 4} for n in ("a", "b")],
        "annotations": [
            {"image_id": "b", "file_name": "b.png", "segments_info": []},
            {"image_id": "a", "file_name": "a.png", "segments_info": infos},
        ],
        "categories": CATEGORIES,
    }


def open_dataset(folder, content):
    path = folder / "panoptic.json"
    path.write_text(json.dumps(content))
    return PanopticDataset(path, folder, folder)


def test_a_file_is_read(folder):
    dataset = open_dataset(folder, make_content())
    assert dataset.class_names == ("cat", "dog", "sea", "sky")
    assert dataset.category_ids == (4, 7, 2, 9)
    assert (dataset.num_things, dataset.num_stuff, dataset.num_classes) == (2, 2, 4)
    assert dataset.image_ids == ["a", "b"]
    np.testing.assert_array_equal(dataset.image_sizes, [[2, 4], [2, 4]])
    np.testing.assert_array_equal(dataset.check(progress=False), [1, 0, 0, 1])
    truth = dataset.load_segments(0)
    np.testing.assert_array_equal(truth["segments"], [[-1, 1, 1, 0], [2, 2, 1, 0]])
    np.testing.assert_array_equal(truth["labels"], [3, 1, 0])
    np.testing.assert_array_equal(truth["is_crowd"], [False, True, False])
    first, second = dataset.load().as_numpy_iterator()
    assert first["image"].shape == (2, 4, 3)
    np.testing.assert_array_equal(first["labels"], [3, -2, 0])
    np.testing.assert_array_equal(first["segments"], truth["segments"])
    assert second["labels"].shape == (0,)
    assert (second["segments"] == -1).all()


def test_ids_come_back():
    ids = np.array([[0, 1, 256], [65536, 256**3 - 1, 12345678]])
    pixels = np.asarray(encode_ids(ids)).astype(int)
    np.testing.assert_array_equal(pixels @ [1, 256, 65536], ids)


def change(content, part, position, **values):
    content[part][position] = {**content[part][position], **values}


@pytest.mark.parametrize(
    ("part", "position", "values", "message"),
    [
        ("annotations", 1, {"image_id": "c"}, r"unknown image id 'c'[\s\S]*image 'a': no annotation"),
        ("annotations", 1, {"image_id": "b"}, "image 'b' has an annotation already"),
        ("annotations", 1, {"file_name": None}, "no usable file_name. Received: None"),
        ("annotations", 1, {"segments_info": {}}, r"segments_info must be a list of objects. Received: \{\}"),
        (
            "annotations",
            1,
            {"segments_info": [{"id": 0, "category_id": 9}]},
            "must differ and be 1 .. 16777215",
        ),
        ("annotations", 1, {"segments_info": [{"id": 5, "category_id": 1}]}, "unknown category id 1"),
        (
            "annotations",
            1,
            {"segments_info": [{"id": 5, "category_id": 9}]},
            "segments_info. Received: 300, 7",
        ),
        ("annotations", 0, {"segments_info": [{"id": 5, "category_id": 9}]}, "no pixels of the segments 5"),
        ("annotations", 1, {"file_name": "c.png"}, "c.png: cannot be read .No such file"),
        ("annotations", 1, {"file_name": "a.jpg"}, "the format must be one of PNG"),
        ("images", 0, {"height": 3}, r"must be \(3, 4\). Received: \(2, 4\)"),
        ("images", 0, {"file_name": "c.jpg"}, "c.jpg: cannot be read"),
    ],
)
def test_check_lists_what_is_wrong(folder, part, position, values, message):
    content = make_content()
    change(content, part, position, **values)
    with pytest.raises(ValueError, match=message):
        open_dataset(folder, content).check(progress=False)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "must hold a JSON object"),
        ({**make_content(), "categories": []}, 'non-empty list of "categories"'),
        (
            {**make_content(), "categories": [{"id": 1, "name": "a"}]},
            "isthing must be 0 or 1. Received: None",
        ),
        ({**make_content(), "annotations": None}, '"annotations", one per image. Received: None'),
    ],
)
def test_other_files_are_refused(folder, content, message):
    with pytest.raises(ValueError, match=message):
        open_dataset(folder, content)


def test_a_wrong_id_ends_the_iteration_with_its_file(folder):
    content = make_content()
    content["annotations"][1]["segments_info"].pop()
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"a\.png: each id must be listed.*70000"):
        list(open_dataset(folder, content).load().as_numpy_iterator())


def test_segments_move_with_their_picture():
    segments = np.arange(12, dtype="int32").reshape(3, 4)
    move = Move(np.array([3, 4]), np.array([6, 8]), np.array([1, 2]), np.array([4, 3]), np.array(True))
    moved = move_segments(segments, move)
    whole = segments.repeat(2, 0).repeat(2, 1)
    np.testing.assert_array_equal(moved, whole[1:5, 2:5][:, ::-1])


def test_training_batches_leave_out_what_is_cropped():
    class Source:
        class_names, num_things, num_stuff = ("a", "b", "c"), 2, 1
        image_ids, image_sizes = [1], np.array([[40, 40]], "int32")

        def load(self, indices=None):
            def make(index):
                segments = tf.concat([tf.zeros((40, 20), tf.int32), tf.fill((40, 20), 2)], 1)
                image = tf.zeros((40, 40, 3), tf.uint8)
                return {"index": index, "image": image, "segments": segments, "labels": [2, 0, 1]}

            return (tf.data.Dataset.range(1) if indices is None else indices).map(make)

    def crop(image, seed):
        size = tf.constant([40, 40])
        move = Move(size, size, tf.constant([0, 20]), tf.constant([40, 20]), tf.constant(False))
        return tf.cast(image[:, 20:], tf.float32), move

    inputs, targets = next(panoptic_training_batches(Source(), 2, crop, shuffle=False).as_numpy_iterator())
    assert inputs["images"].shape == (2, 64, 32, 3)
    np.testing.assert_array_equal(inputs["image_sizes"], [[40, 20]] * 2)
    np.testing.assert_array_equal(targets["labels"], [[1], [1]])
    assert (targets["segments"][:, :40, :20] == 0).all()
    assert (targets["segments"][:, 40:] == -1).all()
    assert (targets["segments"][:, :, 20:] == -1).all()


def test_the_embedded_scenes():
    source, scenes = PanopticShapes(3, (32, 48)), SemanticShapes(3, (32, 48))
    assert source.num_things == 7
    assert source.num_stuff == 3
    for index, example in enumerate(source.load().as_numpy_iterator()):
        scene, classes = scenes[index], example["labels"][example["segments"]]
        np.testing.assert_array_equal(example["image"], scene["image"])
        np.testing.assert_array_equal(classes, scene["semantic"])
        for row, mask in enumerate(scene["masks"]):
            np.testing.assert_array_equal(example["segments"] == row, mask)
        truth = source.load_segments(index)
        np.testing.assert_array_equal(truth["segments"], example["segments"])
        assert not truth["is_crowd"].any()
    assert source.check().sum() == sum(len(source.load_segments(index)["labels"]) for index in range(3))


def test_batches_of_scenes():
    source = PanopticShapes(5, (32, 48))
    augment = DetectionAugmentation(image_size=(64, 64), scale_range=(0.5, 2.0))
    batches = [
        next(panoptic_training_batches(source, 2, augment, seed=3).as_numpy_iterator()) for _ in range(2)
    ]
    keras.tree.map_structure(np.testing.assert_array_equal, *batches)
    inputs, targets = batches[0]
    assert inputs["images"].shape == (2, 64, 64, 3)
    assert targets["segments"].shape == (2, 64, 64)
    for segments, labels in zip(targets["segments"], targets["labels"], strict=True):
        occurring = np.unique(segments[segments >= 0])
        assert set(occurring) == set(np.flatnonzero(labels != -1))
    sizes = [
        len(inputs["images"])
        for inputs, _ in panoptic_evaluation_batches(source, 2, (64, 64)).as_numpy_iterator()
    ]
    assert sizes == [2, 2, 1]


@pytest.mark.skipif(not FACADES.is_dir(), reason="the developers' street scenes are not here")
def test_street_scenes():
    source = PanopticDataset(
        FACADES / "annotations/panoptic_val.json", FACADES / "images/val", FACADES / "panoptic/val"
    )
    assert (source.num_things, source.num_stuff) == (5, 5)
    counts = source.check(progress=False)
    assert counts.sum() == 1481
    assert counts[source.class_names.index("window")] == 1042
