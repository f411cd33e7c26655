"""The log of a run: a table of its epochs, and what else is logged."""

import atexit
import csv
import io
import pathlib
import shutil
import tempfile

import keras

from heads.processes import is_first_process


def format_log(rows: list[dict]) -> str:
    """Returns the epochs of a run as CSV; what an epoch has no number for is NaN."""
    text = io.StringIO()
    columns = dict.fromkeys(name for row in rows for name in row)
    writer = csv.DictWriter(text, columns, restval="nan")
    if rows:
        writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def make_loggers(folder):
    """Returns what else is logged into the folder of a run."""
    if not is_first_process():
        # Nobody reads them; but what the first process computes for them, the others compute, too.
        folder = pathlib.Path(tempfile.mkdtemp())
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return [keras.callbacks.TensorBoard(folder / "tensorboard", write_graph=False)]
