"""What `heads.training` keeps of a run, without real training: a model with two weights stands for any."""

import argparse
import csv
import json
import os
import pathlib
import shutil

import keras
import numpy as np
import pytest

from heads.training import RunError, TrainingRun, plan_rounds, run_in_folder, save_model

SETTINGS = {
    "head": "retinanet",
    "sizes": {"image_size": (64, 64)},
    "steps": 8,
    "output": "run",
    "classes": ["square", "bär"],
}


def build_model(value=0.0):
    """Returns a model of two weights, all of `value`, with its optimizer."""
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(momentum=0.9), "mse")
    model.optimizer.build(model.trainable_variables)
    set_weights(model, value)
    return model


def set_weights(model, value):
    for weight in model.weights:
        weight.assign(np.full(weight.shape, value))


def read_weight(model):
    return float(np.asarray(model.weights[0])[0, 0])


def start(folder, model, settings=SETTINGS, steps=8):
    run = TrainingRun(folder, steps, settings, monitor="val_score")
    run.set_model(model)
    return run


def train_epoch(run, score, steps=2):
    """Calls what `fit` calls; the weights become the number of the last step."""
    for batch in range(steps):
        run.on_train_batch_end(batch, {"loss": 1.0})
    set_weights(run.model, run.step)
    run.on_epoch_end(run.epoch, {"loss": 1 / run.step, **({} if score is None else {"val_score": score})})


def read_log(folder):
    with open(folder / "log.csv", newline="") as file:
        return [(int(row["epoch"]), row.get("val_score")) for row in csv.DictReader(file)]


def read_saved(path):
    return read_weight(keras.saving.load_model(path))


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.fixture(scope="module")
def trained_folder(tmp_path_factory):
    """Returns a run of three epochs of two steps, of which the second epoch is the best."""
    folder = tmp_path_factory.mktemp("run")
    run = start(folder, build_model())
    run.begin()
    assert run.plan_fits(2) == [{"initial_epoch": 0, "epochs": 4, "steps_per_epoch": 2}]
    for score in (0.1, 0.5, 0.3):
        train_epoch(run, score)
    return folder


@pytest.fixture
def trained(trained_folder, tmp_path):
    """Returns the run of `trained_folder` in a folder of its own."""
    shutil.copytree(trained_folder, tmp_path, dirs_exist_ok=True)
    run = start(tmp_path, build_model())
    run.restore(run.model)
    return run


# The state, and what resumes from it.


def test_a_run_goes_on_from_its_state(trained, tmp_path, capsys):
    run = start(tmp_path, build_model())
    assert run.restore(run.model)
    assert (run.epoch, run.step, run.best) == (3, 6, 0.5)
    assert read_weight(run.model) == 6
    assert "after epoch 3, step 6" in capsys.readouterr().out
    run.begin()
    assert run.plan_fits(2) == [{"initial_epoch": 3, "epochs": 4, "steps_per_epoch": 2}]
    train_epoch(run, 0.4)
    assert run.model.stop_training
    assert read_log(tmp_path) == [(0, "0.1"), (1, "0.5"), (2, "0.3"), (3, "0.4")]
    assert read_saved(tmp_path / "best.keras") == 4
    assert read_saved(tmp_path / "last.keras") == 8


@pytest.mark.parametrize("name", ["last.keras", "best.keras", "log.csv", "latest.weights.h5"])
def test_an_epoch_that_cannot_be_saved_is_trained_again(trained, tmp_path, monkeypatch, name):
    """The disk is full at each of the four files in turn; the files from before stay intact."""
    replace = os.replace

    def fail(source, target):
        if os.fspath(target).endswith(name):
            raise OSError(28, "No space left on device")
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail)
        with pytest.raises(RunError, match=r"epoch 4 could not be saved.*--resume.*No space left"):
            train_epoch(trained, 0.9)
    assert not list(tmp_path.rglob(".unfinished-*"))
    run = start(tmp_path, build_model())
    run.restore(run.model)
    run.begin()
    assert (run.epoch, run.best, read_weight(run.model)) == (3, 0.5, 6)
    assert [epoch for epoch, _ in read_log(tmp_path)] == [0, 1, 2]
    train_epoch(run, 0.9)
    assert [epoch for epoch, _ in read_log(tmp_path)] == [0, 1, 2, 3]
    assert read_saved(tmp_path / "best.keras") == 8


@pytest.mark.parametrize("damage", [cut, lambda path: path.write_bytes(b""), lambda path: path.unlink()])
def test_a_broken_state_gives_way_to_the_one_before(trained, tmp_path, capsys, damage):
    damage(trained.states.latest)
    run = start(tmp_path, build_model())
    assert run.restore(run.model)
    assert (run.epoch, run.step, read_weight(run.model)) == (2, 4, 4)
    assert "step-000000004.weights.h5" in capsys.readouterr().out
    run.begin()
    assert [epoch for epoch, _ in read_log(tmp_path)] == [0, 1]


def test_a_state_that_only_hdf5_can_read_gives_way_too(trained, tmp_path, capsys):
    """Returns a state with Keras's part only, as an earlier version wrote it: without epoch and step."""
    trained.model.save_weights(trained.states.latest)
    run = start(tmp_path, build_model())
    run.restore(run.model)
    assert run.epoch == 2
    assert "holds no epoch" in capsys.readouterr().out


def test_no_state_that_is_whole_is_an_error(trained, tmp_path):
    cut(trained.states.latest)
    cut(*trained.states.older)
    with pytest.raises(RunError, match=r"(?s)no state that is intact.*latest.*step-.*without --resume"):
        start(tmp_path, build_model()).restore(build_model())


def test_nothing_to_resume_starts_anew(tmp_path, capsys):
    run = start(tmp_path, build_model())
    assert not run.restore(run.model)
    assert "starts anew" in capsys.readouterr().out
    assert run.plan_fits(3) == [{"initial_epoch": 0, "epochs": 3, "steps_per_epoch": 3}]


@pytest.mark.parametrize("content", ["", "epoch,lo", "epoch,loss\n0,1\n0,1\n5,2\n", None])
def test_the_log_is_that_of_the_state(trained, tmp_path, content):
    before = (tmp_path / "log.csv").read_text()
    (tmp_path / "log.csv").unlink() if content is None else (tmp_path / "log.csv").write_text(content)
    run = start(tmp_path, build_model())
    run.restore(run.model)
    run.begin()
    assert (tmp_path / "log.csv").read_text() == before


def test_a_long_log_fits_into_the_state(trained, tmp_path):
    """More than the 64 KiB that an HDF5 attribute of fixed length may have."""
    trained.rows += [{"epoch": epoch, "loss": 1 / 3, "val_score": 1 / 7} for epoch in range(3, 3000)]
    trained.save_state()
    run = start(tmp_path, build_model())
    run.restore(run.model)
    assert run.rows == trained.rows


def test_weights_that_are_not_finite_are_never_saved(trained, tmp_path):
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    set_weights(trained.model, np.nan)
    for save in (
        lambda: trained.on_epoch_end(3, {"val_score": 0.9}),
        lambda: trained.save_interrupted(KeyboardInterrupt()),
        lambda: save_model(trained.model, tmp_path / "last.keras"),
    ):
        with pytest.raises(FloatingPointError, match=r"not finite.*kernel"):
            save()
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    # Nor what an optimizer overflowed to: the weights would never move again.
    set_weights(trained.model, 1.0)
    trained.model.optimizer.variables[-1].assign(np.full(trained.model.optimizer.variables[-1].shape, np.inf))
    with pytest.raises(FloatingPointError, match="momentum"):
        save_model(trained.model, tmp_path / "last.keras")


# The best model.


@pytest.mark.parametrize(
    ("scores", "best"),
    [
        ((0.1, 0.5, 0.3), 4),
        ((float("nan"), 0.2, 0.1), 4),
        ((None, 0.2, None), 4),
        ((0.2, float("nan"), 0.3), 6),
        ((0.3, None, float("nan")), 2),
        ((float("nan"), None, float("nan")), 6),
        ((0.0, 0.0, 0.0), 6),
    ],
)
def test_the_best_model(tmp_path, scores, best):
    """A state without a score is the best until one has a score; of equal scores the later one is."""
    run = start(tmp_path, build_model())
    run.begin()
    for score in scores:
        train_epoch(run, score)
    assert read_saved(tmp_path / "best.keras") == best


def test_a_best_model_that_was_lost_is_replaced(trained, tmp_path):
    (tmp_path / "best.keras").unlink()
    run = start(tmp_path, build_model())
    run.restore(run.model)
    run.begin()
    train_epoch(run, 0.2)
    assert read_saved(tmp_path / "best.keras") == 8


# Patience.


def start_with_patience(folder, patience=2, scores=()):
    run = TrainingRun(folder, 100, SETTINGS, monitor="val_score", patience=patience)
    model = build_model()
    run.set_model(model)
    model.stop_training = False
    if run.states.latest.exists():
        run.restore(model)
    run.begin()
    for count, score in enumerate(scores, 1):
        train_epoch(run, score)
        if model.stop_training:
            return run, count
    return run, None


@pytest.mark.parametrize(
    ("scores", "stopped"),
    [
        ((0.1, 0.2, 0.3, 0.4), None),
        ((0.5, 0.4, 0.4), 3),
        ((0.5, 0.4, 0.6, 0.5, 0.55), 5),
        ((0.0, 0.0, 0.0), 3),  # an equal score is kept, but is not better
        ((None, None, None, 0.1, None, 0.1), 6),  # patience counts from the first score on
        ((float("nan"), 0.3, float("nan"), 0.2), 4),
    ],
)
def test_training_ends_where_scores_get_no_better(tmp_path, scores, stopped, capsys):
    assert start_with_patience(tmp_path, scores=scores)[1] == stopped
    assert ("2 scores in a row were not above the best" in capsys.readouterr().out) == (stopped is not None)


def test_patience_counts_on_after_a_stop(tmp_path, capsys):
    for scores, stopped in (((0.5, 0.4), None), ((0.3,), 1)):
        run, found = start_with_patience(tmp_path, scores=scores)
        assert found == stopped
    assert (run.best, run.num_stale) == (0.5, 2)
    # It has ended: another --resume trains nothing, but one with a larger patience does.
    for patience, epochs in ((2, 3), (3, 4)):
        run, _ = start_with_patience(tmp_path, patience)
        model = run.model

        def make_batches(first_step):
            return (tuple(np.ones((2, 4, 1))) for _ in range(100))

        scorer = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: logs.update(val_score=0.1))
        run.train(model, make_batches, 2, lambda step: [], "", scorer, verbose=0)
        assert run.epoch == epochs
    assert "2 scores in a row" in capsys.readouterr().out


def test_states_from_before_there_was_patience_count_from_0(trained, tmp_path):
    trained.num_stale = 5
    describe = trained._describe
    trained._describe = lambda: {name: value for name, value in describe().items() if name != "num_stale"}
    trained.save_state()
    run = start(tmp_path, build_model())
    assert run.restore(run.model)
    assert run.num_stale == 0


# Several batches per step.


def test_steps_are_updates_of_the_weights(tmp_path, capsys):
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    schedule = keras.optimizers.schedules.PolynomialDecay(0.1, 4, 0.0)
    model.compile(keras.optimizers.SGD(schedule, gradient_accumulation_steps=3), "mse")
    run = TrainingRun(tmp_path, 4, SETTINGS, "val_score", save_every=1, keep=9, accumulate=3)
    firsts = []

    def make_batches(first_step):
        firsts.append(first_step)
        return (tuple(np.ones((2, 4, 1))) for _ in range(100))

    summary = run.train(model, make_batches, 2, lambda step: [], "", verbose=0)
    assert (run.step, run.epoch, int(model.optimizer.iterations)) == (12, 2, 4)
    assert float(model.optimizer.learning_rate) == 0.0  # the schedule ended
    assert [path.name for path in run.states.older] == [f"step-{n:09d}.weights.h5" for n in (12, 9, 6, 3)]
    assert "s per step" in summary
    resumed = TrainingRun(tmp_path, 4, SETTINGS, "val_score", accumulate=3)
    assert resumed.restore(model)
    assert "after epoch 2, step 4 (batch 12)" in capsys.readouterr().out
    assert firsts == [0]


# Notes beside the models.


def test_notes_belong_to_the_models(trained, tmp_path, capsys):
    settings = json.loads((tmp_path / "settings.json").read_text())
    assert settings["classes"] == SETTINGS["classes"]
    assert settings["sizes"] == {"image_size": [64, 64]}
    (tmp_path / "mine.txt").write_text("not ours")
    (tmp_path / "results.json").write_text("[]")

    other = {**SETTINGS, "classes": ["wheel"]}
    run = start(tmp_path, build_model(), other)
    run.begin()
    older = tmp_path / "older" / "1"
    assert str(older) in capsys.readouterr().out
    assert read_saved(older / "best.keras") == 4
    here = {path.name for path in tmp_path.iterdir()}
    assert here == {"older", "mine.txt", "settings.json", "log.csv", "state"}
    # An older run can be resumed, and the next one is put beside it.
    moved = start(older, build_model())
    assert moved.restore(moved.model)
    train_epoch(run, 0.1)
    start(tmp_path, build_model()).begin()
    assert {path.name for path in (tmp_path / "older").iterdir()} == {"1", "2"}


def test_results_of_an_older_best_model_do_not_stay(trained, tmp_path):
    for name in ("results.json", "predictions.png"):
        (tmp_path / name).write_text("of the model before")
    run = start(tmp_path, build_model())
    run.restore(run.model)
    run.begin()
    assert not (tmp_path / "results.json").exists()
    assert not (tmp_path / "predictions.png").exists()
    assert (tmp_path / "best.keras").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"head": "mask_rcnn"}, "head 'retinanet' became 'mask_rcnn'"),
        ({"sizes": {"image_size": (96, 96)}}, r"sizes \{'image_size': \[64, 64\]\} became"),
        ({"classes": ["wheel"]}, "classes .*square.* became .*wheel"),
    ],
)
def test_other_settings_are_refused(trained, tmp_path, change, message):
    before = (tmp_path / "settings.json").read_text()
    run = start(tmp_path, build_model(5.0), {**SETTINGS, **change})
    with pytest.raises(RunError, match=message):
        run.restore(run.model)
    assert read_weight(run.model) == 5
    assert (tmp_path / "settings.json").read_text() == before


def test_settings_that_may_change_are_told(trained, tmp_path, capsys):
    run = start(tmp_path, build_model(), {**SETTINGS, "steps": 12, "output": "elsewhere"}, steps=12)
    assert run.restore(run.model)
    printed = capsys.readouterr().out
    assert "steps 8 became 12" in printed
    assert "elsewhere" not in printed
    assert "record" not in printed
    assert run.plan_fits(2) == [{"initial_epoch": 3, "epochs": 6, "steps_per_epoch": 2}]


def test_settings_that_an_earlier_version_did_not_have_are_told(trained, tmp_path, capsys):
    new = {"scale_range": (0.5, 2.0), "bands": None, "flip": False}
    run = start(tmp_path, build_model(), {**SETTINGS, **new})
    assert run.restore(run.model)
    printed = capsys.readouterr().out
    assert "scale-range, which the state does not record, is [0.5, 2.0]" in printed
    assert "bands" not in printed
    assert "flip" not in printed


# Steps.


@pytest.mark.parametrize(
    ("steps", "every", "expected"),
    [(250, 200, 125), (3, 2, 2), (600, 200, 200), (5, 9, 5), (1, 1, 1), (7, 3, 3)],
)
def test_rounds(steps, every, expected):
    assert plan_rounds(steps, every) == expected <= every


@pytest.mark.parametrize(
    ("step", "epoch_start", "steps", "expected"),
    [
        (0, 0, 8, [(0, 2, 4)]),
        (4, 4, 8, [(3, 4, 4)]),
        (5, 4, 8, [(3, 4, 3)]),
        (5, 4, 10, [(3, 4, 3), (4, 5, 4)]),
        (7, 4, 17, [(3, 4, 1), (4, 7, 4)]),
        (8, 8, 8, [(3, 3, 4)]),
    ],
)
def test_an_epoch_that_was_cut_is_ended_first(tmp_path, step, epoch_start, steps, expected):
    run = TrainingRun(tmp_path, steps, SETTINGS, monitor="val_score")
    run.epoch, run.step, run.epoch_start = (3 if step else 0), step, epoch_start
    assert [tuple(plan.values()) for plan in run.plan_fits(4)] == expected


def test_states_within_an_epoch(tmp_path):
    run = TrainingRun(tmp_path, 20, SETTINGS, monitor="val_score", save_every=2, keep=3)
    run.set_model(build_model())
    run.begin()
    for step in range(1, 10):
        set_weights(run.model, step)
        run.on_train_batch_end(step, {})
        if step == 5:
            run.on_epoch_end(0, {"val_score": 0.1})
    # Steps 2, 4, 5 (the epoch), 6 and 8, of which the newest three are kept.
    assert [path.name for path in run.states.older] == [f"step-00000000{step}.weights.h5" for step in (6, 5)]
    resumed = start(tmp_path, build_model(), steps=20)
    assert resumed.restore(resumed.model)
    assert (resumed.epoch, resumed.epoch_start, resumed.step) == (1, 5, 8)
    assert read_weight(resumed.model) == 8
    assert [epoch for epoch, _ in read_log(tmp_path)] == [0]
    for path in (run.states.latest, run.states.older[0]):
        cut(path)
    resumed = start(tmp_path, build_model(), steps=20)
    assert resumed.restore(resumed.model)
    assert (resumed.step, read_weight(resumed.model)) == (5, 5)


def test_fit_ends_at_the_last_step(tmp_path):
    model = build_model()
    run = start(tmp_path, model, steps=3)
    batches = np.ones((20, 1), "float32")
    run.begin()
    (plan,) = run.plan_fits(2)
    model.fit(batches, batches, batch_size=1, verbose=0, callbacks=[run], **plan)
    assert int(model.optimizer.iterations) == run.step == 3
    assert [epoch for epoch, _ in read_log(tmp_path)] == [0, 1]
    resumed = start(tmp_path, build_model(), steps=3)
    resumed.restore(resumed.model)
    (plan,) = resumed.plan_fits(2)
    assert plan["epochs"] == plan["initial_epoch"] == 2


# Stops, and how a run begins.


def test_a_step_ends_before_the_training_is_interrupted(trained):
    trained.on_train_batch_begin(0)
    trained.interrupt("SIGTERM")
    with pytest.raises(KeyboardInterrupt, match="SIGTERM"):
        trained.on_train_batch_end(0, {})
    assert trained.step == 7
    trained = start(trained.folder, build_model())
    trained.on_train_batch_begin(0)
    trained.interrupt()
    with pytest.raises(KeyboardInterrupt):
        trained.interrupt()  # once more
    with pytest.raises(KeyboardInterrupt):
        start(trained.folder, build_model()).interrupt()  # between steps


def test_an_interrupted_epoch_is_saved_whole(trained, tmp_path, monkeypatch):
    """A signal while the models are written: state, models and log belong to one epoch."""
    from heads.training import run as module

    def save(model, path):
        if path.name == "last.keras":
            trained.interrupt("SIGTERM")
        save_model(model, path)

    monkeypatch.setattr(module, "save_model", save)
    with pytest.raises(KeyboardInterrupt):
        train_epoch(trained, 0.9)
    assert read_saved(tmp_path / "best.keras") == 8
    assert [epoch for epoch, _ in read_log(tmp_path)] == [0, 1, 2, 3]


def test_interrupted_models_are_saved(trained, tmp_path):
    with pytest.raises(SystemExit) as left:
        trained.save_interrupted(KeyboardInterrupt("SIGTERM"))
    assert left.value.code == 143
    assert read_saved(tmp_path / "interrupted.keras") == 6
    trained.on_train_batch_begin(0)
    trained.states.latest.unlink()
    with pytest.raises(SystemExit):  # in the middle of a step, weights belong to no step
        trained.save_interrupted(KeyboardInterrupt("SIGTERM"))
    assert not trained.states.latest.exists()
    trained.save_interrupted(KeyboardInterrupt())  # Ctrl-C ends without an error


def test_what_a_kill_left_unfinished_is_removed(trained, tmp_path):
    (tmp_path / ".unfinished-best.keras").write_bytes(b"half")
    (tmp_path / "state" / ".unfinished-latest.weights.h5").write_bytes(b"half")
    run = start(tmp_path, build_model())
    run.restore(run.model)
    run.begin()
    assert not list(tmp_path.rglob(".unfinished-*"))


def test_a_run_begins_with_its_seed_and_precision(tmp_path):
    seen = []

    def train(arguments, folder):
        seen.append((folder, keras.random.normal((3,)), keras.config.dtype_policy().name))

    arguments = argparse.Namespace(output=tmp_path / "run", resume=False, seed=5, mixed_precision=True)
    try:
        run_in_folder(train, arguments, "kind")
        run_in_folder(train, arguments, "kind")
    finally:
        keras.config.set_dtype_policy("float32")
    (folder, first, policy), (_, second, _) = seen
    assert folder == tmp_path / "run"
    assert policy == "mixed_bfloat16"
    np.testing.assert_array_equal(first, second)


def test_reasons_to_end_are_told_without_a_traceback(tmp_path):
    def train(arguments, folder):
        raise RunError("the disk is full")

    arguments = argparse.Namespace(output=tmp_path / "run", resume=False, seed=0, mixed_precision=False)
    with pytest.raises(SystemExit, match="the disk is full"):
        run_in_folder(train, arguments, "kind")


@pytest.fixture
def in_new_folder(tmp_path, monkeypatch):
    """Returns a function of options that runs nothing but a given function, in a new working directory."""
    monkeypatch.chdir(tmp_path)

    def run(function, **options):
        arguments = argparse.Namespace(output=None, resume=False, seed=0, mixed_precision=False)
        vars(arguments).update(options)
        run_in_folder(function, arguments, "pose")
        return arguments

    return run


def test_the_first_scoring_is_announced(tmp_path, capsys):
    run = start(tmp_path, build_model())
    run.on_test_begin()
    run.on_test_begin()
    assert capsys.readouterr().out.count("Scoring the held-out data") == 1


def touch_state(arguments, folder):
    (folder / "state").mkdir(exist_ok=True)
    (folder / "state" / "latest.weights.h5").touch()


def test_each_run_has_a_folder_of_its_own(in_new_folder, capsys):
    assert in_new_folder(touch_state).output == str(pathlib.Path("runs/pose-1"))
    assert in_new_folder(touch_state).output == str(pathlib.Path("runs/pose-2"))
    assert "The run is in runs" in capsys.readouterr().out
    assert in_new_folder(touch_state, output="mine").output == "mine"


def test_resume_goes_on_in_the_newest_run(in_new_folder):
    for _ in range(2):
        in_new_folder(touch_state)
    assert in_new_folder(touch_state, resume=True).output == str(pathlib.Path("runs/pose-2"))


def test_resume_needs_a_run(in_new_folder):
    with pytest.raises(SystemExit, match=r"--resume needs a run.*without --resume.*no folder pose-<number>"):
        in_new_folder(touch_state, resume=True)


def test_a_run_that_wrote_nothing_leaves_no_folder(in_new_folder):
    def fail(arguments, folder):
        assert folder.is_dir()
        raise RunError("the data is faulty")

    for _ in range(2):
        with pytest.raises(SystemExit, match="the data is faulty"):
            in_new_folder(fail)
    assert list(pathlib.Path("runs").iterdir()) == []
    # A folder that the user chose stays.
    with pytest.raises(SystemExit):
        in_new_folder(fail, output="mine")
    assert pathlib.Path("mine").is_dir()
