"""Which objects the pictures of detectors show."""

import pathlib
import sys

import numpy as np
import pytest
import tensorflow as tf

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "examples"))

from detection_pictures import find_examples, keep_certain, resize_objects

from heads.coco.segmentations import encode_mask


def make_found(masks=True):
    """Returns two objects of a picture of 40 x 80."""
    mask = np.zeros((2, 40, 80), bool)
    mask[0, 10:20, 20:60] = mask[1, :4, :4] = True
    found = {
        "boxes": np.array([[20, 10, 60, 20], [0, 0, 4, 4]], "float32"),
        "scores": np.array([0.9, 0.2], "float32"),
        "labels": np.array([1, 0]),
        "names": ["bar", "square"],
    }
    return {**found, "masks": list(map(encode_mask, mask))} if masks else found


def test_objects_in_pixels_of_the_resized_picture():
    resized = resize_objects(make_found(), (40, 80), np.array([10, 40]))
    np.testing.assert_array_equal(resized["boxes"], [[10, 2.5, 30, 5], [0, 0, 2, 1]])
    expected = np.zeros((2, 10, 40), bool)
    expected[0, 3:5, 10:30] = expected[1, :1, :2] = True
    # Every fourth row has one place at which it is read, two may be right.
    assert (resized["masks"] != expected).sum() <= 20
    np.testing.assert_array_equal(resized["labels"], [1, 0])
    nothing = {name: values[:0] for name, values in make_found().items()}
    assert resize_objects(nothing, (40, 80), (10, 40))["masks"].shape == (0, 10, 40)


def test_doubtful_objects_are_left_out():
    kept = keep_certain(make_found(), 0.2)
    assert len(kept["masks"]) == 2
    kept = keep_certain(make_found(), 0.5)
    np.testing.assert_array_equal(kept["boxes"], [[20, 10, 60, 20]])
    assert len(kept["masks"]) == 1
    assert "masks" not in keep_certain(make_found(masks=False), 0.5)


class Detector:
    """Finds one object of label 0 in each picture, at the size of the image, and padding."""

    def predict_on_batch(self, inputs):
        np.testing.assert_array_equal(inputs["original_sizes"], inputs["image_sizes"])
        count = len(inputs["images"])
        return {
            "boxes": np.zeros((count, 2, 4), "float32"),
            "scores": np.tile([0.5, 0.0], (count, 1)),
            "labels": np.tile([0, -1], (count, 1)),
        }


def make_batches():
    """Returns three pictures of 40 x 80 that the model sees in 20 x 40, padded to 32 x 40."""
    inputs = {
        "images": np.zeros((3, 32, 40, 3), "float32"),
        "image_sizes": np.tile([20, 40], (3, 1)),
        "original_sizes": np.tile([40, 80], (3, 1)),
    }
    truth = {"boxes": np.zeros((3, 1, 4), "float32"), "labels": np.zeros((3, 1), "int32")}
    return tf.data.Dataset.from_tensor_slices((inputs, truth)).batch(2)


def test_labels_of_the_model_become_those_of_the_truth():
    examples = find_examples(Detector(), make_batches(), {0, 2}, labels=[1, 0])
    assert set(examples) == {0, 2}
    for image, truth, detections in examples.values():
        assert image.shape == (20, 40, 3)
        np.testing.assert_array_equal(truth["labels"], [0])
        np.testing.assert_array_equal(detections["labels"], [1, -1])


@pytest.mark.parametrize("labels", [None, [1, 0]])
def test_what_was_found_is_shown_where_it_is(labels):
    found = [make_found(masks=False) for _ in range(3)]
    found[2]["scores"] = found[2]["scores"] / 2
    examples = find_examples(None, make_batches(), {1, 2}, found, labels)
    for place, factor in ((1, 1), (2, 2)):
        detections = examples[place][2]
        np.testing.assert_array_equal(detections["boxes"], make_found()["boxes"] / 2)
        np.testing.assert_allclose(detections["scores"], np.array([0.9, 0.2]) / factor, rtol=1e-6)
        np.testing.assert_array_equal(detections["labels"], [1, 0] if labels is None else [0, 1])
