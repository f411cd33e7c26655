"""Files that a kill or a full disk cannot damage, and folders that belong to one training at a time."""

import contextlib
import os
import pathlib

import keras
import numpy as np
from filelock import FileLock, Timeout
from keras import ops

from heads.processes import find_place, read_array, without_the_others


class RunError(ValueError):
    """An error that the user of a script has to fix; the message says how, and no traceback is needed."""


UNFINISHED = ".unfinished-"  # a prefix, because Keras wants its suffix at the end


@contextlib.contextmanager
def replace_file(path):
    """Writes a file as a whole: `path` always has the old or the new content, never a part of it.

    Args:
        path: Path of the file. Its folder is made.

    Yields:
        A path beside it to write to. When the block ends, that file is flushed to the disk and renamed to
        `path`; if the block fails, it is removed, and `path` stays as it was.
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(UNFINISHED + path.name)
    try:
        yield unfinished
        _flush(unfinished)
        os.replace(unfinished, path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
    if os.name == "posix":  # Windows cannot open folders
        _flush(path.parent)


def replace_text(path, text):
    """Writes a text file (UTF-8) as a whole, see `replace_file`."""
    with replace_file(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8", newline="")


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


def _flush(path):
    """Makes sure that a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
