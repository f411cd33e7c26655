import keras
import numpy as np
import pytest

from heads.training import StopOnNonFinite
from heads.training.callbacks import StepTimer


def build_model():
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(1e30), "mse")
    return model


def make_stop(model, first_step=10, find_pictures=lambda step: [f"{step}.png", "b.png"]):
    stop = StopOnNonFinite(first_step, find_pictures, "Try less.")
    stop.set_model(model)
    return stop


def test_a_loss_that_is_not_finite_ends_training():
    stop = make_stop(build_model())
    stop.on_train_batch_end(0, {"loss": 1.0, "box_loss": 0.5})
    with pytest.raises(FloatingPointError) as caught:
        stop.on_train_batch_end(1, {"loss": float("nan"), "box_loss": 0.25, "mean_iou": float("nan")})
    for part in ("not finite at step 12", "loss nan", "box_loss 0.25", "11.png", "b.png", "Try less."):
        assert part in str(caught.value)
    with pytest.raises(FloatingPointError, match="loss inf"):
        stop.on_train_batch_end(1, {"loss": float("inf")})


def test_of_several_batches_the_step_is_told():
    stop = StopOnNonFinite(10, lambda step: [f"{step}.png"], "Try less.", batches_per_step=4)
    stop.set_model(build_model())
    with pytest.raises(FloatingPointError, match=r"(?s)not finite at step 3 \(batch 11\).*10\.png"):
        stop.on_train_batch_end(0, {"loss": float("nan")})


def test_weights_that_are_not_finite_end_training():
    stop = make_stop(build_model(), first_step=13)
    stop.on_epoch_end(0, {})
    for weight in stop.model.weights:
        weight.assign(np.full(weight.shape, np.inf))
    with pytest.raises(FloatingPointError, match=r"(?s)after step 13 the weights are not finite.*12.png"):
        stop.on_epoch_end(0, {})


def test_fit_ends_before_later_callbacks_save():
    model = build_model()
    saved = []
    save = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: saved.append(epoch))
    with pytest.raises(FloatingPointError, match="the loss is not finite at step"):
        model.fit(
            np.ones((8, 1)), np.ones((8, 1)), 1, verbose=0, callbacks=[make_stop(model, 0), save], epochs=2
        )
    assert not saved


def test_a_fault_in_the_list_of_pictures_hides_nothing():
    def find_pictures(step):
        raise OSError("no such folder")

    stop = make_stop(build_model(), find_pictures=find_pictures)
    with pytest.raises(FloatingPointError, match=r"(?s)loss nan.*unknown \(no such folder\).*Try less"):
        stop.on_train_batch_end(0, {"loss": float("nan")})


def test_timer_tells_the_median(monkeypatch):
    timer = StepTimer()
    assert timer.summary().startswith("No step was left to train")
    clock = iter([0.0, 0.25, 1.0, 1.5, 2.0, 12.0])
    monkeypatch.setattr("heads.training.callbacks.time.perf_counter", lambda: next(clock))
    for batch in range(3):
        timer.on_train_batch_begin(batch)
        timer.on_train_batch_end(batch)
    assert timer.seconds == [0.25, 0.5, 10.0]
    assert timer.summary().startswith("0.50 s per step (median)")
    assert timer.summary(batches_per_step=4).startswith("2.00 s per step (median)")
