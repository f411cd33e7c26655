"""Prints how long a b3 checkpoint takes to load, and the memory it takes.

    python tests/benchmarks/checkpoints.py [--variant b3]

A file in PyTorch's zip format, as the Hugging Face releases are, is written with random weights; a second
process builds the model, then loads the file. Needs PyTorch, to write the file.
"""

import argparse
import os
import pathlib
import subprocess
import sys
import tempfile

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

LOAD = """
import os, sys, threading, time
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
print(f"{variant}: build {build:.2f} s, load {load:.2f} s; file {size / 2**20:.0f} MiB, "
      f"peak memory above the built model {extra / 2**20:.0f} MiB = {extra / size:.2f} times the file")
"""


def main(argv=None):
    """Runs the script."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--variant", default="b3")
    arguments = parser.parse_args(argv)
    import torch

    from van_backbones import VANBackbone
    from van_backbones.checkpoints.loading import to_state_dict

    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "van.pth"
        arrays = to_state_dict(VANBackbone(arguments.variant))
        torch.save({name: torch.from_numpy(array) for name, array in arrays.items()}, path)
        subprocess.run([sys.executable, "-c", LOAD, arguments.variant, path], check=True)


if __name__ == "__main__":
    main()
