"""The options of all scripts in examples/: `--help` does not load Keras, and shows the defaults."""

import os
import pathlib
import re
import subprocess
import sys
import time

import pytest

EXAMPLES = pathlib.Path(__file__).resolve().parents[1] / "examples"
SCRIPTS = sorted(
    path.stem for path in EXAMPLES.glob("*.py") if "def parse_arguments" in path.read_text("utf-8")
)
sys.path.insert(0, str(EXAMPLES))
PATIENCE = 0.5  # seconds


def ask_for_help(script):
    """Returns what `--help` prints, and the seconds that it took."""
    start = time.perf_counter()
    command = [sys.executable, str(EXAMPLES / f"{script}.py"), "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout, time.perf_counter() - start


def test_all_scripts_are_here():
    assert set(SCRIPTS) == {path.stem for path in EXAMPLES.glob("*.py")} - {
        *("command_line", "detection_pictures", "faults", "options", "results", "served_pictures"),
        *("shown_pixels", "view_options"),
    }
    assert "finetune_segmentation" in SCRIPTS


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_is_quick_and_tells_the_defaults(script):
    text, seconds = ask_for_help(script)
    for _ in range(4):  # other tests may keep the machine busy
        if seconds >= PATIENCE:
            seconds = min(seconds, ask_for_help(script)[1])
    assert seconds < PATIENCE
    options = text.partition("\noptions:\n")[2]
    entries = re.split(r"\n  (?=-)", "\n" + options)[1:]
    assert len(entries) >= 3
    for entry in entries:
        flags, _, rest = entry.partition("  ")
        takes_value = " " in flags.split(",")[0].strip() or "\n" in flags
        is_required = f"{flags.split()[0]} " in text.partition("[")[2] and (
            f"[{flags.split()[0]}" not in text.partition("\n\n")[0]
        )
        if takes_value and not is_required:
            assert "default:" in " ".join(rest.split()), f"{script} does not tell the default of {flags}"
            assert "default: None" not in rest


@pytest.mark.parametrize("script", SCRIPTS)
def test_options_need_neither_keras_nor_tensorflow(script):
    program = (
        "import runpy, sys\n"
        f"sys.argv = [{script!r}, '--help']\n"
        f"sys.path.insert(0, {str(EXAMPLES)!r})\n"
        "try:\n"
        f"    runpy.run_path({str(EXAMPLES / (script + '.py'))!r}, run_name='__main__')\n"
        "except SystemExit as end:\n"
        "    assert end.code == 0\n"
        "print({'keras', 'tensorflow', 'numpy', 'heads', 'van_backbones'} & set(sys.modules))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "set()"


def test_mistakes_are_told_before_keras_is_loaded():
    command = [sys.executable, "-X", "importtime", str(EXAMPLES / "train_detection.py"), "--steps", "0"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert "argument --steps: must be a whole number, at least 1. Received: '0'" in done.stderr
    assert "| keras" not in done.stderr


def test_choices_are_those_of_the_packages():
    """They are repeated in options.py, because the packages take seconds to load."""
    import options
    import train_detection

    from heads.cascade_rcnn import BOX_HEADS
    from heads.ops.losses import SEGMENTATION_LOSSES
    from van_backbones import VARIANTS
    from van_backbones.exporting.export import FORMATS
    from van_backbones.exporting.quantization import TOOLS

    assert options.VARIANTS == tuple(VARIANTS)
    assert options.EXPORT_FORMATS == tuple(FORMATS)
    assert set(options.INT8_FORMATS) == set(TOOLS)
    assert options.SEGMENTATION_LOSSES == SEGMENTATION_LOSSES
    assert options.DETECTORS == tuple(train_detection.HEADS)
    for name in BOX_HEADS:
        arguments = train_detection.parse_arguments(["--head", "cascade_mask_rcnn", "--box-head", name])
        assert arguments.box_head == name


def test_tensorflow_is_told_to_be_silent():
    program = "import options, os; print(os.environ['TF_CPP_MIN_LOG_LEVEL'])"
    for level, environment in (("2", {}), ("0", {"TF_CPP_MIN_LOG_LEVEL": "0"})):
        command = [sys.executable, "-c", program]
        done = subprocess.run(
            command, cwd=EXAMPLES, env=environment, capture_output=True, text=True, check=True
        )
        assert done.stdout.strip() == level


def load_fake_keras(folder, text):
    """Returns what a process that loads a module keras with this text writes to stderr."""
    (folder / "keras.py").write_text(text)
    program = f"import sys; sys.path[:0] = [{str(folder)!r}, {str(EXAMPLES)!r}]\n"
    program += "import options; options.load_keras()"
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stderr


def test_messages_of_the_machine_are_left_out_and_no_others(tmp_path):
    messages = """
import os, sys, warnings
os.write(2, b"WARNING: All log messages before absl::InitializeLog() is called are written to STDERR\\n")
os.write(2, b"I0000 00:00:1795712344.570046   21678 port.cc:153] oneDNN custom operations are on.\\n")
os.write(2, b"To enable the following instructions: AVX2 FMA, in other operations, rebuild TensorFlow.\\n")
os.write(2, b"E0000 00:00:1795712344.570046   21678 cuda.cc:1] no GPU\\n")
os.write(2, b"E0000 00:00:1795712344.570046   21678 cuda.cc:52] failed call to cuInit: UNKNOWN ERROR\\n")
print("from Python", file=sys.stderr)
"""
    told = load_fake_keras(tmp_path, messages)
    start = "E0000 00:00:1795712344.570046   21678 cuda.cc"
    has_gpu = any(pathlib.Path("/dev").glob("nvidia*"))
    driver = [f"{start}:52] failed call to cuInit: UNKNOWN ERROR"] * has_gpu
    assert told.splitlines() == [f"{start}:1] no GPU", *driver, "from Python"]


def test_the_first_tensor_is_silent():
    program = f"import sys; sys.path.insert(0, {str(EXAMPLES)!r})\nimport options; options.load_keras()\n"
    program += "import keras; keras.ops.zeros(1)"
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.stderr == ""


def test_a_keras_that_cannot_be_loaded_is_told(tmp_path):
    told = load_fake_keras(
        tmp_path, "import os; os.write(2, b'missing.so\\n'); raise ImportError('no backend')"
    )
    assert told.startswith("missing.so\nTraceback")
    assert told.rstrip().endswith("ImportError: no backend")
