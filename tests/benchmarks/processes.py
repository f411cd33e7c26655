"""Prints how much longer a training step takes in two processes than in one with half of the batch.

    python -m tests.benchmarks.processes [--head semantic_fpn] [--variant b0] [--size 256] [--batch-size 4]

On JAX; each process is pinned to a core of its own and trains with `fit`. They take turns: one process alone,
two that do not know each other, two that train together. The second case shows how much the cores slow each
other down, as two threads of one core do, the third what training together costs. On Linux.
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time

from tests.benchmarks.results import add_output, write_results
from tests.benchmarks.turns import format_table

NUM_STEPS, NUM_WARM_UP = 12, 3


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--head", default="semantic_fpn", choices=["semantic_fpn", "retinanet"])
    parser.add_argument("--variant", default="b0")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=4, help="of the two together")
    parser.add_argument("--rounds", type=int, default=3)
    add_output(parser)
    parser.add_argument("--train", type=int, nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.train:
        train(arguments, *arguments.train)
    else:
        compare(arguments)


def compare(arguments):
    found = {"one process": [], "two apart": [], "two together": []}
    with tempfile.TemporaryDirectory() as cache:
        for _ in range(arguments.rounds):
            for name, steps in found.items():
                steps.extend(run(name, arguments, cache))
    medians = {name: statistics.median(steps) for name, steps in found.items()}
    case = f"{arguments.head}, {arguments.variant}, {arguments.size} x {arguments.size}"
    print(f"{case}, {arguments.batch_size // 2} pictures a process")
    rows = [
        (name, f"{seconds:.3f}", *(f"{seconds / medians[other]:.3f}" for other in list(found)[:2]))
        for name, seconds in medians.items()
    ]
    print(format_table(("", "s a step", "of one process", "of two apart"), rows))
    numbers = [(case, name, "float32", "s a step", seconds) for name, seconds in medians.items()]
    write_results(arguments.output, "processes", numbers)


def run(name, arguments, cache):
    """Returns the seconds of each step of a training."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    count, together = 1 if name == "one process" else 2, name == "two together"
    command = [sys.executable, "-m", "tests.benchmarks.processes", "--head", arguments.head]
    command += ["--variant", arguments.variant, "--size", str(arguments.size)]
    command += ["--batch-size", str(arguments.batch_size if together else arguments.batch_size // 2)]
    environment = {**os.environ, "KERAS_BACKEND": "jax", "JAX_COMPILATION_CACHE_DIR": cache}
    workers = [
        subprocess.Popen(
            [*command, "--train", port, str(index), str(count if together else 1)],
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        for index in range(count)
    ]
    printed = [worker.communicate()[0] for worker in workers]
    if any(worker.returncode for worker in workers):
        raise SystemExit(f"a process of {name} failed, see above")
    return json.loads(printed[0].splitlines()[-1])


def train(arguments, port, index, count):
    """Trains as one of the processes, on a core of its own; the first one prints the seconds of its steps."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise SystemExit(f"two processes need two cores. Received: {len(cores)}")
    os.sched_setaffinity(0, {cores[index]})  # before JAX counts them

    import keras

    import heads
    from heads import processes
    from heads.data import (
        DetectionAugmentation,
        DetectionShapes,
        SemanticAugmentation,
        SemanticShapes,
        detection_training_batches,
        semantic_training_batches,
    )
    from heads.training.shares import ShapedBatches
    from van_backbones import VANBackbone

    if count > 1:
        processes.join_processes(f"127.0.0.1:{port}", index, count)
    keras.utils.set_random_seed(0)  # all begin with the same weights
    size = (arguments.size, arguments.size)
    backbone = VANBackbone(arguments.variant)
    if arguments.head == "semantic_fpn":
        model = heads.SemanticFPN(backbone, 10)
        source, augment = SemanticShapes(16, size), SemanticAugmentation(size)
        batches = semantic_training_batches(source, arguments.batch_size, augment)
    else:
        model = heads.RetinaNet(backbone, 10)
        source, augment = DetectionShapes(16, size), DetectionAugmentation(image_size=size)
        batches = detection_training_batches(source, arguments.batch_size, augment)
    model.compile(keras.optimizers.AdamW(1e-4))
    timer = Timer()
    batches = ShapedBatches(lambda: 0).shape(batches)
    model.fit(batches, steps_per_epoch=NUM_STEPS, verbose=0, shuffle=False, callbacks=[timer.callback()])
    if index == 0:
        print(json.dumps(timer.seconds[NUM_WARM_UP:]))


class Timer:
    """Records the seconds between the ends of steps."""

    def __init__(self):
        self.seconds, self.last = [], None

    def callback(self):
        import keras

        return keras.callbacks.LambdaCallback(on_train_batch_end=self.note)

    def note(self, batch, logs):
        if logs:
            float(logs["loss"])  # by then the step has ended
        now = time.perf_counter()
        if self.last is not None:
            self.seconds.append(now - self.last)
        self.last = now


if __name__ == "__main__":
    main()
