"""What all scoring callbacks share: when they score, what they log, how they show progress."""

from collections.abc import Iterable

import keras
from tqdm import tqdm

from heads.arguments import read_count


class Scorer(keras.callbacks.Callback):
    """Scores a model after an epoch of `fit`, for callbacks later in the list to use.

    A subclass has `score(model)`, which returns a dict of scores, and `describe(scores)`, a text for the
    progress. Numbers among the scores are logged as "val_<name>". An epoch that is not scored repeats the
    scores of the last one that was. All scores are in `last_scores`.

    Args:
        dataset: Batches of pictures, with their truth unless it is given elsewhere.
        every: Score after the first epoch of a training, and after each `every`-th.

    Raises:
        ValueError: For `every` below 1.
    """

    def __init__(self, dataset: Iterable, every: int = 1):
        super().__init__()
        self.dataset = dataset
        self.every = read_count("every", every)
        self.last_scores = self._last_logs = None

    def score(self, model) -> dict:
        """Returns the scores of a model."""
        raise NotImplementedError(f"{type(self).__name__} must define score(model)")

    def describe(self, scores: dict) -> str:
        """Returns a few of the scores as text."""
        raise NotImplementedError(f"{type(self).__name__} must define describe(scores)")

    def on_train_begin(self, logs=None):
        self._last_logs = None

    def on_epoch_end(self, epoch, logs=None):
        logs = {} if logs is None else logs
        if self._last_logs is None or (epoch + 1) % self.every == 0:
            is_told = self.params.get("verbose", 1)
            if is_told and self._last_logs is None:  # the first time the model is traced, which takes long
                print("\nScoring the held-out data ...", flush=True)  # noqa: T201
            self.last_scores = scores = self.score(self.model)
            numbers = {name: score for name, score in scores.items() if isinstance(score, float)}
            # Without NaN: if the first score is NaN, Keras's callbacks keep it as the best forever.
            self._last_logs = {f"val_{name}": score for name, score in numbers.items() if score == score}
            if is_told:
                print(f"\nEpoch {epoch + 1}: {self.describe(scores)}", flush=True)  # noqa: T201
        logs.update(self._last_logs)


def with_progress(dataset: Iterable, progress: bool) -> Iterable:
    """The batches, with a progress bar if wanted."""
    return tqdm(dataset, unit="batch") if progress else dataset
