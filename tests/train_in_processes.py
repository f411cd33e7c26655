"""Runs an example with a tiny backbone, for test_workers.py; its options are those of the example.

    python tests/train_in_processes.py finetune_segmentation --data FOLDER --processes 2

Writes into the output folder `rows-<process>.json`, what each process knows about the log, and
`before-<process>.json`, what a detector finds before training. With DIE_AT in the environment, "<process>
<step>", that process is killed in that step. With JAX_ENABLE_X64 it computes in float64.
"""

import functools
import importlib
import json
import os
import pathlib
import signal
import sys

import keras

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "examples"))

from options import choose_optimizer_options

import van_backbones.classifier
from heads.processes import find_place
from heads.training import TrainingRun, run_in_folder
from van_backbones import VANBackbone

TinyVAN = functools.partial(VANBackbone, widths=(8, 8, 16, 16), depths=(1, 1, 1, 1))


class Killer(TrainingRun):
    """Kills its process in the middle of a training."""

    def on_train_batch_begin(self, batch, logs=None):
        super().on_train_batch_begin(batch, logs)
        if [find_place()[0], self.step + 1] == list(map(int, os.environ.get("DIE_AT", "-1 0").split())):
            os.kill(os.getpid(), signal.SIGKILL)

    def on_epoch_end(self, epoch, logs=None):
        super().on_epoch_end(epoch, logs)
        path = self.folder / f"rows-{find_place()[0]}.json"
        path.write_text(json.dumps(self.rows))


def train_and_draw(arguments, output):
    van_backbones.classifier.VANBackbone = TinyVAN
    example.VANBackbone = lambda variant, weights=None: TinyVAN(variant, weights=weights)
    example.TrainingRun = Killer
    # Other optimizers move weights without a gradient, by rounding errors.
    options = choose_optimizer_options(arguments)
    example.build_optimizer = lambda *_: keras.optimizers.SGD(0.01, **options)
    example.draw_feature_maps = lambda *_: keras.ops.convert_to_numpy(keras.ops.zeros((8, 8, 3), "uint8"))
    build_model, print_scores = example.build_model, getattr(example, "print_scores", None)

    def build_generous_model(*inputs):
        model = build_model(*inputs)
        if hasattr(model, "score_threshold"):
            model.score_threshold = 0.0  # so that an untrained detector finds something
        return model

    def keep_results(title, *inputs):
        results = print_scores(title, *inputs)
        if title == "Before training":
            (output / f"before-{find_place()[0]}.json").write_text(json.dumps(results))
        return results

    example.build_model, example.print_scores = build_generous_model, keep_results
    example.train_and_draw(arguments, output)


if __name__ == "__main__":
    if "JAX_ENABLE_X64" in os.environ:
        keras.config.set_dtype_policy("float64")
    example = importlib.import_module(sys.argv[1])  # workers are started with the same arguments
    run_in_folder(train_and_draw, example.parse_arguments(sys.argv[2:]), "here")
