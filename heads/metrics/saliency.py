"""Scores of salient object detection: the best F measure over thresholds, and the mean absolute error."""

from collections.abc import Iterable

import numpy as np

from heads.metrics.scorer import Scorer, with_progress
from heads.ops.labels import IGNORED_LABEL
from heads.processes import gather_batches, on_this_process

NUM_THRESHOLDS = 50
THRESHOLDS = np.linspace(1 / (NUM_THRESHOLDS + 1), 1 - 1 / (NUM_THRESHOLDS + 1), NUM_THRESHOLDS)
PRECISION_WEIGHT = 0.3  # beta squared: precision counts more than recall


class SaliencyScores(Scorer):
    """Scores a saliency model after an epoch, for `fit(callbacks=[...])`.

    Puts "val_max_f" and "val_mae" into the logs of the epoch, so that callbacks later in the list can use
    them: `ModelCheckpoint(monitor="val_max_f", mode="max", save_best_only=True)`. An epoch that is not scored
        repeats the scores of the last one that was. All scores are in `last_scores`, see `score_saliency`.

    Args:
        dataset: Batches of (images, masks), see `evaluate_saliency`.
        every: Score after the first epoch of a training, and after each `every`-th.

    Raises:
        ValueError: For `every` below 1, and from `fit` if nothing can be scored.
    """

    def score(self, model) -> dict:
        """Returns the scores of a model: see `evaluate_saliency`."""
        return evaluate_saliency(model, self.dataset)

    def describe(self, scores: dict) -> str:
        """Returns the scores in one line."""
        return format_saliency_scores(scores)


def evaluate_saliency(model, dataset: Iterable, progress: bool = False) -> dict:
    """Runs a saliency model over all pictures and scores it.

    Args:
        model: Keras model whose `predict_on_batch` gives saliency maps `(batch, height, width)`, 0 .. 1.
        dataset: Batches of images `(batch, height, width, 3)` and masks `(batch, height, width)`: 0 is the
            background, 1 the object, 255 ignored.
        progress: Whether to show a progress bar.

    Returns:
        The scores, see `score_saliency`.

    Raises:
        ValueError: If no picture can be scored.
    """
    comparisons = []
    with on_this_process(model) as model:
        for images, masks in with_progress(dataset, progress):
            # As NumPy, because the batches are often TensorFlow's and the model may run on another backend.
            saliency_maps = model.predict_on_batch(np.asarray(images))
            found = map(compare_saliency, np.asarray(masks), saliency_maps)
            comparisons.append([{name: np.asarray(each[name]).tolist() for name in each} for each in found])
    return score_saliency(each for batch in gather_batches(comparisons) for each in batch)


def compare_saliency(mask: np.ndarray, saliency_map: np.ndarray) -> dict:
    """Compares one saliency map with its mask.

    The precision is 0 if nothing is predicted, and so is the recall if there is no object.

    Args:
        mask: Integers `(height, width)`: 0 is the background, 1 the object, 255 ignored.
        saliency_map: Numbers 0 .. 1 of the same shape.

    Returns:
        Dict of "precision" and "recall", float64 `(50,)`, of the pixels above each threshold, and
        "error", the mean absolute difference. All are NaN where every pixel is ignored.

    Raises:
        ValueError: For shapes that differ, or another number in the mask.
    """
    mask, saliency_map = np.asarray(mask), np.asarray(saliency_map, "float64")
    if mask.shape != saliency_map.shape:
        raise ValueError(
            f"saliency_map must have the shape of its mask, {mask.shape}. Received: {saliency_map.shape}"
        )
    if not np.isin(mask, (0, 1, IGNORED_LABEL)).all():
        raise ValueError(
            f"mask must be 0, 1, or {IGNORED_LABEL} where it is ignored. Received: {np.unique(mask)[:10]}"
        )
    known = mask != IGNORED_LABEL
    truth, scores = mask[known] == 1, saliency_map[known]
    if not truth.size:
        nothing = np.full(NUM_THRESHOLDS, np.nan)
        return {"precision": nothing, "recall": nothing, "error": np.nan}
    # How many thresholds each pixel is above, and how many pixels are above each threshold.
    ranks = np.searchsorted(THRESHOLDS, scores, side="left")
    predicted, right = (_count_above(ranks[chosen]) for chosen in (slice(None), truth))
    return {
        "precision": right / np.maximum(predicted, 1),
        "recall": right / max(truth.sum(), 1),
        "error": float(np.abs(scores - truth).mean()),
    }


def score_saliency(comparisons: Iterable[dict]) -> dict:
    """Scores of many pictures.

    Args:
        comparisons: From `compare_saliency`, one for each picture; those with NaN are left out.

    Returns:
        Dict of "max_f", the best of "f", and "mae", the mean absolute error (floats, 0 .. 1); "precision",
        "recall" and "f", float64 `(50,)`: the means over the pictures at each threshold, and the F measure
        of both, 1.3 PR / (0.3 P + R).

    Raises:
        ValueError: If there is no picture with a truth.
    """
    counted = [each for each in comparisons if not np.isnan(each["recall"]).any()]
    if not counted:
        raise ValueError("comparisons must hold at least one picture with a truth. Received: none")
    precision = np.mean([each["precision"] for each in counted], axis=0)
    recall = np.mean([each["recall"] for each in counted], axis=0)
    weighted = PRECISION_WEIGHT * precision + recall
    f = (1 + PRECISION_WEIGHT) * precision * recall / np.where(weighted > 0, weighted, 1.0)
    return {
        "max_f": float(f.max()),
        "mae": float(np.mean([each["error"] for each in counted])),
        "precision": precision,
        "recall": recall,
        "f": f,
    }


def format_saliency_scores(scores: dict) -> str:
    """The scores of `score_saliency` in one line, in percent."""
    threshold = THRESHOLDS[np.argmax(scores["f"])]
    return f"max F {scores['max_f']:.2%} (at {threshold:.2f}), MAE {scores['mae']:.2%}"


def _count_above(ranks):
    """Returns the number of pixels above each threshold, from the number of thresholds below each pixel."""
    return np.bincount(ranks, minlength=NUM_THRESHOLDS + 1)[::-1].cumsum()[::-1][1:]
