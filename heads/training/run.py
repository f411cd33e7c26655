"""A training in a folder: its models, its log, and the state that it goes on from after a kill."""

import contextlib
import json
import math
import os
import pathlib
import signal

import keras

from heads.processes import find_place, gather, gather_numbers, is_first_process
from heads.training.averages import WeightAverages, keep_weights
from heads.training.callbacks import StepTimer, StopOnNonFinite, name_step
from heads.training.files import (
    UNFINISHED,
    RunError,
    check_finite,
    replace_text,
    save_model,
)
from heads.training.folders import RESULTS, move_older_run
from heads.training.logs import PictureLog, format_log, make_loggers
from heads.training.progress import Progress, choose_verbose
from heads.training.shares import ShapedBatches, SharedValidation
from heads.training.signals import SIGTERM_REASON, interrupt_on_signals
from heads.training.states import States, compare_settings

WISHES = (None, (), SIGTERM_REASON)  # why a training is to stop, the weightier last
RECORDED = ("epoch", "step", "epoch_start", "best", "rows", "num_stale")


class TrainingRun(keras.callbacks.Callback):
    """Keeps what a training needs to go on after a kill, a full disk or a lost machine.

    After each epoch of `fit` it writes, each as a whole and in this order: `last.keras`; `best.keras` where
    the score is no lower than the best so far; `log.csv`; and `state/latest.weights.h5`, the weights of the
    model and its optimizer together with the epoch, the step, the log's rows, the best score and the state
    of every random number generator of the model. A kill at any moment leaves a whole state, and `begin`
    brings the log in line with it. States before the latest are kept, in case the disk damages a file.

    Ctrl-C and SIGTERM let a step end and save a state. Training that goes on from a state has the same
    pictures, random numbers and optimizer as if nothing had happened, and the same weights after it.

    Put it after the callback that scores. It also ends `fit` at the last step exactly. Where the optimizer
    keeps averages of the weights, `train` scores and saves the model with these: see `WeightAverages`.

    Args:
        folder: Where the files lie.
        steps: Steps of the whole training: updates of the weights.
        settings: JSON dict of what the run is, for `settings.json`, which tells a run that goes on whether
            it may.
        monitor: Name of the score in the logs; higher is better. An epoch without it, or with NaN, is never
            the best once another has been scored; until then each epoch is.
        save_every: Steps after which the state is saved, besides the ends of epochs; None for these alone.
        keep: How many states are kept, the latest among them.
        patience: Scores without a better one after which the training ends; None for its last step alone.
        accumulate: Batches of a step, whose gradients the optimizer adds up: its
            `gradient_accumulation_steps`.

    Attributes:
        epoch: Epochs trained, and scored.
        step: Batches trained.
        epoch_start: Batches that had been trained when the epoch began that is not finished.
        num_stale: Scores since the best one.
    """

    # Not BackupAndRestore: it overwrites its only state in place (two copies with `double_checkpoint`, but
    # not of its JSON file), before the epoch is scored, and knows neither log nor best score.
    # tf.train.CheckpointManager and Orbax replace files safely, but the first saves no Keras model on
    # another backend, the second is not installed, and both would still need all else that is here.

    # Not EarlyStopping: it forgets the best score and the count of those since where a run goes on.

    def __init__(
        self,
        folder,
        steps: int,
        settings: dict,
        monitor: str,
        save_every: int | None = None,
        keep: int = 2,
        patience: int | None = None,
        accumulate: int = 1,
    ):
        super().__init__()
        self.folder = pathlib.Path(folder)
        self.accumulate = accumulate
        self.steps = steps * accumulate  # from here on in batches
        self.settings = json.loads(json.dumps(settings))  # as they are read back: tuples become lists
        self.monitor = monitor
        self.save_every = save_every and save_every * accumulate
        self.patience = patience
        self.states = States(self.folder / "state", keep)
        self.epoch, self.step, self.epoch_start, self.best, self.rows, self.num_stale = 0, 0, 0, None, [], 0
        self._averages = WeightAverages()
        # Busy: weights, counts and files do not fit together before the step or the saving has ended.
        self._is_busy, self._stop_reason, self._has_scored = False, None, False
        self._batches = ShapedBatches(self._find_wish)

    def restore(self, model) -> bool:
        """Fills a compiled model from the latest whole state, or says that there is none.

        Returns:
            Whether there was a state.

        Raises:
            RunError: Where no state can be read, or it was trained with other settings.
        """
        restored = self.states.restore(model, self._check_settings, _say)
        if restored is None:
            _say(f"--resume found no state in {self.folder / 'state'}: the training starts anew")
            return False
        record, path = restored
        for name in RECORDED:
            setattr(self, name, record.get(name, getattr(self, name)))
        _say(f"--resume goes on after epoch {self.epoch}, {self._name_step()}, from {path}")
        return True

    def begin(self):
        """Readies the folder, at the last moment before `fit`: until here it is as it was.

        A new run moves the files of an older one to `older/1`, `older/2` ...: its notes and its models stay
        together. A resumed run gets the log of its state. Of several processes only the first one writes.
        """
        if not is_first_process():
            return
        for path in (*self.folder.glob(f"{UNFINISHED}*"), *self.folder.glob(f"state/{UNFINISHED}*")):
            path.unlink()
        if self.step:
            for name in RESULTS:
                (self.folder / name).unlink(missing_ok=True)
            if not (self.folder / "best.keras").exists():
                self.best, self.num_stale = None, 0
        elif (place := move_older_run(self.folder)) is not None:
            _say(f"{self.folder} held an older run: it is in {place} now")
        (self.folder / "state").mkdir(parents=True, exist_ok=True)
        self._write_log()
        replace_text(self.folder / "settings.json", json.dumps(self.settings, indent=1) + "\n")

    def plan_fits(self, evaluate_every: int) -> list[dict]:
        """Returns the arguments of one call of `fit`, or of two where an epoch was cut: the first ends it.

        Args:
            evaluate_every: Batches of an epoch.

        Returns:
            Dicts of "initial_epoch", "epochs" and "steps_per_epoch".
        """
        plans, epoch, start = [], self.epoch, self.step
        if self.step > self.epoch_start:
            start = self.epoch_start + evaluate_every
            plans.append({"initial_epoch": epoch, "epochs": epoch + 1, "steps_per_epoch": start - self.step})
            epoch += 1
        if start < self.steps or not plans:
            rounds = max(0, -(-(self.steps - start) // evaluate_every))
            plans.append(
                {"initial_epoch": epoch, "epochs": epoch + rounds, "steps_per_epoch": evaluate_every}
            )
        return plans

    def train(
        self,
        model,
        make_batches,
        evaluate_every: int,
        find_pictures,
        advice: str,
        scorer=None,
        draw=None,
        **options,
    ):
        """Trains a compiled model to the last step: watched, scored, saved and logged.

        Args:
            model: The model.
            make_batches: Function `(first_step)` that gives endless batches, shuffled already, without so
                many at the beginning.
            evaluate_every: Steps of an epoch.
            find_pictures: See `StopOnNonFinite`.
            advice: See `StopOnNonFinite`.
            scorer: A callback that scores the model after each epoch.
            draw: Function `(model)` that returns a picture of what it sees, for TensorBoard.
            **options: Further arguments of `fit`; for its `verbose` see `heads.training.progress`.

        Returns:
            The seconds of a step and the memory, as text; or None where Ctrl-C or a SIGTERM ended it, with
            `interrupted.keras` and the state saved.
        """
        timer, evaluate_every = StepTimer(), evaluate_every * self.accumulate
        if find_place()[1] > 1:
            self._check_places()
        scorers = [] if scorer is None else [scorer]
        if find_place()[1] > 1 and options.get("validation_data") is not None:
            scorers.insert(0, SharedValidation(options.pop("validation_data")))
        watch = StopOnNonFinite(self.step, find_pictures, advice, self.accumulate)
        scorers = [self._averages, *scorers, *([] if draw is None else [PictureLog(self.folder, draw)])]
        progress = Progress(self.steps, self.step, self.accumulate)
        callbacks = [watch, *scorers, self, *make_loggers(self.folder), timer, progress]
        options.setdefault("verbose", choose_verbose())
        self.begin()
        self.set_model(model)
        with interrupt_on_signals(self.interrupt), keep_weights(model):
            try:
                is_cut = self.step > self.epoch_start
                if is_cut and self.step >= min(self.epoch_start + evaluate_every, self.steps):
                    self._score_epoch(model, scorers, options.get("validation_data"))
                if self._has_lost_patience():
                    self._say_patience()
                elif self.step < self.steps:
                    _say("\nThe first step takes longest, because the model is traced before it ...")
                for plan in self.plan_fits(evaluate_every):
                    if self._has_lost_patience():
                        break
                    batches = self._batches.shape(make_batches(first_step=self.step))
                    model.fit(batches, callbacks=callbacks, shuffle=False, **plan, **options)
            except KeyboardInterrupt as reason:
                self.save_interrupted(reason)
                return None
        if find_place()[1] > 1:
            gather("done")  # the others wait for the first one's files
            keras.distribution.set_distribution(None)  # models that are loaded now are each process's own
        return timer.summary(self.accumulate)

    def set_model(self, model):
        super().set_model(model)
        self._averages.set_model(model)

    def interrupt(self, *reason):
        """Ends the training with a KeyboardInterrupt: after the step that runs, or at once if asked again."""
        # Several processes stop after the same step.
        if self._stop_reason is None and (self._is_busy or find_place()[1] > 1):
            self._stop_reason = reason
            if is_first_process():
                os.write(2, b"\nThe training stops after this step.\n")  # signals must not print
            return
        raise KeyboardInterrupt(*reason)

    def on_test_begin(self, logs=None):
        if not self._has_scored:  # the first time takes long, and shows nothing
            _say("\nScoring the held-out data ...")
            self._has_scored = True

    def on_train_batch_begin(self, batch, logs=None):
        self._is_busy = True

    def on_train_batch_end(self, batch, logs=None):
        self.step += 1
        if self.save_every and self.step % self.save_every == 0:
            self.save_state()
        if self.step >= self.steps:
            self.model.stop_training = True
        self._rest()

    def on_epoch_end(self, epoch, logs=None):
        self._is_busy = True
        logs = {name: float(value) for name, value in (logs or {}).items()}
        self.epoch, self.epoch_start = epoch + 1, self.step
        self.rows.append({"epoch": epoch, **logs})
        score = logs.get(self.monitor, math.nan)
        if (text := self._batches.describe_new()) is not None:
            _say(text)
        # An equal score counts: of models that all score 0 the one that was trained longest is kept.
        is_best = self.best is None or score >= self.best
        self.num_stale = 0 if self.best is None or score > self.best else self.num_stale + 1
        if is_best:
            self.best = None if math.isnan(score) else score
        self._save(f"epoch {self.epoch}", is_best)
        if self._has_lost_patience():
            self._say_patience()
            self.model.stop_training = True
        self._rest()

    def save_state(self):
        """Saves what `restore` goes on from, as it is after the last step.

        Raises:
            RunError: Where it cannot be written.
            FloatingPointError: Where a weight is not finite.
        """
        self._save(self._name_step())

    def save_interrupted(self, reason):
        """Saves `interrupted.keras` and the state, and says how to go on.

        Args:
            reason: The KeyboardInterrupt: of Ctrl-C, or of `interrupt`.

        Raises:
            SystemExit: With a shell's code 143 after a SIGTERM, so that what started the job starts it again.
        """
        path = self.folder / "interrupted.keras"
        with self._with_averages():
            if is_first_process():
                save_model(self.model, path)
        place = "the last saved step"  # a step that was cut may have changed some weights
        if self.step and not self._is_busy:
            self.save_state()
            place = self._name_step()
        _say(f"\nStopped. The model is in {path}; --resume goes on from {place}.")
        if reason.args == SIGTERM_REASON:
            raise SystemExit(128 + signal.SIGTERM)

    def _rest(self):
        """Ends what a first Ctrl-C or SIGTERM waits for."""
        self._is_busy = False
        if find_place()[1] > 1:
            if self._batches.wish:
                raise KeyboardInterrupt(*WISHES[self._batches.wish])
        elif self._stop_reason is not None:
            raise KeyboardInterrupt(*self._stop_reason)

    def _find_wish(self):
        return WISHES.index(self._stop_reason)

    def _check_places(self):
        """Raises RunError where the processes do not go on from one state."""
        steps = gather_numbers([self.step])[:, 0].tolist()
        if len(set(steps)) > 1:
            raise RunError(
                "all processes must go on from one state: --output must be one folder, on a shared disk. "
                f"Received: the steps {steps}"
            )

    def _score_epoch(self, model, scorers, validation_data):
        """Ends an epoch that was cut between its last step and its score."""
        logs = {}
        for callback in (*scorers, self):
            callback.set_params({})
            callback.set_model(model)
        with self._with_averages():
            if validation_data is not None:
                scores = model.evaluate(validation_data, return_dict=True, verbose=0)
                logs = {f"val_{name}": value for name, value in scores.items()}
            for callback in (*scorers, self):
                callback.on_epoch_end(self.epoch, logs)

    @contextlib.contextmanager
    def _with_averages(self):
        """Puts the averages of the weights into the model until the block ends, if there are any."""
        self._averages.put_in()
        try:
            yield
        finally:
            self._averages.put_back()

    def _save(self, what, is_best=None):
        """Saves the state; with `is_best` the models and the log of a finished epoch, too."""
        self._averages.put_back()  # training goes on from the weights themselves
        check_finite(self.model)
        if not is_first_process():
            with self._with_averages():  # all processes move their weights alike
                return
        try:
            with self.states.write(self.model, self._describe()), self._with_averages():
                if is_best is not None:
                    save_model(self.model, self.folder / "last.keras")
                    if is_best:
                        save_model(self.model, self.folder / "best.keras")
                    self._write_log()
        except OSError as error:
            raise RunError(
                f"{what} could not be saved to {self.folder}. What was saved before is whole: "
                f"make room there, and go on with --resume. Received: {error}"
            ) from error

    def _describe(self):
        return {name: getattr(self, name) for name in (*RECORDED, "settings")}

    def _write_log(self):
        """Writes the whole log anew, which leaves each epoch in it once."""
        replace_text(self.folder / "log.csv", format_log(self.rows))

    def _name_step(self):
        return name_step(self.step, self.accumulate)

    def _has_lost_patience(self):
        return self.patience is not None and self.num_stale >= self.patience

    def _say_patience(self):
        _say(
            f"\n{self.num_stale} scores in a row were not above the best, {self.best:.2%}: the training ends "
            "here (--patience). --resume with a larger one goes on."
        )

    def _check_settings(self, record):
        told = compare_settings(record["settings"], self.settings, self.folder)
        if told:
            _say("Since the state was saved, " + ", ".join(told))


def plan_rounds(steps: int, evaluate_every: int) -> int:
    """Steps between two scores: at most `evaluate_every`, and of equal rounds as far as the steps divide."""
    rounds = -(-steps // evaluate_every)
    return -(-steps // rounds)


def _say(text):
    if is_first_process():
        print(text, flush=True)  # noqa: T201
