import numpy as np
import pytest
import tensorflow as tf
from pycocotools import mask as coco_mask

from heads.data.detection_moves import Move, count_runs, draw_masks, move_boxes, move_image, tighten_boxes


def geometry_of(original_size, resized_size, offset=(0, 0), size=None, flip=False):
    size = resized_size if size is None else size
    arrays = (np.array(pair, np.int32) for pair in (original_size, resized_size, offset, size))
    return Move(*arrays, np.array(flip))


def tight_box(mask):
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]


GEOMETRIES = [
    geometry_of((20, 30), (20, 30)),
    geometry_of((20, 30), (20, 30), flip=True),
    geometry_of((20, 30), (40, 60), (11, 17), (25, 40)),
    geometry_of((20, 30), (47, 71), (20, 5), (27, 31), flip=True),
    geometry_of((20, 30), (13, 20), (2, 3), (11, 15), flip=True),
    geometry_of((20, 30), (7, 10)),
]


@pytest.mark.parametrize("move", GEOMETRIES)
def test_run_lengths_are_sampled_at_pixel_centres(move):
    mask = np.random.default_rng(0).random((20, 30)) < 0.4
    expected = np.zeros((64, 64), np.uint8)
    height, width = move.size
    for y in range(height):
        for x in range(width):
            moved_x = width - 1 - x if move.flip else x
            row = (y + move.offset[0] + 0.5) * 20 / move.resized_size[0]
            column = (moved_x + move.offset[1] + 0.5) * 30 / move.resized_size[1]
            expected[y, x] = mask[int(row), int(column)]
    drawn = draw_masks([None, count_runs(mask)], move, (64, 64))
    assert drawn.dtype == np.uint8
    assert not drawn[0].any()
    np.testing.assert_array_equal(drawn[1], expected)


@pytest.mark.parametrize("move", GEOMETRIES)
def test_polygons_are_moved_then_filled(move):
    random = np.random.default_rng(1)
    # Tenths of a pixel are awkward: times five, pycocotools rounds them half up. Some are outside.
    parts = [np.round(random.uniform(-6, 36, (5, 2)), 1), np.round(random.uniform(2, 18, (4, 2)), 1)]
    resized = move.resized_size.tolist()
    scale = move.resized_size[::-1] / (30, 20)
    moved = [(part * scale).ravel().tolist() for part in parts]
    whole = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(moved, *resized)))
    (top, left), (height, width) = move.offset, move.size
    expected = whole[top : top + height, left : left + width]
    drawn = draw_masks([[part.ravel() for part in parts]], move, tuple(move.size))[0]
    drawn = drawn[:, ::-1] if move.flip else drawn
    if any(move.offset):  # outside of the window, pycocotools rounds in the other direction
        assert np.sum(drawn & expected) >= 0.95 * np.sum(drawn | expected) > 0
    else:
        np.testing.assert_array_equal(drawn, expected)


def test_count_runs_equals_pycocotools():
    random = np.random.default_rng(0)
    for size, share in (((5, 7), 0.5), ((1, 1), 1.0), ((3, 2), 0.0), ((4, 4), 1.0), ((9, 1), 0.7)):
        mask = random.random(size) < share
        runs = count_runs(mask)
        assert runs["counts"].sum() == mask.size
        plain = {"size": runs["size"], "counts": runs["counts"].tolist()}
        np.testing.assert_array_equal(coco_mask.decode(coco_mask.frPyObjects(plain, *size)), mask)


@pytest.mark.parametrize("move", GEOMETRIES)
def test_image_and_boxes_move_together(move):
    image = np.zeros((20, 30, 3), np.uint8)
    image[6:15, 9:24] = 200
    moved = move_image(image, move).numpy()
    assert moved.shape == (*move.size, 3)
    assert moved.dtype == np.float32
    boxes, is_cut = move_boxes(tf.constant([[9.0, 6, 24, 15], [0, 0, 1, 1]]), move)
    # The edge has half of the brightness, so the bright pixels are those whose centre is inside.
    np.testing.assert_allclose(boxes[0], tight_box(moved[..., 0] > 100), atol=0.51)
    expected = np.array([9, 6, 24, 15]) * np.tile(move.resized_size[::-1] / (30, 20), 2)
    expected -= np.tile(move.offset[::-1], 2)
    height, width = move.size
    assert bool(is_cut[0]) == (expected.min() < 0 or expected[2] > width or expected[3] > height)
    expected = np.clip(expected, 0, [width, height, width, height])
    if move.flip:
        expected[[0, 2]] = width - expected[[2, 0]]
    np.testing.assert_allclose(boxes[0], expected, atol=1e-5)


def test_tighten_boxes():
    masks = np.zeros((3, 6, 8), np.uint8)
    masks[0, 2, 3:5] = masks[2, 1:3, 0] = 1
    boxes = np.array([[1, 1, 7, 5], [1, 1, 3, 3], [0, 0, 4, 4]], np.float32)
    tightened = tighten_boxes(boxes, masks, np.array([True, True, False]))
    assert tightened.tolist() == [[3, 2, 5, 3], [0, 0, 0, 0], [0, 0, 4, 4]]
    assert boxes[0].tolist() == [1, 1, 7, 5]
