import json

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from heads.data import CocoKeypoints, KeypointShapes, PoseAugmentation, pose_training_batches
from heads.data.coco_keypoints import find_flip_pairs
from heads.data.shapes.keypoints import FLIP_PAIRS
from heads.data.shapes.scenes import draw_scene


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
