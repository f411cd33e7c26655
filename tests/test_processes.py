"""Shares and merging in one process that is told to be one of several; the slow suite has real ones."""

import os
import pathlib
import socket
import subprocess
import sys
import threading

import numpy as np
import pytest

from heads import processes
from heads.data import (
    DetectionAugmentation,
    DetectionShapes,
    KeypointShapes,
    PoseAugmentation,
    SemanticAugmentation,
    SemanticShapes,
    detection_evaluation_batches,
    detection_training_batches,
    pose_evaluation_batches,
    pose_training_batches,
    semantic_evaluation_batches,
    semantic_training_batches,
)

SIZE = (32, 32)


@pytest.fixture
def be_one_of(monkeypatch):
    """Returns a function `(index, count)` after which this process believes to be one of several."""

    def be(index, count):
        monkeypatch.setattr(processes, "_place", (index, count))

    return be


def flatten(batches, count):
    """Returns the arrays of the first batches, batch by batch."""
    found = []
    for batch in batches.take(count).as_numpy_iterator():
        for part in batch:
            found.append(list(part.values()) if isinstance(part, dict) else [part])
    return found


MAKERS = {
    "semantic": lambda step: semantic_training_batches(
        SemanticShapes(7, SIZE), 4, SemanticAugmentation(SIZE), seed=3, first_step=step
    ),
    "detection": lambda step: detection_training_batches(
        DetectionShapes(7, SIZE), 4, DetectionAugmentation(image_size=SIZE, scale_range=(0.5, 2.0)), 3,
        first_step=step,
    ),
    "pose": lambda step: pose_training_batches(
        KeypointShapes(7, (64, 64)), 4, PoseAugmentation((32, 32)), seed=3, first_step=step
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", MAKERS)
def test_shares_make_up_the_joint_batches(kind, be_one_of):
    joint = flatten(MAKERS[kind](2), 3)
    shares = []
    for index in range(2):
        be_one_of(index, 2)
        shares.append(flatten(MAKERS[kind](2), 3))
    assert not np.array_equal(joint[0][0][:2], joint[0][0][2:])
    for arrays, *halves in zip(joint, *shares, strict=True):
        for array, first, second in zip(arrays, *halves, strict=True):
            # A share has rows only for its own objects.
            for half, part in ((first, array[:2]), (second, array[2:])):
                assert len(half) == 2
                inner = tuple(slice(size) for size in half.shape)
                np.testing.assert_array_equal(half, part[inner])


def test_a_share_goes_on_after_the_last_batch(be_one_of):
    be_one_of(1, 2)
    batches = MAKERS["semantic"](0)
    first = [images for images, _ in batches.take(2).as_numpy_iterator()]
    more = [images for images, _ in batches.take(1).as_numpy_iterator()]
    again = [images for images, _ in MAKERS["semantic"](0).take(3).as_numpy_iterator()]
    np.testing.assert_array_equal([*first, *more], again)


EVALUATIONS = {
    "semantic": lambda: semantic_evaluation_batches(SemanticShapes(5, SIZE), 2),
    "detection": lambda: detection_evaluation_batches(DetectionShapes(5, SIZE), 2),
    "pose": lambda: pose_evaluation_batches(KeypointShapes(3, (64, 64)), 2),
}


@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("kind", EVALUATIONS)
def test_each_process_scores_every_so_many_batches(kind, count, be_one_of):
    whole = flatten(EVALUATIONS[kind](), 9)
    for index in range(count):
        be_one_of(index, count)
        batches = EVALUATIONS[kind]()
        found, expected = flatten(batches, 9), [
            part for place, part in enumerate(whole) if place // 2 % count == index
        ]  # fmt: skip
        assert len(found) == len(expected)  # none if there are fewer batches than processes
        for ours, theirs in zip(found, expected, strict=True):
            for array, other in zip(ours, theirs, strict=True):
                np.testing.assert_array_equal(array, other)
    be_one_of(0, 1)  # without the others, the same dataset has all pictures
    assert len(flatten(batches, 9)) == len(whole)


def test_batches_that_cannot_be_shared_out(be_one_of):
    be_one_of(0, 3)
    with pytest.raises(
        ValueError, match=r"batch_size must be a multiple of the number of processes, 3\. .*4"
    ):
        MAKERS["semantic"](0)


class Unnumbered:
    def load(self, shuffle_seed=None):
        return SemanticShapes(3, SIZE).load()


def test_sources_without_a_length_cannot_be_shared_out(be_one_of):
    be_one_of(0, 2)
    with pytest.raises(ValueError, match="source must have a length"):
        semantic_training_batches(Unnumbered(), 2, SemanticAugmentation(SIZE))
    with pytest.raises(ValueError, match="source must have a length"):
        semantic_evaluation_batches(Unnumbered(), 2)


def test_own_pictures_of_all_processes_are_all(be_one_of):
    for count, num_pictures, batch_size in ((1, 5, 2), (2, 7, 2), (3, 2, 1), (2, 0, 4)):
        found = []
        for index in range(count):
            be_one_of(index, count)
            found += processes.find_own_pictures(num_pictures, batch_size).tolist()
        assert sorted(found) == list(range(num_pictures))


def test_results_come_in_the_order_of_the_batches(monkeypatch):
    rows = [["0", "3", "6"], ["1", "4"], ["2", "5"]]
    monkeypatch.setattr(processes, "gather", lambda values: rows)
    assert processes.gather_batches(rows[1]) == list("0123456")
    rows[:] = [["0"], [], []]
    assert processes.gather_batches([]) == ["0"]


def test_one_process_has_all(be_one_of):
    assert processes.find_place() == (0, 1)
    assert processes.count_devices() == 1
    assert processes.gather({"a": 0.1}) == [{"a": 0.1}]
    np.testing.assert_array_equal(processes.gather_numbers([3, 4]), [[3, 4]])
    model = object()
    with processes.on_this_process(model) as same, processes.without_the_others():
        assert same is model
    processes.leave_processes()
    assert processes.find_place() == (0, 1)


def test_joining_needs_jax_and_a_place(monkeypatch):
    with pytest.raises(ValueError, match=r"KERAS_BACKEND=jax\. Received: tensorflow"):
        processes.join_processes("127.0.0.1:1", 0, 2)
    monkeypatch.setattr("keras.backend.backend", lambda: "jax")
    with pytest.raises(ValueError, match=r"index must be 0 .. 1, one for each process. Received: 2"):
        processes.join_processes("127.0.0.1:1", 2, 2)


@pytest.mark.skipif(not hasattr(os, "SCHED_BATCH"), reason="Linux's scheduler")
def test_threads_do_not_interrupt_each_other():
    found = []

    def note():
        found.append(os.sched_getscheduler(0))

    def run():
        processes._wait_for_turns()
        note()
        later = threading.Thread(target=note)
        later.start()
        later.join()

    thread = threading.Thread(target=run)  # the policy is a thread's own, so the tests go on with theirs
    thread.start()
    thread.join()
    assert found == [os.SCHED_BATCH, os.SCHED_BATCH]


@pytest.mark.slow
def test_two_processes_join_each_other():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    root = pathlib.Path(__file__).resolve().parents[1]
    environment = {**os.environ, "KERAS_BACKEND": "jax", "PYTHONPATH": str(root)}
    options = {"cwd": root, "env": environment, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    command = [sys.executable, "tests/join_in_processes.py", port]
    runs = [subprocess.Popen([*command, index, "2"], text=True, **options) for index in "01"]
    for run in runs:
        printed, errors = run.communicate(timeout=600)
        assert run.returncode == 0, errors[-3000:]
        assert "joined" in printed
