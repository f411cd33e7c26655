import keras
import numpy as np
import pytest
import tensorflow as tf

from heads.losses import semantic_cross_entropy


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
    # Four pixels of two equal logits: log 2 each. Two are ignored but count in the average.
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
