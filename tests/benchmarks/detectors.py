"""Times a training step and the decoding of every detector, VAN-b1 at 800 x 1280.

    python -m tests.benchmarks.detectors [--heads retinanet gfl atss] [--size 800 1280] [--output FILE.csv]

Decoding: the heads take turns, each with its own raw predictions; medians are compared. The training step
(AdamW, one picture with 20 objects) is measured head by head, each in a process of its own.
"""

import argparse
import os
import statistics
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from tests.benchmarks.results import add_output, write_results
from tests.benchmarks.turns import Worker, WorkerError

HEADS = (
    "RetinaNet",
    "GFL",
    "ATSS",
    "FasterRCNN",
    "MaskRCNN",
    "CascadeMaskRCNN",
    "SparseRCNN",
)
NUM_OBJECTS = 20


class Detector:
    """A detector in a process of its own."""

    def __init__(self, head, variant, size):
        import keras
        import numpy as np
        import tensorflow as tf

        import heads
        from van_backbones import VANBackbone

        keras.utils.set_random_seed(0)
        self.model = getattr(heads, head)(VANBackbone(variant), 80)
        generator = np.random.default_rng(0)
        self.images = generator.uniform(0, 255, (1, *size, 3)).astype("float32")
        boxes, labels, masks = draw_objects(generator, 1, size)
        self.targets = {"boxes": boxes, "labels": labels}
        if self.model.with_masks:
            self.targets["masks"] = masks
        self.model.compile(keras.optimizers.AdamW(1e-5))
        self.decode_function = tf.function(self.model.decode)
        self.predictions = None

    def decode(self):
        """Returns the seconds of decoding one picture."""
        import tensorflow as tf

        if self.predictions is None:
            self.predictions = tf.function(self.model)(self.images, training=False)
            self.decode_function(self.predictions)
        start = time.perf_counter()
        self.decode_function(self.predictions)["scores"].numpy()
        return time.perf_counter() - start

    def train(self):
        """Returns the seconds of a training step."""
        start = time.perf_counter()
        self.model.train_on_batch(self.images, self.targets)
        return time.perf_counter() - start


def draw_objects(generator, batch_size, size, num_objects=NUM_OBJECTS):
    """Returns boxes (batch, objects, 4), labels of 80 classes, and masks that fill the boxes."""
    import numpy as np

    starts = generator.uniform(0, 0.7, (batch_size, num_objects, 2))
    sides = generator.uniform(0.05, 0.3, (batch_size, num_objects, 2))
    limits = np.array([*size[::-1], *size[::-1]])
    boxes = np.round(np.concatenate([starts, starts + sides], axis=-1) * limits)
    labels = generator.integers(0, 80, (batch_size, num_objects))
    masks = np.zeros((batch_size, num_objects, *size), "uint8")
    for mask, (left, top, right, bottom) in zip(
        masks.reshape(-1, *size), boxes.reshape(-1, 4).astype(int), strict=True
    ):
        mask[top:bottom, left:right] = 1
    return boxes.astype("float32"), labels, masks


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--heads", nargs="+", default=list(HEADS), choices=list(HEADS))
    parser.add_argument("--variant", default="b1")
    parser.add_argument("--size", type=int, nargs=2, default=(800, 1280))
    parser.add_argument("--rounds", type=int, default=9, help="of decoding")
    parser.add_argument("--steps", type=int, default=3, help="of training, after a first one; 0 for none")
    add_output(parser)
    arguments = parser.parse_args(argv)
    settings = arguments.variant, tuple(arguments.size)
    seconds = {head: {"decode": value} for head, value in time_decoding(arguments, settings).items()}
    for head in arguments.heads:
        if arguments.steps:
            seconds[head]["train"] = time_training(head, settings, arguments.steps)
    height, width = arguments.size
    print(f"\nDetectors, {arguments.variant}, 1 x {height} x {width}: seconds")
    for head, values in seconds.items():
        row = "  ".join(f"{name} {value:7.3f}" for name, value in values.items())
        ratio = values["decode"] / seconds[arguments.heads[0]]["decode"]
        print(f"{head:16} {row}  decoding / {arguments.heads[0]}'s {ratio:.2f}")
    case = f"{arguments.variant}, 1 x {height} x {width}"
    numbers = [
        (case, f"{head}, {name}", "float32", "seconds", round(value, 4))
        for head, values in seconds.items()
        for name, value in values.items()
    ]
    write_results(arguments.output, "detectors", numbers)


def time_decoding(arguments, settings):
    """Returns the median seconds of each head's decoding; the heads take turns."""
    workers = {head: Worker(Detector, head, *settings) for head in arguments.heads}
    found = {head: [] for head in workers}
    for turn in range(arguments.rounds + 1):
        for head, worker in workers.items():
            took = worker("decode")
            if turn:
                found[head].append(took)
    for worker in workers.values():
        worker.close()
    return {head: statistics.median(values) for head, values in found.items()}


def time_training(head, settings, num_steps):
    """Returns the median seconds of a step; NaN if it failed, which is printed."""
    worker = Worker(Detector, head, *settings)
    try:
        worker("train")
        return statistics.median([worker("train") for _ in range(num_steps)])
    except WorkerError as error:
        print(f"{head}: {error}")
        return float("nan")
    finally:
        worker.close()


if __name__ == "__main__":
    main()
