"""`van-backbones`: one command for the scripts of examples/."""

import pathlib
import re
import subprocess
import sys
import time

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "examples"))

import command_line
import demo
from command_line import COMMANDS, EXAMPLES, main, read_examples

PATIENCE = 0.5  # seconds
TASKS = [(name, task) for name, tasks in COMMANDS.items() if isinstance(tasks, dict) for task in tasks]


def call(*words):
    """Runs a process with the words as its arguments."""
    command = [sys.executable, str(EXAMPLES / "command_line.py"), *words]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.fixture
def calls(monkeypatch):
    """Returns the scripts that would have been run: (script, options, program)."""
    found = []
    monkeypatch.setattr(command_line, "run_script", lambda *call: found.append(call) or 0)
    return found


def call_quickly(*words):
    """Runs a process with the words as its arguments, which must not take longer than people like to wait."""
    fastest = float("inf")
    for _ in range(5):  # other tests may keep the machine busy
        start = time.perf_counter()
        done = call(*words)
        fastest = min(fastest, time.perf_counter() - start)
        if fastest < PATIENCE:
            break
    assert fastest < PATIENCE
    assert done.returncode == 0
    assert done.stderr == ""
    return done


@pytest.mark.parametrize("words", [["checkpoints", "--help"], ["checkpoints", "convert", "-h"]])
def test_help_of_checkpoints_is_quick(words):
    assert call_quickly(*words).stdout.startswith(f"usage: van-backbones {' '.join(words[:-1])} ")


@pytest.mark.parametrize(("words", "shown"), [(["--help"], "features "), (["train", "-h"], "saliency ")])
def test_help_is_quick_and_shows_examples(words, shown):
    done = call_quickly(*words)
    assert f"\n  {shown}" in done.stdout
    assert "  van-backbones train segmentation --data path/to/data --variant b" in done.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "van-backbones: error: the following arguments are required: COMMAND"),
        (["predict"], "van-backbones predict: error: the following arguments are required: TASK"),
        (["trian"], r"COMMAND must come first and be one of demo, train, .*, checkpoints. Received: 'trian'"),
        (
            ["train", "--data", "x"],
            r"TASK must come first and be one of segmentation, .*. Received: '--data'",
        ),
        (["evaluate", "pose"], "Received: 'pose'"),
        (["demo", "classification"], "van-backbones demo: error: argument task: invalid choice"),
        (["demo", "pose", "--head", "gfl"], "--head is for detection. Received: pose --head gfl"),
        (["demo", "--steps", "0"], "van-backbones train segmentation: error: argument --steps: must be"),
        (["train", "detection", "--steps", "0"], "van-backbones train detection: error: argument --steps"),
        (["evaluate", "detection", "no.keras", "--data", "."], "there is no model no.keras"),
        (["checkpoints", "inspect"], "van-backbones checkpoints inspect: error: .* required: file"),
    ],
)
def test_wrong_use_gives_2_before_keras_is_loaded(words, message):
    command = [sys.executable, "-X", "importtime", str(EXAMPLES / "command_line.py"), *words]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert re.search(message, done.stderr)
    assert "| keras" not in done.stderr


def test_the_scripts_own_exit_code(tmp_path):
    (tmp_path / "model.keras").touch()
    # Its options are right, so it runs, and ends itself because there are no pictures.
    done = call(
        "predict", "segmentation", str(tmp_path / "model.keras"), str(tmp_path), "--crop-size", "8", "8"
    )
    assert done.returncode == 2
    assert "the folder must hold pictures" in done.stderr
    assert done.stderr.startswith("usage: van-backbones predict segmentation ")


@pytest.mark.parametrize(("command", "task"), TASKS)
def test_tasks_are_scripts_with_examples(command, task, calls):
    assert main([command, task, "--steps", "3"]) == 0
    script = COMMANDS[command][task]
    assert calls == [(script, ["--steps", "3"], f"van-backbones {command} {task}")]
    assert (EXAMPLES / f"{script}.py").is_file()
    examples = read_examples(script, f"van-backbones {command}", COMMANDS[command])
    assert examples
    assert all(line.startswith(f"  van-backbones {command} {task} ") for line in examples)


def test_all_scripts_have_a_command():
    scripts = {
        path.stem for path in EXAMPLES.glob("*.py") if "def parse_arguments" in path.read_text("utf-8")
    }
    named = {
        script
        for each in COMMANDS.values()
        for script in (each.values() if isinstance(each, dict) else [each])
    }
    assert scripts - named == {"benchmark_exports", "keras_cv_heads"}  # experiments, not daily work
    assert named <= scripts


def test_commands_without_tasks(calls):
    main(["export", "model.keras", "--format", "onnx"])
    main(["demo"])
    main(["features", "--help"])
    main(["serve", "model.keras", "--port", "8000"])
    assert calls == [
        ("export_model", ["model.keras", "--format", "onnx"], "van-backbones export"),
        ("demo", [], "van-backbones demo"),
        ("show_feature_maps", ["--help"], "van-backbones features"),
        ("serve", ["model.keras", "--port", "8000"], "van-backbones serve"),
    ]


def test_checkpoints(capsys):
    assert main(["checkpoints", "list"]) == 0
    assert "b2_imagenet " in capsys.readouterr().out
    assert main(["checkpoints", "download", "b9"]) == 1
    assert capsys.readouterr().err.startswith("error: release must be")
    with pytest.raises(SystemExit):
        main(["checkpoints", "--help"])
    shown = capsys.readouterr().out
    assert "usage: van-backbones checkpoints " in shown
    assert "python -m" not in shown


@pytest.mark.parametrize("task", demo.DEMOS)
def test_scripts_take_the_options_of_the_demo(task, calls, tmp_path, capsys):
    """As `make demo` and `van-backbones demo` call them, on the embedded data and on other data."""
    heads = demo.DETECTORS if task == "detection" else [None]
    for words in ([task, "--head", head] if head else [task] for head in heads):
        for data in ([], ["--data", str(tmp_path)]):
            demo.main([*words, *data, "--seed", "7"])
    for script, arguments, program in calls:
        parsed = sys.modules.setdefault(script, __import__(script)).parse_arguments(arguments)
        parsed = parsed[1] if isinstance(parsed, tuple) else parsed
        assert (parsed.seed, program) == (7, None)
        assert parsed.output.startswith("runs/demo")
        assert parsed.data in (None, str(tmp_path), tmp_path)
    assert len(calls) == 2 * len(heads)
    assert f"python examples/{calls[0][0]}.py --output runs/demo" in capsys.readouterr().out


def test_every_detector_has_a_small_form():
    assert set(demo.SMALL_HEADS) == set(demo.DETECTORS)


def test_scripts_find_each_other_and_their_own_path(tmp_path, monkeypatch, capsys):
    """Several processes start each other by the script's path: see heads/training/workers.py."""
    (tmp_path / "options.py").write_text("program = None\n")
    (tmp_path / "script.py").write_text("import sys, options\nprint(sys.argv, options.program, __name__)\n")
    monkeypatch.setattr(command_line, "EXAMPLES", tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "argv", ["pytest"])
    monkeypatch.delitem(sys.modules, "options")
    assert command_line.run_script("script", ["--seed", "1"], "van-backbones sing") == 0
    monkeypatch.delitem(sys.modules, "options")
    path = str(tmp_path / "script.py")
    assert capsys.readouterr().out == f"{[path, '--seed', '1']} van-backbones sing __main__\n"
