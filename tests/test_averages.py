"""Averages of the weights are scored and saved; the weights themselves are trained, also after a stop."""

import os
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest

from heads.training import TrainingRun, WeightAverages

DECAY = 0.5


def build_model(ema=DECAY, accumulate=None, rate=0.1):
    dense = keras.layers.Dense(1, kernel_initializer="ones", bias_initializer="zeros")
    model = keras.Sequential([keras.Input((2,)), keras.layers.BatchNormalization(momentum=0.9), dense])
    optimizer = keras.optimizers.SGD(
        rate, use_ema=ema is not None, ema_momentum=ema or 0.99, gradient_accumulation_steps=accumulate
    )
    model.compile(optimizer, "mse")
    return model


def make_batches(count=20):
    generator = np.random.default_rng(0)
    return [(generator.normal(size=(4, 2)), generator.normal(size=(4, 1))) for _ in range(count)]


def read(model):
    return [np.array(keras.ops.convert_to_numpy(weight)) for weight in model.trainable_weights]


def find_averages(num_steps):
    """Returns the weights and their averages after some steps, from a loop over single steps."""
    model, averages = build_model(ema=None), None
    for images, targets in make_batches()[:num_steps]:
        model.train_on_batch(images, targets)
        weights = read(model)
        if averages is None:
            averages = weights
        averages = [DECAY * old + (1 - DECAY) * new for old, new in zip(averages, weights, strict=True)]
    return weights, averages


def assert_equal(found, expected, tolerance=1e-5):
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=tolerance, atol=tolerance)


class Watch(keras.callbacks.Callback):
    """Keeps the weights that later callbacks find at the ends of epochs and during evaluation."""

    def __init__(self):
        super().__init__()
        self.at_epochs, self.at_tests = [], []

    def on_epoch_end(self, epoch, logs=None):
        self.at_epochs.append(read(self.model))

    def on_test_batch_end(self, batch, logs=None):
        self.at_tests.append(read(self.model))


def fit(model, callbacks, epochs, steps=3, initial_epoch=0, validate=True):
    def feed():
        yield from make_batches()[initial_epoch * steps :]

    options = {"validation_data": make_batches(1)[0]} if validate else {}
    model.fit(
        feed(),
        steps_per_epoch=steps,
        epochs=epochs,
        initial_epoch=initial_epoch,
        callbacks=callbacks,
        verbose=0,
        shuffle=False,
        **options,
    )


def test_averages_are_scored_and_saved_and_weights_trained():
    model, watch = build_model(), Watch()
    averages = WeightAverages()
    fit(model, [averages, watch], epochs=2)
    for epoch, steps in enumerate((3, 6)):
        expected = find_averages(steps)[1]
        assert_equal(watch.at_epochs[epoch], expected)
        if watch.at_tests:  # JAX holds the weights elsewhere meanwhile
            assert_equal(watch.at_tests[epoch], expected)
    assert_equal(read(model), find_averages(6)[1])  # what Keras leaves behind
    # A second fit continues from the weights, not from the averages.
    fit(model, [averages, watch], epochs=3, initial_epoch=2)
    assert_equal(watch.at_epochs[-1], find_averages(9)[1])
    averages.put_back()
    assert_equal(read(model), find_averages(9)[0])


def test_putting_in_and_back_changes_no_bit():
    model = build_model(rate=0.3)
    averages = WeightAverages()
    averages.set_model(model)
    averages.put_in()  # before the first step there are no averages, only zeros
    assert read(model)[2].tolist() == [[1.0], [1.0]]
    for images, targets in make_batches(3):
        model.train_on_batch(images, targets)
    before = read(model)
    for _ in range(3):
        averages.put_in()
        averages.put_in()  # twice is once
        assert not np.array_equal(read(model)[2], before[2])
        averages.put_back()
        averages.put_back()
    for ours, theirs in zip(read(model), before, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_without_averages_nothing_happens():
    model = build_model(ema=None)
    averages = WeightAverages()
    fit(model, [averages], epochs=1)
    before = read(model)
    averages.put_in()
    assert_equal(read(model), before, tolerance=0)


def test_a_saved_model_is_the_averaged_one_and_can_be_trained_on(tmp_path):
    model = build_model()
    save = keras.callbacks.ModelCheckpoint(tmp_path / "model.keras")
    fit(model, [WeightAverages(), save], epochs=1)
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert_equal(read(loaded), find_averages(3)[1])
    # Its optimizer has the averages, too, so they do not start anew from other weights.
    assert_equal(loaded.optimizer._model_variables_moving_average, find_averages(3)[1])


def test_frozen_parts_and_statistics_stay_as_they_are():
    model = build_model()
    model.layers[0].trainable = False
    model.compile(keras.optimizers.SGD(0.1, use_ema=True, ema_momentum=DECAY), "mse")
    statistics = [np.array(each) for each in model.layers[0].weights]
    fit(model, [WeightAverages()], epochs=2)
    assert_equal(model.layers[0].weights, statistics, tolerance=0)


# In a run.


class Stop(keras.callbacks.Callback):
    """Stops a run after its n-th step, or while an epoch is scored."""

    def __init__(self, run, step=None, epoch=None):
        super().__init__()
        self.run, self.stop_step, self.stop_epoch = run, step, epoch

    def on_train_batch_begin(self, batch, logs=None):
        if self.run.step + 1 == self.stop_step:
            self.run.on_train_batch_begin(batch)
            self.run.interrupt()

    def on_epoch_end(self, epoch, logs=None):
        if epoch == self.stop_epoch:
            self.run.interrupt()
        logs["val_score"] = float(epoch)


def train(folder, accumulate=1, **stop):
    keras.utils.set_random_seed(0)
    decay = DECAY ** (1 / accumulate)
    model = build_model(decay, accumulate if accumulate > 1 else None)
    run = TrainingRun(folder, 8, {"ema": DECAY}, "val_score", accumulate=accumulate)
    run.restore(model)
    run.train(
        model,
        lambda first_step: (batch for batch in make_batches()[first_step:]),
        3,
        lambda step: [],
        "",
        Stop(run, **stop),
        verbose=0,
    )
    return run, model


@pytest.mark.parametrize("stop", [{"step": 2}, {"epoch": 0}, {"step": 6}, {"epoch": 2}])
def test_a_run_that_goes_on_has_the_same_weights_and_averages(tmp_path, stop):
    _, model = train(tmp_path / "whole")
    assert_equal(read(model), find_averages(8)[0])  # training could continue
    saved = keras.saving.load_model(tmp_path / "whole" / "best.keras")
    assert_equal(read(saved), find_averages(8)[1])
    train(tmp_path / "part", **stop)
    interrupted = keras.saving.load_model(tmp_path / "part" / "interrupted.keras")
    steps = stop.get("step") or (3, 6, 8)[stop["epoch"]]
    assert_equal(read(interrupted), find_averages(steps)[1])
    _, resumed = train(tmp_path / "part")
    for ours, theirs in zip(resumed.weights, model.weights, strict=True):
        np.testing.assert_array_equal(np.asarray(ours), np.asarray(theirs))
    for ours, theirs in zip(resumed.optimizer.variables, model.optimizer.variables, strict=True):
        np.testing.assert_array_equal(np.asarray(ours), np.asarray(theirs))
    resumed = keras.saving.load_model(tmp_path / "part" / "best.keras")
    for ours, theirs in zip(resumed.weights, saved.weights, strict=True):
        np.testing.assert_array_equal(np.asarray(ours), np.asarray(theirs))


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_on_other_backends(backend, tmp_path):
    program = f"""
import pathlib, sys
sys.path.insert(0, {str(pathlib.Path(__file__).parent)!r})
import numpy as np
import test_averages as tests

tests.test_averages_are_scored_and_saved_and_weights_trained()
tests.test_putting_in_and_back_changes_no_bit()
folder = pathlib.Path({str(tmp_path)!r})
_, model = tests.train(folder / "whole")
for stop in ({{"step": 2}}, {{"epoch": 0}}):
    tests.train(folder / str(stop), **stop)
    _, resumed = tests.train(folder / str(stop))
    tests.assert_equal(tests.read(resumed), tests.read(model), tolerance=1e-6)
tests.assert_equal(tests.read(model), tests.find_averages(8)[0])
"""
    environment = {**os.environ, "KERAS_BACKEND": backend}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
