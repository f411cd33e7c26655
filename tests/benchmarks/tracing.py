"""Times the first step of `fit` and the first `predict` of every head, without the arithmetic.

    python -m tests.benchmarks.tracing [--heads RetinaNet GFL] [--keras-adamw] [--output FILE.csv]

Each head is built in a process of its own. The second step and the second `predict` are subtracted from the
first, so that what remains is spent once: Python traces the operations of a graph, then TensorFlow optimizes
the graph. One picture of 128 x 128 with 5 objects; AdamW with the schedule of the recipes. Operations are
those of the graph and of the functions in it. `--profile` prints where Python spends its time in the first
step, instead of a table.
"""

import argparse
import contextlib
import cProfile
import io
import os
import pstats
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from tests.benchmarks.detectors import HEADS as DETECTORS
from tests.benchmarks.detectors import draw_objects
from tests.benchmarks.results import add_output, write_results
from tests.benchmarks.turns import Worker, WorkerError, format_table

SEGMENTERS = ("SemanticFPN", "UPerNet")
HEADS = (*SEGMENTERS, *DETECTORS, "Mask2Former", "SimpleBaseline", "EDN")
SIDE = 128
NUM_CLASSES = 80
NUM_OBJECTS = 5


class FirstCalls:
    """A head in a process of its own, whose first calls are timed."""

    def __init__(self, head, variant, with_own_optimizer=True):
        import keras

        import heads
        from van_backbones import VANBackbone

        keras.utils.set_random_seed(0)
        start = time.perf_counter()
        counts = {"Mask2Former": (NUM_CLASSES, 53), "EDN": ()}.get(head, (NUM_CLASSES,))
        self.model = getattr(heads, head)(VANBackbone(variant), *counts)
        optimizer = heads.AdamW if with_own_optimizer else keras.optimizers.AdamW
        self.model.compile(optimizer(heads.WarmUpPolynomialDecay(1e-5, 10, 100), weight_decay=0.01))
        self.seconds = {"build": time.perf_counter() - start}
        self.images, self.targets = make_batch(head, self.model)

    def measure(self):
        """Returns quantity -> number: seconds, operations and graphs of the first step and prediction."""
        found = dict(self.seconds)
        calls = {
            "fit": lambda: self.model.fit(self.images, self.targets, verbose=0),
            "predict": lambda: self.model.predict(self.images, verbose=0),
        }
        for name, call in calls.items():
            with count_traces() as traces:
                first = measure_seconds(call)
            second = measure_seconds(call)
            found[f"first {name}"] = first - second
            found[f"first {name}, tracing"] = sum(trace.seconds for trace in traces)
            found[f"{name}, operations"] = max(trace.num_operations for trace in traces)
        return found

    def profile(self):
        """Returns where Python spends its time in the first step, as text."""
        profiler = cProfile.Profile()
        profiler.runcall(self.model.fit, self.images, self.targets, verbose=0)
        text = io.StringIO()
        statistics = pstats.Stats(profiler, stream=text).strip_dirs()
        for order in ("cumulative", "tottime"):
            statistics.sort_stats(order).print_stats(60)
        return text.getvalue()


def make_batch(head, model):
    """Returns a picture and its targets."""
    import numpy as np

    generator = np.random.default_rng(0)
    images = generator.uniform(0, 255, (1, SIDE, SIDE, 3)).astype("float32")
    if head in SEGMENTERS:
        return images, generator.integers(0, NUM_CLASSES, (1, SIDE, SIDE))
    if head == "EDN":
        return images, generator.integers(0, 2, (1, SIDE, SIDE))
    if head == "SimpleBaseline":
        keypoints = generator.uniform(0, SIDE, (1, NUM_CLASSES, 2)).astype("float32")
        return images, {"keypoints": keypoints, "weights": np.ones((1, NUM_CLASSES), "float32")}
    boxes, labels, masks = draw_objects(generator, 1, (SIDE, SIDE), NUM_OBJECTS)
    targets = {"labels": labels}
    if head != "Mask2Former":
        targets["boxes"] = boxes
    if head == "Mask2Former" or model.with_masks:
        targets["masks"] = masks
    return images, targets


def measure_seconds(call):
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


class Trace:
    """One graph that TensorFlow traced, with those of the functions in it."""

    def __init__(self):
        self.seconds = 0.0
        self.num_operations = 0


@contextlib.contextmanager
def count_traces():
    """Gives a list that receives a `Trace` for each graph that is traced and not part of another."""
    from tensorflow.python.framework import func_graph

    traces, trace_graph, open_traces = [], func_graph.func_graph_from_py_func, []

    def trace(*arguments, **options):
        open_traces.append(None)
        if len(open_traces) == 1:
            traces.append(Trace())
        start = time.perf_counter()
        try:
            graph = trace_graph(*arguments, **options)
        finally:
            open_traces.pop()
        traces[-1].num_operations += len(graph.get_operations())
        if not open_traces:
            traces[-1].seconds = time.perf_counter() - start
        return graph

    func_graph.func_graph_from_py_func = trace
    try:
        yield traces
    finally:
        func_graph.func_graph_from_py_func = trace_graph


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--heads", nargs="+", default=list(HEADS), choices=HEADS, metavar="HEAD")
    parser.add_argument("--variants", nargs="+", default=["b0", "b2"], metavar="VARIANT")
    parser.add_argument("--keras-adamw", action="store_true", help="Keras's AdamW instead of our own")
    parser.add_argument("--profile", action="store_true")
    add_output(parser)
    arguments = parser.parse_args(argv)
    rows, header = [], []
    for variant in arguments.variants:
        for head in arguments.heads:
            try:
                worker = Worker(FirstCalls, head, variant, not arguments.keras_adamw)
                found = worker("profile" if arguments.profile else "measure")
            except WorkerError as error:
                print(f"{head} {variant}: {error}")
                continue
            worker.close()
            if arguments.profile:
                print(f"{head} {variant}\n{found}")
                continue
            header = ["seconds", *found]
            cells = [f"{value:,}" if isinstance(value, int) else f"{value:.1f}" for value in found.values()]
            rows.append([f"{head} {variant}", *cells])
            print(*rows[-1], sep="  ", flush=True)
            numbers = []
            for name, value in found.items():
                quantity = "operations" if isinstance(value, int) else "seconds"
                row = name.removesuffix(", operations") + (", Keras's AdamW" if arguments.keras_adamw else "")
                numbers.append((variant, f"{head}, {row}", "float32", quantity, round(value, 2)))
            write_results(arguments.output, "tracing", numbers)
    if rows:
        print(f"\nOne picture, {SIDE} x {SIDE}, {os.cpu_count()} cores")
        print(format_table(header, rows))


if __name__ == "__main__":
    main()
