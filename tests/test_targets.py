"""Targets are checked: errors where values are known, NaN in graphs."""

import numpy as np
import pytest
import tensorflow as tf

from heads.targets import check_mask_size, read_label_maps, read_targets

LOGITS = np.zeros((2, 4, 6, 3), "float32")
LABELS = np.array([[[0, 1, 2, 255, 0, 0]] * 4] * 2)
SIZES = np.array([[40.0, 60.0], [30.0, 60.0]], "float32")
GOOD = (5.0, 5.0, 20.0, 30.0)


def make_targets(box, label=1):
    boxes = np.array([[GOOD, (0, 0, 0, 0)], [GOOD, box]], "float32")
    return {"boxes": boxes, "labels": np.array([[0, -1], [2, label]])}


@pytest.mark.parametrize("dtype", ["uint8", "int32", "int64", "uint16"])
def test_label_maps_of_any_integer_type(dtype):
    labels, poison = read_label_maps(LABELS.astype(dtype), LOGITS)
    np.testing.assert_array_equal(labels, LABELS)
    assert float(poison) == 0
    np.testing.assert_array_equal(read_label_maps(LABELS[..., None], LOGITS)[0], LABELS)


def test_faulty_label_maps_raise():
    with pytest.raises(ValueError, match=r"must be label maps .*\(2, 4, 6\)\. Received: shape \(2, 4, 5\)"):
        read_label_maps(LABELS[:, :, :5], LOGITS)
    with pytest.raises(ValueError, match=r"Received: shape \(2, 4, 6, 3\)"):
        read_label_maps(np.zeros((2, 4, 6, 3), int), LOGITS)
    with pytest.raises(ValueError, match=r"must be label maps of integers, 0 .. 2 or 255. Received: float32"):
        read_label_maps(np.float32(LABELS), LOGITS)
    with pytest.raises(ValueError, match=r"labels must be 0 .. 2.* Received: 3 in image 1 .*, at \[2, 4\]"):
        read_label_maps(LABELS + 3 * (np.arange(48).reshape(2, 4, 6) == 40), LOGITS)


@pytest.mark.parametrize("label", [3, -1, 254, 256])
def test_label_maps_out_of_range_poison_graphs(label):
    labels = np.where(LABELS == 2, label, LABELS)
    read, poison = tf.function(read_label_maps)(labels, LOGITS)
    assert np.isnan(float(poison))
    np.testing.assert_array_equal(read, np.where(LABELS == 2, 255, LABELS))


@pytest.mark.parametrize(
    "box",
    [
        (20, 10, 20, 30),  # no width
        (20, 30, 40, 30),  # no height
        (0, 0, 0, 0),
        (40, 10, 20, 30),  # from right to left
        (20, 30, 40, 10),
        (60, 0, 80, 10),  # right of the image
        (0, 30, 10, 40),  # below the second image, in its padding
        (-20, 0, 0, 10),
        (0, -20, 10, -1),
        (float("nan"), 0, 10, 10),
        (0, 0, float("inf"), 10),
        (0, 0, 10, float("nan")),
    ],
)
def test_boxes_that_cannot_be_learned(box):
    with pytest.raises(ValueError, match=r"boxes must be finite.* in image 1 of the batch, at \[1\]"):
        read_targets(make_targets(box), 3, SIZES)
    with pytest.raises(ValueError, match="boxes must be finite"):
        read_targets(make_targets(box, label=-2), 3, SIZES)
    _, poison = tf.function(lambda boxes, labels: read_targets({"boxes": boxes, "labels": labels}, 3, SIZES))(
        **make_targets(box)
    )
    assert np.isnan(float(poison))
    assert float(read_targets(make_targets(box, label=-1), 3, SIZES)[1]) == 0  # padding may be anything


@pytest.mark.parametrize("box", [(-5, -5, 70, 50), (59.5, 29.5, 60, 30), (0, 0, 0.5, 0.5)])
def test_boxes_at_the_border_can_be_learned(box):
    targets, poison = read_targets(make_targets(box), 3, SIZES)
    assert float(poison) == 0
    np.testing.assert_array_equal(targets["boxes"][1, 1], np.float32(box))


def test_shares_of_the_size_are_told_from_pixels():
    targets = make_targets((0.1, 0.2, 0.9, 0.8))
    targets["boxes"][:, 0] = (0.2, 0.0, 1.0, 0.5)
    with pytest.raises(ValueError, match="boxes must be in pixels, not shares"):
        read_targets(targets, 3, SIZES)


def test_numbers_of_boxes_labels_and_masks_must_agree():
    targets = make_targets(GOOD)
    with pytest.raises(ValueError, match=r"Received shapes: .*'labels': \(2, 1\)"):
        read_targets({**targets, "labels": targets["labels"][:, :1]}, 3, SIZES)
    with pytest.raises(ValueError, match=r"Received shapes: .*'masks': \(2, 3, 40, 60\)"):
        read_targets({**targets, "masks": np.zeros((2, 3, 40, 60))}, 3, SIZES, with_masks=True)


@pytest.mark.parametrize("size", [(37, 60), (40, 57), (40, 60)])
def test_masks_of_the_size_of_the_images(size):
    level = np.zeros((2, 10, 15, 8))
    assert float(check_mask_size(np.zeros((2, 1, *size)), level)) == 0
    with pytest.raises(ValueError, match=rf"Received: \(height, width\) \({size[0]}, 80\)"):
        check_mask_size(np.zeros((2, 1, size[0], 80)), level)


def test_masks_of_unknown_size_poison_graphs():
    unknown = tf.TensorSpec((None, None, None, None), tf.float32)
    check = tf.function(check_mask_size, input_signature=[unknown, unknown])
    level = tf.zeros((2, 10, 15, 8))
    assert float(check(tf.zeros((2, 1, 40, 60)), level)) == 0
    assert np.isnan(float(check(tf.zeros((2, 1, 41, 60)), level)))
