import math

import pytest

from heads.metrics.scorer import Scorer


class Counter(Scorer):
    """Its score is the number of its scores so far; the third one is NaN."""

    count = 0

    def score(self, model):
        self.count += 1
        return {"count": math.nan if self.count == 3 else float(self.count), "table": [self.count]}

    def describe(self, scores):
        return f"scored {self.count} times"


def run(callback, epochs, verbose=1):
    callback.set_params({"verbose": verbose})
    callback.on_train_begin()
    logged = []
    for epoch in epochs:
        logs = {"loss": 1.0}
        callback.on_epoch_end(epoch, logs)
        logged.append(logs.get("val_count"))
        assert set(logs) <= {"loss", "val_count"}
    return logged


def test_epochs_in_between_log_the_last_scores(capsys):
    callback = Counter([], every=2)
    # After the first epoch, and after each second one; NaN is never logged.
    assert run(callback, range(6)) == [1.0, 2.0, 2.0, None, None, 4.0]
    assert callback.last_scores == {"count": 4.0, "table": [4]}
    assert capsys.readouterr().out.count("scored") == 4


def test_a_training_that_goes_on_scores_at_once(capsys):
    callback = Counter([], every=10)
    assert run(callback, [4, 5]) == [1.0, 1.0]
    assert run(callback, [6], verbose=0) == [2.0]
    assert capsys.readouterr().out == "\nScoring the held-out data ...\n\nEpoch 5: scored 1 times\n"


@pytest.mark.parametrize("every", [0, -1, 1.5])
def test_every_must_be_a_count(every):
    with pytest.raises(ValueError, match=f"every must be .*at least 1. Received: {every}"):
        Counter([], every=every)
