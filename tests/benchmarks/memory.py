"""Prints what `recompute=True` saves: peak memory and seconds of a training step, plain and recomputed.

    python -m tests.benchmarks.memory [--variant b2] [--size 512] [--batch-size 2] [--mode graph]

Each configuration runs in a process of its own, with `train_on_batch`. Memory is the peak of the resident
set during a step minus the resident set before it: activations and gradients, without weights, the
optimizer's state and the framework. On Linux, on the CPU.
"""

import argparse
import ctypes
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time

from tests.benchmarks.results import add_output, write_results

# glibc's mallopt: buffers from this size on are given back to the system when freed, so that the resident
# set follows what is in use. This costs time, so the timed steps run before.
MMAP_THRESHOLD, SMALLEST_MAPPED = -3, 65536


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--variant", default="b2")
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--mode", choices=["graph", "xla", "eager"], default="graph")
    parser.add_argument("--steps", type=int, default=3, help="steps that are timed")
    add_output(parser)
    parser.add_argument("--measure", choices=["plain", "recompute"], help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.measure:
        print(json.dumps(measure_steps(arguments)))
        return
    print(
        f"van {arguments.variant}, {arguments.batch_size} x {arguments.size} x {arguments.size}, "
        f"{arguments.dtype}, {arguments.mode}, "
        f"{os.environ.get('KERAS_BACKEND', 'tensorflow')}"
    )
    results = {}
    for name in ("plain", "recompute"):
        results[name] = run_again(name, argv)
        print(
            "{0:10} peak {peak:6.0f} MB   step {seconds:6.2f} s   loss {loss:.6f}".format(
                name, **results[name]
            )
        )
    plain, recomputed = results["plain"], results["recompute"]
    print(f"memory: {plain['peak'] / recomputed['peak']:.2f} times less")
    print(f"time:   {recomputed['seconds'] / plain['seconds']:.2f} times as long")
    case = f"{arguments.variant}, {arguments.batch_size} x {arguments.size} x {arguments.size}"
    numbers = [
        (case, f"{name}, {arguments.mode}", arguments.dtype, quantity, round(result[key], 3))
        for name, result in results.items()
        for key, quantity in (("peak", "peak MB"), ("seconds", "seconds per step"))
    ]
    write_results(arguments.output, "memory", numbers)


def run_again(name, argv):
    """Returns what this script measures in a fresh process."""
    arguments = sys.argv[1:] if argv is None else argv
    command = [sys.executable, "-m", "tests.benchmarks.memory", *arguments, "--measure", name]
    # TensorFlow's own allocator for the CPU gives nothing back to the system.
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2", "TF_ONEDNN_USE_SYSTEM_ALLOCATOR": "1"}
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    if run.returncode:
        raise RuntimeError(f"the process of {name!r} failed:\n{run.stderr[-4000:]}")
    return json.loads(run.stdout.splitlines()[-1])


def measure_steps(arguments):
    """Returns the peak in MB, the median seconds and the first loss of training steps."""
    import keras
    import numpy as np

    from van_backbones import VANBackbone

    keras.utils.set_random_seed(0)
    recompute = arguments.measure == "recompute"
    backbone = VANBackbone(arguments.variant, dtype=arguments.dtype, recompute=recompute)
    pooled = [keras.layers.GlobalAveragePooling2D()(x) for x in backbone.pyramid_outputs.values()]
    model = keras.Model(backbone.input, keras.layers.Dense(1)(keras.layers.Concatenate()(pooled)))
    mode = {"run_eagerly": arguments.mode == "eager", "jit_compile": arguments.mode == "xla"}
    model.compile(optimizer=keras.optimizers.SGD(1e-3), loss="mse", **mode)
    random = np.random.default_rng(0)
    images = random.uniform(0, 255, (arguments.batch_size, arguments.size, arguments.size, 3))
    images, targets = images.astype("float32"), np.ones((arguments.batch_size, 1), "float32")

    loss = float(model.train_on_batch(images, targets))
    seconds = []
    for _ in range(arguments.steps):
        start = time.perf_counter()
        float(model.train_on_batch(images, targets))
        seconds.append(time.perf_counter() - start)

    libc = ctypes.CDLL(None)
    libc.mallopt(MMAP_THRESHOLD, SMALLEST_MAPPED)
    float(model.train_on_batch(images, targets))  # what the heap still keeps counts as in use
    libc.malloc_trim(0)
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = resident_megabytes("VmRSS")
    float(model.train_on_batch(images, targets))
    peak = resident_megabytes("VmHWM") - before
    return {"peak": peak, "seconds": statistics.median(seconds), "loss": loss}


def resident_megabytes(field):
    """Returns the resident set, "VmRSS", or its peak, "VmHWM", in MB."""
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    kilobytes = next(line for line in lines if line.startswith(field)).split()[1]
    return int(kilobytes) * 1024 / 1e6


if __name__ == "__main__":
    main()
