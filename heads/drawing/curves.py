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
            `TrainingRun`, or of its `log.csv`. Numbers may be texts; what is none is left out.
        monitor: Name of the score that tells the best model; its best epoch is marked.

    Returns:
        uint8 (height, width, 3).

    Raises:
        ValueError: If there are no rows.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure  # without pyplot, which would open windows

    rows = list(rows)
    require(rows, "rows must hold at least one epoch", rows)
    names = [name for name in dict.fromkeys(name for row in rows for name in row) if name != "epoch"]
    losses = [name for name in names if name.endswith("loss")]
    scores = [name for name in names if name not in losses and name != "learning_rate"]
    scores.sort(key=lambda name: (name != monitor, not name.startswith("val_")))
    figure = Figure((WIDTH, HEIGHT), DPI, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    epochs = [int(float(row.get("epoch", number))) + 1 for number, row in enumerate(rows)]
    left, right = figure.subplots(1, 2)
    for panel, title, shown, unit in ((left, "losses", losses, 1), (right, "scores, percent", scores, 100)):
        curves = {name: _read_curve(rows, name, unit) for name in shown[:MOST_CURVES]}
        _draw_panel(panel, title, epochs, curves)
    if monitor in names:
        _mark_best(right, epochs, _read_curve(rows, monitor, 100))
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _draw_panel(panel, title, epochs, curves):
    """Draws curves over the epochs; what is measured on held-out data is drawn in full, the rest dashed."""
    palette = class_palette(MOST_CURVES) / 255
    for (name, values), colour in zip(curves.items(), palette, strict=False):
        style = "-" if name.startswith("val_") else "--"
        panel.plot(epochs, values, style, color=colour, marker="o", markersize=3, label=name)
    panel.set(title=title, xlabel="epoch (a score)", xlim=(0.5, max(epochs) + 0.5))
    panel.xaxis.get_major_locator().set_params(integer=True)
    panel.grid(alpha=0.3)
    if curves:
        panel.legend(fontsize="small")


def _mark_best(panel, epochs, values):
    known = [value for value in values if math.isfinite(value)]
    if known:
        # The last of equal ones, as `TrainingRun` chooses.
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
