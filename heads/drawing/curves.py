"""Pictures of learning curves."""

import math
from collections.abc import Iterable

import numpy as np

from heads.drawing.pages import require
from heads.drawing.palette import class_palette

WIDTH, HEIGHT, DPI = 12.0, 4.2, 100  # inches, and pixels of one
MOST_CURVES = 8  # of a panel; more cannot be told apart


def draw_curves(rows: Iterable[dict], monitor: str | None = None) -> np.ndarray:
    """Draws the log of a training: the losses on the left, the scores on the right.

    Args:
        rows: One dict for each epoch, of numbers by their names in Keras's logs, and "epoch": the rows of
            `TrainingRun`, or of its `log.csv`. Numbers may be texts; other values are left out.
        monitor: Name of the score that tells the best model; its best epoch is marked.

    Returns:
        uint8 (height, width, 3).

    Raises:
        ValueError: If there are no rows.
    """
    rows = list(rows)
    require(rows, "rows must hold at least one epoch", rows)
    names = [name for name in dict.fromkeys(name for row in rows for name in row) if name != "epoch"]
    losses = _list_losses(rows, names)
    scores = [name for name in names if not name.endswith("loss") and name != "learning_rate"]
    scores.sort(key=lambda name: (name != monitor, not name.startswith("val_")))
    epochs = [int(float(row.get("epoch", number))) + 1 for number, row in enumerate(rows)]
    figure, (left, right) = _make_panels()
    for panel, title, shown, unit in ((left, "losses", losses, 1), (right, "scores, percent", scores, 100)):
        curves = {name: _read_curve(rows, name, unit) for name in shown[:MOST_CURVES]}
        _draw_panel(panel, title, epochs, curves)
    if monitor in names:
        _mark_best(right, epochs, _read_curve(rows, monitor, 100))
    return _render(figure)


def draw_precision_recall(precision: dict) -> np.ndarray:
    """Draws precision over recall: of each class at an IoU of 0.5 on the left, of all together on the right.

    If there are many classes, the left shows those with the lowest average precision, and the mean of all.

    Args:
        precision: Name of each class -> (10, recalls), NaN where it has no objects: see
            `heads.metrics.measure_precision`.

    Returns:
        uint8 (height, width, 3).

    Raises:
        ValueError: If there is no class, or another number of thresholds than 10.
    """
    curves = {name: 100 * np.asarray(values, "float64") for name, values in precision.items()}
    shapes = {values.shape for values in curves.values()}
    fits = len(shapes) == 1 and all(len(shape) == 2 and shape[0] == 10 for shape in shapes)
    require(fits, "precision must have (10, recalls) of at least one class", shapes or "no class")
    palette = dict(zip(curves, class_palette(len(curves)) / 255, strict=True))
    known = {name: values for name, values in curves.items() if not np.isnan(values).any()}
    lowest = sorted(known, key=lambda name: known[name][0].mean())[: MOST_CURVES - 1]
    figure, (left, right) = _make_panels()
    recalls = np.linspace(0, 100, shapes.pop()[1])
    for name in (name for name in known if name in lowest):
        left.plot(recalls, known[name][0], color=palette[name], label=f"{name} {known[name][0].mean():.1f}")
    if known:
        mean = np.mean(list(known.values()), axis=0)
        left.plot(recalls, mean[0], color="black", linewidth=2.5, label=f"all classes {mean[0].mean():.1f}")
        for place in range(0, 10, 2):
            label = f"IoU {0.5 + 0.05 * place:.1f}: {mean[place].mean():.1f}"
            right.plot(recalls, mean[place], color=str(0.08 * place), label=label)
    titles = ("precision at an IoU of 0.5, percent", "precision of all classes, percent")
    for panel, title in zip((left, right), titles, strict=True):
        panel.set(title=title, xlabel="recall, percent", xlim=(0, 100), ylim=(0, 102))
        panel.grid(alpha=0.3)
        if known:
            panel.legend(fontsize="small", title="average precision")
    return _render(figure)


def _make_panels():
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure  # without pyplot, which would open windows

    figure = Figure((WIDTH, HEIGHT), DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(1, 2)


def _render(figure):
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., :3].copy()


def _list_losses(rows, names):
    """Returns the names of losses, without one that alone is the loss and would hide its curve."""
    losses = [name for name in names if name.endswith("loss")]
    for prefix in ("val_", ""):
        total = f"{prefix}loss"
        if total in losses:
            curve = _read_curve(rows, total, 1)
            losses = [
                name
                for name in losses
                if name in ("loss", "val_loss")
                or name.startswith("val_") != bool(prefix)
                or not np.allclose(_read_curve(rows, name, 1), curve, equal_nan=True)
            ]
    return losses


def _draw_panel(panel, title, epochs, curves):
    """Draws curves over the epochs: solid for held-out data, dashed for the rest."""
    palette = class_palette(MOST_CURVES) / 255
    for (name, values), colour in zip(curves.items(), palette, strict=False):
        style = "-" if name.startswith("val_") else "--"
        panel.plot(epochs, values, style, color=colour, marker="o", markersize=3, label=name)
    panel.set(title=title, xlabel="epoch (a score)", xlim=(0.5, max(epochs) + 0.5))
    panel.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    panel.grid(alpha=0.3)
    if curves:
        panel.legend(fontsize="small")


def _mark_best(panel, epochs, values):
    known = [value for value in values if math.isfinite(value)]
    if known:
        # Of equal scores the last one, as `TrainingRun` chooses.
        place = len(values) - 1 - values[::-1].index(max(known))
        panel.annotate(
            f"best: {values[place]:.1f}",
            (epochs[place], values[place]),
            (0, 6),
            textcoords="offset points",
            ha="center",
        )
        panel.margins(y=0.15)


def _read_curve(rows, name, unit):
    """Returns a number for each epoch, NaN where there is none."""
    numbers = []
    for row in rows:
        try:
            numbers.append(unit * float(row[name]))
        except (KeyError, TypeError, ValueError):
            numbers.append(math.nan)
    return numbers
