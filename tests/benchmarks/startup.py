"""Prints how long it takes to import the packages and to build a backbone.

    python -m tests.benchmarks.startup [--rounds 5] [--output FILE.csv]

Every round is a fresh process per variant: `import keras`, `import van_backbones`, `import heads`, then the
first VANBackbone. Medians over the rounds, of wall time and of processor time, which other processes disturb
less.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys

from tests.benchmarks.results import add_output, write_results

ROOT = pathlib.Path(__file__).resolve().parents[2]
VARIANTS = ("b0", "b3")

# Prints the name of each part with its seconds of wall time and of processor time.
SCRIPT = """
import json, sys, time

seconds = {}

def finish(name, started):
    seconds[name] = time.perf_counter() - started[0], time.process_time() - started[1]

def now():
    return time.perf_counter(), time.process_time()

started = now()
import keras
finish("import keras", started)
started = now()
import van_backbones
finish("import van_backbones, over it", started)
started = now()
import heads
finish("import heads, over both", started)
started = now()
van_backbones.VANBackbone(sys.argv[1])
finish(f"VANBackbone({sys.argv[1]!r})", started)
print(json.dumps(seconds))
"""


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    add_output(parser)
    arguments = parser.parse_args(argv)
    measured = {}
    for _ in range(arguments.rounds):
        for variant in VARIANTS:
            for name, seconds in measure(variant).items():
                measured.setdefault(name, []).append(seconds)
    print(
        f"{arguments.rounds} rounds, {os.cpu_count()} cores, {os.environ.get('KERAS_BACKEND', 'tensorflow')}"
    )
    for name, rounds in measured.items():
        wall, processor = (sorted(values) for values in zip(*rounds, strict=True))
        print(
            f"{name:30} {statistics.median(wall):6.3f} s   processor {statistics.median(processor):6.3f} s   "
            f"(smallest {wall[0]:.3f} and {processor[0]:.3f})"
        )
    backend, numbers = os.environ.get("KERAS_BACKEND", "tensorflow"), []
    for name, rounds in measured.items():
        wall, processor = (statistics.median(values) for values in zip(*rounds, strict=True))
        numbers.append((backend, name, "", "wall seconds", round(wall, 3)))
        numbers.append((backend, name, "", "processor seconds", round(processor, 3)))
    write_results(arguments.output, "startup", numbers)


def measure(variant):
    """Returns name -> (seconds of wall time, seconds of processor time) of a fresh process."""
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT, variant],
        cwd=ROOT,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2"},
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(run.stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
