"""Numbered folders, so that no run and no evaluation overwrites another."""

import contextlib
import os
import pathlib

from heads.training.files import RunError, hold_folder

RUNS = "runs"
MODELS = ("best.keras", "last.keras", "interrupted.keras")
NOTES = ("settings.json",)
# Made from the best model at the end.
RESULTS = (
    *("scores.json", "scores.txt", "results.json"),
    *("curves.png", "predictions.png", "features.png", "confusion.png", "precision_recall.png", "worst.png"),
    "report.html",
)


@contextlib.contextmanager
def hold_run_folder(arguments, kind: str):
    """Yields the folder of a run, which no other training uses meanwhile.

    Args:
        arguments: With `output` and `resume`, as `examples/options.py` adds them. If there is no `output`, it
            is set to a new folder `runs/<kind>-<number>`, or with `resume` to the newest of these.
        kind: Kind of the run.

    Yields:
        The path. A new folder is removed at the end if the run has written nothing.

    Raises:
        RunError: If another training uses the folder, or there is none to resume.
    """
    is_new = arguments.output is None and not arguments.resume
    if arguments.output is None:
        find_folder = find_newest_run if arguments.resume else make_numbered_folder
        arguments.output = str(find_folder(RUNS, kind))
        print(f"The run is in {arguments.output}", flush=True)  # noqa: T201
    try:
        with hold_folder(arguments.output) as folder:
            yield folder
    finally:
        if is_new:
            remove_unused_folder(arguments.output)


def make_numbered_folder(parent, name: str) -> pathlib.Path:
    """Makes a new folder for the files of a script.

    Args:
        parent: The folder to make it in, which is made if it is missing.
        name: What the new folder's name begins with.

    Returns:
        The path, `parent/name-1` or with the number after the highest existing one.

    Raises:
        RunError: If no folder can be made there.
    """
    parent = pathlib.Path(parent)
    try:
        parent.mkdir(parents=True, exist_ok=True)
        while True:
            number = 1 + max(_find_numbered(parent, name), default=0)
            folder = parent / f"{name}-{number}"
            try:
                folder.mkdir()
            except FileExistsError:  # another process was quicker
                continue
            return folder
    except OSError as error:
        raise RunError(
            f"{parent} must be a folder that can be written to; choose another with --output. "
            f"Received: {error}"
        ) from error


def find_newest_run(parent, name: str) -> pathlib.Path:
    """Returns the folder `parent/name-<number>` with the highest number that holds a state to resume from.

    Raises:
        RunError: If there is none.
    """
    found = _find_numbered(pathlib.Path(parent), name)
    for number in sorted(found, reverse=True):
        if any(found[number].glob("state/*.weights.h5")):
            return found[number]
    held = f"{len(found)} folders {name}-<number> without a state" if found else f"no folder {name}-<number>"
    raise RunError(
        "--resume needs a run to go on with: start one without --resume, or pass its folder as --output. "
        f"Received: {pathlib.Path(parent).resolve()}, which holds {held}"
    )


def remove_unused_folder(folder):
    """Removes the folder of a run that ended before it wrote anything but its lock."""
    folder = pathlib.Path(folder)
    if folder.is_dir() and {path.name for path in folder.iterdir()} <= {"run.lock"}:
        (folder / "run.lock").unlink(missing_ok=True)
        folder.rmdir()


def move_older_run(folder) -> pathlib.Path | None:
    """Moves the files of a run to `older/1`, `older/2` ... in its folder, so that they stay together.

    Returns:
        Where they are now; None if there were none.
    """
    names = (*MODELS, *NOTES, *RESULTS, "state", "log.csv", "tensorboard")
    found = [name for name in names if (folder / name).exists()]
    if not found:
        return None
    older = folder / "older"
    number = 1 + max((int(path.name) for path in older.glob("*") if path.name.isdigit()), default=0)
    place = older / str(number)
    place.mkdir(parents=True)
    for name in found:
        os.replace(folder / name, place / name)
    return place


def _find_numbered(parent, name):
    """Returns the paths named `name-<number>` in a folder, by their numbers."""
    paths = {path.name.removeprefix(f"{name}-"): path for path in parent.glob(f"{name}-*")}
    return {int(end): path for end, path in paths.items() if end.isascii() and end.isdigit()}
