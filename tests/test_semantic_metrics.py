import contracts
import keras
import numpy as np
import pytest
import tensorflow as tf
from slow_scores import count_by_loop, make_maps

from heads import SemanticFPN
from heads.metrics import (
    SemanticScores,
    count_confusion,
    evaluate_semantic,
    format_semantic_scores,
    score_confusion,
)

# NumPy


def test_count_confusion_equals_loop():
    labels, predictions = make_maps()
    confusion = count_confusion(labels, predictions, 4)
    assert confusion.dtype == np.int64
    np.testing.assert_array_equal(confusion, count_by_loop(labels, predictions, 4))


@pytest.mark.parametrize("dtype", ["uint8", "int64"])
def test_count_confusion_takes_any_integers(dtype):
    labels, predictions = make_maps(num_classes=200)
    confusion = count_confusion(labels.astype(dtype), predictions.astype(dtype), 200)
    np.testing.assert_array_equal(confusion, count_by_loop(labels, predictions, 200))


def test_count_confusion_other_ignore_label_and_empty():
    labels, predictions = np.array([0, 1, 2]), np.array([1, 1, 0])
    np.testing.assert_array_equal(count_confusion(labels, predictions, 2, ignore_label=2), [[0, 1], [0, 1]])
    empty = np.zeros((0, 5), "int32")
    np.testing.assert_array_equal(count_confusion(empty, empty, 2), np.zeros((2, 2)))
    np.testing.assert_array_equal(count_confusion(np.full(3, 255), np.zeros(3, int), 2), np.zeros((2, 2)))


def test_count_confusion_refuses_bad_maps():
    labels = np.zeros((2, 3), "int32")
    for value in (3, -1, 255):
        with pytest.raises(ValueError, match=r"predictions must be in 0 .. 2.*Received"):
            count_confusion(labels, np.full((2, 3), value), 3)
        if value != 255:
            with pytest.raises(ValueError, match=r"labels must be in 0 .. 2.*Received"):
                count_confusion(np.full((2, 3), value), labels, 3)
    with pytest.raises(ValueError, match="shape of labels"):
        count_confusion(labels, labels.T, 3)
    with pytest.raises(ValueError, match="map of integers"):
        count_confusion(labels, labels.astype("float32"), 3)


def test_score_confusion_by_hand():
    # Class 2 is only predicted, class 3 occurs nowhere.
    confusion = np.array([[6, 1, 1, 0], [2, 2, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
    scores = score_confusion(confusion)
    np.testing.assert_allclose(scores["per_class_iou"], [6 / 10, 2 / 5, 0, np.nan])
    np.testing.assert_allclose(scores["per_class_accuracy"], [6 / 8, 2 / 4, np.nan, np.nan])
    assert scores["mean_iou"] == pytest.approx(1 / 3)
    assert scores["mean_accuracy"] == pytest.approx(0.625)
    assert scores["pixel_accuracy"] == pytest.approx(8 / 12)


def test_score_confusion_of_nothing_is_nan():
    scores = score_confusion(np.zeros((2, 2), "int64"))
    assert all(np.isnan(value).all() for value in scores.values())
    table = format_semantic_scores(scores, ("a", "b"))
    assert table.count("-") == 7


def test_score_confusion_needs_a_square():
    with pytest.raises(ValueError, match=r"square.*\(2, 3\)"):
        score_confusion(np.zeros((2, 3)))


def test_format_semantic_scores():
    scores = score_confusion(np.array([[6, 1, 1, 0], [2, 2, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]))
    lines = format_semantic_scores(scores, ("wall", "a long name", "roof", "door")).splitlines()
    assert [line.split() for line in lines] == [
        ["class", "IoU", "accuracy"],
        ["wall", "60.00", "75.00"],
        ["a", "long", "name", "40.00", "50.00"],
        ["roof", "0.00", "-"],
        ["door", "-", "-"],
        ["mean", "33.33", "62.50"],
        ["all", "pixels", "66.67"],
    ]
    assert len({len(line) for line in lines}) == 1
    with pytest.raises(ValueError, match="class_names must have 4"):
        format_semantic_scores(scores, ("wall",))


# In `fit`.


class Stand:
    """Predicts the first channel of its images."""

    num_classes = 4

    def predict_on_batch(self, images):
        return images[..., 0].astype("int32")


def make_batches():
    """Returns two batches of pictures of different sizes."""
    pairs = [make_maps(seed=seed) for seed in range(2)]
    pairs[1] = [each[:, :5] for each in pairs[1]]
    return pairs, [(np.repeat(found[None, ..., None], 3, -1), truth[None]) for truth, found in pairs]


def test_evaluation_counts_all_pictures_together():
    pairs, batches = make_batches()
    scores = evaluate_semantic(Stand(), batches)
    expected = score_confusion(sum(count_by_loop(truth, found, 4) for truth, found in pairs))
    np.testing.assert_array_equal(
        score_confusion(scores.pop("confusion"))["per_class_iou"], expected["per_class_iou"]
    )
    alone = [score_confusion(count_by_loop(truth, found, 4))["mean_iou"] for truth, found in pairs]
    np.testing.assert_allclose(scores.pop("per_picture_iou"), alone)
    assert scores.keys() == expected.keys()
    for name in scores:
        np.testing.assert_array_equal(scores[name], expected[name])


def test_evaluation_of_nothing_is_refused():
    nothing = (np.zeros((1, 2, 3, 3)), np.full((1, 2, 3), 255))
    for batches in ([], [nothing]):
        with pytest.raises(ValueError, match="at least one pixel with a label"):
            evaluate_semantic(Stand(), batches)


def test_callback_logs_what_fit_validates(capsys):
    """The same numbers as in the logs of `fit(validation_data=...)`."""
    keras.utils.set_random_seed(0)
    model = SemanticFPN(contracts.PooledBackbone(), num_classes=3, channels=8)
    model.compile(keras.optimizers.SGD(0.01))
    random = np.random.default_rng(0)
    images = random.uniform(0, 255, (3, 32, 32, 3)).astype("float32")
    labels = random.integers(0, 3, (3, 32, 32)).astype("int32")
    labels[0, :9] = 255
    data = tf.data.Dataset.from_tensor_slices((images, labels)).batch(2)
    validated, scorer = {}, SemanticScores(data)
    keep = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: validated.update(logs))
    options = {"validation_data": data, "callbacks": [keep, scorer], "shuffle": False, "verbose": 0}
    history = model.fit(data, **options).history
    assert history["val_mean_iou"][0] == pytest.approx(validated["val_mean_iou"], rel=1e-5)
    assert history["val_mean_iou"][0] == scorer.last_scores["mean_iou"] > 0
    assert history["val_pixel_accuracy"][0] == scorer.last_scores["pixel_accuracy"]
    assert scorer.last_scores["per_class_iou"].shape == (3,)
    assert scorer.describe(scorer.last_scores).startswith("mean IoU ")
