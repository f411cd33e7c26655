import numpy as np
import pytest
import tensorflow as tf
from golden_reference import load

from heads.ops.suppression import suppress_boxes, suppress_sorted_boxes


def make_batch(num_boxes=60, batch=2, num_classes=3, seed=0):
    """Returns crowded boxes, scores with ties and some of 0 and below, and labels."""
    random = np.random.default_rng(seed)
    centers, sides = (
        random.uniform(0, 60, (batch, num_boxes, 2)),
        random.uniform(8, 40, (batch, num_boxes, 2)),
    )
    boxes = np.concatenate([centers - sides / 2, centers + sides / 2], -1).astype("float32")
    scores = np.round(random.uniform(-0.1, 1, (batch, num_boxes)), 1).astype("float32")
    return boxes, scores, random.integers(0, num_classes, (batch, num_boxes)).astype("int32")


def iou_of(a, b):
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    overlap = float(width) * float(height) if width > 0 and height > 0 else 0.0
    union = sum(float(c[2] - c[0]) * float(c[3] - c[1]) for c in (a, b)) - overlap
    return overlap / union if union > 0 else 0.0


def suppress_by_loop(boxes, scores, labels, iou_threshold):
    """Returns the indices of the boxes of one image that stay, the best first."""
    kept = []
    for i in sorted(range(len(boxes)), key=lambda i: -scores[i]):
        rivals = [j for j in kept if labels[j] == labels[i]]
        if scores[i] > 0 and all(iou_of(boxes[i], boxes[j]) <= iou_threshold for j in rivals):
            kept.append(i)
    return kept


def run_in_graph(function, *inputs):
    """Runs a function in a TensorFlow graph that knows no sizes."""
    inputs = [tf.convert_to_tensor(x) for x in inputs]
    unknown = [tf.TensorSpec((None, None, 4) if len(x.shape) == 3 else (None, None), x.dtype) for x in inputs]
    return tf.function(function, input_signature=unknown)(*inputs).numpy()


@pytest.mark.parametrize("max_detections", [1, 10, 80])
@pytest.mark.parametrize("iou_threshold", [0.0, 0.3, 0.7, 1.0])
def test_suppression_equals_loop(iou_threshold, max_detections):
    boxes, scores, labels = make_batch()
    expected = np.full((2, max_detections), -1)
    for image in range(2):
        kept = suppress_by_loop(boxes[image], scores[image], labels[image], iou_threshold)[:max_detections]
        expected[image, : len(kept)] = kept
    found = suppress_boxes(boxes, scores, labels, iou_threshold, max_detections)
    np.testing.assert_array_equal(found, expected)
    assert found.dtype == "int32"


def test_images_of_a_batch_may_end_early():
    boxes, scores, labels = make_batch(batch=3)
    scores[1] = 0.0
    scores[2, 5:] = -np.inf
    scores[2, :5] = 0.5
    found = run_in_graph(lambda *inputs: suppress_boxes(*inputs, 0.5, 40), boxes, scores, labels)
    for image in range(3):
        expected = suppress_by_loop(boxes[image], scores[image], labels[image], 0.5)[:40]
        assert found[image].tolist() == expected + [-1] * (40 - len(expected))
    assert (found[1] == -1).all()


def test_equal_scores_come_by_index():
    boxes = np.array([[[0, 0, 10, 10], [50, 0, 60, 10], [1, 0, 11, 10]]], "float32")
    scores, labels = np.full((1, 3), 0.5, "float32"), np.zeros((1, 3), "int32")
    assert suppress_boxes(boxes, scores, labels, 0.5, 4).numpy().tolist() == [[0, 1, -1, -1]]


def test_no_boxes():
    for n in (0, 1):
        boxes, scores, labels = make_batch(n)
        found = run_in_graph(lambda *inputs: suppress_boxes(*inputs, 0.5, 3), boxes, scores * 0, labels)
        np.testing.assert_array_equal(found, np.full((2, 3), -1))
        valid = np.zeros((2, n), bool)
        kept = run_in_graph(lambda *inputs: suppress_sorted_boxes(*inputs, 0.5), boxes, valid)
        np.testing.assert_array_equal(kept, valid)
    assert suppress_boxes(*make_batch(0), 0.5, 3).numpy().tolist() == [[-1] * 3] * 2


def test_boxes_without_area_stay_and_are_picked_once():
    boxes = np.array([[[5, 5, 5, 9], [5, 5, 5, 9], [0, 0, 0, 0], [0, 0, 10, 10]]], "float32")
    scores, labels = np.array([[0.9, 0.8, 0.7, 0.6]], "float32"), np.zeros((1, 4), "int32")
    tf.debugging.enable_check_numerics()
    try:
        found = suppress_boxes(boxes, scores, labels, 0.5, 6)
        kept = suppress_sorted_boxes(boxes, np.ones((1, 4), bool), 0.5)
    finally:
        tf.debugging.disable_check_numerics()
    assert found.numpy().tolist() == [[0, 1, 2, 3, -1, -1]]
    assert kept.numpy().tolist() == [[True] * 4]


def test_only_an_iou_above_the_threshold_suppresses():
    boxes = np.array([[[0, 0, 10, 10], [0, 0, 10, 5], [0, 0, 10, 5.1]]], "float32")
    scores, labels = np.array([[0.9, 0.8, 0.7]], "float32"), np.zeros((1, 3), "int32")
    assert suppress_boxes(boxes, scores, labels, 0.5, 3).numpy().tolist() == [[0, 1, -1]]
    assert suppress_sorted_boxes(boxes, np.ones((1, 3), bool), 0.5).numpy().tolist() == [[True, True, False]]


@pytest.mark.parametrize("suppress", ["picking", "sorted"])
def test_what_is_suppressed_suppresses_nothing(suppress):
    # Each box overlaps only its neighbours: every second one stays, and the last one depends on all before
    # it.
    boxes = np.array([[[4 * i, 0, 4 * i + 10, 10] for i in range(30)]], "float32")
    if suppress == "picking":
        scores = np.linspace(1, 0.1, 30, dtype="float32")[None]
        found = suppress_boxes(boxes, scores, np.zeros((1, 30), "int32"), 0.4, 30)[0]
        assert found.numpy().tolist() == [*range(0, 30, 2)] + [-1] * 15
    else:
        kept = suppress_sorted_boxes(boxes, np.ones((1, 30), bool), 0.4)[0]
        assert np.flatnonzero(kept).tolist() == [*range(0, 30, 2)]


@pytest.mark.parametrize("max_detections", [5, 400])
def test_several_blocks(max_detections):
    boxes, scores, labels = make_batch(400, batch=3)
    scores[1] = 0.0
    boxes[2] *= 1e5
    found = run_in_graph(lambda *inputs: suppress_boxes(*inputs, 0.3, max_detections), boxes, scores, labels)
    for image in range(3):
        expected = suppress_by_loop(boxes[image], scores[image], labels[image], 0.3)[:max_detections]
        assert found[image].tolist() == expected + [-1] * (max_detections - len(expected))


def test_equal_boxes_and_long_chains_over_blocks():
    starts = 4.0 * np.arange(300)
    boxes = np.stack([starts, 0 * starts, starts + 10, 0 * starts + 10], -1)[None].astype("float32")
    scores, labels = np.linspace(1, 0.1, 300, dtype="float32")[None], np.zeros((1, 300), "int32")
    assert suppress_boxes(boxes, scores, labels, 0.4, 150).numpy().tolist() == [[*range(0, 300, 2)]]
    equal = np.repeat(boxes[:, :1], 300, axis=1)
    assert suppress_boxes(equal, 0 * scores + 0.5, labels, 0.4, 3).numpy().tolist() == [[0, -1, -1]]


@pytest.mark.parametrize("iou_threshold", [0.0, 0.3, 0.7, 1.0])
def test_sorted_suppression_equals_loop(iou_threshold):
    boxes = make_batch(batch=3)[0]
    valid = np.random.default_rng(1).random((3, 60)) < 0.8
    valid[2] = False
    expected = np.zeros((3, 60), bool)
    for image in range(3):
        # Falling scores, 0 where not valid.
        scores = np.linspace(1, 0.1, 60) * valid[image]
        expected[image, suppress_by_loop(boxes[image], scores, np.zeros(60), iou_threshold)] = True
    kept = suppress_sorted_boxes(boxes, valid, iou_threshold)
    np.testing.assert_array_equal(kept, expected)
    kept = run_in_graph(lambda *inputs: suppress_sorted_boxes(*inputs, iou_threshold), boxes, valid)
    np.testing.assert_array_equal(kept, expected)


@pytest.mark.parametrize("iou_threshold", [0.3, 0.5, 0.6, 0.7])
def test_suppression_equals_reference(iou_threshold):
    reference = load("ops/nms.npz")
    boxes, scores, labels = reference["boxes"], reference["scores"], reference["idxs"]
    order = np.argsort(-scores, kind="stable")
    kept = suppress_sorted_boxes(boxes[order][None], np.ones((1, 300), bool), iou_threshold)[0]
    np.testing.assert_array_equal(order[kept], reference[f"nms_{iou_threshold}"])
    for classes, name in ((0 * labels, "nms"), (labels, "batched")):
        expected = reference[f"{name}_{iou_threshold}"]
        inputs = boxes[None], scores[None], classes[None]
        found = run_in_graph(lambda *inputs: suppress_boxes(*inputs, iou_threshold, 300), *inputs)[0]
        found = found[found >= 0]
        # Two boxes of the same score may swap.
        np.testing.assert_array_equal(scores[found], scores[expected])
        assert set(found) == set(expected)


def test_refuses_wrong_numbers():
    boxes, scores, labels = make_batch()
    with pytest.raises(ValueError, match=r"iou_threshold must be between 0 and 1\. Received: 50"):
        suppress_boxes(boxes, scores, labels, 50, 100)
    with pytest.raises(ValueError, match=r"iou_threshold must be between 0 and 1\. Received: -0.1"):
        suppress_sorted_boxes(boxes, scores > 0, -0.1)
    with pytest.raises(ValueError, match=r"max_detections must be 1 or more\. Received: 0"):
        suppress_boxes(boxes, scores, labels, 0.5, 0)
