"""What runs and evaluations keep of their scores, for people and for programs."""

from PIL import Image

from heads.drawing import draw_curves
from heads.metrics import save_scores
from heads.training import RunError, make_numbered_folder


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
        folder: Where they go.
        scores: See `heads.metrics.save_scores`.
        table: Text.
        class_names: See `heads.metrics.save_scores`.
        **about: What the scores are of, see `heads.metrics.save_scores`.
    """
    save_scores(scores, folder / "scores.json", class_names, **about)
    (folder / "scores.txt").write_text(table + "\n", encoding="utf-8")


def keep_curves(folder, run):
    """Draws the log of a run as `curves.png`."""
    Image.fromarray(draw_curves(run.rows, run.monitor)).save(folder / "curves.png")
