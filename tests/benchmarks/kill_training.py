"""Kills a training again and again, also while it writes its files, and resumes it each time.

    python -m tests.benchmarks.kill_training --kills 100 --task detection

The scripts are those in examples/, with a small backbone and a few drawn pictures. At the end, the training
must have finished and its log must hold each epoch once. Every other kill comes while a state, a model or the
log is being written, the others at any moment. TensorFlow is imported once: each run is a fork.
"""

import argparse
import csv
import functools
import importlib
import json
import os
import pathlib
import random
import signal
import sys
import tempfile
import time

import keras  # noqa: F401  imported here, once; what starts TensorFlow's threads is imported in the forks
import numpy as np
from PIL import Image

ROOT = pathlib.Path(__file__).resolve().parents[2]
OPTIONS = {
    "segmentation": ("finetune_segmentation", "--crop-size 32 32 --channels 8"),
    "detection": ("train_detection", "--image-size 64 --scale-range 0.8 1.25 --channels 8 --num-convs 0"),
}
WRITTEN = ("state/.unfinished-latest.weights.h5", ".unfinished-last.keras", ".unfinished-log.csv")
PATIENCE = 300  # seconds


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--task", default="segmentation", choices=list(OPTIONS))
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        kill_and_resume(pathlib.Path(folder), arguments.task, arguments.kills, arguments.seed)


def kill_and_resume(folder, task, num_kills, seed):
    """Starts, kills and resumes a training; raises SystemExit if a run does not continue."""
    draw = random.Random(seed)
    data, output = folder / "data", folder / "run"
    write_data(data)
    epochs = num_kills // 2 + 3  # most kills come within an epoch after the start
    options = f"--data {data} --output {output} --batch-size 2 --steps {2 * epochs} --evaluate-every 2"
    num_in_writes = 0
    for kill in range(num_kills):
        process = start(folder, task, f"{options} {'--resume' if kill else ''}")
        before = stamp(output / "settings.json")
        if kill % 2:
            moment = draw.choice(WRITTEN)
            hit = wait_until(process, lambda moment=moment: (output / moment).exists())
            num_in_writes += hit
        else:
            moment = "any moment"
            # From the start of the training to a few epochs later.
            wait_until(process, lambda before=before: stamp(output / "settings.json") != before)
            if draw.random() < 0.5:
                begun = stamp(output / "log.csv")
                wait_until(process, lambda begun=begun: stamp(output / "log.csv") != begun)
            hit = wait_for(process, draw.uniform(0, 2))
        code = end(process)
        print(f"kill {kill + 1} at {moment}: {'hit' if hit else 'missed'}, {describe(output)}", flush=True)
        if code not in (-signal.SIGKILL, 0):
            fail(folder, f"the training ended with {code}")
        if code == 0:
            epochs += num_kills  # it ended before it was killed
            options = (
                f"--data {data} --output {output} --batch-size 2 --steps {2 * epochs} --evaluate-every 2"
            )
    process = start(folder, task, f"{options} --resume")
    wait_for(process, PATIENCE + 10 * epochs)
    if end(process):
        fail(folder, "the last run did not finish")
    with open(output / "log.csv", newline="") as file:
        logged = [int(row["epoch"]) for row in csv.DictReader(file)]
    if logged != list(range(epochs)):
        fail(folder, f"the log must have the epochs 0 .. {epochs - 1} once each. It has {logged}")
    print(
        f"{task}: resumed after each of {num_kills} kills, {num_in_writes} of them while files were written"
    )


def start(folder, task, options):
    """Returns the number of a forked process that trains."""
    sys.stdout.flush()
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        log = os.open(folder / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        script, common = OPTIONS[task]
        sys.path[:0] = [str(ROOT), str(ROOT / "examples")]
        script = importlib.import_module(script)
        small = {"widths": (8, 8, 16, 16), "depths": (1, 1, 1, 1)}
        script.VANBackbone = functools.partial(script.VANBackbone, **small)
        script.draw_pictures = script.print_scores = lambda *arguments, **options: []
        script.main([*options.split(), *common.split()])
        code = 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def end(process):
    """Kills a process; returns its exit code, negative for a signal."""
    os.kill(process, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def wait_until(process, happened):
    """Waits until something has happened in the process; returns False if it ended first."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        if happened():
            return True
        if is_done(process):
            return False
        time.sleep(0.0002)
    return False


def wait_for(process, seconds):
    """Waits some seconds; returns False if the process ended first."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if is_done(process):
            return False
        time.sleep(0.01)
    return True


def is_done(process):
    """Returns whether a process has ended; it can still be waited for."""
    return os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def stamp(path):
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return None


def describe(output):
    """Prints the log's last epoch."""
    try:
        return f"{max(0, (output / 'log.csv').read_text().count(chr(10)) - 1)} epochs are logged"
    except OSError:
        return "there is no log"


def fail(folder, text):
    print((folder / "log.txt").read_text(errors="replace")[-3000:])
    sys.exit(text)


def write_data(data):
    """Writes four pictures for training and two for scores, each with a square, for both tasks."""
    generator = np.random.default_rng(0)
    for split, count in (("train", 4), ("val", 2)):
        content = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "square"}]}
        for kind in ("images", "labels"):
            (data / kind / split).mkdir(parents=True)
        for index in range(count):
            image, label = generator.integers(0, 255, (64, 64, 3), "uint8"), np.zeros((64, 64), "uint8")
            left, top = generator.integers(2, 30, 2).tolist()
            image[top : top + 30, left : left + 30] = (250, 20, 20)
            label[top : top + 30, left : left + 30] = 1
            Image.fromarray(image).save(data / "images" / split / f"{index}.png")
            Image.fromarray(label).save(data / "labels" / split / f"{index}.png")
            content["images"].append({"id": index, "file_name": f"{index}.png", "height": 64, "width": 64})
            box = {"bbox": [left, top, 30, 30], "area": 900, "iscrowd": 0}
            content["annotations"].append({"id": index + 1, "image_id": index, "category_id": 1, **box})
        (data / "annotations").mkdir(exist_ok=True)
        (data / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    (data / "classes.txt").write_text("ground\nsquare\n")


if __name__ == "__main__":
    main()
