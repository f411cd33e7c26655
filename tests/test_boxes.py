import inspect
import os
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from golden_reference import check, load

from heads.ops.boxes import (
    clip_boxes,
    compare_pairs,
    compute_coverage,
    compute_iou,
    decode_boxes,
    decode_distances,
    encode_boxes,
    encode_distances,
    rescale_boxes,
)

ROOT = pathlib.Path(__file__).resolve().parents[1]
DEVIATIONS = {"s1": (1.0, 1.0, 1.0, 1.0), "s01": (0.1, 0.1, 0.2, 0.2), "s05": (0.5, 0.5, 1.0, 1.0)}


def make_boxes(*shape, seed=0, size=100.0):
    random = np.random.default_rng(seed)
    centers, sides = random.uniform(0, size, (*shape, 2)), random.uniform(1, size / 2, (*shape, 2))
    return np.concatenate([centers - sides / 2, centers + sides / 2], -1).astype("float32")


def overlap_of(a, b):
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    return float(width) * float(height) if width > 0 and height > 0 else 0.0


def area_of(box):
    return float(box[2] - box[0]) * float(box[3] - box[1])


def iou_of(a, b):
    union = area_of(a) + area_of(b) - overlap_of(a, b)
    return overlap_of(a, b) / union if union > 0 else 0.0


def with_odd_ones(boxes):
    """Adds a copy of a box, one that touches it, one within it, one without area and a padding box."""
    x1, y1, x2, y2 = boxes[0]
    odd = [[x1, y1, x2, y2], [x2, y1, x2 + 5, y2], [x1 + 0.25, y1 + 0.25, x2 - 0.25, y2 - 0.25]]
    return np.concatenate([boxes, np.array([*odd, [x1, y1, x1, y2], [0, 0, 0, 0]], "float32")])


def test_iou_and_coverage_equal_loops():
    boxes1, boxes2 = with_odd_ones(make_boxes(7)), with_odd_ones(make_boxes(4))
    expected = [[iou_of(a, b) for b in boxes2] for a in boxes1]
    np.testing.assert_allclose(compute_iou(boxes1, boxes2), expected, atol=1e-6)
    expected = [[overlap_of(a, b) / max(area_of(a), 1e-6) for b in boxes2] for a in boxes1]
    np.testing.assert_allclose(compute_coverage(boxes1, boxes2), expected, atol=1e-6)


def test_a_box_covers_itself_exactly():
    # An epsilon in the union would be visible in small boxes.
    boxes = np.concatenate([make_boxes(20), make_boxes(20) / 1000])
    np.testing.assert_array_equal(np.diag(compute_iou(boxes, boxes)), 1.0)
    np.testing.assert_array_equal(np.diag(compute_coverage(boxes, boxes)), 1.0)


@pytest.mark.parametrize("function", [compute_iou, compute_coverage])
def test_overlaps_broadcast_leading_dimensions(function):
    boxes1, boxes2 = make_boxes(2, 3, 5), make_boxes(3, 4, seed=1)
    found = np.asarray(function(boxes1, boxes2))
    assert found.shape == (2, 3, 5, 4)
    for i in range(2):
        for j in range(3):
            np.testing.assert_array_equal(found[i, j], function(boxes1[i, j], boxes2[j]))


@pytest.mark.parametrize("function", [compute_iou, compute_coverage])
def test_overlaps_in_unknown_sizes_and_of_no_boxes(function):
    unknown = tf.TensorSpec((None, None, 4))
    graph = tf.function(function, input_signature=[unknown, unknown])
    boxes1, boxes2 = make_boxes(2, 5), make_boxes(2, 4, seed=1)
    np.testing.assert_array_equal(graph(boxes1, boxes2), function(boxes1, boxes2))
    assert graph(boxes1[:, :0], boxes2).shape == (2, 0, 4)
    assert graph(boxes1, boxes2[:, :0]).shape == (2, 5, 0)


def test_overlaps_refuse_other_shapes():
    with pytest.raises(ValueError, match=r"\(2, 5\)"):
        compute_iou(np.zeros((2, 5), "float32"), make_boxes(3))


def test_overlaps_equal_reference():
    reference = load("ops/box_losses.npz")
    np.testing.assert_array_equal(compute_iou(reference["a"], reference["b"]), reference["iou"])
    np.testing.assert_allclose(compute_coverage(reference["a"], reference["b"]), reference["iof"], rtol=3e-7)


def giou_of(a, b):
    hull = area_of([min(a[0], b[0]), min(a[1], b[1]), max(a[2], b[2]), max(a[3], b[3])])
    union = area_of(a) + area_of(b) - overlap_of(a, b)
    return iou_of(a, b) - (hull - union) / hull if hull > 0 else 0.0


def test_pairs_equal_loop():
    ours, theirs = with_odd_ones(make_boxes(8)), with_odd_ones(make_boxes(8, seed=1))
    iou, giou = compare_pairs(ours, theirs)
    np.testing.assert_allclose(iou, [iou_of(*pair) for pair in zip(ours, theirs, strict=True)], atol=1e-6)
    expected = [giou_of(*pair) for pair in zip(ours[:-1], theirs[:-1], strict=True)]
    np.testing.assert_allclose(giou[:-1], expected, atol=1e-5)
    assert float(giou[-1]) == 0.0  # two boxes of nothing at one place
    table = compare_pairs(ours[:, None], theirs[None])[0]
    np.testing.assert_allclose(table, compute_iou(ours, theirs), atol=1e-6)


def test_pairs_equal_reference():
    reference = load("ops/box_losses.npz")
    iou, giou = compare_pairs(reference["a"][:, None], reference["b"][None])
    np.testing.assert_allclose(iou, reference["iou"], atol=1e-7)
    np.testing.assert_allclose(giou, reference["giou"], atol=1e-6)


def test_pairs_without_areas_have_finite_gradients():
    boxes = tf.constant([[0.0, 0, 0, 0], [3.0, 3, 3, 8], [1.0, 1, 4, 4]])
    with tf.GradientTape() as tape:
        tape.watch(boxes)
        total = tf.reduce_sum(compare_pairs(boxes, tf.zeros((3, 4)))[1])
    assert np.isfinite(tape.gradient(total, boxes)).all()


def test_distances_go_there_and_back():
    boxes = make_boxes(2, 5)
    centers = np.array([50.0, 20.0], "float32")
    distances = encode_distances(boxes, centers)
    x1, y1, x2, y2 = boxes[1, 3]
    np.testing.assert_allclose(distances[1, 3], [50 - x1, 20 - y1, x2 - 50, y2 - 20], rtol=1e-5)
    np.testing.assert_allclose(decode_distances(distances, centers), boxes, atol=1e-4)


def test_distances_equal_reference():
    reference = load("ops/box_coder.npz")
    boxes = decode_distances(reference["dist"], reference["points"])
    np.testing.assert_allclose(boxes, reference["point_decode"], atol=1e-5)
    distances = encode_distances(reference["point_encode_boxes"], reference["points"])
    np.testing.assert_allclose(np.clip(distances, 0, 15.9), reference["point_encode_maxdis16"], atol=1e-5)


def encode_by_loop(box, anchor, deviations):
    sides, anchor_sides = box[2:] - box[:2], anchor[2:] - anchor[:2]
    shift = ((box[:2] + box[2:]) / 2 - (anchor[:2] + anchor[2:]) / 2) / anchor_sides
    return np.concatenate([shift, np.log(sides / anchor_sides)]) / deviations


@pytest.mark.parametrize("deviations", DEVIATIONS.values(), ids=DEVIATIONS)
def test_encode_equals_loop_and_decode_inverts_it(deviations):
    boxes, anchors = make_boxes(2, 9), make_boxes(9, seed=1)
    deltas = encode_boxes(boxes, anchors, deviations)
    expected = [
        [encode_by_loop(b.astype("float64"), a, deviations) for b, a in zip(row, anchors, strict=True)]
        for row in boxes
    ]
    np.testing.assert_allclose(deltas, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(decode_boxes(deltas, anchors, deviations), boxes, atol=1e-3)


@pytest.mark.parametrize("deviations", [(1.0, 1.0, 1.0, 1.0), (0.1, 0.1, 0.2, 0.2)])
def test_decode_clamps_sides_both_ways_and_nothing_else(deviations):
    anchor = np.array([10, 20, 42, 36], "float32")
    shift = np.array([30.0, -20.0]) / deviations[:2]
    grown = np.asarray(decode_boxes(np.array([*shift, 900, 900], "float32"), anchor, deviations))
    shrunk = np.asarray(decode_boxes(np.array([*shift, -900, -900], "float32"), anchor, deviations))
    for box, ratio in ((grown, 62.5), (shrunk, 1 / 62.5)):
        np.testing.assert_allclose(box[2:] - box[:2], [32 * ratio, 16 * ratio], rtol=1e-3)
        np.testing.assert_allclose((box[2:] + box[:2]) / 2, [26 + 30 * 32, 28 - 20 * 16], rtol=1e-5)


@pytest.mark.parametrize("name", DEVIATIONS)
def test_coder_equals_reference(name):
    reference = load("ops/box_coder.npz")
    deltas = encode_boxes(reference["gt"], reference["priors"], DEVIATIONS[name])
    check(reference[f"encode_{name}"], deltas, 1e-6)
    boxes = decode_boxes(reference["deltas"], reference["priors"], DEVIATIONS[name])
    check(reference[f"decode_noclip_{name}"], boxes, 1e-6)
    clipped = clip_boxes(boxes[None], np.array([[256, 320]], "int32"))[0]
    check(reference[f"decode_{name}"], clipped, 1e-6)


def test_padding_boxes_have_finite_deltas():
    zeros = np.zeros((3, 4), "float32")
    assert np.isfinite(encode_boxes(zeros, make_boxes(3))).all()
    assert np.isfinite(encode_boxes(make_boxes(3), zeros)).all()


def test_half_precision_deltas_give_float32_boxes():
    deltas = keras.ops.cast(np.random.default_rng(0).normal(size=(5, 4)), "bfloat16")
    anchors = make_boxes(5) + np.float32(1000.3)
    boxes = decode_boxes(deltas, anchors)
    assert keras.backend.standardize_dtype(boxes.dtype) == "float32"
    np.testing.assert_array_equal(boxes, decode_boxes(keras.ops.cast(deltas, "float32"), anchors))


def test_clip_equals_loop():
    boxes, sizes = make_boxes(2, 30), np.array([[60, 90], [81, 47]], "int32")
    expected = boxes.copy()
    for image, (height, width) in enumerate(sizes):
        for box in expected[image]:
            box[:] = [min(max(v, 0), limit) for v, limit in zip(box, (width, height) * 2, strict=True)]
    assert (expected != boxes).any(axis=(1, 2)).all()
    np.testing.assert_array_equal(clip_boxes(boxes, sizes), expected)


def test_rescale_equals_loop():
    boxes = make_boxes(2, 6)
    sizes, originals = np.array([[60, 90], [80, 40]], "int32"), np.array([[121, 90], [20, 333]], "int32")
    expected = boxes.astype("float64")
    for image in range(2):
        (height, width), (old_height, old_width) = sizes[image], originals[image]
        expected[image, :, 0::2] *= old_width / width
        expected[image, :, 1::2] *= old_height / height
    np.testing.assert_allclose(rescale_boxes(boxes, sizes, originals), expected, rtol=1e-6)


def test_coder_clip_and_rescale_in_unknown_sizes():
    @tf.function(input_signature=[tf.TensorSpec((None, None, 4)), tf.TensorSpec((None, 2), tf.int32)])
    def transform(boxes, sizes):
        boxes = decode_boxes(encode_boxes(boxes, boxes + 1.0), boxes + 1.0)
        return rescale_boxes(clip_boxes(boxes, sizes), sizes, 2 * sizes)

    boxes, sizes = make_boxes(2, 6), np.array([[60, 90], [80, 40]], "int32")
    np.testing.assert_allclose(transform(boxes, sizes), 2 * clip_boxes(boxes, sizes), atol=1e-3)
    assert transform(boxes[:, :0], sizes).shape == (2, 0, 4)


def run_all_nouns():
    """Runs boxes, anchors, matching, suppression and losses in one function, which JAX compiles."""
    import keras
    import numpy as np

    from heads.ops import anchors, boxes, losses, matching, sampling, suppression

    sizes, strides = [(7, 9), (4, 5)], (8, 16)
    random = np.random.default_rng(0)
    starts = random.uniform(-10, 60, (2, 12, 2))
    truth = np.concatenate([starts, starts + random.uniform(2, 40, (2, 12, 2))], -1).astype("float32")
    labels = random.integers(-2, 3, (2, 12)).astype("int32")
    image_sizes = np.array([[56, 72], [31, 40]], "int32")
    # Without ties, for which PyTorch promises no order.
    scores = random.permutation(24).reshape(2, 12).astype("float32") / 24
    priorities = np.stack([random.permutation(249) for _ in range(2)]).astype("float32")
    deltas = random.normal(size=(2, 249, 4)).astype("float32")

    def compute(truth, labels, image_sizes, scores, priorities, deltas):
        levels = keras.ops.concatenate(anchors.make_anchors(sizes, strides, (4.0,), (0.5, 1.0, 2.0)))
        inside = anchors.mark_inside(levels, image_sizes)
        matches = matching.match_boxes(levels, truth, labels, 0.5, 0.4, 0.0, True, inside)
        samples, kinds = sampling.sample_matches(matches, 32, 0.5, priorities)
        decoded = boxes.clip_boxes(boxes.decode_boxes(deltas, levels, (0.1, 0.1, 0.2, 0.2)), image_sizes)
        picked = suppression.suppress_boxes(truth, scores, labels, 0.3, 5)
        kept = suppression.suppress_sorted_boxes(truth, labels >= 0, 0.3)
        loss = losses.sigmoid_focal_loss(deltas > 0, deltas) + losses.smooth_l1_loss(0.0, deltas, 0.5)
        encoded = boxes.encode_boxes(decoded[:, :12], truth)
        rescaled = boxes.rescale_boxes(decoded, image_sizes, image_sizes + 9)
        overlaps = [boxes.compute_iou(levels, truth), boxes.compute_coverage(truth, levels)]
        return [levels, matches, samples, kinds, picked, kept, loss, encoded, rescaled, *overlaps]

    inputs = (truth, labels, image_sizes, scores, priorities, deltas)
    if keras.backend.backend() == "jax":
        import jax

        compute = jax.jit(compute)
    return [keras.ops.convert_to_numpy(part) for part in compute(*inputs)]


@pytest.mark.parametrize("backend", [pytest.param("jax", marks=pytest.mark.slow), "torch"])
def test_all_nouns_on_other_backends(backend, tmp_path):
    script = f"{inspect.getsource(run_all_nouns)}\nimport numpy as np\nnp.savez('parts', *run_all_nouns())\n"
    environment = {**os.environ, "KERAS_BACKEND": backend, "PYTHONPATH": str(ROOT)}
    run = subprocess.run(
        [sys.executable, "-c", script], env=environment, cwd=tmp_path, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    found = np.load(tmp_path / "parts.npz")
    for index, expected in enumerate(run_all_nouns()):
        part = found[f"arr_{index}"]
        assert part.dtype == expected.dtype
        np.testing.assert_allclose(part, expected, rtol=1e-4, atol=1e-4, err_msg=str(index))
