import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops

from heads.layers.rpn import (
    RegionProposalNetwork,
    compute_proposal_losses,
    select_proposals,
)
from heads.ops.anchors import make_anchors

SIZES = ((8, 12), (4, 6), (2, 3))
STRIDES = (4, 8, 16)


def make_layer(channels=6):
    keras.utils.set_random_seed(0)
    layer = RegionProposalNetwork(channels, STRIDES)
    layer.build([(None, None, None, 5)])
    generator = np.random.default_rng(0)
    for variable in layer.variables:
        variable.assign(generator.normal(0, 0.2, variable.shape))
    return layer


def make_levels():
    generator = np.random.default_rng(1)
    return [generator.normal(size=(2, *size, 5)).astype("float32") for size in SIZES]


def make_predictions():
    """Returns random raw predictions of two images, the second smaller than the batch."""
    generator = np.random.default_rng(2)
    anchors = make_anchors(SIZES, STRIDES, (8.0,), (0.5, 1.0, 2.0))
    count = sum(len(level) for level in anchors)
    return {
        "objectness_logits": generator.normal(size=(2, count)).astype("float32"),
        "proposal_deltas": generator.normal(0, 0.3, (2, count, 4)).astype("float32"),
        "anchors": anchors,
        "image_sizes": np.array([[32, 48], [20, 30]], "float32"),
    }


def test_raw_predictions_equal_loop():
    layer, levels = make_layer(), make_levels()
    kernel, bias = layer.conv.kernel.numpy(), layer.conv.bias.numpy()
    outputs = layer(levels)
    row = 0
    for level in levels:
        padded = np.pad(level, ((0, 0), (1, 1), (1, 1), (0, 0)))
        for y in range(level.shape[1]):
            for x in range(level.shape[2]):
                hidden = np.maximum(np.tensordot(padded[:, y : y + 3, x : x + 3], kernel, 3) + bias, 0)
                logits = hidden @ layer.objectness.kernel.numpy()[0, 0] + layer.objectness.bias.numpy()
                deltas = hidden @ layer.deltas.kernel.numpy()[0, 0] + layer.deltas.bias.numpy()
                got = outputs["objectness_logits"][:, row : row + 3]
                np.testing.assert_allclose(got, logits, rtol=0, atol=1e-5)
                got = outputs["proposal_deltas"][:, row : row + 3]
                np.testing.assert_allclose(got, deltas.reshape(2, 3, 4), rtol=0, atol=1e-5)
                row += 3
    assert row == outputs["objectness_logits"].shape[1]
    assert [len(anchors) for anchors in outputs["anchors"]] == [3 * h * w for h, w in SIZES]


def test_half_precision_gives_float32():
    layer = RegionProposalNetwork(4, STRIDES, dtype="mixed_bfloat16")
    outputs = layer([level.astype("float32") for level in make_levels()])
    assert layer.conv.compute_dtype == "bfloat16"
    assert outputs["objectness_logits"].dtype == outputs["proposal_deltas"].dtype == tf.float32


def select_by_loop(predictions, image, num_candidates, num_proposals):
    """Returns the proposals of one image, one by one: (score, box) pairs, the best first."""
    height, width = predictions["image_sizes"][image]
    kept, start = [], 0
    for anchors in predictions["anchors"]:
        anchors = np.asarray(anchors, "float64")
        rows = slice(start, start + len(anchors))
        start += len(anchors)
        logits = predictions["objectness_logits"][image, rows]
        best = np.argsort(-logits, kind="stable")[:num_candidates]
        of_level = []
        for index in best:
            x1, y1, x2, y2 = anchors[index]
            dx, dy, dw, dh = predictions["proposal_deltas"][image, rows][index]
            center_x, center_y = (x1 + x2) / 2 + dx * (x2 - x1), (y1 + y2) / 2 + dy * (y2 - y1)
            half_x, half_y = (x2 - x1) * np.exp(dw) / 2, (y2 - y1) * np.exp(dh) / 2
            box = np.array([center_x - half_x, center_y - half_y, center_x + half_x, center_y + half_y])
            box = np.clip(box, 0, [width, height, width, height])
            if (box[2:] > box[:2]).all() and all(measure_iou(box, other) <= 0.7 for _, other in of_level):
                of_level.append((1 / (1 + np.exp(-logits[index])), box))
        kept += of_level
    return sorted(kept, key=lambda pair: -pair[0])[:num_proposals]


def measure_iou(first, second):
    sides = np.minimum(first[2:], second[2:]) - np.maximum(first[:2], second[:2])
    overlap = np.maximum(sides, 0).prod()
    return overlap / ((first[2:] - first[:2]).prod() + (second[2:] - second[:2]).prod() - overlap)


@pytest.mark.parametrize(("num_candidates", "num_proposals"), [(1000, 1000), (20, 1000), (1000, 15), (7, 9)])
def test_proposals_equal_loop(num_candidates, num_proposals):
    predictions = make_predictions()
    proposals, scores = select_proposals(predictions, num_candidates, num_proposals)
    proposals, scores = np.asarray(proposals), np.asarray(scores)
    for image in range(2):
        expected = select_by_loop(predictions, image, num_candidates, num_proposals)
        found = scores[image] >= 0
        assert found.sum() == len(expected)
        assert (scores[image][~found] == -1).all()
        assert not proposals[image][~found].any()
        np.testing.assert_allclose(scores[image][found], [score for score, _ in expected], atol=1e-6)
        np.testing.assert_allclose(proposals[image][found], [box for _, box in expected], atol=1e-4)


def test_proposals_in_a_graph_without_sizes():
    layer = make_layer()

    @tf.function(input_signature=[[tf.TensorSpec((None, None, None, 5))] * 3, tf.TensorSpec((None, 2))])
    def propose(levels, image_sizes):
        return select_proposals({**layer(levels), "image_sizes": image_sizes}, 50, 30)

    levels, image_sizes = make_levels(), np.array([[32, 48], [20, 30]], "float32")
    eager = select_proposals({**layer(levels), "image_sizes": image_sizes}, 50, 30)
    for ours, theirs in zip(propose(levels, image_sizes), eager, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4)


def take_first(values):
    return ops.cumsum(ops.ones_like(values, "float32"), axis=1)


def test_losses_and_gradients_by_hand():
    """An object that is one of the anchors: the samples, and the gradient of each logit and delta."""
    predictions = make_predictions()
    # Nothing is left out, so that all anchors take part.
    predictions["image_sizes"] = np.array([[32, 48], [32, 48]], "float32")
    anchors = np.concatenate(predictions["anchors"])
    chosen = 3 * (12 * 4 + 5) + 1
    boxes = np.zeros((2, 2, 4), "float32")
    boxes[0, 0] = anchors[chosen]
    labels = np.array([[4, -1], [-1, -1]], "int32")
    logits, deltas = (tf.constant(predictions[name]) for name in ("objectness_logits", "proposal_deltas"))
    with tf.GradientTape() as tape:
        tape.watch([logits, deltas])
        given = {**predictions, "objectness_logits": logits, "proposal_deltas": deltas}
        losses = compute_proposal_losses({"boxes": boxes, "labels": labels}, given, take_first)
        total = sum(losses.values())
    gradients = tape.gradient(total, [logits, deltas])

    iou = np.array([measure_iou(anchor, anchors[chosen]) for anchor in anchors.astype("float64")])
    positive = np.flatnonzero(iou >= 0.7)
    background = np.flatnonzero(iou < 0.3)[: 256 - len(positive)]
    others = np.arange(min(256, len(anchors)))
    assert 1 <= len(positive) < 128
    num_samples = len(positive) + len(background) + 1 + len(others)
    probability = 1 / (1 + np.exp(-predictions["objectness_logits"].astype("float64")))
    expected = np.zeros_like(probability)
    expected[0, positive] = probability[0, positive] - 1
    expected[0, background] = probability[0, background]
    expected[1, others] = probability[1, others]
    np.testing.assert_allclose(gradients[0], expected / num_samples, rtol=1e-4, atol=1e-8)
    entropies = -np.log(1 - probability[0, background]).sum() - np.log(probability[0, positive]).sum()
    entropies -= np.log(1 - probability[1, others]).sum()
    assert float(losses["objectness_loss"]) == pytest.approx(entropies / num_samples, rel=1e-5)

    own, box = anchors[positive].astype("float64"), anchors[chosen].astype("float64")
    shift = (box[:2] + box[2:] - own[:, :2] - own[:, 2:]) / 2 / (own[:, 2:] - own[:, :2])
    growth = np.log((box[2:] - box[:2]) / (own[:, 2:] - own[:, :2]))
    distances = predictions["proposal_deltas"][0, positive] - np.concatenate([shift, growth], axis=1)
    assert float(losses["proposal_loss"]) == pytest.approx(np.abs(distances).sum() / num_samples, rel=1e-5)
    expected = np.zeros(deltas.shape)
    expected[0, positive] = np.sign(distances)
    np.testing.assert_allclose(gradients[1], expected / num_samples, rtol=1e-5, atol=1e-9)


def test_config_and_names():
    layer = make_layer(channels=7)
    copy = RegionProposalNetwork.from_config(layer.get_config())
    assert copy.get_config() == layer.get_config()
    assert list(layer.reference_layers()) == ["rpn_conv", "rpn_cls", "rpn_reg"]
