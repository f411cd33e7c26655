import numpy as np
import pytest

from heads.data import balance_classes, format_class_counts


def test_rare_and_missing_classes_are_called_so():
    counts = {"train": np.array([9000, 700, 299, 1]), "val": np.array([80, 10, 10, 0])}
    assert format_class_counts(counts, ("wall", "crack", "rust", "bolt"), "pixels").splitlines() == [
        "class  train: pixels  share  val: pixels  share",
        "wall           9,000  90.0%           80  80.0%",
        "crack            700   7.0%           10  10.0%",
        "rust             299   3.0%           10  10.0%  rare",
        "bolt               1   0.0%            0   0.0%  missing",
    ]


def test_one_split_and_no_objects():
    lines = format_class_counts({"all": np.array([95, 5])}, ("a", "b"), "objects").splitlines()
    assert lines[1:] == ["a                95  95.0%", "b                 5   5.0%"]
    lines = format_class_counts({"all": np.zeros(2, int)}, ("a", "b"), "objects").splitlines()
    assert all(line.endswith("0.0%  missing") for line in lines[1:])


@pytest.mark.parametrize("counts", [np.zeros(3), np.zeros((2, 2)), []])
def test_other_numbers_of_classes_are_refused(counts):
    with pytest.raises(ValueError, match=r"each of the 2 class names. Received: shape .* for 'val'"):
        format_class_counts({"train": [1, 2], "val": counts}, ("a", "b"), "pixels")


def test_balanced_weights_by_hand():
    # Shares of 0.64 and 0.36: 1 / 0.8 and 1 / 0.6, whose mean over the pixels is 0.8 + 0.6.
    np.testing.assert_allclose(balance_classes([64, 36]), [1 / 0.8 / 1.4, 1 / 0.6 / 1.4])
    assert balance_classes([5, 5]) == pytest.approx([1, 1])


def test_balanced_weights_do_not_explode():
    """The coating's cracks; one pixel in 10,000, one in a million, and none."""
    ratios = []
    for rare in (3_100, 100, 1, 0):
        counts = [1_000_000 - rare, rare]
        common, weight = balance_classes(counts)
        ratios.append(weight / common)
        assert common * counts[0] + weight * counts[1] == pytest.approx(1_000_000)
    np.testing.assert_allclose(ratios, [17.9, 50, 50, 1], rtol=0.01)


@pytest.mark.parametrize("counts", [[0, 0], [], [3, -1], [[1, 2], [3, 4]], [1, float("nan")], 5])
def test_counts_that_balance_nothing_are_refused(counts):
    with pytest.raises(ValueError, match="counts must be a number for each class, 0 or more, not all 0"):
        balance_classes(counts)
