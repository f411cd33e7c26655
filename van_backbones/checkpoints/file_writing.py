"""Files that appear whole or not at all."""

import contextlib
import os
import tempfile


@contextlib.contextmanager
def write_beside(path):
    """Returns a path to write to; what lies there becomes `path` when all is written.

    A full disk or a kill in the middle leaves what was at `path` before.

    Args:
        path: the final place.

    Raises:
        ValueError: where the folder does not exist.
    """
    path = os.path.abspath(path)
    folder, name = os.path.split(path)
    if not os.path.isdir(folder):
        raise ValueError(f"the output's folder must exist: create it. Received: {path!r}")
    if os.path.isdir(path):
        raise ValueError(f"the output must be a file. Received the folder {path!r}")
    with tempfile.TemporaryDirectory(prefix=".partial-", dir=folder) as beside:
        unfinished = os.path.join(beside, name)
        yield unfinished
        with open(unfinished, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(unfinished, path)
