"""The files in which runs and evaluations keep their scores, for people and for programs."""

import json

import numpy as np
from PIL import Image

from heads.drawing import draw_curves, make_report
from heads.metrics import save_scores
from heads.training import RunError, make_numbered_folder, replace_file, replace_text

# Picture that a folder may hold -> its heading in the report.
PICTURES = {
    "curves.png": "Learning curves",
    "confusion.png": "Which classes are confused",
    "precision_recall.png": "Precision over recall",
    "worst.png": "The pictures with the most mistakes",
    "predictions.png": "The first pictures",
    "features.png": "What the backbone sees",
}


def open_evaluation(arguments):
    """Returns the folder for the results of an evaluation: `--output`, or a new one beside the model."""
    if arguments.output is not None:
        arguments.output.mkdir(parents=True, exist_ok=True)
        return arguments.output
    try:
        return make_numbered_folder(arguments.model.parent, "evaluation")
    except RunError as error:
        raise SystemExit(str(error)) from error


def keep_scores(folder, scores, table, class_names=(), **about):
    """Writes `scores.json`, in percent, and the table that was printed as `scores.txt`.

    Args:
        folder: Folder for the files.
        scores: See `heads.metrics.save_scores`.
        table: Text.
        class_names: See `heads.metrics.save_scores`.
        **about: What was scored, see `heads.metrics.save_scores`.
    """
    save_scores(scores, folder / "scores.json", class_names, **about)
    replace_text(folder / "scores.txt", table + "\n")


def find_worst(mistakes, most: int = 6) -> list[int]:
    """Returns the positions of the pictures with the most mistakes, the worst first, if they have any."""
    mistakes = np.nan_to_num(np.asarray(mistakes, "float64"))
    return [int(place) for place in np.argsort(-mistakes, kind="stable")[:most] if mistakes[place] > 0]


def keep_report(folder):
    """Writes `report.html`, one page with all that a run or an evaluation has kept in its folder."""
    parts = []
    if (folder / "scores.json").exists():
        scores = json.loads((folder / "scores.json").read_text(encoding="utf-8"))
        plain = {name: value for name, value in scores.items() if isinstance(value, int | float | str)}
        plain = {name: f"{value:.2f}" if isinstance(value, float) else value for name, value in plain.items()}
        classes = {name: value for name, value in scores.items() if isinstance(value, dict)}
        parts += [("Scores", plain)] + ([("Scores of each class, percent", classes)] if classes else [])
    for name, heading in PICTURES.items():
        if (folder / name).exists():
            with Image.open(folder / name) as picture:
                parts.append((heading, np.asarray(picture.convert("RGB"))))
    if (folder / "scores.txt").exists():
        parts.append(("Scores as they were printed", (folder / "scores.txt").read_text(encoding="utf-8")))
    if (folder / "settings.json").exists():
        parts.append(("Settings", json.loads((folder / "settings.json").read_text(encoding="utf-8"))))
    title = "/".join(folder.resolve().parts[-2:])
    replace_text(folder / "report.html", make_report(title, parts))


def keep_curves(folder, run):
    """Draws the log of a run as `curves.png`."""
    save_picture(draw_curves(run.rows, run.monitor), folder / "curves.png")


def save_picture(picture, path):
    """Writes a picture, uint8 (height, width) or (height, width, 3), as a whole: see `replace_file`."""
    with replace_file(path) as unfinished:
        Image.fromarray(picture).save(unfinished)
