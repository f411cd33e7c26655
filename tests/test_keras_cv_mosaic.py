"""The recipe of docs/data.md that applies KerasCV's mosaic to our batches, as it is printed."""

import pathlib

import numpy as np
import pytest

pytest.importorskip("keras_cv")

import tensorflow as tf

PAGE = pathlib.Path(__file__).resolve().parents[1] / "docs/data.md"
SIZE = (64, 96)
RECTANGLES = ((8, 8, 38, 28), (40, 30, 80, 60), (10, 20, 80, 32), (50, 6, 70, 56))  # one per picture
LABELS = (0, 1, -2, 3)  # a crowd stays a crowd


@pytest.fixture(scope="module")
def mix():
    """Returns the function of the page."""
    block = next(text for text in PAGE.read_text("utf-8").split("```python\n") if "def mix(" in text)
    names = {}
    exec(compile(block.partition("\n\ndata = ")[0], "docs/data.md", "exec"), names)
    return names["mix"]


def make_batch():
    """Returns four pictures with a white rectangle each, and a row of padding."""
    images = np.zeros((4, *SIZE, 3), "float32")
    boxes, labels = np.zeros((4, 2, 4), "float32"), np.full((4, 2), -1, "int32")
    for row, (x1, y1, x2, y2) in enumerate(RECTANGLES):
        images[row, y1:y2, x1:x2] = 255
        boxes[row, 0], labels[row, 0] = RECTANGLES[row], LABELS[row]
    inputs = {"images": images, "image_sizes": np.tile(np.int32([50, 70]), (4, 1))}
    return tf.data.Dataset.from_tensors((inputs, {"boxes": boxes, "labels": labels}))


def test_boxes_stay_on_their_objects(mix):
    seen = set()
    for inputs, targets in make_batch().repeat(20).map(mix).as_numpy_iterator():
        assert inputs["image_sizes"].tolist() == [list(SIZE)] * 4
        assert inputs["images"].shape == (4, *SIZE, 3)
        assert targets["boxes"].shape == (*targets["labels"].shape, 4)
        for image, boxes, labels in zip(inputs["images"], targets["boxes"], targets["labels"], strict=True):
            # What is in a box is white, and nothing else, to a pixel.
            inside = outside = np.zeros(SIZE, bool)
            for x1, y1, x2, y2 in boxes[labels != -1]:
                x, y = np.arange(SIZE[1]) + 0.5, np.arange(SIZE[0])[:, None] + 0.5
                inside = inside | ((x > x1 + 1.5) & (x < x2 - 1.5) & (y > y1 + 1.5) & (y < y2 - 1.5))
                outside = outside | ((x > x1 - 2.5) & (x < x2 + 2.5) & (y > y1 - 2.5) & (y < y2 + 2.5))
            assert (image[inside] > 250).all()
            border = np.pad(np.zeros((SIZE[0] - 8, SIZE[1] - 8), bool), 4, constant_values=True)
            assert (image[~outside & ~border] < 5).all()  # slivers at the border have no boxes
            sides = boxes[labels != -1][:, 2:] - boxes[labels != -1][:, :2]
            assert (sides >= 2).all()
            assert not boxes[labels == -1].any()
            seen |= set(labels.tolist())
    assert seen == {-1, *LABELS}
