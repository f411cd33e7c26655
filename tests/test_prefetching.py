import subprocess
import sys

import pytest

FAILING_PROGRAM = """
from heads.data import DetectionAugmentation, DetectionShapes, detection_training_batches

def main():
    batches = iter(detection_training_batches(DetectionShapes(7, 40), 2, DetectionAugmentation(32)))
    next(batches)
    raise KeyError("the reason")

main()
"""


@pytest.mark.slow
def test_a_program_that_fails_in_its_batches_ends():
    process = subprocess.run(
        [sys.executable, "-c", FAILING_PROGRAM], capture_output=True, text=True, timeout=120, check=False
    )
    assert process.returncode == 1
    assert "KeyError: 'the reason'" in process.stderr
