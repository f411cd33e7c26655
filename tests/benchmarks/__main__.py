"""Runs all benchmarks: the forward pass, a training step, input pipelines, suppression and COCO's scores.

    python -m tests.benchmarks [--only inference training data suppression scoring] [--quick] [--threads 2] \
        [--output tests/benchmarks/results]

Each section is a script of its own in this folder, with more options: `python -m tests.benchmarks.inference
--help`. Options that are not listed here go to the first section that runs, which is inference if all do. All
sections together take about 50 minutes on 2 cores, a few minutes with --quick.
"""

import argparse
import subprocess
import sys
import time

from tests.benchmarks.results import add_output

SECTIONS = ("inference", "training", "data", "suppression", "scoring")


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--only", nargs="+", default=SECTIONS, choices=SECTIONS, metavar="SECTION")
    parser.add_argument("--quick", action="store_true", help="small settings: shows that it runs, no more")
    parser.add_argument("--threads", type=int, default=2)
    add_output(parser)
    arguments, others = parser.parse_known_args(argv)
    common = ["--threads", str(arguments.threads), *(["--quick"] if arguments.quick else [])]
    common += ["--output", str(arguments.output)] if arguments.output else []
    failed = []
    for section in SECTIONS:
        if section in arguments.only:
            print(f"\n## {section}", flush=True)
            start = time.perf_counter()
            # In a process of its own: TensorFlow keeps the number of threads that it was started with.
            command = [sys.executable, "-m", f"tests.benchmarks.{section}", *common, *others]
            others = []
            if subprocess.run(command).returncode:
                failed.append(section)
            print(f"\n({section}: {(time.perf_counter() - start) / 60:.1f} minutes)", flush=True)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
