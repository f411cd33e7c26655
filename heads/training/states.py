"""The states of a run: files from which its training resumes."""

import contextlib
import json
import os
import pathlib

import h5py
import numpy as np
from keras import ops

from heads.file_writing import replace_file
from heads.processes import without_the_others
from heads.training.files import RunError

# Only these settings may change when a run resumes; the others define the model or the order of the pictures.
FREE_SETTINGS = {
    *("output", "resume", "data", "splits", "annotations", "images", "class_names", "class_colours"),
    *("schedule", "epochs", "steps", "evaluate_every"),
    *("learning_rate", "warm_up", "weight_decay", "clip_norm"),
    *("mixed_precision", "save_every", "keep", "patience"),
}


class States:
    """The latest state of a run, `latest.weights.h5`, and those before it, `step-*.weights.h5`.

    A state holds the weights of a model and its optimizer, the state of every random number generator of the
    model, and a record.

    Args:
        folder: Folder of the files.
        keep: How many are kept, the latest among them.
    """

    def __init__(self, folder, keep: int):
        self.latest = pathlib.Path(folder) / "latest.weights.h5"
        self.keep = keep
        self._latest_step = None

    @property
    def older(self):
        """The paths of the states before the latest, the newest first."""
        return sorted(self.latest.parent.glob("step-*.weights.h5"), reverse=True)

    def restore(self, model, check, say):
        """Fills a compiled model from the newest undamaged state.

        Args:
            model: The model.
            check: Function of a record that raises a RunError if the model cannot resume from it.
            say: Function that prints a text, for states that cannot be read.

        Returns:
            (record, path); None if there is no state.

        Raises:
            RunError: If no state can be read.
        """
        run, problems = self.latest.parent.parent, []
        for path in (self.latest, *self.older):
            if not path.exists():
                continue
            try:
                record = _read_record(path)
                check(record)
                _fill(model, path, record)
            except RunError:
                raise
            except (OSError, KeyError, ValueError, RuntimeError) as error:  # what h5py and Keras raise
                problems.append(f"{path} cannot be read: {str(error).strip().splitlines()[0]}")
                say(problems[-1])
                continue
            self._latest_step = record["step"] if path == self.latest else None  # a broken one is not kept
            return record, path
        if problems:
            raise RunError(
                "--resume found no state that is intact:\n"
                + "\n".join(problems)
                + f"\nStart anew without --resume: the files in {run} are then moved to a folder in it."
            )
        return None

    @contextlib.contextmanager
    def write(self, model, record):
        """Saves a state, which becomes the latest when the block ends; the block writes what belongs to it.

        Args:
            model: The model.
            record: JSON dict, with a "step".
        """
        # The state is written first, so that there is room for it on the disk, and renamed last.
        with replace_file(self.latest) as unfinished:
            with without_the_others():
                model.save_weights(unfinished)
            seeds = [ops.convert_to_numpy(seed).tolist() for seed in _list_seeds(model)]
            with h5py.File(unfinished, "r+") as file:
                # A text has no limit of 64 KB.
                file.attrs["training"] = json.dumps({**record, "seeds": seeds})
            yield
            self._keep_latest()
        self._latest_step = record["step"]

    def _keep_latest(self):
        """Gives the latest state a second name before it is replaced, so that there is one at any moment."""
        if self._latest_step is not None and self.latest.exists():
            path = self.latest.with_name(f"step-{self._latest_step:09d}.weights.h5")
            path.unlink(missing_ok=True)
            try:
                os.link(self.latest, path)
            except OSError:  # no hard links here
                os.replace(self.latest, path)
        for path in self.older[self.keep - 1 :]:
            path.unlink()


def compare_settings(trained: dict, settings: dict, folder) -> list[str]:
    """Returns a text for each setting that has changed since a state was saved, if it may, or is new.

    Args:
        trained: The settings of the state.
        settings: The settings of the training that resumes from it.
        folder: Folder of the run, for the message.

    Raises:
        RunError: If settings differ that must not.
    """
    changes = {
        name: f"{name.replace('_', '-')} {trained[name]!r} became {settings[name]!r}"
        for name in settings
        if trained.get(name, settings[name]) != settings[name]
    }
    refused = [text for name, text in changes.items() if name not in FREE_SETTINGS]
    if refused:
        raise RunError(
            f"--resume must have the settings that the state in {folder} was trained with. Pass the same, or "
            "start anew without --resume, which keeps the older run. Received:\n" + "\n".join(refused)
        )
    unknown = [
        f"{name.replace('_', '-')}, which the state does not record, is {value!r}"
        for name, value in settings.items()
        if name not in trained and value not in (None, False)
    ]
    return [text for name, text in changes.items() if name not in ("output", "resume")] + unknown


def _read_record(path):
    with h5py.File(path) as file:
        if "training" not in file.attrs:
            raise ValueError("it holds no epoch and no step; an earlier version may have written it")
        return json.loads(file.attrs["training"])


def _fill(model, path, record):
    if not model.optimizer.built:
        model.optimizer.build(model.trainable_variables)
    seeds, values = _list_seeds(model), record["seeds"]
    if len(seeds) != len(values):
        raise ValueError(f"it holds {len(values)} random number generators, and the model has {len(seeds)}")
    model.load_weights(path)
    for seed, value in zip(seeds, values, strict=True):
        seed.assign(np.array(value, seed.dtype))


def _list_seeds(model):
    """Returns the states of the model's random number generators, which Keras does not count as weights."""
    return [variable for variable in model.variables if variable.name == "seed_generator_state"]
