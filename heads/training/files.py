"""Models that are saved as a whole, and folders that belong to one training at a time."""

import contextlib
import pathlib

import keras
import numpy as np
from filelock import FileLock, Timeout
from keras import ops

from heads.file_writing import replace_file
from heads.processes import find_place, read_array, without_the_others


class RunError(ValueError):
    """An error that the user of a script has to fix; the message says how, and no traceback is needed."""


def save_model(model, path):
    """Saves a `.keras` file as a whole, see `replace_file`.

    Raises:
        FloatingPointError: If a weight is not finite. `path` stays as it was.
    """
    check_finite(model)
    with replace_file(path) as unfinished, without_the_others():
        model.save(unfinished)


def check_finite(model):
    """Raises a FloatingPointError if a weight of the model or of its optimizer is NaN or infinite."""
    variables = [*model.weights, *(model.optimizer.variables if model.optimizer else ())]
    faulty = [
        variable.path
        for variable in variables
        if "float" in keras.backend.standardize_dtype(variable.dtype) and not _is_finite(variable)
    ]
    if faulty:
        raise FloatingPointError(
            f"the weights are not finite: {len(faulty)} of {len(variables)} variables, the first is "
            f"{faulty[0]}; nothing was saved"
        )


def _is_finite(variable):
    if find_place()[1] > 1:  # on the host: only the first process saves, and must not ask the others
        return bool(np.isfinite(read_array(variable).astype("float32")).all())
    return bool(ops.all(ops.isfinite(variable)))


@contextlib.contextmanager
def hold_folder(folder):
    """Holds a folder for this process until the block or the process ends.

    Args:
        folder: The folder, which is made if it is missing.

    Yields:
        The folder's path.

    Raises:
        RunError: If another process holds the folder, or nothing can be written into it.
    """
    folder = pathlib.Path(folder)
    lock = FileLock(folder / "run.lock")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        raise RunError(
            "--output must not be the folder of a training that is still running: wait for its end, or "
            f"choose another folder. Received: {folder}"
        ) from None
    except OSError as error:
        raise RunError(
            f"--output must be a folder that can be written to. Received: {folder} ({error})"
        ) from None
    try:
        yield folder
    finally:
        lock.release()
