"""What is between batches and `fit` on JAX, in one process; test_workers.py has several."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from heads import SemanticFPN, processes
from heads.data import (
    DetectionAugmentation,
    DetectionShapes,
    SemanticAugmentation,
    SemanticShapes,
    detection_training_batches,
    semantic_evaluation_batches,
    semantic_training_batches,
)
from heads.processes import is_first_process
from heads.training import TrainingRun
from heads.training.shares import ShapedBatches, SharedValidation
from van_backbones import VANBackbone

SIZE = (64, 64)


@pytest.fixture
def on_jax(monkeypatch):
    monkeypatch.setattr("keras.backend.backend", lambda: "jax")


def take(batches, count):
    return [batch for batch, _ in zip(batches, range(count), strict=False)]


def test_other_backends_have_the_dataset_as_it_is():
    dataset = tf.data.Dataset.range(3)
    shaped = ShapedBatches(lambda: 0)
    assert shaped.shape(dataset) is dataset
    assert shaped.describe_new() is None


def test_batches_of_objects_have_few_shapes_on_jax(on_jax):
    shapes = DetectionShapes(6, (70, 100))
    sizes = {"short_sides": (70, 90), "long_side": 140}
    dataset = detection_training_batches(shapes, 2, DetectionAugmentation(**sizes))
    plain = [batch[0]["images"].shape[1:3] for batch in dataset.take(6).as_numpy_iterator()]
    assert {(96, 128), (96, 160)} & set(plain)
    shaped = ShapedBatches(lambda: 0)
    dataset = detection_training_batches(shapes, 2, DetectionAugmentation(**sizes))
    batches = take(shaped.shape(dataset), 6)
    assert {targets["labels"].shape for _, targets in batches} <= {(2, 8), (2, 16)}
    assert 1 <= len(shaped.shapes) <= 4  # sides 96, and 128 or 160
    assert shaped.describe_new().endswith(f"of batches, {len(shaped.shapes)} so far")
    assert shaped.describe_new() is None


def test_pictures_of_one_size_keep_it_on_jax(on_jax):
    shapes = DetectionShapes(6, SIZE)
    shaped = ShapedBatches(lambda: 0)
    dataset = detection_training_batches(shapes, 2, DetectionAugmentation(image_size=(50, 70)))
    for inputs, targets in take(shaped.shape(dataset), 3):
        assert inputs["images"].shape == (2, 50, 70, 3)
        assert targets["boxes"].shape[1] in (8, 16)


def test_label_maps_are_left_alone_on_jax(on_jax):
    shaped = ShapedBatches(lambda: 0)
    dataset = semantic_training_batches(SemanticShapes(4, SIZE), 2, SemanticAugmentation((33, 47)))
    for images, labels in take(shaped.shape(dataset), 2):
        assert images.shape == (2, 33, 47, 3)
        assert labels.shape == (2, 33, 47)
    assert shaped.describe_new() == "JAX compiled the training step for 1 shape of batches, 1 so far"


def test_processes_agree_on_shapes_and_on_the_end(on_jax, monkeypatch):
    # The other process has larger pictures, fewer objects, and a SIGTERM from the second batch on.
    others = iter([(96, 64, 1, 0), (64, 160, 33, 2)])
    monkeypatch.setattr(
        "heads.training.shares.gather_numbers", lambda numbers: np.array([numbers, next(others)], np.int32)
    )
    shaped = ShapedBatches(lambda: 1)
    dataset = detection_training_batches(DetectionShapes(4, SIZE), 2, DetectionAugmentation([64]))
    batches = shaped.shape(dataset)
    inputs, targets = next(batches)
    assert (inputs["images"].shape[1:3], shaped.wish) == ((96, 64), 1)
    assert targets["boxes"].shape[1] in (8, 16)
    inputs, targets = next(batches)
    assert (inputs["images"].shape[1:3], targets["boxes"].shape[1], shaped.wish) == ((64, 160), 64, 2)


def test_validation_gives_what_fit_gives():
    backbone = VANBackbone("b0", widths=(4, 4, 4, 4), depths=(1, 1, 1, 1))
    shapes = SemanticShapes(3, SIZE)
    model = SemanticFPN(backbone, shapes.num_classes, channels=4, pyramid_channels=4)
    model.compile("sgd", run_eagerly=True)
    dataset = semantic_evaluation_batches(shapes, 2)
    expected = model.evaluate(dataset, return_dict=True, verbose=0)
    callback, logs = SharedValidation(dataset), {"loss": 1.0}
    callback.set_model(model)
    callback.on_epoch_end(0, logs)
    assert logs.pop("loss") == 1.0
    assert logs.keys() == {f"val_{name}" for name in expected}
    for name, value in expected.items():
        np.testing.assert_allclose(logs[f"val_{name}"], value, rtol=1e-6)


def make_run(folder):
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    model.optimizer.build(model.trainable_variables)
    run = TrainingRun(folder, 8, {}, monitor="val_score", save_every=1)
    run.set_model(model)
    return run


def test_the_first_process_alone_writes(tmp_path, monkeypatch, capsys):
    run = make_run(tmp_path)
    monkeypatch.setattr(processes, "_place", (1, 2))
    assert not is_first_process()
    run.begin()
    run.on_train_batch_end(0)
    run.on_epoch_end(0, {"val_score": 0.5})
    run.save_interrupted(KeyboardInterrupt())
    assert (run.epoch, run.step, run.best) == (1, 1, 0.5)
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().out == ""


def test_weights_that_are_not_finite_end_every_process(tmp_path, monkeypatch):
    run = make_run(tmp_path)
    run.model.weights[0].assign([[np.nan]])
    monkeypatch.setattr(processes, "_place", (1, 2))
    with pytest.raises(FloatingPointError, match="the weights are not finite"):
        run.save_state()


def test_a_signal_waits_for_the_others(tmp_path, monkeypatch):
    run = make_run(tmp_path)
    monkeypatch.setattr(processes, "_place", (1, 2))
    run.interrupt("SIGTERM")  # not stopped, even between two steps
    run.on_train_batch_end(0)
    assert run._find_wish() == 2
    run._batches.wish = 2  # what all processes agreed on
    with pytest.raises(KeyboardInterrupt, match="SIGTERM"):
        run.on_train_batch_end(1)
    with pytest.raises(KeyboardInterrupt):  # asked again
        run.interrupt()


def test_processes_must_go_on_from_one_state(tmp_path, monkeypatch):
    run = make_run(tmp_path)
    monkeypatch.setattr("heads.training.run.gather_numbers", lambda numbers: np.array([numbers, [3]]))
    with pytest.raises(ValueError, match=r"--output must be one folder.*the steps \[0, 3\]"):
        run._check_places()
