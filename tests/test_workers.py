"""Trainings in several processes: options and supervision; in the slow suite, real ones on JAX."""

import argparse
import csv
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import h5py
import numpy as np
import pytest
from coco_folder import write_coco_folder
from PIL import Image

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "examples"))

from options import add_run_options

from heads.training import RunError, go_on_alone, run_in_folder
from heads.training.workers import check_batch_size, start_workers, take_process_options

ROOT = pathlib.Path(__file__).resolve().parents[1]
CLUSTER = ["--coordinator", "here:1", "--process-id", "1", "--num-processes", "3"]


def parse(*options):
    parser = argparse.ArgumentParser()
    add_run_options(parser, "here")
    return parser.parse_args(options)


def test_the_options_are_no_settings():
    arguments = parse(*CLUSTER, "--device", "0")
    options = take_process_options(arguments)
    assert options == {
        **{"processes": None, "coordinator": "here:1", "process_id": 1, "num_processes": 3, "device": 0}
    }
    kept = ["keep", "mixed_precision", "output", "patience", "resume", "save_every", "seed"]
    assert sorted(vars(arguments)) == kept
    assert set(take_process_options(argparse.Namespace()).values()) == {None}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--coordinator", "here:1"], "go together"),
        (["--process-id", "0", "--num-processes", "2"], "go together"),
        (["--processes", "2", *CLUSTER], "pass one of the two. Received: "),
        (["--device", "1"], "--device needs --coordinator"),
    ],
)
def test_options_that_do_not_go_together(options, message):
    with pytest.raises(RunError, match=message):
        take_process_options(parse(*options))


@pytest.mark.parametrize("options", [["--processes", "1"], ["--num-processes", "1"], ["--processes", "two"]])
def test_one_process_needs_no_option(options):
    with pytest.raises(SystemExit):
        parse(*options)


def test_batches_must_be_shared_out():
    check_batch_size(argparse.Namespace(batch_size=6), 3)
    check_batch_size(argparse.Namespace(), 3)
    with pytest.raises(RunError, match=r"--batch-size must be a multiple of 4.*Received: 6"):
        check_batch_size(argparse.Namespace(batch_size=6), 4)


def never(arguments, folder):
    raise AssertionError("must not train")


def test_a_program_that_is_no_script_is_refused():
    with pytest.raises(SystemExit, match=r"starts the script again.*test_workers\.py --processes"):
        run_in_folder(never, parse("--processes", "2"), "here")


def test_a_cluster_needs_jax():
    with pytest.raises(SystemExit, match="KERAS_BACKEND=jax"):
        run_in_folder(never, parse(*CLUSTER), "here")


def test_the_only_process_draws():
    assert go_on_alone()


WORKER = """
import os, signal, sys, time
place = int(sys.argv[sys.argv.index("--process-id") + 1])
if sys.argv[1] == "fail" and place == 1:
    sys.exit(3)
if sys.argv[1] == "die" and place == 0:
    os.kill(os.getpid(), signal.SIGKILL)
if sys.argv[1] == "end":
    print(os.environ["KERAS_BACKEND"], *sys.argv[1:])
    sys.exit()
if sys.argv[1] == "stop":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    open(f"{sys.argv[2]}/{place}", "w").close()
time.sleep(60)
"""


@pytest.fixture
def worker(tmp_path, monkeypatch):
    """Returns a function `(*arguments)` after which `start_workers` starts a small script with them."""
    path = tmp_path / "worker.py"
    path.write_text(WORKER)

    def be(*arguments):
        monkeypatch.setattr(sys, "argv", [str(path), *arguments])

    return be


def test_workers_are_the_same_command_each_with_its_place(worker, capfd):
    worker("end", "--processes=2", "--steps", "3")
    assert start_workers(2) == 0
    lines = sorted(capfd.readouterr().out.splitlines())
    for index, line in enumerate(lines):
        assert line.startswith("jax end --steps 3 --coordinator 127.0.0.1:")
        assert line.endswith(f"--process-id {index} --num-processes 2 --device {index}")


@pytest.mark.parametrize(
    ("how", "status", "message"),
    [
        ("fail", 3, "Process 1 of 2 ended with exit status 3; its message is above, so all end"),
        ("die", 137, "Process 0 of 2 ended by SIGKILL, so all end"),
    ],
)
def test_one_that_ends_ends_all(worker, capfd, how, status, message):
    worker(how)
    start = time.monotonic()
    assert start_workers(2) == status
    assert time.monotonic() - start < 30
    assert message in capfd.readouterr().err


STOPPED = """
import os, signal, sys, threading, time
from heads.training.workers import start_workers
folder = sys.argv[2]
def stop():
    while not all(os.path.exists(f"{folder}/{place}") for place in (0, 1)):
        time.sleep(0.05)
    os.kill(os.getpid(), signal.SIGTERM)
threading.Thread(target=stop, daemon=True).start()
sys.argv[0] = f"{folder}/worker.py"
sys.exit(start_workers(2))
"""


def test_signals_reach_all(tmp_path):
    (tmp_path / "worker.py").write_text(WORKER)
    command = [sys.executable, "-c", STOPPED, "stop", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.returncode == 143, done.stderr
    assert "so all end" not in done.stderr


# Real trainings from here on.


def start(example, folder, *options, processes=None, die_at="-1 0"):
    """Starts an example with a tiny backbone; its output goes into a file."""
    number = f"--processes {processes}".split() if processes else []
    command = [sys.executable, "tests/train_in_processes.py", example, "--output", str(folder), *number]
    environment = {**os.environ, "KERAS_BACKEND": "jax", "PYTHONPATH": str(ROOT), "DIE_AT": die_at}
    environment["JAX_COMPILATION_CACHE_DIR"] = str(folder.parent / "compiled")
    with open(f"{folder}.out", "w") as output, open(f"{folder}.err", "w") as errors:
        return subprocess.Popen(
            [*command, *map(str, options)], cwd=ROOT, env=environment, stdout=output, stderr=errors
        )


def train(example, folder, *options, status=0, **places):
    """Returns what an example printed, and its errors, when it has ended with a status."""
    run = start(example, folder, *options, **places)
    code = run.wait(timeout=1800)
    printed, errors = (pathlib.Path(f"{folder}.{kind}").read_text() for kind in ("out", "err"))
    assert code == status, errors[-5000:]
    return printed, errors


def read_weights(path):
    found = {}

    def keep(name, item):
        if isinstance(item, h5py.Dataset):
            found[name] = item[()]

    with h5py.File(path) as file:
        file.visititems(keep)
    return found


def read_log(folder):
    with open(folder / "log.csv", newline="") as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


def find_table(printed, title):
    """Returns the lines of the scores below a title."""
    return printed.partition(title)[2].partition("\n\n")[0].split("Epoch")[0]


def compare(one, two, is_cut=False, num_epochs=2):
    """Losses, scores and weights of two folders are equal, to rounding.

    The training losses of an interrupted epoch are not: only those of its second part are logged.
    """
    logs = read_log(one), read_log(two)
    assert len(logs[0]) == len(logs[1]) == num_epochs
    assert num_epochs == 1 or logs[0][0]["loss"] != logs[0][1]["loss"]
    for rows in zip(*logs, strict=True):
        assert rows[0].keys() == rows[1].keys()
        for name, value in rows[0].items():
            if is_cut and not name.startswith("val_"):
                continue
            # A pixel or a detection near a threshold may change sides.
            limit = 1e-5 if "loss" in name else 0.01
            np.testing.assert_allclose(rows[1][name], value, rtol=limit, atol=limit, err_msg=name)
    weights, others = (read_weights(folder / "state" / "latest.weights.h5") for folder in (one, two))
    assert weights.keys() == others.keys()
    for name, values in weights.items():
        np.testing.assert_allclose(others[name], values, rtol=1e-4, atol=2e-5, err_msg=name)


@pytest.fixture(scope="module")
def label_folder(tmp_path_factory):
    """Writes five pictures for training and three for scores, with bright things on dark ground."""
    root, random = tmp_path_factory.mktemp("labels"), np.random.default_rng(0)
    for split, count in (("train", 5), ("val", 3)):
        for kind in ("images", "labels"):
            (root / kind / split).mkdir(parents=True)
        for index in range(count):
            label_map = np.zeros((48, 64), "uint8")
            label_map[8:20, 6 + 4 * index :][:, :20] = 1
            label_map[30:, 28:38], label_map[0] = 2, 255
            colours = np.array([[60, 50, 70], [210, 220, 240], [240, 130, 20]])[label_map % 255]
            image = np.clip(colours + random.normal(0, 10, (48, 64, 3)), 0, 255).astype("uint8")
            Image.fromarray(image).save(root / "images" / split / f"{index}.png")
            Image.fromarray(label_map).save(root / "labels" / split / f"{index}.png")
    (root / "classes.txt").write_text("wall\nwindow\ndoor\n")
    return root


@pytest.mark.slow
def test_a_segmenter_in_two_processes_and_on_other_numbers(label_folder, tmp_path):
    options = ["--data", label_folder, "--crop-size", 32, 32, "--batch-size", 2, "--channels", 8]
    options += ["--steps", 4, "--evaluate-every", 2, "--save-every", 1]
    example, one, two = "finetune_segmentation", tmp_path / "one", tmp_path / "two"
    whole, _ = train(example, one, *options)
    assert "JAX compiled the training step for 1 shape of batches, 1 so far" in whole

    part, errors = train(example, two, *options, processes=2, die_at="1 2", status=137)
    assert "Process 1 of 2 ended by SIGKILL, so all end. --resume goes on" in errors
    begun = (two / "state" / "latest.weights.h5").stat().st_mtime  # the step before
    assert time.time() - begun < 60
    assert find_table(part, "Before training") == find_table(whole, "Before training")
    assert part.count("Before training") == 1

    _, errors = train(example, two, *options, "--resume", die_at="0 4", status=-signal.SIGKILL)
    resumed, _ = train(example, two, *options, "--resume", processes=2)
    assert "--resume goes on after epoch 1, step 3," in resumed
    compare(one, two, is_cut=True)
    rows = [json.loads((two / f"rows-{index}.json").read_text()) for index in range(2)]
    assert rows[0] == rows[1]
    settings = [json.loads((folder / "settings.json").read_text()) for folder in (one, two)]
    assert {name for name in settings[0] if settings[0][name] != settings[1][name]} == {"output", "resume"}
    assert (two / "predictions.png").exists()


DETECTORS = {
    "retinanet": ["--num-convs", 1],
    "mask_rcnn": ["--num-samples", 16],
}


@pytest.mark.slow
def test_averages_of_weights_in_two_processes(label_folder, tmp_path):
    """All processes swap the averages in and the weights back; each step has two batches."""
    options = ["--data", label_folder, "--crop-size", 32, 32, "--batch-size", 2, "--channels", 8]
    options += ["--steps", 2, "--evaluate-every", 1, "--accumulate", 2, "--ema", 0.5]
    for name, processes in (("one", None), ("two", 2)):
        train("finetune_segmentation", tmp_path / name, *options, processes=processes)
    compare(tmp_path / "one", tmp_path / "two")


@pytest.mark.slow
@pytest.mark.parametrize("head", DETECTORS)
def test_a_detector_in_two_processes(head, tmp_path):
    write_coco_folder(tmp_path)
    options = ["--data", tmp_path, "--batch-size", 2, "--channels", 8, "--head", head, *DETECTORS[head]]
    options += ["--short-sides", 40, 48, "--long-side", 80, "--steps", 4, "--evaluate-every", 2]
    printed = [
        train("train_detection", tmp_path / name, *options, processes=processes)[0]
        for name, processes in (("one", None), ("two", 2))
    ]
    assert find_table(printed[0], "Before training") == find_table(printed[1], "Before training")
    places = ("one/before-0.json", "two/before-0.json", "two/before-1.json")
    before = [json.loads((tmp_path / place).read_text()) for place in places]
    assert len(before[0]) > 10
    assert before[0] == before[1] == before[2]  # to the last digit of each box and score
    compare(tmp_path / "one", tmp_path / "two")
    compiled = [[line for line in text.splitlines() if "JAX compiled" in line] for text in printed]
    assert compiled[0] == compiled[1]
    # Sides 64 and 96, eight rows: wide pictures have one shape.
    assert "for 1 shape of batches, 1 so far" in compiled[0][0]
    results = [json.loads((tmp_path / name / "results.json").read_text()) for name in ("one", "two")]
    assert {each["image_id"] for each in results[1]} == {10, 11, 12, 13}
    order = [each["image_id"] for each in results[1]]
    assert order == sorted(order)


OTHERS = {
    "train_pose": ["--channels", 8, "--batch-size", 4],
    "train_panoptic": [
        *("--channels", 8, "--batch-size", 2, "--image-size", 32, "--num-queries", 8, "--num-points", 32),
        *("--num-encoder-layers", 1, "--num-decoder-layers", 1, "--score-threshold", 0.05),
    ],
}


@pytest.mark.slow
@pytest.mark.parametrize("example", OTHERS)
def test_other_examples_in_two_processes(example, tmp_path):
    options = [*OTHERS[example], "--steps", 2, "--evaluate-every", 1]
    for name, processes in (("one", None), ("two", 2)):
        train(example, tmp_path / name, *options, processes=processes)
    compare(tmp_path / "one", tmp_path / "two")
    rows = [json.loads((tmp_path / "two" / f"rows-{index}.json").read_text()) for index in range(2)]
    assert rows[0] == rows[1]


@pytest.fixture(scope="module")
def class_folder(tmp_path_factory):
    """Writes six pictures of each of three classes, of one colour with noise."""
    root, random = tmp_path_factory.mktemp("classes"), np.random.default_rng(0)
    for name, colour in {"blue": (30, 60, 200), "green": (30, 180, 60), "red": (200, 40, 30)}.items():
        (root / name).mkdir()
        for index in range(6):
            image = np.clip(colour + random.normal(0, 60, (40, 48, 3)), 0, 255).astype("uint8")
            Image.fromarray(image).save(root / name / f"{index}.png")
    return root


@pytest.mark.slow
def test_a_classifier_in_two_processes(class_folder, tmp_path):
    options = ["--data", class_folder, "--batch-size", 4, "--image-size", 32, "--mixup", 0.8]
    options += ["--val-share", 0.4, "--steps", 4, "--evaluate-every", 2]
    for name, processes in (("one", None), ("two", 2)):
        train("finetune_classification", tmp_path / name, *options, processes=processes)
    compare(tmp_path / "one", tmp_path / "two")
    scores = [json.loads((tmp_path / name / "scores.json").read_text()) for name in ("one", "two")]
    assert scores[0] == scores[1]
    assert (tmp_path / "two" / "confusion.png").exists()


@pytest.mark.slow
def test_saliency_in_two_processes(tmp_path, monkeypatch):
    # In float64, and a single step: the norms of the coarsest level, of four values here, magnify rounding.
    monkeypatch.setenv("JAX_ENABLE_X64", "1")
    options = ["--image-sizes", 64, "--batch-size", 4, "--steps", 1]
    printed = [
        train("train_saliency", tmp_path / name, *options, processes=processes)[0]
        for name, processes in (("one", None), ("two", 2))
    ]
    assert find_table(printed[0], "Before training") == find_table(printed[1], "Before training")
    assert "max F" in find_table(printed[1], "Before training")
    compare(tmp_path / "one", tmp_path / "two", num_epochs=1)
    assert (tmp_path / "two" / "predictions.png").exists()


@pytest.mark.slow
def test_sigterm_saves_and_ends_all(label_folder, tmp_path):
    options = ["--data", label_folder, "--crop-size", 32, 32, "--batch-size", 2, "--channels", 8]
    folder = tmp_path / "run"
    options += ["--steps", 5000, "--evaluate-every", 5000, "--save-every", 1]
    run = start("finetune_segmentation", folder, *options, processes=2)
    state = folder / "state" / "latest.weights.h5"
    while not state.exists():
        assert run.poll() is None, pathlib.Path(f"{folder}.err").read_text()[-3000:]
        time.sleep(0.5)
    run.send_signal(signal.SIGTERM)
    assert run.wait(timeout=120) == 143
    printed = pathlib.Path(f"{folder}.out").read_text()
    assert "--resume goes on from step" in printed
    assert (folder / "interrupted.keras").exists()
