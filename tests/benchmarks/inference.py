"""Times the forward pass: ours, stock Keras layers, PyTorch, OpenVINO and ONNX Runtime in turns.

    python -m tests.benchmarks.inference --variants b0 --sizes 224x224 512x512 --batch-sizes 1 --rounds 10

Weights, images and threads are equal. NumPy images of 0 .. 255 go in, the four maps come out. "x ..." is how
many times as fast a row is as the fastest PyTorch row, or as stock layers, in its precision. "Largest error"
is that of the worst map over its largest value, against stock Keras layers in float32. "~" marks times that
other processes disturbed.
"""

import argparse
import contextlib
import functools
import pathlib
import shutil
import tempfile
from typing import NamedTuple

from tests.benchmarks import engines
from tests.benchmarks.results import add_output, write_results
from tests.benchmarks.turns import (
    QUIET,
    Worker,
    WorkerError,
    describe_rounds,
    format_table,
    limit_threads,
    take_turns,
)

FRAMEWORKS = ("keras", "torch", "compile", "openvino", "onnx")
EXPORTED_NAMES = {"openvino": "van.xml", "onnx": "van.onnx"}
OURS = ("ours",)
STOCK = ("stock",)
PYTORCH = ("Transformers", "PyTorch", "torch.compile")
PEAK_SIDE = 3072  # of the matrices whose product gives the machine's peak


class Measured(NamedTuple):
    """One row.

    Attributes:
        milliseconds: of a forward pass.
        error: the largest, over the largest value.
        share: FLOP/s over the machine's peak.
        mark: "~" if other processes took so much of the machine that the time means little, else "".
    """

    milliseconds: float
    error: float
    share: float
    mark: str


def main(argv=None):
    arguments = parse_arguments(argv)
    limit_threads(arguments.threads)
    tables, peaks = {}, {}
    for variant in arguments.variants:
        with tempfile.TemporaryDirectory() as folder:
            for batch_size in arguments.batch_sizes:
                tables |= measure_batch(variant, batch_size, folder, peaks, arguments)
    print_summary(tables)
    write_results(arguments.output, "inference", list_numbers(tables))


def list_numbers(tables):
    """Yields the rows of the CSV file, without times that other processes disturbed."""
    for title, rows in tables.items():
        for row, found in rows.items():
            if not found.mark:
                yield (title, *row, "milliseconds", round(found.milliseconds, 3))
                yield (title, *row, "share of peak", round(found.share, 4))
            yield (title, *row, "largest error", float(f"{found.error:.2e}"))


def parse_arguments(argv):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--variants", nargs="+", help="default: b0 b1 b2")
    add("--sizes", nargs="+", type=parse_size, help="default: 224x224 512x512 800x1280")
    add("--batch-sizes", nargs="+", type=int, help="default: 1 8")
    add("--rounds", type=int, help="quiet turns of each row; default: 10")
    add(
        "--seconds",
        type=float,
        default=40.0,
        help="after which a table gets no further round, if it had four",
    )
    add("--threads", type=int, default=2)
    add("--frameworks", nargs="+", default=FRAMEWORKS, choices=FRAMEWORKS, help="keras always runs")
    add("--max-pixels", type=int, default=8 * 512 * 512, help="larger batches are left out")
    add("--quick", action="store_true", help="b0, 224 x 224, batch 1, 5 rounds")
    add_output(parser)
    arguments = parser.parse_args(argv)
    quick = arguments.quick
    arguments.variants = arguments.variants or (["b0"] if quick else ["b0", "b1", "b2"])
    arguments.sizes = arguments.sizes or ([(224, 224)] if quick else [(224, 224), (512, 512), (800, 1280)])
    arguments.batch_sizes = arguments.batch_sizes or ([1] if quick else [1, 8])
    arguments.rounds = arguments.rounds or (5 if quick else 10)
    return arguments


def parse_size(text):
    """Returns (height, width) of "800x1280"."""
    height, width = text.split("x")
    return int(height), int(width)


def measure_batch(variant, batch_size, folder, peaks, arguments):
    """Returns title -> result of `measure_shape`, for all sizes.

    In new processes, because old ones keep much of the memory that they once used.
    """
    tables, workers = {}, {}
    try:
        for height, width in arguments.sizes:
            title = f"{variant}, {batch_size} x {height} x {width}"
            if batch_size * height * width > arguments.max_pixels:
                print(f"\n{title}: left out, see --max-pixels")
                continue
            if not workers:
                start_workers(workers, variant, arguments, folder)
                measure_peaks(workers, peaks)
            try:
                shape = (batch_size, height, width, 3)
                tables[title] = measure_shape(title, workers, shape, peaks, arguments)
            except WorkerError as error:
                print(f"\n{title}: stopped, {error}", flush=True)
                close_workers(workers)  # a process does not know what was asked of the others
    finally:
        close_workers(workers)
    return tables


def start_workers(workers, variant, arguments, folder):
    """Fills `workers`, framework -> process, and prints what is left out."""
    threads = arguments.threads
    workers["keras"] = keras = Worker(engines.KerasEngine, variant, threads, folder)
    machine, network = keras("describe")
    print(f"\n{variant}: {machine}; {threads} threads", flush=True)
    jobs = {
        "torch": (engines.TorchEngine, network, threads, folder),
        "compile": (engines.CompiledTorchEngine, network, threads, folder),
        "openvino": (engines.OpenVINOEngine, threads, folder),
        "onnx": (engines.ONNXEngine, threads, folder),
    }
    for framework, job in jobs.items():
        if framework not in arguments.frameworks:
            continue
        reason = None
        if framework == "compile" and not shutil.which("g++"):
            reason = "needs g++"
        if framework in EXPORTED_NAMES and not (pathlib.Path(folder) / EXPORTED_NAMES[framework]).exists():
            reason = keras("export", EXPORTED_NAMES[framework], framework)
        if reason is None:
            try:
                workers[framework] = Worker(*job)
            except WorkerError as error:
                reason = str(error)
        if reason is not None:
            print(f"left out: {framework}: {reason}")
    for worker in workers.values():
        for name, reason in worker("list_rows")[1]:
            print(f"left out: {name}: {reason}")


def close_workers(workers):
    while workers:
        workers.popitem()[1].close()


def measure_peaks(workers, peaks):
    """Raises `peaks`, precision -> FLOP/s of a large matrix product, the best of TensorFlow and PyTorch."""
    sources = [workers[name] for name in ("keras", "torch") if name in workers]
    for precision in engines.POLICIES:
        for worker in sources:
            for _ in range(10):
                speed, disturbance = worker("measure_peak", precision, PEAK_SIDE)
                peaks[precision] = max(speed, peaks.get(precision, 0.0))
                if disturbance < QUIET:
                    break
        print(f"peak in {precision}: {peaks[precision] / 1e9:,.0f} GFLOP/s, the best matrix product so far")


def measure_shape(title, workers, shape, peaks, arguments):
    """Times all rows at one shape and prints the table; returns row -> `Measured`."""
    owners = start_shape(workers, shape)
    errors = {row: worker("measure_error", row) for row, worker in owners.items()}
    turns = {row: functools.partial(worker, "take_turn", row) for row, worker in owners.items()}
    medians, num_rounds = take_turns(turns, arguments.rounds, arguments.seconds)
    operations = 2 * shape[0] * workers["keras"]("count", shape[1:3])
    rows = {}
    for row, (value, disturbance) in medians.items():
        share, mark = operations / value / peaks[row[1]], "~" if disturbance >= QUIET else ""
        rows[row] = Measured(1000 * value, errors[row], share, mark)
    print(f"\n{title}: {operations / 1e9:.1f} GFLOP; {describe_rounds(medians, num_rounds)}")
    print_rows(rows)
    return rows


def start_shape(workers, shape):
    """Lets all get ready at once, because that takes one core each; returns row -> worker."""
    started, owners = {}, {}
    for name, worker in workers.items():
        with leaving_out(name):
            worker.send("start", shape)
            started[name] = worker
    for name, worker in started.items():
        with leaving_out(name):
            worker.receive()
            owners |= {row: worker for row in worker("list_rows")[0]}
    return owners


@contextlib.contextmanager
def leaving_out(name):
    """Prints what failed; without our model and the exact maps there is nothing to compare."""
    try:
        yield
    except WorkerError as error:
        if name == "keras":
            raise
        print(f"left out: {name}: {error}")


def print_rows(rows):
    header = ("", "precision", "ms", "x best PyTorch", "x stock layers", "share of peak", "largest error")
    lines = []
    for row, found in sorted(rows.items(), key=lambda item: item[0][1] != engines.FLOAT):
        others = (find_best(rows, row[1], names) for names in (PYTORCH, STOCK))
        ratios = ("1 (itself)" if other == row else format_ratio(rows, row, other) for other in others)
        share, error = f"{100 * found.share:.0f} %", f"{found.error:.0e}"
        lines.append((*row, f"{found.mark}{found.milliseconds:.1f}", *ratios, share, error))
    print(format_table(header, lines), flush=True)


def format_ratio(rows, row, other):
    """Returns how many times as fast as another a row is, or "-" without the other."""
    if other is None:
        return "-"
    mark = rows[row].mark or rows[other].mark
    return f"{mark}{rows[other].milliseconds / rows[row].milliseconds:.2f}"


def find_best(rows, precision, names):
    """Returns the fastest row of a precision whose name begins with one of `names`, or None."""
    found = [row for row in rows if row[1] == precision and row[0].startswith(names)]
    return min(found, key=lambda row: rows[row].milliseconds, default=None)


def print_summary(tables):
    """Prints how our best compares with the best of others, over all shapes."""
    others = {"PyTorch": PYTORCH, "stock": STOCK}
    header = ["times as fast as"]
    header += [f"best {name}, {precision}" for precision in engines.POLICIES for name in others]
    lines = []
    for title, rows in tables.items():
        line = [title]
        for precision in engines.POLICIES:
            ours = find_best(rows, precision, OURS)
            for names in others.values():
                line.append(format_ratio(rows, ours, find_best(rows, precision, names)))
        line.append(
            format_ratio(rows, find_best(rows, engines.HALF, OURS), find_best(rows, engines.FLOAT, OURS))
        )
        lines.append(line)
    header.append("our own float32, bfloat16")
    print(f"\nOurs in TensorFlow, the faster of as it is and deployed\n{format_table(header, lines)}")


if __name__ == "__main__":
    main()
