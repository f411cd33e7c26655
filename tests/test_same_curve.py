"""A training that was stopped and resumed ends with the weights of one that was not."""

import functools
import os
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest

from heads import SemanticFPN
from heads.data import SemanticAugmentation, SemanticShapes, semantic_training_batches
from heads.metrics import SemanticScores
from heads.training import TrainingRun
from van_backbones import VANBackbone

SIZE = (32, 32)


class StopAt(SemanticScores):
    """Stops a run in its n-th step, or while an epoch is scored."""

    def __init__(self, dataset, run, step=None, epoch=None):
        super().__init__(dataset)
        self.run, self.stop_step, self.stop_epoch = run, step, epoch

    def on_train_batch_begin(self, batch, logs=None):
        if self.run.step + 1 == self.stop_step:
            self.run.on_train_batch_begin(batch)
            self.run.interrupt()

    def score(self, model):
        if self.run.epoch == self.stop_epoch:
            self.run.interrupt()
        return super().score(model)


def train(folder, eager, seed=0, **stop):
    """Trains seven steps in epochs of three, or to the stop; returns the weights, and the log's scores."""
    keras.utils.set_random_seed(seed)
    backbone = VANBackbone("b0", widths=(8, 8, 16, 16), depths=(1, 1, 1, 1), drop_path_rate=0.5)
    model = SemanticFPN(backbone, SemanticShapes(1, SIZE).num_classes, channels=8, pyramid_channels=8)
    model.compile(keras.optimizers.SGD(0.05, momentum=0.9), run_eagerly=eager)
    run = TrainingRun(folder, 7, {"head": "semantic_fpn"}, monitor="val_mean_iou")
    run.restore(model)
    shapes = SemanticShapes(8, SIZE)
    make_batches = functools.partial(semantic_training_batches, shapes, 2, SemanticAugmentation(SIZE))
    held_out = list(make_batches(first_step=0).take(2).as_numpy_iterator())
    scorer = StopAt(held_out, run, **stop)
    run.train(model, make_batches, 3, lambda step: [], "", scorer, verbose=0)
    weights = {weight.path.split("/", 1)[-1]: np.asarray(weight) for weight in model.weights}
    return weights, [row["val_mean_iou"] for row in run.rows]


# In a step, while an epoch is scored; in the first step of an epoch, in the last score.
STOPS = [{"step": 2}, {"epoch": 0}, {"step": 4}, {"epoch": 2}]


def compare(folder, tolerance, eager, stops=STOPS):
    """Compares a whole run with stopped ones."""
    whole, scores = train(folder / "whole", eager)
    assert len(scores) == 3
    for stop in stops:
        part, _ = train(folder / str(stop), eager, **stop)
        assert any(np.abs(part[name] - whole[name]).max() > 1e-3 for name in whole) or stop == {"epoch": 2}
        # Another seed, because everything that is drawn from here on is in the state.
        resumed, resumed_scores = train(folder / str(stop), eager, seed=1)
        for name, values in whole.items():
            np.testing.assert_allclose(resumed[name], values, rtol=tolerance, atol=tolerance, err_msg=name)
        np.testing.assert_allclose(resumed_scores, scores, atol=1e-3 if tolerance else 0)


@pytest.mark.parametrize("stop", [STOPS[0], pytest.param(STOPS[1], marks=pytest.mark.slow)], ids=str)
def test_a_training_that_goes_on_ends_with_the_same_weights(tmp_path, stop):
    compare(tmp_path, tolerance=1e-4, eager=True, stops=[stop])  # eager: nothing is traced three times


@pytest.mark.slow
def test_on_one_thread_every_bit_is_the_same(tmp_path):
    threads = {"TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, str(tmp_path)]
    done = subprocess.run(command, env={**os.environ, **threads}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


if __name__ == "__main__":
    compare(pathlib.Path(sys.argv[1]), tolerance=0.0, eager=False)
