import pathlib

import pytest

from heads.training import RunError, find_newest_run, make_numbered_folder
from heads.training.folders import remove_unused_folder


def test_numbers_go_on_after_the_highest(tmp_path):
    parent = tmp_path / "new" / "runs"
    assert make_numbered_folder(parent, "pose") == parent / "pose-1"
    (parent / "pose-9").mkdir()
    for name in ("pose-x", "pose-", "pose", "pose-big-12", "detection-40", "pose-²"):
        (parent / name).mkdir()
    assert make_numbered_folder(parent, "pose") == parent / "pose-10"
    assert make_numbered_folder(parent, "pose-big") == parent / "pose-big-13"


def test_another_process_may_be_quicker(tmp_path, monkeypatch):
    mkdir, taken = pathlib.Path.mkdir, []

    def be_late(path, *arguments, **options):
        if path.name == "run-1" and not taken:
            taken.append(path)
            mkdir(path)
        mkdir(path, *arguments, **options)

    monkeypatch.setattr(pathlib.Path, "mkdir", be_late)
    assert make_numbered_folder(tmp_path, "run") == tmp_path / "run-2"


def test_where_no_folder_can_be_made(tmp_path):
    (tmp_path / "runs").touch()
    with pytest.raises(RunError, match=r"can be written to.*--output.*runs"):
        make_numbered_folder(tmp_path / "runs", "pose")


def test_the_newest_run_has_a_state(tmp_path):
    for number in (1, 2, 10, 11):
        folder = make_state(tmp_path / f"pose-{number}")
    (folder / "state" / "latest.weights.h5").unlink()
    assert find_newest_run(tmp_path, "pose") == tmp_path / "pose-10"
    with pytest.raises(RunError, match="no folder detection-<number>"):
        find_newest_run(tmp_path, "detection")
    (tmp_path / "detection-1").mkdir()
    with pytest.raises(RunError, match="1 folders detection-<number> without a state"):
        find_newest_run(tmp_path, "detection")


def make_state(folder):
    (folder / "state").mkdir(parents=True)
    (folder / "state" / "latest.weights.h5").touch()
    return folder


def test_only_unused_folders_are_removed(tmp_path):
    unused, used = make_numbered_folder(tmp_path, "a"), make_numbered_folder(tmp_path, "a")
    (unused / "run.lock").touch()
    (used / "settings.json").touch()
    for folder in (unused, used, tmp_path / "missing"):
        remove_unused_folder(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["a-2"]
