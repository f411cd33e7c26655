"""Times the optimal assignment of 100 proposals and 100 objects in 16 images, with the call to the host.

    python -m tests.benchmarks.assignment [--rounds 20] [--output FILE.csv]

The costs are those of random boxes; inside a graph, as in a training step, against SciPy alone on NumPy
arrays.
"""

import argparse
import os
import statistics
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import tensorflow as tf
from scipy.optimize import linear_sum_assignment

from heads.ops.assignment import assign_optimally
from tests.benchmarks.results import add_output, write_results

IMAGES, PROPOSALS, OBJECTS = 16, 100, 100


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--rounds", type=int, default=20)
    add_output(parser)
    arguments = parser.parse_args(argv)
    generator = np.random.default_rng(0)
    ours, theirs = generator.uniform(0, 1, (2, IMAGES, PROPOSALS, 4)).astype("float32")
    costs = np.abs(ours[:, :, None] - theirs[:, None]).sum(axis=-1)
    exists = np.ones((IMAGES, OBJECTS), bool)
    in_graph = tf.function(assign_optimally)
    tensors = tf.constant(costs), tf.constant(exists)
    functions = {
        "in a graph": lambda: in_graph(*tensors).numpy(),
        "SciPy alone": lambda: [linear_sum_assignment(table) for table in costs],
    }
    seconds = {name: [] for name in functions}
    for function in functions.values():
        function()
    for _ in range(arguments.rounds):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            seconds[name].append(time.perf_counter() - start)
    case = f"{IMAGES} x {PROPOSALS} proposals x {OBJECTS} objects"
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    print(f"\nOptimal assignment, {case}")
    for name, value in medians.items():
        print(f"{name:12} {1000 * value:6.1f} ms")
    numbers = [(case, name, "", "milliseconds", round(1000 * value, 2)) for name, value in medians.items()]
    write_results(arguments.output, "assignment", numbers)


if __name__ == "__main__":
    main()
