import numpy as np
import pytest

from heads.data import format_class_counts


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
