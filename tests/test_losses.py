import keras
import numpy as np
import pytest
import tensorflow as tf
from golden_reference import load

from heads.ops.losses import (
    average_losses,
    average_values,
    binary_cross_entropy,
    distribution_focal_loss,
    giou_loss,
    quality_focal_loss,
    semantic_cross_entropy,
    sigmoid_focal_loss,
    smooth_l1_loss,
)


def make_batch(shape=(2, 5, 7), num_classes=4, ignored=0.3, seed=0):
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, num_classes, shape).astype("int32")
    labels[generator.random(shape) < ignored] = 255
    return labels, 3 * generator.normal(size=(*shape, num_classes)).astype("float32")


def cross_entropy_by_loop(labels, logits, ignore_label=255):
    total = 0.0
    rows = logits.reshape(-1, logits.shape[-1]).astype("float64")
    for label, row in zip(labels.ravel(), rows, strict=True):
        if label != ignore_label:
            total += np.log(np.exp(row).sum()) - row[label]
    return total / labels.size


def gradient_of(labels, logits):
    logits = tf.Variable(logits)
    with tf.GradientTape() as tape:
        loss = semantic_cross_entropy(labels, logits)
    return tape.gradient(loss, logits).numpy()


@pytest.mark.parametrize("ignored", [0.0, 0.3, 0.9])
def test_cross_entropy_equals_loop(ignored):
    labels, logits = make_batch(ignored=ignored)
    expected = cross_entropy_by_loop(labels, logits)
    assert float(semantic_cross_entropy(labels, logits)) == pytest.approx(expected, rel=1e-5)
    assert float(tf.function(semantic_cross_entropy)(labels, logits)) == pytest.approx(expected, rel=1e-5)


def test_cross_entropy_by_hand():
    # Four pixels with two equal logits: log 2 each. Two are ignored but count in the average.
    labels = np.array([[[0, 255], [1, 255]]], "int32")
    assert float(semantic_cross_entropy(labels, np.zeros((1, 2, 2, 2), "float32"))) == pytest.approx(
        np.log(2.0) / 2
    )


def test_gradient_is_probability_minus_truth():
    labels, logits = make_batch()
    probabilities = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    truth = np.eye(4)[np.where(labels == 255, 0, labels)]
    expected = np.where((labels != 255)[..., None], probabilities - truth, 0.0) / labels.size
    np.testing.assert_allclose(gradient_of(labels, logits), expected, rtol=1e-4, atol=1e-7)


def test_all_ignored_gives_zero_and_no_gradient():
    labels, logits = make_batch(ignored=1.0)
    assert (labels == 255).all()
    assert float(semantic_cross_entropy(labels, logits)) == 0.0
    np.testing.assert_array_equal(gradient_of(labels, logits), np.zeros_like(logits))


def test_infinite_logits_of_ignored_pixels_do_not_spread():
    labels, logits = make_batch()
    expected = float(semantic_cross_entropy(labels, logits))
    logits[labels == 255] = 1e30
    assert float(semantic_cross_entropy(labels, logits)) == pytest.approx(expected, rel=1e-6)
    assert np.isfinite(gradient_of(labels, logits)).all()


def test_large_logits_are_stable():
    labels = np.array([[[0, 1]]], "int32")
    logits = np.array([[[[1000.0, -1000.0], [1000.0, -1000.0]]]], "float32")
    assert float(semantic_cross_entropy(labels, logits)) == pytest.approx(1000.0)


@pytest.mark.parametrize("dtype", ["uint8", "int64", "float32"])
def test_labels_of_other_dtypes(dtype):
    labels, logits = make_batch()
    assert float(semantic_cross_entropy(labels.astype(dtype), logits)) == pytest.approx(
        cross_entropy_by_loop(labels, logits), rel=1e-5
    )


def test_half_precision_logits_give_a_float32_loss():
    labels, logits = make_batch()
    loss = semantic_cross_entropy(labels, keras.ops.cast(logits, "bfloat16"))
    assert keras.backend.standardize_dtype(loss.dtype) == "float32"
    assert float(loss) == pytest.approx(cross_entropy_by_loop(labels, logits), rel=0.01)


def test_other_ignore_label():
    labels, logits = make_batch(ignored=0.0)
    expected = cross_entropy_by_loop(labels, logits, ignore_label=2)
    assert float(semantic_cross_entropy(labels, logits, ignore_label=2)) == pytest.approx(expected, rel=1e-5)


def make_logits(shape=(4, 5), seed=0):
    random = np.random.default_rng(seed)
    return (random.random(shape) < 0.4).astype("float32"), 3 * random.normal(size=shape).astype("float32")


def focal_loss_of(target, logit, alpha, gamma):
    score = 1 / (1 + np.exp(-float(logit)))
    if target == 1:
        return -alpha * (1 - score) ** gamma * np.log(score)
    return -(1 - alpha) * score**gamma * np.log(1 - score)


def smooth_l1_of(target, prediction, beta):
    error = abs(float(prediction) - float(target))
    return 0.5 * error**2 / beta if error < beta else error - 0.5 * beta


@pytest.mark.parametrize(("alpha", "gamma"), [(0.25, 2.0), (0.75, 1.0), (0.5, 0.0)])
def test_focal_loss_equals_loop(alpha, gamma):
    targets, logits = make_logits()
    expected = [
        [focal_loss_of(t, x, alpha, gamma) for t, x in zip(*rows, strict=True)]
        for rows in zip(targets, logits, strict=True)
    ]
    np.testing.assert_allclose(sigmoid_focal_loss(targets, logits, alpha, gamma), expected, rtol=1e-4)
    np.testing.assert_allclose(sigmoid_focal_loss(targets > 0, logits, alpha, gamma), expected, rtol=1e-4)


def test_binary_cross_entropy_equals_loop():
    targets, logits = make_logits()
    targets[0] = np.linspace(0.1, 0.9, 5)
    scores = 1 / (1 + np.exp(-logits.astype("float64")))
    expected = -(targets * np.log(scores) + (1 - targets) * np.log(1 - scores))
    np.testing.assert_allclose(binary_cross_entropy(targets, logits), expected, rtol=1e-4)


@pytest.mark.parametrize("loss", [binary_cross_entropy, sigmoid_focal_loss])
def test_large_logits_of_single_scores_are_stable(loss):
    logits = tf.constant([-1000.0, -1000.0, 0.0, 1000.0, 1000.0])
    targets = tf.constant([0.0, 1.0, 1.0, 1.0, 0.0])
    with tf.GradientTape() as tape:
        tape.watch(logits)
        losses = loss(targets, logits)
    weights = np.array([0.75, 0.25, 0.25**2, 0.25, 0.75]) if loss is sigmoid_focal_loss else np.ones(5)
    np.testing.assert_allclose(losses, weights * [0, 1000, np.log(2), 0, 1000], rtol=1e-6)
    slopes = tape.gradient(losses, logits)
    assert np.isfinite(slopes).all()
    np.testing.assert_allclose(slopes.numpy()[[0, 1, 3, 4]], (weights * [0, -1, 0, 0, 1])[[0, 1, 3, 4]])


def test_gradient_of_binary_cross_entropy_is_score_minus_target():
    # Also at 0, where the common formula has kinks.
    targets, logits = np.array([0.0, 1.0, 0.0, 1.0], "float32"), tf.constant([0.0, 0.0, 2.0, -1.0])
    with tf.GradientTape() as tape:
        tape.watch(logits)
        loss = binary_cross_entropy(targets, logits)
    np.testing.assert_allclose(tape.gradient(loss, logits), tf.sigmoid(logits) - targets, rtol=1e-5)


def test_focal_loss_without_focus_has_finite_gradients():
    logits = tf.constant([-1000.0, 0.0, 1000.0])
    with tf.GradientTape() as tape:
        tape.watch(logits)
        losses = sigmoid_focal_loss(tf.constant([0.0, 0.0, 0.0]), logits, gamma=0)
    np.testing.assert_allclose(tape.gradient(losses, logits), [0.0, 0.375, 0.75])


@pytest.mark.parametrize("beta", [1.0, 1 / 9, 5.0])
def test_smooth_l1_equals_loop(beta):
    random = np.random.default_rng(0)
    targets, predictions = random.normal(size=(2, 6, 4)).astype("float32")
    expected = [smooth_l1_of(t, p, beta) for t, p in zip(targets.ravel(), predictions.ravel(), strict=True)]
    np.testing.assert_allclose(np.ravel(smooth_l1_loss(targets, predictions, beta)), expected, rtol=1e-4)


def test_smooth_l1_without_parabola_is_the_absolute_error():
    targets, predictions = np.array([1.0, 2.0, 3.0], "float32"), np.array([1.0, 5.0, 1.0], "float32")
    assert np.asarray(smooth_l1_loss(targets, predictions, 0)).tolist() == [0, 3, 2]


def test_detection_losses_equal_reference():
    reference = load("ops/box_losses.npz")
    targets = np.eye(6)[reference["labels"]][:, :5]  # the last label is background
    losses = np.asarray(sigmoid_focal_loss(targets, reference["logits"]))
    total = (losses * reference["weights"][:, None]).sum() / 7
    assert total == pytest.approx(float(reference["focal_avg7"]), rel=1e-6)
    for name, beta in (("smoothl1_b1", 1.0), ("smoothl1_b19", 1 / 9), ("l1", 0)):
        total = np.sum(smooth_l1_loss(reference["y"], reference["x"], beta)) / 8
        assert total == pytest.approx(float(reference[f"{name}_avg8"]), rel=1e-6)


def test_losses_of_scores_and_boxes_equal_reference():
    reference = load("ops/box_losses.npz")
    targets = np.zeros((12, 5), "float32")
    for row, label in enumerate(reference["labels"]):
        if label < 5:
            targets[row, label] = reference["qfl_score"][row]
    losses = np.asarray(quality_focal_loss(targets, reference["logits"]))
    total = (losses.sum(axis=1) * reference["weights"]).sum() / 7
    assert total == pytest.approx(float(reference["qfl_avg7"]), rel=1e-6)
    mean = np.mean(giou_loss(reference["b"][:20], reference["a"]))
    assert mean == pytest.approx(float(reference["giou_loss_mean_aligned"]), rel=1e-6)


def test_quality_focal_loss_equals_loop():
    targets, logits = np.random.default_rng(0).normal(size=(2, 6, 3)).astype("float32")
    targets = np.clip(np.abs(targets), 0, 1) * (targets > 0.3)
    expected = []
    for target, logit in zip(targets.ravel(), logits.ravel(), strict=True):
        score = 1 / (1 + np.exp(-logit))
        entropy = -target * np.log(score) - (1 - target) * np.log(1 - score)
        expected.append(abs(target - score) ** 2 * entropy)
    np.testing.assert_allclose(np.ravel(quality_focal_loss(targets, logits)), expected, rtol=1e-4)


def test_distribution_focal_loss_by_hand():
    # Four equal bins: log 4 whatever the target; a sure bin 2 costs nothing if the target is 2.
    targets = np.array([0.0, 1.25, 2.0], "float32")
    logits = np.zeros((3, 4), "float32")
    logits[2, 2] = 50.0
    expected = [np.log(4), np.log(4), 0.0]
    np.testing.assert_allclose(distribution_focal_loss(targets, logits), expected, atol=1e-6)
    # Three quarters of bin 1 and a quarter of bin 2.
    logits[1] = np.log([0.01, 0.6, 0.3, 0.09])
    expected = -0.75 * np.log(0.6) - 0.25 * np.log(0.3)
    assert float(distribution_focal_loss(targets, logits)[1]) == pytest.approx(expected, rel=1e-5)


def test_average_of_losses():
    assert float(average_losses(tf.constant(6.0), tf.constant(4.0))) == 1.5
    assert float(average_losses(tf.constant(6.0), tf.constant(0.25))) == 6.0
    assert float(average_losses(tf.constant(0.0), tf.constant(0.0))) == 0.0


@pytest.mark.parametrize(
    "loss",
    [
        binary_cross_entropy,
        sigmoid_focal_loss,
        quality_focal_loss,
        lambda targets, x: smooth_l1_loss(targets, x, 1.0),
    ],
)
def test_elementwise_losses_of_half_precision_are_float32(loss):
    targets, logits = make_logits()
    half = keras.ops.cast(logits, "bfloat16")
    found = loss(targets, half)
    assert keras.backend.standardize_dtype(found.dtype) == "float32"
    np.testing.assert_array_equal(found, loss(targets, keras.ops.cast(half, "float32")))
    assert loss(targets[:0], logits[:0]).shape == (0, 5)


def test_the_mean_of_losses():
    losses = tf.constant(np.array([[1.0, 2.0], [3.0, 6.0], [0.0, 0.0]], "float32"))
    assert float(average_values(losses)) == 2.0
    assert float(average_values(losses[:0])) == 0.0
