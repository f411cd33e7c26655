import keras
import numpy as np

from heads.ops.label_overlaps import measure_overlaps


def test_by_hand_in_both_modules():
    # Class 0: 3 of 4 pixels right, one more predicted; class 1: nothing right; class 2 does not occur.
    counts = np.array([[3, 1, 0], [1, 0, 0], [0, 0, 0]])
    for arrays, values in ((np, counts), (keras.ops, keras.ops.convert_to_tensor(counts.astype("float32")))):
        iou, occurs = measure_overlaps(values, arrays)
        np.testing.assert_allclose(iou, [3 / 5, 0, 0], rtol=1e-6)
        assert np.asarray(occurs).tolist() == [True, True, False]


def test_predictions_that_are_no_class_are_wrong():
    iou, occurs = measure_overlaps(np.array([[2, 0, 2], [0, 1, 0]]), np)
    np.testing.assert_allclose(iou, [0.5, 1.0])
    assert occurs.all()


def test_equals_a_loop_over_pixels():
    random = np.random.default_rng(0)
    labels, predictions = random.integers(0, 5, (2, 1000))
    counts = np.zeros((6, 6), int)
    np.add.at(counts, (labels, predictions), 1)
    iou, occurs = measure_overlaps(counts, np)
    for label in range(6):
        both = sum(1 for pair in zip(labels, predictions, strict=True) if pair == (label, label))
        either = sum(1 for pair in zip(labels, predictions, strict=True) if label in pair)
        assert occurs[label] == (either > 0)
        assert iou[label] == (both / either if either else 0)
    assert iou.dtype == np.float64
