"""Files that are replaced as a whole, folders of one run at a time, and options within limits."""

import argparse
import pathlib
import sys

import numpy as np
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "examples"))

from options import number, whole_number
from results import save_picture

from heads.metrics import save_results, save_scores
from heads.training import RunError, hold_folder, replace_file, replace_text


def test_files_are_replaced_as_a_whole(tmp_path):
    path = tmp_path / "new" / "a.txt"
    replace_text(path, "old\r\n")
    with replace_file(path) as unfinished:
        unfinished.write_text("half")
        assert path.read_bytes() == b"old\r\n"
    assert path.read_text() == "half"

    def stop_in_the_middle():
        with replace_file(path) as unfinished:
            unfinished.write_text("never")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stop_in_the_middle()
    assert [entry.name for entry in path.parent.iterdir()] == ["a.txt"]
    assert path.read_text() == "half"


@pytest.mark.parametrize(
    "write",
    [
        lambda path: replace_text(path, "new"),
        lambda path: save_scores({"mean_iou": 0.5}, path),
        lambda path: save_results([], path),
        lambda path: save_picture(np.zeros((2, 3, 3), "uint8"), path.with_suffix(".png")),
    ],
)
def test_a_full_disk_leaves_the_old_file(write, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("No space left on device")

    old = tmp_path / "scores.json", tmp_path / "scores.png"
    for path in old:
        path.write_text("old")
    monkeypatch.setattr("heads.file_writing.os.fsync", fail)
    with pytest.raises(OSError, match="No space"):
        write(old[0])
    assert sorted(tmp_path.iterdir()) == sorted(old)
    assert [path.read_text() for path in old] == ["old", "old"]


def test_a_folder_is_held_once(tmp_path):
    with hold_folder(tmp_path / "run") as folder:
        assert folder.is_dir()
        with pytest.raises(RunError, match="still running"), hold_folder(folder):
            pass
        with hold_folder(tmp_path / "another"):
            pass
    with hold_folder(folder):
        pass
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(RunError, match="can be written to"), hold_folder(path):
            pass


@pytest.mark.parametrize(
    ("read", "text", "expected"),
    [
        (whole_number(0), "0", 0),
        (whole_number(1), "0", None),
        (whole_number(1), "-5", None),
        (whole_number(1), "2.5", None),
        (whole_number(0, 4), "5", None),
        (number(at_least=0), "0", 0.0),
        (number(at_least=0), "1e-3", 0.001),
        (number(at_least=0), "-1", None),
        (number(above=0), "0", None),
        (number(at_least=0), "nan", None),
        (number(at_least=0), "inf", None),
        (number(at_least=0), "much", None),
    ],
)
def test_options_within_limits(read, text, expected):
    if expected is not None:
        assert read(text) == expected
        return
    with pytest.raises(argparse.ArgumentTypeError, match=f"must be a .*Received: '{text}'"):
        read(text)
