import numpy as np
import pytest

from heads.ops.segments import (
    frame_masks,
    label_segments,
    merge_segments,
    number_segments,
    select_objects,
)


def softmax(logits):
    values = np.exp(logits - logits.max(-1, keepdims=True))
    return values / values.sum(-1, keepdims=True)


def make_case(seed, num_queries=12, num_classes=4, size=(9, 14)):
    generator = np.random.default_rng(seed)
    class_logits = generator.normal(0, 4, (2, num_queries, num_classes + 1)).astype("float32")
    masks = generator.normal(0, 1, (2, num_queries, *size)).astype("float32")
    # Blobs rather than noise, so that masks win most of their pixels.
    for image, query in np.ndindex(2, num_queries):
        top, left = generator.integers(0, size[0] - 3), generator.integers(0, size[1] - 5)
        masks[image, query] -= 3
        masks[image, query, top : top + 4, left : left + 6] += generator.uniform(4, 8)
    inside = np.ones((2, *size), bool)
    inside[1, 7:], inside[1, :, 11:] = False, False
    return class_logits, masks, inside


def merge_slowly(class_logits, masks, num_things, score_threshold=0.8, overlap_threshold=0.8):
    """Returns (class, instance) of each pixel of one image, (-1, 0) for none, one query after another."""
    probabilities = softmax(class_logits.astype("float64"))
    labels, scores = probabilities.argmax(-1), probabilities.max(-1)
    kept = [
        query
        for query in range(len(labels))
        if labels[query] < class_logits.shape[-1] - 1 and scores[query] > score_threshold
    ]
    result = np.tile(np.array([-1, 0]), (*masks.shape[1:], 1))
    if not kept:
        return result
    probable = 1 / (1 + np.exp(-masks.astype("float64")))
    owners = np.array([scores[query] * probable[query] for query in kept]).argmax(0)
    instance = 0
    for place, query in enumerate(kept):
        own, whole = owners == place, probable[query] >= 0.5
        if not own.any() or not whole.any() or own.sum() / whole.sum() < overlap_threshold:
            continue
        instance += 1
        result[own & whole] = labels[query], instance if labels[query] < num_things else 0
    return result


@pytest.mark.parametrize("seed", range(6))
def test_segments_equal_loop(seed):
    class_logits, masks, inside = make_case(seed)
    options = {"score_threshold": 0.5, "overlap_threshold": 0.4}
    found = {
        name: np.asarray(values)
        for name, values in merge_segments(class_logits, masks, inside, 2, **options).items()
    }
    for image, (height, width) in enumerate(((9, 14), (7, 11))):
        expected = merge_slowly(class_logits[image], masks[image, :, :height, :width], 2, **options)
        ours = found["segments"][image]
        assert (ours[~inside[image]] == -1).all()
        ours = ours[:height, :width]
        labels = np.append(found["labels"][image], -1)
        np.testing.assert_array_equal(labels[ours], expected[..., 0])
        # The same partition: one number for each pair of a class and an instance.
        pairs = {(row, *pair) for row, pair in zip(ours.ravel(), expected.reshape(-1, 2), strict=True)}
        assert len(pairs) == len({row for row, *_ in pairs}) == len({tuple(pair) for _, *pair in pairs})
        assert set(np.unique(ours)) - {-1} <= set(np.flatnonzero(found["labels"][image] >= 0))
    assert (found["labels"] >= 0).any()
    assert (found["scores"][found["labels"] < 0] == 0).all()


def test_stuff_of_one_class_is_one_segment_and_things_are_not():
    class_logits = np.full((1, 4, 3), -9.0, "float32")
    class_logits[0, [0, 1], 0] = class_logits[0, [2, 3], 1] = 9.0
    masks = np.full((1, 4, 2, 4), -9.0, "float32")
    for query in range(4):
        masks[0, query, :, query] = 9.0
    found = merge_segments(class_logits, masks, np.ones((1, 2, 4), bool), num_things=1)
    np.testing.assert_array_equal(found["segments"][0, 0], [0, 1, 2, 2])
    np.testing.assert_array_equal(found["labels"][0], [0, 0, 1, -1])


def test_nothing_is_found():
    class_logits = np.zeros((1, 3, 4), "float32")
    masks = np.ones((1, 3, 4, 4), "float32")
    found = merge_segments(class_logits, masks, np.ones((1, 4, 4), bool), 2)
    assert (np.asarray(found["segments"]) == -1).all()
    assert (np.asarray(found["labels"]) == -1).all()
    assert number_segments({name: np.asarray(v)[0] for name, v in found.items()})["labels"].shape == (0,)


def test_numbers_start_at_0():
    found = {
        "segments": np.array([[3, -1], [1, 3]]),
        "labels": np.array([-1, 7, -1, 8]),
        "scores": np.array([0, 0.5, 0, 0.6]),
    }
    numbered = number_segments(found)
    np.testing.assert_array_equal(numbered["segments"], [[1, -1], [0, 1]])
    np.testing.assert_array_equal(numbered["labels"], [7, 8])
    np.testing.assert_array_equal(numbered["scores"], [0.5, 0.6])


@pytest.mark.parametrize("max_detections", [5, 100])
def test_objects_equal_loop(max_detections):
    class_logits, masks, inside = make_case(3)
    found = {
        name: np.asarray(values)
        for name, values in select_objects(class_logits, masks, inside, 2, max_detections).items()
    }
    for image, (height, width) in enumerate(((9, 14), (7, 11))):
        probabilities = softmax(class_logits[image].astype("float64"))[:, :-1]
        order = np.argsort(-probabilities.ravel(), kind="stable")[:max_detections]
        expected = []
        for query, label in zip(*np.divmod(order, 4), strict=True):
            mask = masks[image, query, :height, :width].astype("float64")
            is_on = mask > 0
            if label < 2 and is_on.any():
                score = probabilities[query, label] * (1 / (1 + np.exp(-mask)))[is_on].mean()
                rows, columns = np.nonzero(is_on)
                box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
                expected.append((score, label, box, is_on))
        expected.sort(key=lambda each: -each[0])
        count = len(expected)
        assert (found["labels"][image] >= 0).sum() == count
        np.testing.assert_allclose(found["scores"][image, :count], [each[0] for each in expected], rtol=1e-4)
        np.testing.assert_array_equal(found["labels"][image, :count], [each[1] for each in expected])
        np.testing.assert_array_equal(found["boxes"][image, :count], [each[2] for each in expected])
        for ours, (*_, mask) in zip(found["masks"][image], expected, strict=False):
            np.testing.assert_array_equal(ours[:height, :width], mask)
            assert ours.sum() == mask.sum()
        assert not found["scores"][image, count:].any()
        assert not found["masks"][image, count:].any()


def test_frames():
    masks = np.zeros((2, 2, 5, 6), bool)
    masks[0, 0, 1:3, 2:6] = masks[0, 1, 4, 0] = masks[1, 0] = True
    expected = [[[2, 1, 6, 3], [0, 4, 1, 5]], [[0, 0, 6, 5], [0, 0, 0, 0]]]
    np.testing.assert_array_equal(frame_masks(masks), expected)


def test_labels_equal_loop():
    class_logits, masks, _ = make_case(0)
    found = np.asarray(label_segments(class_logits, masks))
    for image, row, column in np.ndindex(found.shape):
        totals = softmax(class_logits[image])[:, :-1].T @ (1 / (1 + np.exp(-masks[image, :, row, column])))
        assert found[image, row, column] == totals.argmax()
