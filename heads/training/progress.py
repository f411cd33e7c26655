"""How far a training is, and how long it will still take, in lines that suit files and notebooks."""

import sys
import time

import keras

SECONDS_BETWEEN_LINES = 30


def choose_verbose() -> int:
    """Returns the `verbose` of `fit`: 1 for a bar where it can be drawn, else 2 for a line per epoch.

    Keras would also draw its bar into files and pipes: a line of control characters for each step.
    """
    can_draw = sys.stdout.isatty() or "ipykernel" in sys.modules
    return 1 if can_draw else 2


class Progress(keras.callbacks.Callback):
    """Prints how long the training will still take, after each epoch, and within it if there is no bar.

    It is silent where `verbose` is 0.

    Args:
        num_batches: Batches of the whole training.
        first_batch: Batches that were trained before.
        batches_per_step: Batches whose gradients make one step.
    """

    def __init__(self, num_batches: int, first_batch: int = 0, batches_per_step: int = 1):
        super().__init__()
        self.num_batches, self.batch, self.batches_per_step = num_batches, first_batch, batches_per_step
        self._start, self._told = None, None

    def on_train_batch_end(self, batch, logs=None):
        self.batch += 1
        now = time.monotonic()
        if self._start is None:  # the model is traced in the first step
            self._start, self._told = (now, self.batch), now
        elif self.params.get("verbose") == 2 and now - self._told >= SECONDS_BETWEEN_LINES:
            self._tell(now, logs)

    def on_epoch_end(self, epoch, logs=None):
        if self.params.get("verbose") and self.batch < self.num_batches and not self.model.stop_training:
            self._tell(time.monotonic(), logs)

    def _tell(self, now, logs):
        self._told = now
        step, num_steps = (-(-count // self.batches_per_step) for count in (self.batch, self.num_batches))
        parts = [f"step {step:,} of {num_steps:,}"]
        if logs and "loss" in logs:
            parts.append(f"loss {float(logs['loss']):.4g}")
        if self._start is not None and self.batch > self._start[1]:
            # Includes the time of scoring and saving, which will be needed as often in the rest.
            seconds = (now - self._start[0]) / (self.batch - self._start[1])
            parts.append(f"about {format_duration(seconds * (self.num_batches - self.batch))} left")
        print(", ".join(parts), flush=True)  # noqa: T201


def format_duration(seconds: float) -> str:
    """Returns a time as text, about as exact as people want it: "40 s", "12 min", "3 h 5 min"."""
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 24 else f"{hours / 24:.1f} days"
