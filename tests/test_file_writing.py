"""Files that appear whole or not at all."""

import pathlib

import pytest

from van_backbones.checkpoints.file_writing import write_beside


def test_writing_leaves_the_old_file_or_the_new_one(tmp_path):
    path = tmp_path / "out.safetensors"
    path.write_text("old")

    def fail():
        with write_beside(path) as unfinished:
            pathlib.Path(unfinished).write_text("half")
            raise OSError("No space left on device")

    with pytest.raises(OSError, match="No space"):
        fail()
    assert path.read_text() == "old"
    with write_beside(path) as unfinished:
        pathlib.Path(unfinished).write_text("new")
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]
