"""Files that appear whole or not at all."""

import contextlib
import os
import tempfile


@contextlib.contextmanager
def write_beside(path):
    """Yields a temporary path to write to; the file there is moved to `path` at the end.

    If the disk fills up or the process is killed, `path` stays as it was.

    Args:
        path: the final place.

    Raises:
        ValueError: if the folder does not exist, or `path` is a folder.
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
