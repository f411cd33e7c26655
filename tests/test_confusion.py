import numpy as np
import pytest
from PIL import ImageDraw

from heads.drawing.confusion import CELL, SMALL_CELL, draw_confusion
from heads.drawing.pages import MARGIN


def test_cells_are_as_dark_as_their_share():
    confusion = np.array([[4, 0, 0], [1, 2, 1], [0, 0, 0]])
    page = draw_confusion(confusion, ["a", "b", "c"])
    assert page.dtype == np.uint8
    end = -MARGIN - 1  # the last line
    grid = page[end - 3 * CELL : end, end - 3 * CELL : end]
    # Beside the numbers, which are in the middle of the cells.
    shades = grid[4::CELL, 4::CELL].astype(int)
    assert shades[0, 0].tolist() == [20, 60, 130]
    assert (shades[0, 1:] == 255).all()
    assert (shades[2] == 255).all()
    np.testing.assert_allclose(shades[1, 0], 255 - 0.25 * (255 - np.array([20, 60, 130])), atol=0.51)
    np.testing.assert_allclose(shades[1, 1], 255 - 0.5 * (255 - np.array([20, 60, 130])), atol=0.51)
    assert (page[MARGIN : MARGIN + 22] < 100).any()  # the line that says what rows and columns are


def test_long_names_and_many_classes():
    names = ["an extraordinarily long name of a class that nobody can read", "b"]
    page = draw_confusion(np.eye(2, dtype=int), names)
    assert max(page.shape) < 2 * CELL + 260
    many = draw_confusion(np.eye(60, dtype=int), [str(label) for label in range(60)])
    assert many.shape[1] == 60 * SMALL_CELL + 1 + 2 * MARGIN


def test_cells_tell_counts_or_percent(monkeypatch):
    texts, write = [], ImageDraw.ImageDraw.text
    monkeypatch.setattr(
        ImageDraw.ImageDraw, "text", lambda pen, xy, text, *rest, **options: texts.append(text)
    )
    confusion = np.array([[999_990, 10], [1, 3]])
    draw_confusion(confusion, ["a", "b"])
    assert texts[:4] == ["999990", "10", "1", "3"]
    texts.clear()
    draw_confusion(confusion, ["a", "b"], in_percent=True)
    assert texts[:4] == [">99", "<1", "25", "75"]
    assert "percent" in texts[-1]
    monkeypatch.setattr(ImageDraw.ImageDraw, "text", write)


@pytest.mark.parametrize("shape", [(2, 3), (3, 3), (2,)])
def test_other_shapes_are_refused(shape):
    with pytest.raises(ValueError, match=rf"confusion must be \(2, 2\).*Received: shape \({shape[0]}"):
        draw_confusion(np.zeros(shape, int), ["a", "b"])
