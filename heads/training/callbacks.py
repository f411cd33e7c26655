"""What all training scripts watch in `fit`: the time of a step, and losses that are not finite."""

import statistics
import sys
import time
from collections.abc import Callable

import keras
import numpy as np

from heads.training.files import check_finite


class StepTimer(keras.callbacks.Callback):
    """Measures the training steps."""

    def __init__(self):
        super().__init__()
        self.seconds = []

    def on_train_batch_begin(self, batch, logs=None):
        self.start = time.perf_counter()

    def on_train_batch_end(self, batch, logs=None):
        self.seconds.append(time.perf_counter() - self.start)

    def summary(self, batches_per_step: int = 1) -> str:
        """Median time of a step, and the most memory that the process took."""
        memory = _describe_memory()
        if not self.seconds:
            return f"No step was left to train{memory}"
        return f"{batches_per_step * statistics.median(self.seconds):.2f} s per step (median){memory}"


def name_step(num_batches: int, batches_per_step: int = 1) -> str:
    """Returns the step that the latest batch belonged to, as text."""
    if batches_per_step == 1:
        return f"step {num_batches:,}"
    return f"step {-(-num_batches // batches_per_step):,} (batch {num_batches:,})"


class StopOnNonFinite(keras.callbacks.Callback):
    """Ends training at the first loss or weight that is NaN or infinite, before anything is saved.

    Put it first in `fit(callbacks=[...])`. Unlike `keras.callbacks.TerminateOnNaN` it reports the step, the
    losses by name and the pictures, checks the weights too (the last step can spoil them while the loss is
    still finite), and lets no later callback save them.

    Args:
        first_step: How many batches were trained before.
        find_pictures: Function of a batch's number, from 0, that returns the paths of its pictures.
        advice: What to change, for the message.
        batches_per_step: Batches whose gradients make one step.

    Raises:
        FloatingPointError: from `fit`.
    """

    def __init__(self, first_step: int, find_pictures: Callable, advice: str, batches_per_step: int = 1):
        super().__init__()
        self.step = first_step
        self.batches_per_step = batches_per_step
        self.find_pictures = find_pictures
        self.advice = advice

    def on_train_batch_end(self, batch, logs=None):
        self.step += 1
        losses = {name: float(value) for name, value in (logs or {}).items() if name.endswith("loss")}
        if not np.all(np.isfinite(list(losses.values()))):
            shown = ", ".join(f"{name} {value:.4g}" for name, value in losses.items())
            raise FloatingPointError(
                f"the loss is not finite at {self._name_step()}: {shown} (means since the last score). "
                f"{self._explain()}"
            )

    def on_epoch_end(self, epoch, logs=None):
        try:
            check_finite(self.model)
        except FloatingPointError as error:
            raise FloatingPointError(f"after {self._name_step()} {error}. {self._explain()}") from None

    def _name_step(self):
        return name_step(self.step, self.batches_per_step)

    def _explain(self):
        try:
            pictures = "\n  ".join(map(str, self.find_pictures(step=self.step - 1)))
        except Exception as error:  # must not hide that the loss is not finite
            pictures = f"unknown ({error})"
        return f"The pictures of this step:\n  {pictures}\n{self.advice}"


def _describe_memory():
    try:
        import resource
    except ImportError:  # Windows
        return ""
    unit = 2**30 if sys.platform == "darwin" else 2**20  # bytes there, KiB elsewhere
    return f", peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit:.1f} GiB"
