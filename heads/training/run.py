"""A training in a folder: its models, its log, and the state from which it resumes after a kill."""

import contextlib
import json
import math
import os
import pathlib
import signal

import keras

from heads.file_writing import UNFINISHED, replace_text
from heads.processes import find_place, gather, gather_numbers, is_first_process
from heads.training.averages import WeightAverages, keep_weights
from heads.training.callbacks import StepTimer, StopOnNonFinite, name_step
from heads.training.files import RunError, check_finite, save_model
from heads.training.folders import RESULTS, move_older_run
from heads.training.logs import PictureLog, format_log, make_loggers
from heads.training.progress import Progress, choose_verbose
from heads.training.shares import ShapedBatches, SharedValidation
from heads.training.signals import SIGTERM_REASON, interrupt_on_signals
from heads.training.states import States, compare_settings

WISHES = (None, (), SIGTERM_REASON)  # why a training should stop, the stronger reason last
RECORDED = ("epoch", "step", "epoch_start", "best", "rows", "num_stale")


class TrainingRun(keras.callbacks.Callback):
    """Saves what a training needs to resume after a kill, a full disk or a lost machine.

    After each epoch of `fit` it writes, each as a whole and in this order: `last.keras`; `best.keras` if the
    score is no lower than the best so far; `log.csv`; and `state/latest.weights.h5`, the weights of the model
    and its optimizer together with the epoch, the step, the log's rows, the best score and the state of every
    random number generator of the model. A kill at any moment leaves a complete state, to which `begin`
    adapts the log. Earlier states are kept, too, in case the disk damages a file.

    Ctrl-C and SIGTERM finish the step and save a state. A training that resumes has the same pictures, random
    numbers and optimizer as if it had not been interrupted, and ends with the same weights.

    Put it after the callback that scores. It also ends `fit` at the last step exactly. If the optimizer keeps
    averages of the weights, `train` scores and saves the model with these: see `WeightAverages`.

    Args:
        folder: Folder of the files.
        steps: Steps of the whole training: updates of the weights.
        settings: JSON dict that describes the run, for `settings.json`. A run resumes only with the same
            settings, apart from a few.
        monitor: Name of the score in the logs; higher is better. An epoch without it, or with NaN, is never
            the best once another has been scored; until then each epoch is.
        save_every: Steps after which the state is saved, besides at the ends of epochs; None for only these.
        keep: How many states are kept, the latest among them.
        patience: The training ends after this many scores without a better one; None trains to the last step.
        accumulate: Batches whose gradients the optimizer adds up for a step, its
            `gradient_accumulation_steps`.

    Attributes:
        epoch: Epochs trained, and scored.
        step: Batches trained.
        epoch_start: Batches that had been trained when the current epoch began.
        num_stale: Scores since the best one.
    """

    # Not BackupAndRestore: it overwrites its only state in place (two copies with `double_checkpoint`, but
    # not of its JSON file), before the epoch is scored, and it knows neither the log nor the best score.
    # tf.train.CheckpointManager and Orbax replace files safely, but the first saves no Keras model on another
    # backend, the second is not installed, and both would still need everything else that is here.

    # Not EarlyStopping: it forgets the best score, and how many followed it, when a run resumes.

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
        # Busy: weights, counts and files are inconsistent until the step or the saving has ended.
        self._is_busy, self._stop_reason, self._has_scored = False, None, False
        self._batches = ShapedBatches(self._find_wish)

    def restore(self, model) -> bool:
        """Fills a compiled model from the latest undamaged state, if there is one.

        Returns:
            Whether there was a state.

        Raises:
            RunError: If no state can be read, or it was trained with other settings.
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
        """Prepares the folder, at the last moment before `fit`: until then it is not changed.

        A new run moves the files of an older one to `older/1`, `older/2` ..., so that these stay together. A
        resumed run gets the log of its state. Of several processes, only the first one writes.
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
            _say(f"{self.folder} held an older run, which is in {place} now")
        (self.folder / "state").mkdir(parents=True, exist_ok=True)
        self._write_log()
        replace_text(self.folder / "settings.json", json.dumps(self.settings, indent=1) + "\n")

    def plan_fits(self, evaluate_every: int) -> list[dict]:
        """Returns the arguments of one call of `fit`, or two if an epoch was interrupted.

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
        """Trains a compiled model to the last step, with scores, logs and saved states.

        Args:
            model: The model.
            make_batches: Function `(first_step)` that returns endless, shuffled batches, without the first
                ones.
            evaluate_every: Steps of an epoch.
            find_pictures: See `StopOnNonFinite`.
            advice: See `StopOnNonFinite`.
            scorer: A callback that scores the model after each epoch.
            draw: Function `(model)` that returns a picture of its predictions, for TensorBoard.
            **options: Further arguments of `fit`; for its `verbose` see `heads.training.progress`.

        Returns:
            The seconds of a step and the memory, as text; or None if Ctrl-C or a SIGTERM ended it, after
            `interrupted.keras` and the state were saved.
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
            gather("done")  # wait for the files of the first process
            keras.distribution.set_distribution(None)  # models loaded from here on belong to one process
        return timer.summary(self.accumulate)

    def set_model(self, model):
        super().set_model(model)
        self._averages.set_model(model)

    def interrupt(self, *reason):
        """Ends the training with a KeyboardInterrupt: after the current step, or at once if called again."""
        # Several processes stop after the same step.
        if self._stop_reason is None and (self._is_busy or find_place()[1] > 1):
            self._stop_reason = reason
            if is_first_process():
                os.write(2, b"\nThe training stops after this step.\n")  # no print in a signal's handler
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
        # An equal score counts as better: of models that all score 0, the one trained longest is kept.
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
        """Saves the state after the last step, for `restore`.

        Raises:
            RunError: If it cannot be written.
            FloatingPointError: If a weight is not finite.
        """
        self._save(self._name_step())

    def save_interrupted(self, reason):
        """Saves `interrupted.keras` and the state, and prints how to resume.

        Args:
            reason: The KeyboardInterrupt from Ctrl-C or from `interrupt`.

        Raises:
            SystemExit: After a SIGTERM, with a shell's code 143, so that a scheduler restarts the job.
        """
        path = self.folder / "interrupted.keras"
        with self._with_averages():
            if is_first_process():
                save_model(self.model, path)
        place = "the last saved step"  # an interrupted step may have changed some weights
        if self.step and not self._is_busy:
            self.save_state()
            place = self._name_step()
        _say(f"\nStopped. The model is in {path}; --resume goes on from {place}.")
        if reason.args == SIGTERM_REASON:
            raise SystemExit(128 + signal.SIGTERM)

    def _rest(self):
        """Marks the end of a step or of saving, and stops here if a Ctrl-C or SIGTERM waits for it."""
        self._is_busy = False
        if find_place()[1] > 1:
            if self._batches.wish:
                raise KeyboardInterrupt(*WISHES[self._batches.wish])
        elif self._stop_reason is not None:
            raise KeyboardInterrupt(*self._stop_reason)

    def _find_wish(self):
        return WISHES.index(self._stop_reason)

    def _check_places(self):
        """Raises a RunError if the processes do not resume from one state."""
        steps = gather_numbers([self.step])[:, 0].tolist()
        if len(set(steps)) > 1:
            raise RunError(
                "all processes must go on from one state: --output must be one folder, on a shared disk. "
                f"Received: the steps {steps}"
            )

    def _score_epoch(self, model, scorers, validation_data):
        """Ends an epoch that was interrupted between its last step and its score."""
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
        """Saves the state; if `is_best` is given, also the models and the log of a finished epoch."""
        self._averages.put_back()  # training goes on from the weights themselves
        check_finite(self.model)
        if not is_first_process():
            with self._with_averages():  # all processes swap their weights alike
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
                f"{what} could not be saved to {self.folder}. What was saved before is intact: "
                f"make room there, and go on with --resume. Received: {error}"
            ) from error

    def _describe(self):
        return {name: getattr(self, name) for name in (*RECORDED, "settings")}

    def _write_log(self):
        """Rewrites the whole log, so that it contains each epoch once."""
        replace_text(self.folder / "log.csv", format_log(self.rows))

    def _name_step(self):
        return name_step(self.step, self.accumulate)

    def _has_lost_patience(self):
        return self.patience is not None and self.num_stale >= self.patience

    def _say_patience(self):
        _say(
            f"\n{self.num_stale} scores in a row were not above the best, {self.best:.2%}: the training ends "
            "here. To go on, pass --resume and a larger --patience."
        )

    def _check_settings(self, record):
        told = compare_settings(record["settings"], self.settings, self.folder)
        if told:
            _say("Since the state was saved, " + ", ".join(told))


def plan_rounds(steps: int, evaluate_every: int) -> int:
    """Returns the steps between two scores: at most `evaluate_every`, in rounds as equal as possible."""
    rounds = -(-steps // evaluate_every)
    return -(-steps // rounds)


def _say(text):
    if is_first_process():
        print(text, flush=True)  # noqa: T201
