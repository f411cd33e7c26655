import os
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from slow_scores import count_by_loop, make_maps, mean_iou_by_loop

from heads.layers.mean_iou import MeanIoU
from heads.metrics import count_confusion, score_confusion


@pytest.mark.parametrize("seed", range(3))
def test_metric_equals_loop(seed):
    metric = MeanIoU(4)
    total = np.zeros((4, 4), "int64")
    for step in range(3):
        labels, predictions = make_maps(shape=(2, 5 + step, 9), seed=10 * seed + step)
        metric.update_state(labels, predictions)
        total += count_by_loop(labels, predictions, 4)
    assert float(metric.result()) == pytest.approx(mean_iou_by_loop(total), rel=1e-6)
    assert float(metric.result()) == pytest.approx(score_confusion(total)["mean_iou"], rel=1e-6)


def test_metric_takes_logits():
    labels, _ = make_maps()
    logits = np.random.default_rng(1).normal(size=(2, 7, 9, 4)).astype("float32")
    metric = MeanIoU(4)
    metric.update_state(labels, logits)
    expected = mean_iou_by_loop(count_by_loop(labels, logits.argmax(-1), 4))
    assert float(metric.result()) == pytest.approx(expected, rel=1e-6)


def test_metric_leaves_out_absent_classes():
    metric = MeanIoU(50)
    assert float(metric.result()) == 0.0
    metric.update_state(np.full((1, 2, 2), 255), np.zeros((1, 2, 2), int))
    assert float(metric.result()) == 0.0
    metric.update_state(np.array([[[0, 0, 7, 255]]]), np.array([[[0, 0, 3, 9]]]))
    assert float(metric.result()) == pytest.approx(1 / 3)  # 0 is perfect, 7 and 3 are wrong


def test_metric_counts_predictions_outside_the_classes_as_wrong():
    metric = MeanIoU(2)
    metric.update_state(np.array([[[0, 0, 0, 1]]]), np.array([[[0, 255, -1, 1]]]))
    assert float(metric.result()) == pytest.approx((1 / 3 + 1) / 2)


def test_metric_counts_beyond_float32_and_int32():
    # Each picture has one wrong pixel. 3000 * 2^20 pixels are more than 2^31, and each of them counts.
    labels = np.zeros((1, 2**10, 2**10), "uint8")
    predictions = labels.copy()
    predictions[0, 0, 0] = 1
    metric = MeanIoU(2)
    metric.update_state(labels, predictions)
    metric.low_digit.assign(metric.low_digit * 15)
    for _ in range(2):  # 15 * 2^20 + 2 * 2^20 passes 2^24
        metric.update_state(labels, predictions)
    high, low = (np.asarray(digit).astype("int64") for digit in (metric.high_digit, metric.low_digit))
    np.testing.assert_array_equal(high * 2**24 + low, [[17 * (2**20 - 1), 17, 0], [0, 0, 0]])
    assert high[0, 0] == 1

    metric.high_digit.assign(metric.high_digit + np.array([[3000 // 16, 0, 0], [3000 // 16, 0, 0]]))
    metric.update_state(labels, predictions)
    high, low = (np.asarray(digit).astype("int64") for digit in (metric.high_digit, metric.low_digit))
    total = high * 2**24 + low
    assert total[0, 0] == 18 * (2**20 - 1) + 187 * 2**24 > 2**31
    confusion = total[:, :2]
    assert float(metric.result()) == pytest.approx(score_confusion(confusion)["mean_iou"], rel=1e-6)


def test_metric_resets_and_round_trips():
    labels, predictions = make_maps()
    metric = MeanIoU.from_config(MeanIoU(4, name="score").get_config())
    assert (metric.name, metric.num_classes) == ("score", 4)
    metric.update_state(labels, predictions)
    assert float(metric.result()) > 0
    metric.reset_state()
    assert float(metric.result()) == 0.0


@pytest.mark.parametrize("jit_compile", [False, True])
def test_metric_in_a_compiled_graph(jit_compile):
    labels, predictions = make_maps()
    metric = MeanIoU(4)
    update = tf.function(metric.update_state, jit_compile=jit_compile)
    update(tf.constant(labels), tf.constant(predictions))
    expected = mean_iou_by_loop(count_by_loop(labels, predictions, 4))
    assert float(metric.result()) == pytest.approx(expected, rel=1e-6)


def test_metric_in_a_graph_of_unknown_sizes():
    metric = MeanIoU(4)
    update = tf.function(
        metric.update_state,
        input_signature=(tf.TensorSpec((None, None, None), tf.int32), tf.TensorSpec((None, None, None, 4))),
    )
    labels, predictions = make_maps()
    update(tf.constant(labels), tf.one_hot(predictions, 4))
    expected = mean_iou_by_loop(count_by_loop(labels, predictions, 4))
    assert float(metric.result()) == pytest.approx(expected, rel=1e-6)


def test_metric_in_evaluate():
    labels, _ = make_maps()
    images = np.random.default_rng(2).normal(size=(2, 7, 9, 3)).astype("float32")
    model = keras.Sequential([keras.Input((None, None, 3)), keras.layers.Conv2D(4, 1)])
    model.compile(
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=255),
        metrics=[MeanIoU(4)],
    )
    scores = model.evaluate(images, labels, verbose=0, return_dict=True)
    confusion = count_confusion(labels, np.argmax(model.predict(images, verbose=0), -1), 4)
    assert scores["mean_iou"] == pytest.approx(score_confusion(confusion)["mean_iou"], rel=1e-5)


BACKEND_SCRIPT = """
import sys
import numpy as np
from heads.layers.mean_iou import MeanIoU
maps = np.load(sys.argv[1])
metric = MeanIoU(4)
metric.update_state(maps["labels"], maps["predictions"])
metric.update_state(maps["labels"].astype("uint8"), np.eye(4, dtype="float32")[maps["predictions"]])
ones = np.ones((1, 4200, 4200), "uint8")  # more than 2^24 pixels of one cell
metric.update_state(ones, ones)
np.save(sys.argv[2], np.asarray(metric.high_digit).astype("int64") * 2**24 + np.asarray(metric.low_digit))
"""


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_metric_on_other_backends(tmp_path, backend):
    pytest.importorskip(backend)
    labels, predictions = make_maps()
    np.savez(tmp_path / "maps.npz", labels=labels, predictions=predictions)
    subprocess.run(
        [sys.executable, "-c", BACKEND_SCRIPT, tmp_path / "maps.npz", tmp_path / "counts.npy"],
        env={**os.environ, "KERAS_BACKEND": backend},
        check=True,
    )
    expected = 2 * count_by_loop(labels, predictions, 4)
    expected[1, 1] += 4200**2
    np.testing.assert_array_equal(np.load(tmp_path / "counts.npy")[:, :4], expected)


def test_metric_refuses_what_it_cannot_count():
    metric = MeanIoU(4)
    labels, predictions = make_maps()
    with pytest.raises(ValueError, match=r"label map.*\(2, 7, 9\).*resize.*\(2, 3, 9\)"):
        metric.update_state(labels, predictions[:, :3])
    with pytest.raises(ValueError, match=r"Received: shape \(2, 7, 9, 5\)"):
        metric.update_state(labels, np.zeros((2, 7, 9, 5)))
    with pytest.raises(ValueError, match="sample_weight must be None"):
        metric.update_state(labels, predictions, np.ones(2))
    with pytest.raises(ValueError, match="num_classes"):
        MeanIoU(0)


def test_counts_of_many_processes_are_merged():
    # In two digits, whose sums over 300 processes do not fit into int32.
    states = [[np.full((2, 3), 2**24 - 1), np.full((2, 3), 5)]] * 300
    metric = MeanIoU(2)
    metric.merge_counts(states)
    high, low = (np.asarray(digit).astype("int64") for digit in (metric.high_digit, metric.low_digit))
    np.testing.assert_array_equal(high * 2**24 + low, 300 * (2**24 - 1 + 5 * 2**24))
    assert low.max() < 2**24
