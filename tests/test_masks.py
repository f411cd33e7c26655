import os
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from golden_reference import load

from heads.ops.masks import crop_masks, paste_masks

ROOT = pathlib.Path(__file__).resolve().parents[1]


def make_masks(batch=2, num_masks=3, height=23, width=31):
    """Returns blobs: ellipses with random positions and sizes."""
    random = np.random.default_rng(0)
    y, x = np.mgrid[:height, :width]
    masks = np.zeros((batch, num_masks, height, width), "uint8")
    for mask in masks.reshape(-1, height, width):
        centre, radii = random.uniform(0.3, 0.7, 2), random.uniform(0.2, 0.5, 2)
        mask[:] = ((y / height - centre[0]) / radii[0]) ** 2 + ((x / width - centre[1]) / radii[1]) ** 2 < 1
    return masks


# On masks of 23 x 31 pixels.
BOXES = np.array(
    [
        [[3.2, 4.1, 17.9, 20.3], [0.0, 0.0, 31.0, 23.0], [5.0, 6.0, 10.0, 11.0], [-6.0, -4.0, 40.0, 30.0]],
        [[2.5, 9.7, 30.2, 12.3], [8.0, 8.0, 8.0, 8.0], [12.0, 3.0, 26.0, 17.0], [9.1, 9.2, 9.6, 9.9]],
    ],
    "float32",
)
INDICES = np.array([[0, 1, 2, 1], [2, 0, 1, 0]], "int32")


def pixel_by_loop(mask, y, x):
    """Returns a bilinear sample of a mask, by the rules of RoIAlign."""
    height, width = mask.shape
    if y < -1 or y > height or x < -1 or x > width:
        return 0.0
    y, x = min(max(y, 0.0), height - 1.0), min(max(x, 0.0), width - 1.0)
    value = 0.0
    for row in range(int(y), min(int(y) + 2, height)):
        for column in range(int(x), min(int(x) + 2, width)):
            value += mask[row, column] * (1 - abs(y - row)) * (1 - abs(x - column))
    return value


def crop_by_loop(mask, box, size):
    """Returns the means before the threshold."""
    x1, y1, x2, y2 = box.astype("float64") - 0.5
    height, width = (y2 - y1) / size, (x2 - x1) / size
    num_rows, num_columns = int(np.ceil(height)), int(np.ceil(width))
    crop = np.zeros((size, size))
    for i in range(size):
        for j in range(size):
            values = [
                pixel_by_loop(
                    mask,
                    y1 + (i + (row + 0.5) / num_rows) * height,
                    x1 + (j + (column + 0.5) / num_columns) * width,
                )
                for row in range(num_rows)
                for column in range(num_columns)
            ]
            crop[i, j] = np.mean(values) if values else 0.0
    return crop


def crops_by_loop(masks, boxes, indices, size):
    crops = np.zeros((*boxes.shape[:2], size, size))
    for i in range(boxes.shape[0]):
        for j in range(boxes.shape[1]):
            crops[i, j] = crop_by_loop(masks[i, indices[i, j]], boxes[i, j], size)
    return crops


@pytest.mark.parametrize("size", [1, 5, 8])
@pytest.mark.parametrize("dtype", ["uint8", "bool", "float32"])
def test_crops_equal_loop(size, dtype):
    masks = make_masks()
    expected = crops_by_loop(masks, BOXES, INDICES, size)
    crops = np.asarray(crop_masks(masks.astype(dtype), BOXES, INDICES, size))
    assert (crops.dtype, crops.shape) == ("float32", (2, 4, size, size))
    # Pixels where rounding decides are not compared.
    decided = np.abs(expected - 0.5) > 1e-5
    assert decided.mean() > 0.9
    np.testing.assert_array_equal(crops[decided], (expected >= 0.5)[decided])
    if size > 1:
        assert 0.2 < crops.mean() < 0.8


@pytest.mark.parametrize("jit_compile", [False, True])
def test_crops_in_a_graph_of_unknown_sizes(jit_compile):
    signature = [
        tf.TensorSpec((None, None, None, None), tf.uint8),
        tf.TensorSpec((None, None, 4)),
        tf.TensorSpec((None, None), tf.int32),
    ]

    @tf.function(input_signature=signature, jit_compile=jit_compile)
    def run(masks, boxes, indices):
        crops = crop_masks(masks, boxes, indices, 7)
        assert crops.shape[2:] == (7, 7)
        return crops

    np.testing.assert_array_equal(
        run(make_masks(), BOXES, INDICES), crop_masks(make_masks(), BOXES, INDICES, 7)
    )
    assert run(make_masks(), BOXES[:, :0], INDICES[:, :0]).shape == (2, 0, 7, 7)


def test_an_exact_half_belongs_to_the_object():
    # Columns 0 .. 2 of 6 are the object: one bin has 18 of 36 samples on it. 1 / 6 is not exact in floats.
    masks = np.zeros((1, 1, 6, 6), "uint8")
    masks[..., :3] = 1
    box = np.array([[[0, 0, 6, 6]]], "float32")
    for jit_compile in (False, True):
        crop = tf.function(crop_masks, jit_compile=jit_compile)
        assert crop(masks, box, [[0]], size=1) == 1
        assert crop(masks, box + np.float32([0.01, 0, 0.01, 0]), [[0]], size=1) == 0


def test_crops_of_whole_pixels_are_the_pixels():
    masks = make_masks()
    box = np.array([[[4, 3, 18, 17]]], "float32")
    np.testing.assert_array_equal(crop_masks(masks[:1], box, [[1]], 14)[0, 0], masks[0, 1, 3:17, 4:18])


def test_boxes_without_mask_or_area_give_zeros():
    masks = np.ones((1, 2, 9, 9), "uint8")
    boxes = np.array([[[1, 1, 8, 8]] * 3 + [[3, 3, 3, 8], [6, 6, 2, 2], [20, 20, 25, 25]]], "float32")
    indices = np.array([[0, -1, -2, 1, 1, 1]], "int32")
    crops = crop_masks(masks, boxes, indices, 4)
    np.testing.assert_array_equal(np.mean(crops, (2, 3)), [[1, 0, 0, 0, 0, 0]])


def test_no_boxes_to_crop():
    assert crop_masks(make_masks(), BOXES[:, :0], INDICES[:, :0], 28).shape == (2, 0, 28, 28)


def test_crop_size_must_be_positive():
    with pytest.raises(ValueError, match=r"size must be at least 1\. Received: 0"):
        crop_masks(make_masks(), BOXES, INDICES, 0)


def paste_by_loop(mask, box, image_size):
    """Returns the scores in the picture."""
    x1, y1, x2, y2 = box.astype("float64")
    scores = np.zeros(image_size)
    padded = np.pad(mask.astype("float64"), 1)
    for i in range(image_size[0]):
        for j in range(image_size[1]):
            # In cells of the grid padded with zeros, whose first centre is at 0.
            y = np.clip((i + 0.5 - y1) / (y2 - y1) * mask.shape[0] + 0.5, 0, mask.shape[0] + 1)
            x = np.clip((j + 0.5 - x1) / (x2 - x1) * mask.shape[1] + 0.5, 0, mask.shape[1] + 1)
            top, left = min(int(y), mask.shape[0]), min(int(x), mask.shape[1])
            for row in (top, top + 1):
                for column in (left, left + 1):
                    scores[i, j] += padded[row, column] * (1 - abs(y - row)) * (1 - abs(x - column))
    return scores


PASTE_BOXES = np.array(
    [
        [3.2, 4.1, 17.9, 13.3],
        [-6.5, -3.0, 40.0, 30.0],
        [10.0, 6.0, 10.4, 6.3],
        [20.0, -30.0, 60.0, 9.0],
        [5.0, 5.0, 5.5, 19.0],
        [0.0, 0.0, 26.0, 20.0],
    ],
    "float32",
)


@pytest.mark.parametrize("threshold", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("grid", [(28, 28), (3, 5), (1, 1)])
def test_pasted_equals_loop(grid, threshold):
    masks = np.random.default_rng(0).random((len(PASTE_BOXES), *grid)).astype("float32") ** 0.5
    masks[-1] = 1
    pasted = paste_masks(masks, PASTE_BOXES, (20, 26), threshold)
    assert (pasted.dtype, pasted.shape) == (bool, (len(masks), 20, 26))
    for mask, box, found in zip(masks, PASTE_BOXES, pasted, strict=True):
        scores = paste_by_loop(mask, box, (20, 26))
        decided = np.abs(scores - threshold) > 1e-5
        np.testing.assert_array_equal(found[decided], (scores >= threshold)[decided])
    assert pasted.any()


def test_pasting_where_nothing_is():
    masks = np.ones((5, 28, 28), "float32")
    boxes = np.array(
        [[50, 50, 60, 60], [-30, 2, -20, 8], [4, 4, 4, 9], [9, 9, 3, 3], [np.nan, 0, 4, 4]], "float32"
    )
    assert not paste_masks(masks, boxes, (20, 26)).any()
    assert paste_masks(masks[:0], boxes[:0], (20, 26)).shape == (0, 20, 26)


def test_what_was_cropped_is_pasted_back():
    masks = make_masks(1, 3, 60, 80)
    y, x = (np.nonzero(masks[0].any(axis)) for axis in (2, 1))
    boxes = np.array(
        [
            [
                x[1][x[0] == i].min(),
                y[1][y[0] == i].min(),
                x[1][x[0] == i].max() + 1,
                y[1][y[0] == i].max() + 1,
            ]
            for i in range(3)
        ],
        "float32",
    )
    crops = crop_masks(masks, boxes[None], np.arange(3, dtype="int32")[None], 28)[0]
    pasted = paste_masks(crops, boxes, (60, 80))
    for mask, found in zip(masks[0].astype(bool), pasted, strict=True):
        assert (mask & found).sum() / (mask | found).sum() > 0.95


def test_pasting_refuses_what_does_not_fit():
    masks, boxes = np.ones((2, 28, 28), "float32"), np.ones((2, 4), "float32")
    with pytest.raises(ValueError, match=r"one picture.*shapes \(1, 2, 28, 28\) and \(1, 2, 4\)"):
        paste_masks(masks[None], boxes[None], (9, 9))
    with pytest.raises(ValueError, match=r"shapes \(2, 28, 28\) and \(1, 4\)"):
        paste_masks(masks, boxes[:1], (9, 9))
    with pytest.raises(ValueError, match=r"image_size must be \(height, width\).*Received: \(0, 9\)"):
        paste_masks(masks, boxes, (0, 9))
    with pytest.raises(ValueError, match=r"threshold must be above 0.*Received: 0"):
        paste_masks(masks, boxes, (9, 9), threshold=0)


def test_crops_equal_mmdetection():
    reference = load("ops/resample.npz")
    crops = crop_masks(reference["bitmap"][None], reference["crop_boxes"][None], reference["crop_inds"][None])
    np.testing.assert_array_equal(crops[0], reference["crop_and_resize_28"])


def test_pasted_equals_mmdetection():
    reference = load("ops/resample.npz")
    scores = reference["pasted"]
    for threshold in (0.1, 0.3, 0.5, 0.7, 0.9):
        pasted = paste_masks(reference["masks"][:, 0], reference["boxes"], scores.shape[1:], threshold)
        decided = np.abs(scores - threshold) > 1e-6
        assert decided.mean() > 0.999
        np.testing.assert_array_equal(pasted[decided], (scores >= threshold)[decided])


BACKEND_SCRIPT = """
import sys
import keras
import numpy as np
from heads.ops.masks import crop_masks, paste_masks

arrays = dict(np.load(sys.argv[1]))
crop = lambda masks, boxes, indices: crop_masks(masks, boxes, indices, 7)
if keras.backend.backend() == "jax":
    import jax
    crop = jax.jit(crop)
crops = crop(arrays["masks"], arrays["boxes"], arrays["indices"])
empty = crop(arrays["masks"], arrays["boxes"][:, :0], arrays["indices"][:, :0])
pasted = paste_masks(crops[0], keras.ops.convert_to_tensor(arrays["boxes"][0]), (23, 31))
np.savez(sys.argv[2], crops=keras.ops.convert_to_numpy(crops), empty=empty.shape, pasted=pasted)
"""


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_other_backends(tmp_path, backend):
    pytest.importorskip(backend)
    masks = make_masks()
    np.savez(tmp_path / "arrays.npz", masks=masks, boxes=BOXES, indices=INDICES)
    run = subprocess.run(
        [sys.executable, "-c", BACKEND_SCRIPT, tmp_path / "arrays.npz", tmp_path / "results.npz"],
        cwd=ROOT,
        env={**os.environ, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "2"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr[-4000:]
    results = np.load(tmp_path / "results.npz")
    crops = keras.ops.convert_to_numpy(crop_masks(masks, BOXES, INDICES, 7))
    np.testing.assert_array_equal(results["crops"], crops)
    assert tuple(results["empty"]) == (2, 0, 7, 7)
    np.testing.assert_array_equal(results["pasted"], paste_masks(crops[0], BOXES[0], (23, 31)))
