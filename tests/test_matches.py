import numpy as np
import pytest

from heads.coco.matches import encode_masks, match_greedily, measure_overlaps_of_shapes


def test_the_best_score_chooses_first():
    overlaps = np.array([[0.6, 0.9], [0.7, 0.8]])
    for scores, truth, found in (([0.9, 0.5], [1, 0], [1, 0]), ([0.5, 0.9], [1, 0], [1, 0])):
        ours = match_greedily(overlaps, scores)
        assert [each.tolist() for each in ours] == [truth, found]
    # The remaining one overlaps too little.
    ours = match_greedily(np.array([[0.6, 0.9], [0.4, 0.8]]), [0.5, 0.9])
    assert [each.tolist() for each in ours] == [[1, -1], [-1, 0]]
    ours = match_greedily(overlaps, [0.9, 0.5], least_overlap=0.95)
    assert [each.tolist() for each in ours] == [[-1, -1], [-1, -1]]


@pytest.mark.parametrize("shape", [(0, 0), (3, 0), (0, 2)])
def test_nothing_to_match(shape):
    truth, found = match_greedily(np.zeros(shape), np.zeros(shape[1]))
    assert (truth.tolist(), found.tolist()) == ([-1] * shape[0], [-1] * shape[1])
    boxes = [np.ones((count, 4)) for count in shape]
    assert measure_overlaps_of_shapes(*boxes).shape == shape


def test_overlaps_of_boxes_masks_and_crowds():
    truth, found = (
        np.array([[0.0, 0, 4, 4], [10, 10, 2, 2]]),
        np.array([[0.0, 0, 2, 4], [2, 0, 4, 4], [10, 10, 2, 2]]),
    )
    np.testing.assert_allclose(measure_overlaps_of_shapes(truth, found), [[0.5, 1 / 3, 0], [0, 0, 1]])
    # In a crowd, the share of the found object counts.
    crowd = measure_overlaps_of_shapes(truth, found, [True, False])
    np.testing.assert_allclose(crowd, [[1, 0.5, 0], [0, 0, 1]])
    masks = [np.zeros((len(boxes), 14, 13), bool) for boxes in (truth, found)]
    for boxes, each in zip((truth, found), masks, strict=True):
        for (x, y, width, height), mask in zip(boxes.astype(int), each, strict=True):
            mask[y : y + height, x : x + width] = True
    overlaps = measure_overlaps_of_shapes(*map(encode_masks, masks))
    np.testing.assert_allclose(overlaps, [[0.5, 1 / 3, 0], [0, 0, 1]])
