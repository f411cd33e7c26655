"""The losses of label maps that a segmenter can choose, and what they do for rare classes."""

import os
import pathlib
import subprocess
import sys

import contracts
import keras
import numpy as np
import pytest
import tensorflow as tf

from heads import SemanticFPN, UPerNet
from heads.data import balance_classes
from heads.ops.losses import (
    SEGMENTATION_LOSSES,
    check_segmentation_loss,
    segmentation_loss,
    semantic_cross_entropy,
    semantic_dice_loss,
    semantic_focal_loss,
)

WEIGHTS = [0.5, 2.0, 0.0, 7.0]


def make_batch(shape=(3, 5, 7), num_classes=4, ignored=0.3, seed=0):
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, num_classes, shape).astype("int32")
    labels[generator.random(shape) < ignored] = 255
    labels[0][labels[0] == 3] = 1  # a class that one picture does not have
    return labels, 2 * generator.normal(size=(*shape, num_classes)).astype("float32")


def softmax(logits):
    powers = np.exp(logits.astype("float64") - logits.max())
    return powers / powers.sum(-1, keepdims=True)


def find_gradient(loss, labels, logits, class_weights):
    logits = tf.Variable(logits)
    with tf.GradientTape() as tape:
        value = segmentation_loss(labels, logits, loss, class_weights)
    return float(value), tape.gradient(value, logits).numpy()


# The cross-entropy with class weights.


def test_weighted_cross_entropy_by_hand():
    # Probabilities of the truth: 1/2 of class 0 and 1/4 of class 1.
    labels = np.array([[[0, 1, 255]]], "int32")
    logits = np.log(np.array([[[[1, 1], [3, 1], [1, 9]]]], "float32"))
    expected = (1 * np.log(2) + 3 * np.log(4)) / (1 + 3)
    for scale in (1.0, 1e-3, 1e3):
        weights = [1.0 * scale, 3.0 * scale]
        found = semantic_cross_entropy(labels, logits, class_weights=weights)
        assert float(found) == pytest.approx(expected, rel=1e-5)


def test_weighted_cross_entropy_is_that_of_pytorch():
    torch = pytest.importorskip("torch")
    labels, logits = make_batch()
    expected = torch.nn.functional.cross_entropy(
        torch.tensor(logits).reshape(-1, 4),
        torch.tensor(labels).reshape(-1).long(),
        weight=torch.tensor(WEIGHTS),
        ignore_index=255,
    )
    found = semantic_cross_entropy(labels, logits, class_weights=WEIGHTS)
    assert float(found) == pytest.approx(float(expected), rel=1e-5)


# The focal loss.


def test_focal_loss_by_hand():
    # All scores are 1/2: each answer has an error of 1/2, a cross-entropy of log 2, and the weight 1/2.
    one = 0.5 * 0.5**2 * np.log(2)
    labels = np.array([[[0, 1], [1, 255]]], "int32")
    logits = np.zeros((1, 2, 2, 2), "float32")
    assert float(semantic_focal_loss(labels, logits)) == pytest.approx(one * 3 / 4, rel=1e-5)
    found = semantic_focal_loss(labels, logits, class_weights=[1.0, 3.0])
    assert float(found) == pytest.approx(one * 2 * 3 / 4, rel=1e-5)


def test_focal_loss_equals_loop():
    labels, logits = make_batch()
    total = 0.0
    for label, row in zip(labels.ravel(), logits.reshape(-1, 4), strict=True):
        for index, logit in enumerate(row if label != 255 else []):
            score = 1 / (1 + np.exp(-float(logit)))
            right = score if index == label else 1 - score
            total -= WEIGHTS[index] * 0.5 * (1 - right) ** 2 * np.log(right)
    found = semantic_focal_loss(labels, logits, class_weights=WEIGHTS)
    assert float(found) == pytest.approx(total / logits.size, rel=1e-4)


# The Dice loss.


def test_dice_loss_by_hand():
    # Class 0 has two pixels and class 1 one; each score is a half; class 2 does not occur.
    labels = np.array([[[0, 0, 1, 255]]], "int32")
    logits = np.zeros((1, 1, 4, 3), "float32")
    logits[..., 2] = -50.0
    first, second = 1 - (2 * 1.0 + 1) / (2 + 1.5 + 1), 1 - (2 * 0.5 + 1) / (1 + 1.5 + 1)
    assert float(semantic_dice_loss(labels, logits)) == pytest.approx((first + second) / 2, rel=1e-5)
    found = semantic_dice_loss(labels, logits, class_weights=[1.0, 3.0, 9.0])
    assert float(found) == pytest.approx((first + 3 * second) / 4, rel=1e-5)
    # A second picture counts as much as the first, however many of its pixels have truth.
    labels = np.concatenate([labels, [[[255, 255, 255, 2]]]]).astype("int32")
    logits = np.concatenate([logits, -logits])
    found = semantic_dice_loss(labels, logits)
    assert float(found) == pytest.approx((first + second) / 4, rel=1e-5)


def test_dice_loss_equals_loop():
    labels, logits = make_batch()
    pictures = []
    for label_map, scores in zip(labels, softmax(logits), strict=True):
        total = weight_sum = 0.0
        for index in np.unique(label_map[label_map != 255]):
            truth, score = label_map == index, scores[..., index] * (label_map != 255)
            dice = (2 * (truth * score).sum() + 1) / (truth.sum() + score.sum() + 1)
            total, weight_sum = total + WEIGHTS[index] * (1 - dice), weight_sum + WEIGHTS[index]
        pictures.append(total / weight_sum)
    found = semantic_dice_loss(labels, logits, class_weights=WEIGHTS)
    assert float(found) == pytest.approx(np.mean(pictures), rel=1e-4)


# All of them.


@pytest.mark.parametrize("loss", SEGMENTATION_LOSSES)
@pytest.mark.parametrize("class_weights", [None, WEIGHTS])
def test_ignored_pixels_do_not_count(loss, class_weights):
    labels, logits = make_batch()
    value, gradient = find_gradient(loss, labels, logits, class_weights)
    other = np.where((labels == 255)[..., None], np.float32([1e30, -1e30, 0, 5]), logits)
    found, found_gradient = find_gradient(loss, labels, other, class_weights)
    assert found == pytest.approx(value, rel=1e-5)
    np.testing.assert_allclose(found_gradient, gradient, atol=1e-7)
    assert not gradient[labels == 255].any()
    # Only ignored pixels.
    value, gradient = find_gradient(loss, np.full_like(labels, 255), logits, class_weights)
    assert value == 0.0
    np.testing.assert_array_equal(gradient, np.zeros_like(logits))


@pytest.mark.parametrize("loss", SEGMENTATION_LOSSES)
def test_a_class_without_weight_is_not_learnt(loss):
    labels, logits = make_batch((1, 4, 4), num_classes=2, ignored=0.0)
    labels[:] = 1
    labels[:, :2] = 0
    weights = [1.0, 0.0]
    if loss in ("cross_entropy", "cross_entropy+dice"):
        _, gradient = find_gradient("cross_entropy", labels, logits, weights)
        assert not gradient[labels == 1].any()
        assert gradient[labels == 0].all()
    value, _ = find_gradient(loss, labels, np.stack([50 + 0 * labels, 0 * labels], -1).astype("f"), weights)
    if loss in ("cross_entropy", "focal"):
        all_first = 0.5 * 50 if loss == "focal" else 0.0
        expected = all_first / 2 * 0.5 if loss == "focal" else 0.0
        assert value == pytest.approx(expected, rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("loss", SEGMENTATION_LOSSES)
def test_descending_finds_the_labels(loss):
    labels, logits = make_batch((2, 4, 4), num_classes=3, ignored=0.2)
    for _ in range(60):
        _, gradient = find_gradient(loss, labels, logits, [1.0, 2.0, 3.0])
        logits = logits - 0.5 * gradient / np.abs(gradient).max()
    known = labels != 255
    assert (logits.argmax(-1) == labels)[known].mean() > 0.95


def test_sums_of_two():
    labels, logits = make_batch()
    parts = [float(segmentation_loss(labels, logits, loss, WEIGHTS)) for loss in ("cross_entropy", "dice")]
    both = segmentation_loss(labels, logits, "cross_entropy+dice", WEIGHTS)
    assert float(both) == pytest.approx(sum(parts), rel=1e-6)


@pytest.mark.parametrize("loss", SEGMENTATION_LOSSES)
def test_labels_that_are_no_class_are_told(loss):
    labels, logits = make_batch()
    labels[1, 2, 3] = 4
    with pytest.raises(ValueError, match=r"class numbers 0 .. 3.*Received: 4 at \(row, column\) \(2, 3\)"):
        segmentation_loss(labels, logits, loss, WEIGHTS)
    assert np.isnan(tf.function(segmentation_loss)(tf.constant(labels), logits, loss, WEIGHTS))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("mse", None, 3), "loss must be one of .*'focal'.* Received: 'mse'"),
        (("dice", [1, 2], 3), r"number for each of the 3 classes.*Received: \[1, 2\]"),
        (("dice", [1, 2, -1], 3), r"0 or more.*Received: \[1, 2, -1\]"),
        (("dice", [1, 2, float("nan")], 3), "0 or more"),
        (("dice", [1, 2, "3"], 3), "number for each of the 3 classes"),
        (("dice", [0, 0, 0], 3), "not all 0"),
        (("dice", "balanced", 3), "Received: 'balanced'"),
        (("dice", 2.0, 3), "Received: 2.0"),
    ],
)
def test_what_makes_no_loss_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        check_segmentation_loss(*arguments)
    with pytest.raises(ValueError, match=message):
        SemanticFPN(contracts.PooledBackbone(), 3, loss=arguments[0], class_weights=arguments[1])


# In the heads.


def make_head(head, **options):
    keras.utils.set_random_seed(0)
    sizes = {"pyramid_channels": 8} if head is SemanticFPN else {"auxiliary_channels": 8}
    return head(contracts.PooledBackbone(), 4, channels=8, dropout_rate=0.0, **sizes, **options)


@pytest.mark.parametrize("head", [SemanticFPN, UPerNet])
def test_heads_keep_their_loss(head, tmp_path):
    model = make_head(head, loss="dice", class_weights=np.array(WEIGHTS))
    labels, _ = make_batch((2, 32, 32))
    images = np.random.default_rng(1).uniform(0, 255, (2, 32, 32, 3)).astype("float32")
    model.compile("sgd")
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert (loaded.loss, list(loaded.class_weights)) == ("dice", WEIGHTS)
    for each in (model, loaded):
        predictions = each(images, training=True)
        losses = each.compute_losses(labels, predictions)
        logits = predictions["logits"] if head is UPerNet else predictions
        expected = semantic_dice_loss(labels, logits, class_weights=WEIGHTS)
        assert float(losses["segmentation_loss"]) == pytest.approx(float(expected), rel=1e-5)
        if head is UPerNet:
            expected = 0.4 * semantic_dice_loss(labels, predictions["auxiliary_logits"], WEIGHTS)
            assert float(losses["auxiliary_loss"]) == pytest.approx(float(expected), rel=1e-5)
    assert make_head(head).get_config()["loss"] == "cross_entropy"


def find_recall(loss, class_weights):
    """Returns how many of 80 rare pixels among 8,000 a fit of two numbers to a noisy picture finds."""
    generator = np.random.default_rng(0)
    labels = np.zeros((2, 40, 100), "int32")
    labels[:, 10:14, 10:20] = 1
    brightness = (labels + 0.5 * generator.normal(size=labels.shape)).astype("float32")
    pair = slope, offset = tf.Variable(0.1), tf.Variable(0.0)
    optimizer = keras.optimizers.Adam(0.1)

    @tf.function
    def step():
        with tf.GradientTape() as tape:
            logit = slope * brightness + offset
            loss_value = segmentation_loss(labels, tf.stack([-logit, logit], -1), loss, class_weights)
        optimizer.apply_gradients(zip(tape.gradient(loss_value, pair), pair, strict=True))

    optimizer.build(pair)
    for _ in range(300):
        step()
    return ((slope * brightness + offset).numpy() > 0)[labels == 1].mean()


def test_rare_pixels_are_found_more_often():
    """One pixel in a hundred."""
    plain = find_recall("cross_entropy", None)
    assert plain < 0.3
    assert find_recall("cross_entropy", balance_classes([7920, 80])) > plain + 0.3
    assert find_recall("dice", None) > plain + 0.1
    assert find_recall("cross_entropy+dice", None) > plain + 0.03


SCRIPT = """
import sys

import keras
import numpy as np

from heads.ops.losses import SEGMENTATION_LOSSES, segmentation_loss

with np.load(sys.argv[1]) as given:
    labels, logits, weights = given["labels"], given["logits"], given["weights"].tolist()
results = {}
for loss in SEGMENTATION_LOSSES:
    for each in (None, weights):
        key = f"{loss}/{each is None}"

        def compute(logits):
            return segmentation_loss(keras.ops.convert_to_tensor(labels), logits, loss, each)

        if keras.backend.backend() == "jax":
            import jax

            results[f"{key}/value"], results[f"{key}/gradient"] = jax.jit(jax.value_and_grad(compute))(logits)
        else:
            import torch

            variable = torch.tensor(logits, requires_grad=True)
            value = compute(variable)
            value.backward()
            results[f"{key}/value"], results[f"{key}/gradient"] = value.detach(), variable.grad
np.savez(sys.argv[2], **{name: np.asarray(value) for name, value in results.items()})
"""


@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_other_backends_have_the_same_values_and_gradients(backend, tmp_path):
    pytest.importorskip(backend)
    labels, logits = make_batch()
    np.savez(tmp_path / "given.npz", labels=labels, logits=logits, weights=WEIGHTS)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, tmp_path / "given.npz", tmp_path / "found.npz"],
        cwd=pathlib.Path(__file__).resolve().parents[1],
        env={**os.environ, "KERAS_BACKEND": backend},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = np.load(tmp_path / "found.npz")
    for loss in SEGMENTATION_LOSSES:
        for weights in (None, WEIGHTS):
            value, gradient = find_gradient(loss, labels, logits, weights)
            key = f"{loss}/{weights is None}"
            assert float(found[f"{key}/value"]) == pytest.approx(value, rel=1e-5)
            np.testing.assert_allclose(found[f"{key}/gradient"], gradient, rtol=1e-3, atol=1e-7)
