import sys

import pytest

from heads.training import progress
from heads.training.progress import Progress, choose_verbose, format_duration


class Model:
    stop_training = False


@pytest.fixture
def clock(monkeypatch):
    """Returns a clock that has stopped; its first entry is the time."""
    times = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: times[0])
    return times


def make_progress(verbose, **options):
    callback = Progress(**{"num_batches": 100, **options})
    callback.set_params({"verbose": verbose})
    callback.set_model(Model())
    return callback


def train(callback, clock, count, seconds):
    for _ in range(count):
        clock[0] += seconds
        callback.on_train_batch_end(0, {"loss": 0.51234})


def test_lines_come_now_and_then(clock, capsys):
    callback = make_progress(2)
    train(callback, clock, 1, 500.0)  # the model is traced
    train(callback, clock, 29, 1.0)
    assert capsys.readouterr().out == ""
    train(callback, clock, 31, 1.0)
    assert capsys.readouterr().out.splitlines() == [
        "step 31 of 100, loss 0.5123, about 1 min left",
        "step 61 of 100, loss 0.5123, about 39 s left",
    ]
    clock[0] += 60  # of scoring
    callback.on_epoch_end(0, {"loss": 0.4})
    assert capsys.readouterr().out == "step 61 of 100, loss 0.4, about 1 min left\n"


def test_with_a_bar_only_the_ends_of_epochs_are_told(clock, capsys):
    callback = make_progress(1)
    train(callback, clock, 50, 100.0)
    assert capsys.readouterr().out == ""
    callback.on_epoch_end(0, {})
    assert capsys.readouterr().out == "step 50 of 100, about 1 h 23 min left\n"


def test_the_end_is_not_told(clock, capsys):
    callback = make_progress(1, first_batch=98)
    train(callback, clock, 2, 1.0)
    callback.on_epoch_end(0, {})
    stopped = make_progress(1)
    train(stopped, clock, 2, 1.0)
    stopped.model.stop_training = True
    stopped.on_epoch_end(0, {})
    assert capsys.readouterr().out == ""


def test_silence(clock, capsys):
    callback = make_progress(0)
    train(callback, clock, 50, 100.0)
    callback.on_epoch_end(0, {})
    assert capsys.readouterr().out == ""


def test_of_several_batches_steps_are_told(clock, capsys):
    callback = make_progress(1, first_batch=9, batches_per_step=4)
    callback.on_epoch_end(0, {})  # no batch yet: nothing is known about the time
    train(callback, clock, 1, 1.0)
    callback.on_epoch_end(0, {})
    train(callback, clock, 1, 1.0)
    callback.on_epoch_end(0, {})
    assert capsys.readouterr().out.splitlines() == [
        "step 3 of 25",
        "step 3 of 25",
        "step 3 of 25, about 1 min left",
    ]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "0 s"), (59.4, "59 s"), (59.6, "1 min"), (3540, "59 min"), (3590, "1 h 0 min"), (90000, "1.0 days")],
)
def test_durations(seconds, words):
    assert format_duration(seconds) == words


@pytest.mark.parametrize(("is_terminal", "in_notebook", "verbose"), [(1, 0, 1), (0, 1, 1), (0, 0, 2)])
def test_bars_are_drawn_where_they_can_be(monkeypatch, is_terminal, in_notebook, verbose):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: bool(is_terminal), raising=False)
    monkeypatch.delitem(sys.modules, "ipykernel", raising=False)
    if in_notebook:
        monkeypatch.setitem(sys.modules, "ipykernel", object())
    assert choose_verbose() == verbose
