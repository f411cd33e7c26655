"""Prints how long a b3 checkpoint takes to load, and the memory it takes.

    python -m tests.benchmarks.checkpoints [--variant b3] [--output FILE.csv]

A file in PyTorch's zip format, which the Hugging Face releases have, is written with random weights; a second
process builds the model, then loads the file. Needs PyTorch to write the file.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile

from tests.benchmarks.results import add_output, write_results

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

LOAD = """
import json, os, sys, threading, time
import psutil
from van_backbones import VANBackbone, load_checkpoint
variant, path = sys.argv[1:]
start = time.perf_counter()
model = VANBackbone(variant)
build = time.perf_counter() - start
process, peak, done = psutil.Process(), [0], threading.Event()
before = process.memory_info().rss
def watch():
    while not done.wait(0.002):
        peak[0] = max(peak[0], process.memory_info().rss)
watcher = threading.Thread(target=watch)
watcher.start()
start = time.perf_counter()
load_checkpoint(model, path)
load = time.perf_counter() - start
done.set()
watcher.join()
extra, size = max(0, peak[0] - before), os.path.getsize(path)
print(json.dumps({"seconds to build": round(build, 3), "seconds to load": round(load, 3),
                  "MiB of the file": round(size / 2**20, 1),
                  "peak MiB above the built model": round(extra / 2**20, 1)}))
"""


def main(argv=None):
    """Runs the script."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--variant", default="b3")
    add_output(parser)
    arguments = parser.parse_args(argv)
    import torch

    from van_backbones import VANBackbone
    from van_backbones.checkpoints.loading import to_state_dict

    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "van.pth"
        arrays = to_state_dict(VANBackbone(arguments.variant))
        torch.save({name: torch.from_numpy(array) for name, array in arrays.items()}, path)
        command = [sys.executable, "-c", LOAD, arguments.variant, path]
        run = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found = json.loads(run.stdout.splitlines()[-1])
    for quantity, value in found.items():
        print(f"{arguments.variant}: {value:.2f} {quantity}")
    row = (arguments.variant, "load_checkpoint", "")
    write_results(arguments.output, "checkpoints", [(*row, *number) for number in found.items()])


if __name__ == "__main__":
    main()
