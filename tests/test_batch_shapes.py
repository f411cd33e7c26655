import numpy as np
import pytest

from heads.pictures import MEAN_PIXEL
from heads.training.batch_shapes import choose_shape, measure_batch, pad_batch, round_side


def make_batch(height=40, width=70, rows=3, **targets):
    inputs = {
        "images": np.ones((2, height, width, 3), "float32"),
        "image_sizes": np.full((2, 2), 33, "int32"),
    }
    labels = np.arange(2 * rows, dtype="int32").reshape(2, rows)
    return inputs, {"labels": labels, **targets}


@pytest.mark.parametrize(
    ("side", "rounded"),
    [(1, 32), (32, 32), (33, 64), (256, 256), (257, 320), (512, 512), (513, 640), (800, 896), (1333, 1408)],
)
def test_sides(side, rounded):
    assert round_side(side) == rounded


@pytest.mark.parametrize(("rows", "rounded"), [(1, 8), (8, 8), (9, 16), (16, 16), (93, 128)])
def test_rows(rows, rounded):
    assert choose_shape(100, 200, rows) == (128, 224, rounded)
    assert choose_shape(100, 200, rows, one_size=True) == (100, 200, rounded)


def test_few_shapes_for_pictures_of_coco():
    random = np.random.default_rng(0)
    sides = [(800, int(width)) for width in random.integers(800, 1334, 1000)]
    shapes = {choose_shape(*side, rows) for side in sides for rows in range(1, 101)}
    assert len(shapes) <= 5 * 5  # widths 896 .. 1408, rows 8 .. 128


def test_objects_are_padded():
    boxes, masks = np.ones((2, 3, 4), "float32"), np.ones((2, 3, 40, 70), "uint8")
    batch = make_batch(boxes=boxes, masks=masks)
    assert measure_batch(batch) == (40, 70, 3)
    inputs, targets = pad_batch(batch, (64, 96, 8))
    assert inputs["images"].shape == (2, 64, 96, 3)
    np.testing.assert_array_equal(inputs["images"][:, :40, :70], 1)
    for part in (inputs["images"][:, 40:], inputs["images"][:, :, 70:]):
        np.testing.assert_array_equal(part, np.broadcast_to(np.float32(MEAN_PIXEL), part.shape))
    np.testing.assert_array_equal(inputs["image_sizes"], 33)
    np.testing.assert_array_equal(targets["labels"][0], [0, 1, 2, -1, -1, -1, -1, -1])
    assert targets["boxes"].shape == (2, 8, 4)
    assert targets["boxes"].sum() == boxes.sum()
    assert targets["masks"].shape == (2, 8, 64, 96)
    assert targets["masks"].sum() == masks.sum()
    assert {name: array.dtype.name for name, array in targets.items()} == {
        **{"labels": "int32", "boxes": "float32", "masks": "uint8"}
    }


def test_segments_are_padded():
    _inputs, targets = pad_batch(make_batch(segments=np.zeros((2, 40, 70), "int32")), (40, 96, 8))
    assert targets["segments"].shape == (2, 40, 96)
    assert (targets["segments"][:, :, 70:] == -1).all()
    assert (targets["segments"][:, :, :70] == 0).all()


def test_what_fits_is_not_copied():
    batch = make_batch(64, 96, 8)
    inputs, targets = pad_batch(batch, (64, 96, 8))
    assert inputs["images"] is batch[0]["images"]
    assert targets["labels"] is batch[1]["labels"]


@pytest.mark.parametrize(
    "batch",
    [
        (np.zeros((2, 9, 9, 3)), np.zeros((2, 9, 9))),
        ({"images": np.zeros((2, 9, 9, 3))}, {"keypoints": np.zeros((2, 3, 2))}),
    ],
)
def test_other_batches_are_left_alone(batch):
    assert measure_batch(batch) == (0, 0, 0)
    assert pad_batch(batch, (64, 64, 8)) is batch
