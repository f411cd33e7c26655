"""Prints how the memory of a process grows that runs for days: with requests, and with epochs.

    python -m tests.benchmarks.memory_growth [--only predict "predict_on_batch" ...] [--calls 1000]

Each case is a process of its own. The resident set is read at regular intervals, after free memory was
returned to the system; the first tenth, in which caches are filled, does not count. "ever new sizes" are
pictures of 1,600 different sizes. On Linux.
"""

import argparse
import ctypes
import gc
import json
import os
import subprocess
import sys
import tempfile

from tests.benchmarks.results import add_output, write_results
from tests.benchmarks.turns import format_table

# Case -> its name in the table.
CASES = {
    "predict": "predict, ever new sizes",
    "predict_on_batch": "predict_on_batch, ever new sizes",
    "predict_pictures": "predict_pictures, ever new sizes",
    "dataset": "tf.data alone, ever new sizes",
    "cleared": "predict, ever new sizes, TensorFlow's kernels forgotten",
    "saved_model": "a detector's SavedModel, requests of eight sizes",
    "fit": "fit, epochs of four steps and a score",
}


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--calls", type=int, default=1000)
    parser.add_argument("--epochs", type=int, default=50)
    add_output(parser)
    parser.add_argument("--measure", choices=CASES, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.measure:
        count = arguments.epochs if arguments.measure == "fit" else arguments.calls
        print(json.dumps(measure(arguments.measure, count)))
        return
    rows, numbers = [], []
    for name in arguments.only:
        count = arguments.epochs if name == "fit" else arguments.calls
        command = [sys.executable, "-m", "tests.benchmarks.memory_growth", "--measure", name]
        command += ["--calls", str(arguments.calls), "--epochs", str(arguments.epochs)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        sizes = json.loads(done.stdout.splitlines()[-1])
        rows.append((CASES[name], count, f"{sizes[0]:.0f}", f"{sizes[-1] - sizes[0]:+.0f}"))
        print(f"{CASES[name]}: {' '.join(f'{size:.0f}' for size in sizes)} MB", flush=True)
        numbers.append((CASES[name], f"{count} times", "float32", "MB more", sizes[-1] - sizes[0]))
    print(format_table(("", "times", "MB at first", "MB more at the end"), rows))
    write_results(arguments.output, "memory_growth", numbers)


def measure(name, count):
    """Returns the resident set in MB after each tenth of the counted calls."""
    sizes, every = [], max(1, count // 10)

    def note(index):
        if (index + 1) % every == 0:
            gc.collect()
            ctypes.CDLL("libc.so.6").malloc_trim(0)
            sizes.append(read_resident_size())

    if name == "fit":
        train(count, note)
        return sizes
    call = make_call(name)
    for index in range(count):
        call(index)
        note(index)
    return sizes


def read_resident_size():
    """Returns the resident set of this process in MB."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def make_segmenter():
    """Returns a small segmenter."""
    from heads import SemanticFPN

    return SemanticFPN(make_backbone(), num_classes=3, channels=8, pyramid_channels=8)


def make_backbone():
    from van_backbones import VANBackbone

    return VANBackbone("b0", widths=(8, 8, 16, 16), depths=(1, 1, 1, 1))


def make_call(name):
    """Returns a function: number of the call -> None."""
    import numpy as np
    import tensorflow as tf

    def make_images(index):
        return np.zeros((1, 64 + 8 * (index % 40), 64 + 8 * (index // 40 % 40), 3), "float32")

    if name == "dataset":
        return lambda index: list(tf.data.Dataset.from_tensor_slices(make_images(index)).batch(32))
    if name == "saved_model":
        return make_request()
    model = make_segmenter()
    if name == "predict_on_batch":
        return lambda index: model.predict_on_batch(make_images(index))
    if name == "predict_pictures":
        return lambda index: model.predict_pictures([*make_images(index)], progress=False)

    def predict(index):
        model.predict(make_images(index), verbose=0)
        if name == "cleared" and index % 50 == 0:
            from tensorflow.python.eager import context  # is this the cause? there is no public way to do it

            context.context().clear_kernel_cache()

    return predict


def make_request():
    """Returns a function that calls an exported detector."""
    import numpy as np

    from heads import RetinaNet
    from van_backbones import export
    from van_backbones.exporting import load_export

    folder = os.path.join(tempfile.mkdtemp(), "model")
    export(RetinaNet(make_backbone(), 3, channels=16, num_convs=1), folder, "saved_model")
    run = load_export(folder)
    images = [np.zeros((1, 64 + 32 * (k % 4), 64 + 32 * (k // 4), 3), "uint8") for k in range(8)]
    return lambda index: run(images[index % 8])


def train(epochs, note):
    """Trains a segmenter, with validation, and calls `note` after each epoch."""
    import keras

    from heads.data import (
        SemanticAugmentation,
        SemanticShapes,
        semantic_evaluation_batches,
        semantic_training_batches,
    )

    model, source = make_segmenter(), SemanticShapes(16, (64, 64))
    model.compile("adamw")
    model.fit(
        semantic_training_batches(source, 4, SemanticAugmentation((64, 64))),
        validation_data=semantic_evaluation_batches(source),
        epochs=epochs,
        steps_per_epoch=4,
        shuffle=False,
        verbose=0,
        callbacks=[keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: note(epoch))],
    )


if __name__ == "__main__":
    main()
