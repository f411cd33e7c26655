import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]


@pytest.mark.slow
@pytest.mark.parametrize("task", ["segmentation", "detection"])
def test_a_training_that_is_killed_goes_on(task):
    """Ten kills, five of them while a file is written; the script says what it checks."""
    command = [sys.executable, "-m", "tests.benchmarks.kill_training", "--task", task, "--kills", "10"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert f"{task}: resumed after each of 10 kills" in done.stdout
