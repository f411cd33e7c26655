import types

import keras
import numpy as np
import pytest
import tensorflow as tf

from heads.metrics import (
    SaliencyScores,
    compare_saliency,
    evaluate_saliency,
    format_saliency_scores,
    score_saliency,
)


def make_pair(size=(6, 7), seed=0, share=0.3, ignored=0.1):
    generator = np.random.default_rng(seed)
    mask = (generator.random(size) < share).astype("int32")
    mask[generator.random(size) < ignored] = 255
    saliency_map = np.clip(generator.normal(0.5, 0.4, size), 0, 1).astype("float32")
    saliency_map[0, :2] = 1 / 51, 25 / 51  # on a threshold, except for rounding
    return mask, saliency_map


def scores_by_loop(pairs):
    """Computed from the definition, one threshold and one pixel after the other."""
    best, curve = 0.0, []
    for k in range(50):
        threshold = 1 / 51 + k * (1 - 2 / 51) / 49
        precisions, recalls = [], []
        for mask, saliency_map in pairs:
            right = predicted = objects = 0
            for truth, score in zip(mask.ravel().tolist(), saliency_map.ravel().tolist(), strict=True):
                if truth == 255:
                    continue
                right += truth and score > threshold
                predicted += score > threshold
                objects += truth
            precisions.append(right / predicted if predicted else 0.0)
            recalls.append(right / objects if objects else 0.0)
        precision, recall = sum(precisions) / len(pairs), sum(recalls) / len(pairs)
        below = 0.3 * precision + recall
        curve.append(1.3 * precision * recall / below if below else 0.0)
        best = max(best, curve[-1])
    errors = []
    for mask, saliency_map in pairs:
        known = [
            (t, p) for t, p in zip(mask.ravel(), saliency_map.ravel().astype(float), strict=True) if t != 255
        ]
        errors.append(sum(abs(p - t) for t, p in known) / len(known))
    return best, sum(errors) / len(errors), curve


def test_scores_equal_a_loop():
    pairs = [make_pair((6, 7), 0), make_pair((4, 9), 1), make_pair((5, 5), 2, ignored=0.0)]
    pairs.append((np.zeros((3, 3), "int32"), pairs[2][1][:3, :3]))  # no object
    pairs.append((pairs[2][0], np.zeros((5, 5), "float32")))  # nothing is predicted
    scores = score_saliency([compare_saliency(*pair) for pair in pairs])
    max_f, mae, curve = scores_by_loop(pairs)
    assert scores["max_f"] == pytest.approx(max_f, abs=1e-9)
    assert scores["mae"] == pytest.approx(mae, abs=1e-9)
    np.testing.assert_allclose(scores["f"], curve, atol=1e-9)
    assert scores["precision"].shape == scores["recall"].shape == (50,)


def test_a_perfect_map_and_its_opposite():
    mask, _ = make_pair(ignored=0.0)
    scores = score_saliency([compare_saliency(mask, mask)])
    assert (scores["max_f"], scores["mae"]) == (1.0, 0.0)
    scores = score_saliency([compare_saliency(mask, 1 - mask)])
    assert (scores["max_f"], scores["mae"]) == (0.0, 1.0)


def test_thresholds_are_exceeded_not_met():
    mask = np.ones((1, 1), "int32")
    recall = compare_saliency(mask, np.full((1, 1), np.linspace(1 / 51, 1 - 1 / 51, 50)[20]))["recall"]
    assert recall.tolist() == [1.0] * 20 + [0.0] * 30


def test_ignored_pictures_are_left_out():
    pair = make_pair()
    ignored = compare_saliency(np.full((2, 2), 255), np.ones((2, 2)))
    assert np.isnan(ignored["error"])
    alone = score_saliency([compare_saliency(*pair)])
    both = score_saliency([compare_saliency(*pair), ignored])
    assert alone["max_f"] == both["max_f"]
    with pytest.raises(ValueError, match=r"at least one picture with a truth. Received: none"):
        score_saliency([ignored])


def test_wrong_pairs_are_refused():
    with pytest.raises(ValueError, match=r"must have the shape of its mask, \(2, 3\). Received: \(3, 2\)"):
        compare_saliency(np.zeros((2, 3), int), np.zeros((3, 2)))
    with pytest.raises(ValueError, match=r"mask must be 0, 1, or 255.*Received: \[0 2\]"):
        compare_saliency(np.array([[0, 2]]), np.zeros((1, 2)))


# In `fit`.


class Stand:
    """Predicts the first channel of its images."""

    def predict_on_batch(self, images):
        return images[..., 0]


def make_dataset():
    pairs = [make_pair(seed=seed) for seed in range(3)]
    images = np.stack([np.repeat(each[..., None], 3, -1) for _, each in pairs])
    return pairs, tf.data.Dataset.from_tensor_slices((images, np.stack([mask for mask, _ in pairs]))).batch(2)


def test_evaluation_of_a_model():
    pairs, dataset = make_dataset()
    scores = evaluate_saliency(Stand(), dataset)
    assert scores["max_f"] == pytest.approx(scores_by_loop(pairs)[0])
    text = format_saliency_scores(scores)
    assert text.startswith(f"max F {scores['max_f']:.2%} (at 0.")
    assert text.endswith(f"MAE {scores['mae']:.2%}")


def test_callback_scores_and_logs(capsys):
    _, dataset = make_dataset()
    callback = SaliencyScores(dataset, every=2)
    callback.set_model(types.SimpleNamespace(predict_on_batch=Stand().predict_on_batch))
    callback.set_params({"verbose": 1})
    callback.on_train_begin()
    seen = []
    for epoch in range(4):
        callback.last_scores = None
        logs = {}
        callback.on_epoch_end(epoch, logs)
        assert logs.keys() == {"val_max_f", "val_mae"}
        seen.append(callback.last_scores is not None)
    assert seen == [True, True, False, True]
    assert capsys.readouterr().out.count("max F") == 3
    assert isinstance(callback, keras.callbacks.Callback)
    with pytest.raises(ValueError, match=r"every must be at least 1. Received: 0"):
        SaliencyScores(dataset, every=0)
