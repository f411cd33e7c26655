import numpy as np
import pytest

import heads.drawing.curves as curves
from heads.drawing import class_palette, draw_curves, draw_precision_recall

ROWS = [
    {"epoch": 0, "loss": 2.0, "val_loss": 2.5, "mean_iou": 0.1, "val_mean_iou": 0.05, "learning_rate": 1.0},
    {"epoch": 1, "loss": 1.0, "val_loss": 1.5, "mean_iou": 0.3, "val_mean_iou": 0.25},
    {"epoch": 2, "loss": 0.5, "val_loss": 1.6, "mean_iou": 0.5, "val_mean_iou": float("nan")},
]


def count_pixels(picture, colour):
    return (np.abs(picture.astype(int) - colour).max(axis=-1) < 8).sum()


def test_losses_are_on_the_left_and_scores_on_the_right():
    picture = draw_curves(ROWS, "val_mean_iou")
    assert picture.dtype == np.uint8
    assert picture.shape == (420, 1200, 3)
    only_losses = draw_curves([{"loss": 2.0}, {"loss": 1.0}])
    colour = class_palette(1)[0].astype(int)
    assert count_pixels(only_losses[:, :600], colour) > 50
    assert count_pixels(only_losses[:, 600:], colour) == 0
    assert count_pixels(picture[:, 600:], colour) > 50


def test_rows_of_a_file_are_texts():
    texts = [{name: str(value) for name, value in row.items()} for row in ROWS]
    np.testing.assert_array_equal(draw_curves(texts), draw_curves(ROWS))
    broken = [{**ROWS[0], "val_loss": ""}, {**ROWS[1], "val_loss": None}]
    assert draw_curves(broken, "val_missing").std() > 5


def test_the_monitored_score_is_marked():
    marked, plain = draw_curves(ROWS, "val_mean_iou"), draw_curves(ROWS)
    assert (marked[:, 600:] != plain[:, 600:]).any()
    np.testing.assert_array_equal(marked[:, :590], plain[:, :590])
    never = [{"loss": 1.0, "val_score": float("nan")}]
    assert draw_curves(never, "val_score").shape == plain.shape


def test_a_loss_that_is_the_only_one_is_drawn_once(monkeypatch):
    panels = []
    monkeypatch.setattr(curves, "_render", lambda figure: panels.append(figure.axes[0]))
    alone = [{"loss": 2.0, "box_loss": 2.0, "val_loss": 3.0, "val_box_loss": 3.0, "val_iou": 0.5}]
    draw_curves(alone)
    draw_curves([{**alone[0], "class_loss": 1.0, "loss": 3.0, "val_class_loss": 0.0}])
    draw_curves([{"box_loss": 2.0}])
    names = [[line.get_label() for line in panel.get_lines()] for panel in panels]
    assert names[0] == ["loss", "val_loss"]
    assert names[1] == ["loss", "box_loss", "val_loss", "class_loss", "val_class_loss"]
    assert names[2] == ["box_loss"]


@pytest.mark.parametrize("num_epochs", [1, 2, 30])
def test_epochs_are_whole_numbers(monkeypatch, num_epochs):
    figures = []
    monkeypatch.setattr(curves, "_render", figures.append)
    draw_curves([{"epoch": epoch, "loss": 1.0} for epoch in range(num_epochs)])
    panel = figures[0].axes[0]
    low, high = panel.get_xlim()
    ticks = [tick for tick in panel.get_xticks() if low <= tick <= high]
    assert ticks
    assert all(float(tick).is_integer() for tick in ticks)


def test_no_epoch_is_refused():
    with pytest.raises(ValueError, match="at least one epoch"):
        draw_curves([])


# Precision over recall.


def make_precision(*levels):
    return {f"class {number}": np.full((10, 101), level) for number, level in enumerate(levels)}


def test_precision_of_each_class_and_of_all():
    picture = draw_precision_recall(make_precision(0.9, 0.3, np.nan))
    assert picture.shape == (420, 1200, 3)
    first, second, third = class_palette(3).astype(int)
    left, right = picture[:, :600], picture[:, 600:]
    for colour, seen in ((first, True), (second, True), (third, False)):
        assert (count_pixels(left, colour) > 200) == seen
        assert count_pixels(right, colour) == 0
    rows = [
        np.median(np.argwhere(np.abs(left.astype(int) - colour).max(-1) < 8)[:, 0])
        for colour in (first, second)
    ]
    assert rows[0] < rows[1] - 100  # the higher precision is further up
    # The mean of all is drawn on both sides.
    assert not np.array_equal(right, draw_precision_recall(make_precision(0.9))[:, 600:])


def test_of_many_classes_the_worst_are_drawn():
    levels = np.linspace(0.9, 0.1, 20)
    picture = draw_precision_recall(make_precision(*levels))[:, :600]
    palette = class_palette(20).astype(int)
    drawn = [number for number in range(20) if count_pixels(picture, palette[number]) > 200]
    assert drawn == list(range(13, 20))


def test_no_class_with_objects():
    assert draw_precision_recall(make_precision(np.nan)).std() > 0


@pytest.mark.parametrize("precision", [{}, {"a": np.ones((9, 101))}, {"a": np.ones(101)}])
def test_other_precision_is_refused(precision):
    with pytest.raises(ValueError, match=r"must have \(10, recalls\) of at least one class"):
        draw_precision_recall(precision)
