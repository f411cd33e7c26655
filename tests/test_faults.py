import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "examples"))

from faults import DATA_OF_SCRIPTS, explain_faults

EXAMPLES = pathlib.Path(__file__).resolve().parents[1] / "examples"


def test_scripts_exist():
    assert all((EXAMPLES / name).is_file() for name in DATA_OF_SCRIPTS)


def test_a_missing_folder_is_called_missing(tmp_path):
    with pytest.raises(SystemExit, match=r"--data must be a folder.*none, which does not exist"):
        with explain_faults(tmp_path / "none", "train_pose.py"):
            pytest.fail("reads")
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit, match="file, which is a file"):
        with explain_faults(str(tmp_path / "file"), "train_pose.py"):
            pytest.fail("reads")


@pytest.mark.parametrize(
    ("file", "script", "other"),
    [
        ("annotations/instances_train.json", "finetune_segmentation.py", "train_detection.py"),
        ("labels/train/a.png", "train_detection.py", "finetune_segmentation.py"),
        ("cats/a.jpg", "train_saliency.py", "finetune_classification.py"),
        ("labels/train/a.png", "finetune_segmentation.py", None),
        ("notes.txt", "train_detection.py", None),
    ],
)
def test_a_folder_of_another_task_is_told(tmp_path, file, script, other):
    path = tmp_path / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    with pytest.raises(SystemExit) as end, explain_faults(tmp_path, script):
        raise ValueError("annotations must be a file")
    assert str(end.value).startswith("\nannotations must be a file")
    assert ("looks like data for" in str(end.value)) == (other is not None)
    assert other is None or str(end.value).endswith(other)


def test_what_is_right_passes(tmp_path):
    for data in (None, tmp_path):
        with explain_faults(data, "train_pose.py"):
            pass
    with pytest.raises(SystemExit, match="too few"), explain_faults(None, "train_pose.py"):
        raise ValueError("too few")
    with pytest.raises(SystemExit, match="tifffile is not installed"), explain_faults(None, "train_pose.py"):
        raise ImportError("tifffile is not installed")
    with pytest.raises(KeyError), explain_faults(tmp_path, "train_pose.py"):  # a bug keeps its traceback
        raise KeyError("bug")
