"""What is done before Keras is loaded: options of the checkpoints' command line, and the quiet loading.

It imports neither Keras nor NumPy, so that `--help` and mistakes are answered at once.
"""

import argparse
import glob
import os
import re
import sys
import tempfile

CHECKPOINTS = "python -m van_backbones.checkpoints"
# Name -> what it does, its arguments.
CHECKPOINT_COMMANDS = {
    "list": ("the named releases", ()),
    "download": ("fetches a release and prints its path", ("name",)),
    "inspect": ("says what a checkpoint file holds", ("file",)),
    "convert": (
        "a PyTorch file -> .safetensors (reference names) or .weights.h5",
        ("input", "output"),
    ),
    "export": ("a .keras model -> .safetensors for PyTorch", ("input", "output")),
}
# absl's information and warnings, "I0000 00:00:1795712344.570046   21678 port.cc:153] oneDNN ...".
MACHINE_MESSAGE = re.compile(
    r"WARNING: All log messages before absl|[IW]\d{4} [\d:. ]+ \S+\] |To enable the following instructions"
)
# TensorFlow's error where it looks for a GPU, which says nothing on a machine without one.
NO_DRIVER = re.compile(r"E\d{4} [\d:. ]+ \S+\] failed call to cuInit")


def parse_checkpoint_command(argv=None, program: str = CHECKPOINTS) -> tuple[str, list[str]]:
    """Returns the name of a command and its arguments; ends the program at `--help` and at mistakes.

    Args:
        argv: the words of the command line; those of the process by default.
        program: how it was called.
    """
    description = f"`{program}`: lists, fetches, inspects and converts checkpoints."
    parser = argparse.ArgumentParser(prog=program, description=description)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, (what, arguments) in CHECKPOINT_COMMANDS.items():
        command = commands.add_parser(name, help=what, description=what)
        for argument in arguments:
            command.add_argument(argument)
    parsed = parser.parse_args(argv)
    return parsed.command, [getattr(parsed, name) for name in CHECKPOINT_COMMANDS[parsed.command][1]]


def is_starting(module: str) -> bool:
    """Whether Python was called with `-m` and this module, and still looks for it."""
    argv = getattr(sys, "argv", [])
    if argv[:1] != ["-m"]:  # so it is until the module is found
        return False
    return sys.orig_argv[-len(argv)].removeprefix("-m") == module


def load_keras():
    """Imports Keras without what TensorFlow tells of the machine while it is loaded.

    Those messages come from C++ before it reads any setting: so they are caught where they leave the process,
    and what is no such message is written on.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    sys.stderr.flush()
    stderr = os.dup(2)
    with tempfile.TemporaryFile() as caught:
        os.dup2(caught.fileno(), 2)
        try:
            import keras  # noqa: F401

            if "tensorflow" in sys.modules:  # otherwise it would look for GPUs later
                sys.modules["tensorflow"].config.list_physical_devices("GPU")
        finally:
            sys.stderr.flush()
            os.dup2(stderr, 2)
            os.close(stderr)
            caught.seek(0)
            lines = caught.read().decode(errors="replace").splitlines(keepends=True)
            has_gpu = bool(glob.glob("/dev/nvidia*"))
            sys.stderr.write("".join(line for line in lines if not _is_of_the_machine(line, has_gpu)))


def _is_of_the_machine(line, has_gpu):
    return MACHINE_MESSAGE.match(line) or (not has_gpu and NO_DRIVER.match(line))
