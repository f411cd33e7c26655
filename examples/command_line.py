"""Trains, scores and uses Visual Attention Networks with dense-prediction heads, without writing code.

    van-backbones demo
    van-backbones train segmentation --data path/to/data --variant b1 --weights imagenet
    van-backbones evaluate segmentation runs/segmentation-1/best.keras --data path/to/data --splits test
    van-backbones predict segmentation runs/segmentation-1/best.keras path/to/pictures
    van-backbones export runs/segmentation-1/best.keras --format onnx --output model.onnx

Each command runs one of the scripts of examples/, with the same options; `van-backbones COMMAND --help`
lists them.
"""

# The entry point of the installed package, in which this folder is called van_backbones_examples. It must not
# import heads or van_backbones, which takes seconds: --help and mistakes are answered at once.

import argparse
import pathlib
import runpy
import sys

EXAMPLES = pathlib.Path(__file__).resolve().parent
# Command -> script, or task -> script.
COMMANDS = {
    "demo": "demo",
    "train": {
        "segmentation": "finetune_segmentation",
        "detection": "train_detection",
        "classification": "finetune_classification",
        "panoptic": "train_panoptic",
        "pose": "train_pose",
        "saliency": "train_saliency",
    },
    "evaluate": {
        "segmentation": "evaluate_segmentation",
        "detection": "evaluate_detection",
        "classification": "evaluate_classification",
    },
    "predict": {"segmentation": "predict_segmentation", "detection": "detect", "pose": "predict_pose"},
    "export": "export_model",
    "features": "show_feature_maps",
    "serve": "serve",
    "summary": "summarize",
}
CHECKPOINTS = "Lists, fetches, inspects and converts checkpoints"
TITLES = {
    "train": "Trains a model of a task",
    "evaluate": "Scores a model on held-out data",
    "predict": "Uses a model on pictures",
    "checkpoints": CHECKPOINTS,
}


def main(argv=None):
    """Runs a command and returns its exit code; 2 if there is no such command."""
    words = list(sys.argv[1:] if argv is None else argv)
    command = words[0] if words else None
    if command == "checkpoints":
        return run_checkpoints(words[1:])
    script, num_names = COMMANDS.get(command), 1
    if isinstance(script, dict):
        script, num_names = script.get(words[1] if len(words) > 1 else None), 2
    if script is None:
        explain(words)
    return run_script(script, words[num_names:], " ".join(["van-backbones", *words[:num_names]]))


def run_script(script: str, arguments, program: str | None):
    """Runs a script of this folder as if it was called by its name.

    Args:
        script: Its name, without the suffix.
        arguments: Its options.
        program: What it calls itself in messages; None for its file's name.

    Returns:
        0, the exit code, unless the script ends the program with another one.
    """
    if str(EXAMPLES) not in sys.path:
        sys.path.insert(0, str(EXAMPLES))  # as Python does for a script: they import each other
    import options

    options.program = program
    path = str(EXAMPLES / f"{script}.py")
    sys.argv = [path, *arguments]  # several processes start each other by this path
    runpy.run_path(path, run_name="__main__")
    return 0


def run_checkpoints(arguments):
    """Runs the command line of van_backbones.checkpoints."""
    sys.path.insert(0, str(EXAMPLES))
    from options import run_before_keras

    program, early = "van-backbones checkpoints", run_before_keras()
    early["parse_checkpoint_command"](arguments, program)
    early["load_keras"]()
    from van_backbones.checkpoints.__main__ import main

    return main(arguments, program)


def explain(words):
    """Prints the requested help, or what is wrong, and ends the program."""
    tasks = COMMANDS.get(words[0]) if words else None
    if tasks is None:
        names, place, program = [*COMMANDS, "checkpoints"], "COMMAND", "van-backbones"
        lines = [f"  {name:<12} {describe(name)}" for name in names]
        description = f"{__doc__}\ncommands:\n" + "\n".join(lines)
    else:
        names, place, program = list(tasks), "TASK", f"van-backbones {words[0]}"
        lines = [f"  {name:<15} {read_title(script)}" for name, script in tasks.items()]
        examples = [line for script in tasks.values() for line in read_examples(script, program, tasks)]
        description = "\n".join([f"{TITLES[words[0]]}.", "", "tasks:", *lines, "", "examples:", *examples])
        description += f"\n\n`{program} TASK --help` lists the options of each."
        words = words[1:]
    parser = argparse.ArgumentParser(
        prog=program,
        usage=f"{program} {place} ...",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", metavar=place, choices=names, help=argparse.SUPPRESS)
    if words and words[0] not in ("-h", "--help"):
        known = ", ".join(names)
        parser.error(f"{place} must come first and be one of {known}. Received: {words[0]!r}")
    parser.parse_args(words)  # ends the program: at --help, or because the name is missing


def describe(command):
    """Returns what a command does, in a line."""
    script = COMMANDS.get(command)
    if not isinstance(script, dict):
        return read_title(script) if script else CHECKPOINTS
    return f"{TITLES[command]}: {', '.join(script)}"


def read_title(script):
    """Returns the first line of a script's docstring: what it does."""
    with (EXAMPLES / f"{script}.py").open(encoding="utf-8") as file:
        return file.readline().strip().strip('".')


def read_examples(script, program, tasks):
    """Returns the calls of a script in its docstring, as commands."""
    task = next(name for name, each in tasks.items() if each == script)
    call = f"    python examples/{script}.py"
    text = (EXAMPLES / f"{script}.py").read_text(encoding="utf-8").split('"""')[1]
    # A call goes on in the next line behind a backslash.
    lines = text.replace("\\\n", "\0").splitlines()
    return [line.replace(call, f"  {program} {task}").replace("\0", "\\\n") for line in lines if call in line]


if __name__ == "__main__":
    sys.exit(main())
