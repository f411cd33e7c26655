"""Files that a kill or a full disk cannot damage."""

import contextlib
import os
import pathlib

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


def _flush(path):
    """Makes sure that a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
