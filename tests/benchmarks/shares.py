"""Shows how the time of a training step is divided: networks, matching, sampling, RoIAlign, losses.

    python -m tests.benchmarks.shares [--heads RetinaNet GFL MaskRCNN] [--size 512 512] [--output FILE.csv]

TensorFlow's profiler times each operation of a few steps (AdamW, one picture with 20 objects), each head in a
process of its own; the shortest time of each operation counts. Shares are of the time of all operations,
forward and backward, not of the wall time: two operations may run at once. An operation belongs to the
innermost part in its name.
"""

import argparse
import collections
import os
import pathlib
import re
import sys
import tempfile

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from tests.benchmarks.detectors import HEADS, Detector
from tests.benchmarks.results import add_output, write_results
from tests.benchmarks.turns import Worker, WorkerError

# part -> its functions in heads/; what they call of another part counts there
PARTS = {
    "matching": ("match_boxes", "match_adaptively", "assign_optimally"),
    "sampling": ("sample_regions", "sample_matches"),
    "proposals": ("select_proposals",),
    "RoIAlign": ("align_regions", "_spread_groups"),
    "masks": ("crop_masks",),
}
MARK = "part."
NETWORKS = ("backbone", "neck", "head")


class ProfiledDetector(Detector):
    """A detector whose operations' names contain the part that makes them."""

    def __init__(self, head, variant, size):
        import tensorflow as tf

        import heads

        for part, names in PARTS.items():
            for name in names:
                name_operations(name, MARK + part)
        model_class = getattr(heads, head)
        model_class.compute_losses = in_scope(model_class.compute_losses, MARK + "losses")
        super().__init__(head, variant, size)
        self.train()
        self.train()
        self.profiler = tf.profiler.experimental
        layers = self.model._flatten_layers(include_self=False, recursive=False)
        self.layers = dict.fromkeys([layer.name for layer in layers], "head")
        # The part of the backbone that returns the levels runs as a model of its own.
        self.layers |= {self.model.backbone.name: "backbone", "pyramid": "backbone", "neck": "neck"}

    def profile(self, num_steps):
        """Returns the milliseconds of a step by part."""
        steps = []
        for _ in range(num_steps):
            with tempfile.TemporaryDirectory() as folder:
                self.profiler.start(folder)
                self.train()
                self.profiler.stop()
                (path,) = pathlib.Path(folder).rglob("*.xplane.pb")
                steps.append(collections.Counter())
                for name, value in read_operations(path):
                    steps[-1][name] += value
        milliseconds = collections.Counter()
        for name in steps[0]:
            # The minimum: in some steps, an operation waits for a core that others use.
            milliseconds[self.find_part(name)] += min(step[name] for step in steps)
        return milliseconds

    def find_part(self, name):
        """Returns the part of an operation by its name, such as "gradient_tape/gfl_1/neck_1/conv/Conv2D"."""
        for scope in reversed(name.split("/")):
            scope = re.sub(r"_\d+$", "", scope)
            if scope.startswith(MARK):
                return scope.removeprefix(MARK)
            if scope in self.layers:
                return self.layers[scope]
        if name.startswith("adam_w/"):
            return "optimizer"
        # Gradients of our own have no scope; those of convolutions are the backbone's.
        return "backbone" if "Conv" in name and "/" not in name else "other"


def name_operations(name, scope):
    """Wraps a function of heads/ wherever it was imported."""
    modules = [module for key, module in sys.modules.items() if key.split(".")[0] == "heads"]
    found = {getattr(module, name) for module in modules if hasattr(module, name)}
    if len(found) != 1:
        raise ValueError(f"heads must have one function {name}. Found: {sorted(map(repr, found))}")
    (function,) = found
    for module in modules:
        if hasattr(module, name):
            setattr(module, name, in_scope(function, scope))


def in_scope(function, scope):
    """Returns a function whose operations have names in a scope."""
    import tensorflow as tf

    def call(*arguments, **options):
        with tf.name_scope(scope):
            return function(*arguments, **options)

    return call


def read_operations(path):
    """Yields name and milliseconds of every operation in a profile."""
    from tensorflow.tsl.profiler.protobuf import xplane_pb2

    space = xplane_pb2.XSpace()
    space.ParseFromString(path.read_bytes())
    for plane in space.planes:
        for line in plane.lines:
            for event in line.events:
                # Only operations have names like "name:Kind".
                name, colon, kind = plane.event_metadata[event.metadata_id].name.rpartition(":")
                if colon and kind.isidentifier() and not re.search(r"[ :]", name):
                    yield name, event.duration_ps / 1e9


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--heads", nargs="+", default=list(HEADS), choices=list(HEADS))
    parser.add_argument("--variant", default="b1")
    parser.add_argument("--size", type=int, nargs=2, default=(512, 512))
    parser.add_argument("--steps", type=int, default=3)
    add_output(parser)
    arguments = parser.parse_args(argv)
    height, width = arguments.size
    case = f"{arguments.variant}, 1 x {height} x {width}"
    columns = (*NETWORKS, "losses", *PARTS, "optimizer", "other")
    print(f"\nA training step, {case}: percent of all operations' time")
    print(f"{'':16}", *(f"{column:>9}" for column in columns))
    numbers = []
    for head in arguments.heads:
        try:
            worker = Worker(ProfiledDetector, head, arguments.variant, tuple(arguments.size))
            milliseconds = worker("profile", arguments.steps)
        except WorkerError as error:
            print(f"{head}: {error}")
            continue
        worker.close()
        shares = {part: 100 * value / sum(milliseconds.values()) for part, value in milliseconds.items()}
        print(f"{head:16}", *(f"{shares.get(column, 0.0):9.1f}" for column in columns), flush=True)
        numbers += [
            (case, f"{head}, {part}", "float32", "percent", round(value, 1))
            for part, value in shares.items()
            if value >= 0.05
        ]
    write_results(arguments.output, "shares", numbers)


if __name__ == "__main__":
    main()
