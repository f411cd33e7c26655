"""Prints what processes send each other in a training step, and what that costs with more of them.

    python -m tests.benchmarks.communication [--head semantic_fpn] [--variant b1] [--processes 2 4 8]
    python -m tests.benchmarks.communication --variant b1 --plan [--milliseconds 32] [--batch-size 8]

The sums over all devices are read from the step that JAX compiles for two devices: how many there are, and
how large. The first command then lets this many processes compute the same sums, over gloo on this machine's
loopback, counts the bytes that go through it, and compares them with those of a ring: each process sends
2 (n - 1) / n times the bytes of the sums. The second one prints the plan of docs/distributed.md: the time of
a step on up to 256 devices, computed from that of one. On Linux.
"""

import argparse
import json
import math
import os
import pathlib
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np

from tests.benchmarks.results import add_output, write_results
from tests.benchmarks.turns import format_table

BYTES = {"f64": 8, "f32": 4, "s32": 4, "u32": 4, "bf16": 2, "f16": 2, "pred": 1, "s8": 1, "u8": 1, "s64": 8}
SUM = re.compile(r"= (.+?) all-reduce(?:-start)?\(")
SHAPE = re.compile(r"(\w+)\[([\d,]*)\]")
NUM_ROUNDS = 7
# What the plan assumes: machines of eight H100, connected by NVLink, with a 100 Gbit/s card for each of them.
DEVICES_OF_A_MACHINE = 8
RATE_INSIDE, RATE_BETWEEN = 300e9, 10e9  # bytes per second of a device
DELAY_INSIDE, DELAY_BETWEEN = 20e-6, 10e-6  # seconds of a small sum; for each doubling of the machines
BYTES_OF_A_PICTURE = 160e3  # COCO's JPEG files
CORE_SECONDS_OF_A_PICTURE = 15e-3  # read, augmented and batched, from docs/speed.md


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--head", default="semantic_fpn", choices=["semantic_fpn", "retinanet"])
    parser.add_argument("--variant", default="b0")
    parser.add_argument("--processes", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--plan", action="store_true")
    parser.add_argument("--milliseconds", type=float, default=32.0, help="of a step on one device")
    parser.add_argument("--batch-size", type=int, default=8, help="pictures of a step on one device")
    add_output(parser)
    parser.add_argument("--step", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--sums", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.step:
        train_a_step(arguments.head, arguments.variant)
    elif arguments.sums:
        form_sums(*arguments.sums)
    else:
        compare(arguments)


def compare(arguments):
    sizes = find_sums(arguments.head, arguments.variant)
    total = sum(sizes)
    case = f"{arguments.head}, {arguments.variant}"
    print(f"{case}: {len(sizes)} sums a step, {total / 1e6:.1f} MB", flush=True)
    if arguments.plan:
        print_plan(total, len(sizes), arguments)
        return
    rows, numbers = [], []
    for count in arguments.processes:
        seconds, sent = run_processes(count, sizes)
        ring = count * count_ring_bytes(count, total)
        rows.append((count, f"{sent / 1e6:.0f}", f"{ring / 1e6:.0f}", f"{sent / ring:.3f}", f"{seconds:.3f}"))
        for quantity, value in (("bytes", sent), ("ring bytes", ring), ("s", seconds)):
            numbers.append((case, f"{count} processes", "float32", quantity, value))
    print(format_table(("processes", "MB of all", "of a ring", "ratio", "s"), rows))
    write_results(arguments.output, "communication", numbers)


def count_ring_bytes(count, total):
    """Returns the bytes that each of `count` processes sends to sum `total` bytes over all of them."""
    return 2 * (count - 1) / count * total


def plan_step(count, total, num_sums, seconds):
    """Returns the seconds of a step on several devices if nothing overlaps.

    Args:
        count: number of devices.
        total: bytes of all sums.
        num_sums: number of sums.
        seconds: of the step on one device, with as many pictures per device.
    """
    if count == 1:
        return seconds
    machines = -(-count // DEVICES_OF_A_MACHINE)
    rate = RATE_INSIDE if machines == 1 else RATE_BETWEEN
    delay = DELAY_INSIDE + DELAY_BETWEEN * math.log2(machines)
    return seconds + count_ring_bytes(count, total) / rate + num_sums * delay


def print_plan(total, num_sums, arguments):
    """Prints the time of a step on up to 256 devices, and what it needs of the disk and the cores."""
    seconds, batch_size = arguments.milliseconds / 1000, arguments.batch_size
    rows = []
    for count in (1, 2, 8, 16, 64, 256):
        planned = plan_step(count, total, num_sums, seconds)
        pictures = count * batch_size / planned
        rows.append(
            (
                count,
                f"{1000 * planned:.1f}",
                f"{seconds / planned:.0%}",
                f"{pictures:,.0f}",
                f"{pictures * BYTES_OF_A_PICTURE / 1e9:.2f}",
                f"{pictures / count * CORE_SECONDS_OF_A_PICTURE:.1f}",
            )
        )
    header = ("devices", "ms a step", "of one device", "pictures/s", "GB/s read", "cores a device")
    print(format_table(header, rows))


def find_sums(head, variant):
    """Returns the bytes of each sum over all devices in a training step, as JAX compiles it for CPUs."""
    with tempfile.TemporaryDirectory() as folder:
        flags = f"--xla_force_host_platform_device_count=2 --xla_dump_to={folder} --xla_dump_hlo_as_text"
        environment = {**os.environ, "KERAS_BACKEND": "jax", "XLA_FLAGS": flags}
        command = [*(sys.executable, "-m", "tests.benchmarks.communication", "--step")]
        command += ["--head", head, "--variant", variant]
        subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
        files = pathlib.Path(folder).glob("*train_step*after_optimizations.txt")
        found = [read_sums(path.read_text()) for path in files]
    return max(found, key=sum)


def read_sums(program):
    """Returns the bytes of each sum over all devices in a compiled program."""
    return [
        sum(
            BYTES[dtype] * math.prod(map(int, sides.split(","))) if sides else BYTES[dtype]
            for dtype, sides in SHAPE.findall(shapes)
        )
        for shapes in SUM.findall(program)
    ]


def train_a_step(head, variant):
    """Trains one step on two devices."""
    import keras

    import heads
    from heads.data import (
        DetectionAugmentation,
        DetectionShapes,
        SemanticAugmentation,
        SemanticShapes,
        detection_training_batches,
        semantic_training_batches,
    )
    from van_backbones import VANBackbone

    keras.distribution.set_distribution(keras.distribution.DataParallel(auto_shard_dataset=False))
    if head == "semantic_fpn":
        model = heads.SemanticFPN(VANBackbone(variant), 10)
        batches = semantic_training_batches(SemanticShapes(4, (64, 64)), 2, SemanticAugmentation((64, 64)))
    else:
        model = heads.RetinaNet(VANBackbone(variant), 10)
        shapes, augment = DetectionShapes(4, (64, 64)), DetectionAugmentation(image_size=(64, 64))
        batches = detection_training_batches(shapes, 2, augment)
    model.compile(keras.optimizers.AdamW(1e-4))
    model.fit(batches, steps_per_epoch=1, verbose=0)


def run_processes(count, sizes):
    """Returns the median seconds in which processes compute all sums, and the bytes that all of them send."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [*(sys.executable, "-m", "tests.benchmarks.communication", "--sums", json.dumps(sizes), port)]
    environment = {**os.environ, "KERAS_BACKEND": "jax"}
    workers = [
        subprocess.Popen(
            [*command, str(index), str(count)], env=environment, stdout=subprocess.PIPE, text=True
        )
        for index in range(count)
    ]
    printed = [worker.communicate()[0] for worker in workers]
    if any(worker.returncode for worker in workers):
        raise SystemExit(f"a process of {count} failed, see above")
    turns = json.loads(printed[0].splitlines()[-1])
    return statistics.median(turns["seconds"]), statistics.median(turns["bytes"])


def form_sums(sizes, port, index, count):
    """Computes the sums of a step, one after the other, as one of the processes; the first one prints."""
    import jax

    from heads import processes

    sizes, index, count = json.loads(sizes), int(index), int(count)
    processes.join_processes(f"127.0.0.1:{port}", index, count)
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("all",))
    place = jax.sharding.PartitionSpec("all")

    def add(*arrays):
        results, last = [], 0.0
        for array in arrays:  # each sum waits for the one before, as in most of a step
            total = jax.lax.psum(array + 0.0 * last, "all")
            results.append(total)
            last = total[..., 0].sum()
        return results

    everywhere = jax.sharding.PartitionSpec()
    step = jax.jit(jax.shard_map(add, mesh=mesh, in_specs=place, out_specs=everywhere, check_vma=False))
    own = jax.sharding.NamedSharding(mesh, place)
    shapes = [(1, max(1, size // 4)) for size in sizes]
    arrays = [
        jax.make_array_from_process_local_data(own, np.full(shape, index + 1.0, "float32"))
        for shape in shapes
    ]
    sums = [float(each.addressable_data(0)[0, 0]) for each in step(*arrays)]
    if set(sums) != {count * (count + 1) / 2}:
        raise SystemExit(f"wrong sums: {set(sums)}")
    turns = {"seconds": [], "bytes": []}
    for _ in range(NUM_ROUNDS):
        processes.gather_numbers([0])  # all processes begin together
        before, start = read_loopback(), time.perf_counter()
        jax.block_until_ready(step(*arrays))
        turns["seconds"].append(time.perf_counter() - start)
        processes.gather_numbers([0])
        turns["bytes"].append(read_loopback() - before)
    if index == 0:
        print(json.dumps(turns))


def read_loopback():
    """Returns the bytes that have passed through this machine's loopback."""
    for line in pathlib.Path("/proc/net/dev").read_text().splitlines():
        name, _, counts = line.partition(":")
        if name.strip() == "lo":
            return int(counts.split()[0])
    raise SystemExit("/proc/net/dev has no loopback")


if __name__ == "__main__":
    main()
