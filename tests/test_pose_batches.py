import numpy as np
import pytest
import tensorflow as tf

from heads.data import KeypointShapes, PoseAugmentation, pose_evaluation_batches, pose_training_batches


@pytest.fixture(scope="module")
def shapes():
    return KeypointShapes(12, (64, 64), seed=3)


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
