"""The messages about faulty targets, and the losses that `fit` shows."""

import numpy as np
import pytest
import tensorflow as tf

from heads.layers.mean_iou import MeanIoU
from heads.ops.inputs import check_masks, read_inputs, read_targets
from heads.ops.losses import semantic_cross_entropy

SIZES = np.array([[60, 80]], "float32")


def make_targets(box, label=0):
    boxes = np.array([[[5, 5, 40, 40], box]], "float32")
    return {"boxes": boxes, "labels": np.array([[1, label]], "int32")}


@pytest.mark.parametrize(
    "box",
    [
        (20, 10, 20, 30),
        (0, 0, 0, 0),
        (40, 40, 5, 5),
        (90, 10, 99, 20),
        (5, 5, 40, 75),
        (-9, 5, 40, 40),
        (np.nan, 5, 40, 40),
        (5, 5, np.inf, 40),
    ],
)
@pytest.mark.parametrize("label", [0, -2])
def test_faulty_boxes(box, label):
    targets = make_targets(box, label)
    with pytest.raises(ValueError, match=r"boxes must be .*Received: .* as box 1 of image 0 of the batch"):
        read_targets(targets, 2, image_sizes=SIZES)
    checked, poisons = tf.function(lambda: read_targets(targets, 2, image_sizes=SIZES))()
    assert checked["labels"].numpy().tolist() == [[1, -1]]
    assert np.isfinite(checked["boxes"]).all()
    assert np.isnan(poisons["box_loss"])
    assert not np.isnan(poisons["class_loss"])
    read_targets({**targets, "labels": np.array([[1, -1]])}, 2, image_sizes=SIZES)  # padding


def test_normalized_boxes():
    targets = {"boxes": np.array([[[0.1, 0.1, 0.5, 0.6]]], "float32"), "labels": np.zeros((1, 1), "int32")}
    with pytest.raises(ValueError, match="boxes must be in pixels: multiply"):
        read_targets(targets, 2, image_sizes=SIZES)
    # What a crop leaves of an object in the top left corner.
    targets["boxes"][0, 0] = (0.0, 0.0, 0.5, 0.6)
    assert float(read_targets(targets, 2, image_sizes=SIZES)[1]["box_loss"]) == 0.0


def test_boxes_may_reach_out_by_a_rounded_pixel():
    _, poisons = read_targets(make_targets((-0.5, 0, 80.5, 60.9)), 2, image_sizes=SIZES)
    assert {float(poison) for poison in poisons.values()} == {0.0}


def test_faulty_image_sizes():
    images = np.zeros((1, 64, 64, 3), "float32")
    for size in ((65, 64), (0, 64), (np.nan, 64)):
        inputs = {"images": images, "image_sizes": np.array([size], "float32")}
        with pytest.raises(ValueError, match=r"image_sizes must be .*for image 0 of the batch"):
            read_inputs(inputs)
        _, sizes = tf.function(read_inputs)(inputs)
        assert np.isnan(sizes["image_sizes"]).all()
    with pytest.raises(ValueError, match="original_sizes must be"):
        read_inputs({"images": images, "original_sizes": np.array([[0, 5]])})


def test_faulty_masks():
    level = np.zeros((1, 16, 16, 8), "float32")
    for masks in (np.ones((1, 2, 64, 62), "uint8"), np.ones((1, 2, 64, 64), bool)):
        assert float(check_masks(masks, level)) == 0.0
    with pytest.raises(ValueError, match=r"masks must have .* \(64, 64\)\. Received: \(32, 64\)"):
        check_masks(np.ones((1, 2, 32, 64), "uint8"), level)
    with pytest.raises(ValueError, match=r"masks must be 0 or 1\. Received: values up to 255"):
        check_masks(np.full((1, 2, 64, 64), 255, "uint8"), level)


@pytest.mark.parametrize("label", [3, -1, 0.5, 254])
def test_faulty_label_maps(label):
    labels, logits = np.full((2, 4, 5), 255.0, "float32"), np.zeros((2, 4, 5, 3), "float32")
    labels[1, 2, 3] = label
    with pytest.raises(ValueError, match=r"labels must be .*\(row, column\) \(2, 3\) of image 1") as caught:
        semantic_cross_entropy(labels, logits)
    assert len(str(caught.value)) < 200
    assert np.isnan(tf.function(semantic_cross_entropy)(labels, logits))


def test_shapes_of_label_maps():
    labels, logits = np.ones((2, 4, 5), "int32"), np.ones((2, 4, 5, 3), "float32")
    expected = float(semantic_cross_entropy(labels, logits))
    assert float(semantic_cross_entropy(labels[..., None], logits)) == expected
    for faulty in (np.eye(3)[labels], labels[:, :2], labels[0], labels.astype(str)):
        with pytest.raises(ValueError, match=r"labels must be label maps \(batch, height, width\)"):
            semantic_cross_entropy(faulty, logits)
    with pytest.raises(ValueError, match=r"labels must be one array.*None"):
        semantic_cross_entropy(None, logits)


def test_mean_iou_knows_the_ignored_label():
    with pytest.raises(ValueError, match="num_classes must be between 1 and 255"):
        MeanIoU(256)
    assert float(MeanIoU(3).result()) == 0.0  # a number, so that the best is never NaN
