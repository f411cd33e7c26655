"""Scores of semantic segmentation: the confusion matrix, and IoU and accuracy from it."""

from collections.abc import Iterable, Sequence

import numpy as np

from heads.metrics.scorer import Scorer, with_progress
from heads.ops.label_overlaps import measure_overlaps
from heads.ops.labels import IGNORED_LABEL
from heads.processes import gather, on_this_process, order_batches


class SemanticScores(Scorer):
    """Scores a semantic segmenter after an epoch, for `fit(callbacks=[...])`.

    Puts "val_mean_iou", "val_pixel_accuracy" and "val_mean_accuracy" into the logs of the epoch, so that
    callbacks later in the list can use them: `ModelCheckpoint(monitor="val_mean_iou", mode="max",
    save_best_only=True)`. An epoch that is not scored repeats the scores of the last one that was. All scores
    are in `last_scores`, see `score_confusion`, including those of each class, which
    `fit(validation_data=...)` does not give.

    Args:
        dataset: Batches of (images, label maps), see `evaluate_semantic`.
        every: Score after the first epoch of a training, and after each `every`-th.

    Raises:
        ValueError: For `every` below 1, and from `fit` if nothing can be scored.
    """

    def score(self, model) -> dict:
        """Returns the scores of a model: see `evaluate_semantic`."""
        return evaluate_semantic(model, self.dataset)

    def describe(self, scores: dict) -> str:
        """Returns the means in one line."""
        return f"mean IoU {scores['mean_iou']:.2%}, pixel accuracy {scores['pixel_accuracy']:.2%}"


def evaluate_semantic(model, dataset: Iterable, progress: bool = False) -> dict:
    """Runs a semantic segmenter over all pictures and scores it.

    Args:
        model: Keras model with `num_classes` whose `predict_on_batch` gives label maps
            `(batch, height, width)`.
        dataset: Batches of images `(batch, height, width, 3)` and label maps `(batch, height, width)`, 255
            where there is no label.
        progress: Whether to show a progress bar.

    Returns:
        The scores, see `score_confusion`; "confusion", the matrix that they are computed from; and
        "per_picture_iou", float64 (pictures,), the mean IoU of each picture, NaN if none of its pixels has a
        label.

    Raises:
        ValueError: If no pixel can be scored.
    """
    confusion, of_batches = np.zeros((model.num_classes,) * 2, "int64"), []
    with on_this_process(model) as model:
        for images, labels in with_progress(dataset, progress):
            # As NumPy, because the batches are often TensorFlow's and the model may run on another backend.
            predictions = model.predict_on_batch(np.asarray(images))
            pairs = zip(np.asarray(labels), predictions, strict=True)
            parts = [count_confusion(*pair, model.num_classes) for pair in pairs]
            confusion += np.sum(parts, axis=0)
            of_batches.append([score_confusion(part)["mean_iou"] for part in parts])
    confusions, overlaps = zip(*gather([confusion.tolist(), of_batches]), strict=True)
    confusion = np.sum(confusions, axis=0)
    per_picture = np.concatenate([np.zeros(0), *order_batches(overlaps)])
    if not confusion.any():
        raise ValueError("dataset must hold at least one pixel with a label. Received: none")
    return {**score_confusion(confusion), "confusion": confusion, "per_picture_iou": per_picture}


def count_confusion(
    labels: np.ndarray, predictions: np.ndarray, num_classes: int, ignore_label: int = IGNORED_LABEL
) -> np.ndarray:
    """Confusion matrix of label maps; add the matrices of many pictures to score them together.

    Args:
        labels: True label map of integers, any shape.
        predictions: Predicted label map of integers, same shape.
        num_classes: Number of classes.
        ignore_label: True label whose pixels are not counted.

    Returns:
        `(num_classes, num_classes)` int64: rows are the truth, columns the predictions.

    Raises:
        ValueError: For other shapes or dtypes, or values outside the classes.
    """
    labels, predictions = np.asarray(labels), np.asarray(predictions)
    if labels.shape != predictions.shape:
        raise ValueError(
            f"predictions must have the shape of labels, {labels.shape}. Received: {predictions.shape}"
        )
    counted = labels != ignore_label
    _check_label_map("predictions", predictions, predictions, num_classes)
    _check_label_map("labels", labels, labels[counted], num_classes)
    cells = labels[counted].astype("int64") * num_classes + predictions[counted]
    return np.bincount(cells, minlength=num_classes**2).reshape(num_classes, num_classes).astype("int64")


def score_confusion(confusion: np.ndarray) -> dict:
    """Scores of a confusion matrix.

    The IoU of a class is NaN if it occurs neither in the truth nor in the predictions, its accuracy if it
    does not occur in the truth. The means leave NaN out.

    Args:
        confusion: Square matrix of pixel counts, see `count_confusion`.

    Returns:
        Dict of "mean_iou", "pixel_accuracy", "mean_accuracy" (floats 0 .. 1, NaN where nothing was counted),
        "per_class_iou" and "per_class_accuracy" (float64 `(num_classes,)`).

    Raises:
        ValueError: For a matrix that is not square.
    """
    confusion = np.asarray(confusion)
    if confusion.ndim != 2 or confusion.shape[0] != confusion.shape[1]:
        raise ValueError(f"confusion must be a square matrix. Received: shape {confusion.shape}")
    correct, truth = np.diag(confusion), confusion.sum(1)
    iou, occurs = measure_overlaps(confusion, np)
    iou = np.where(occurs, iou, np.nan)
    accuracy = _divide(correct, truth)
    return {
        "mean_iou": _mean_of_numbers(iou),
        "pixel_accuracy": float(_divide(correct.sum(), truth.sum())),
        "mean_accuracy": _mean_of_numbers(accuracy),
        "per_class_iou": iou,
        "per_class_accuracy": accuracy,
    }


def format_semantic_scores(scores: dict, class_names: Sequence[str]) -> str:
    """The scores as a plain text table in percent; "-" where a class does not occur.

    Args:
        scores: From `score_confusion`.
        class_names: Name of each class.

    Returns:
        Lines: a header, one per class, the means, the pixel accuracy.

    Raises:
        ValueError: Where the number of names is not the number of classes.
    """
    if len(class_names) != len(scores["per_class_iou"]):
        raise ValueError(
            f"class_names must have {len(scores['per_class_iou'])} names, one per class. "
            f"Received: {len(class_names)}"
        )
    rows = [("class", "IoU", "accuracy")]
    for name, iou, accuracy in zip(
        class_names, scores["per_class_iou"], scores["per_class_accuracy"], strict=True
    ):
        rows.append((name, _percent(iou), _percent(accuracy)))
    rows.append(("mean", _percent(scores["mean_iou"]), _percent(scores["mean_accuracy"])))
    rows.append(("all pixels", "", _percent(scores["pixel_accuracy"])))
    width = max(len(row[0]) for row in rows)
    return "\n".join(f"{name:<{width}}  {iou:>6}  {accuracy:>8}" for name, iou, accuracy in rows)


def _check_label_map(name, label_map, values, num_classes):
    if label_map.dtype.kind not in "biu":
        raise ValueError(f"{name} must be a map of integers. Received: dtype {label_map.dtype}")
    if values.size and not 0 <= values.min() <= values.max() < num_classes:
        raise ValueError(
            f"{name} must be in 0 .. {num_classes - 1}. Received: {values.min()} .. {values.max()}"
        )


def _divide(counts, totals):
    """Counts / totals, NaN where the total is 0."""
    return np.where(totals > 0, counts / np.maximum(totals, 1), np.nan)


def _mean_of_numbers(values):
    numbers = values[~np.isnan(values)]
    return float(numbers.mean()) if numbers.size else float("nan")


def _percent(value):
    return "-" if np.isnan(value) else f"{100 * value:.2f}"
