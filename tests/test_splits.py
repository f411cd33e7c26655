import numpy as np
import pytest

from heads.data import choose_held_out
from heads.data.splits import choose_split, list_split_folders


def choose(is_on, share=0.2, seed=0, keys=None):
    is_on = np.array(is_on, bool)
    return choose_held_out(is_on, range(len(is_on)) if keys is None else keys, share, seed, "data")


def draw_classes(num_pictures=500, seed=0):
    return np.random.default_rng(seed).random((num_pictures, 6)) < [0.9, 0.5, 0.2, 0.05, 0.02, 0.01]


@pytest.mark.parametrize("seed", range(3))
def test_each_class_is_held_out_in_its_share(seed):
    is_on = draw_classes()
    held_out = choose(is_on, seed=seed)
    assert abs(held_out.sum() - 100) <= 3
    for column in is_on.T:
        assert abs(column[held_out].sum() - round(0.2 * column.sum())) <= 2
        assert 0 < column[held_out].sum() < column.sum()


def test_the_choice_follows_from_names_and_seed_alone():
    is_on = draw_classes(60)
    keys = [f"picture {number}.jpg" for number in range(60)]
    held_out = choose(is_on, keys=keys)
    order = np.random.default_rng(1).permutation(60)
    moved = choose(is_on[order], keys=[keys[place] for place in order])
    np.testing.assert_array_equal(moved, held_out[order])
    assert (choose(is_on, keys=keys, seed=1) != held_out).any()


def test_the_choice_stays_what_it_is():
    # A new split, to resume or to score, must hold out the same pictures as before.
    held_out = choose(np.ones((20, 1)), keys=[f"{number}.jpg" for number in range(20)])
    assert np.flatnonzero(held_out).tolist() == [4, 5, 13, 15]


def test_pictures_without_classes_are_shared_out_too():
    is_on = np.zeros((40, 2), bool)
    is_on[:20, 0] = True
    held_out = choose(is_on, 0.25)
    assert (held_out[:20].sum(), held_out[20:].sum()) == (5, 5)


def test_few_pictures():
    assert choose([[1], [1]]).sum() == 1
    assert choose([[1], [1], [1]], 0.9).sum() == 2
    # Each picture has a class of its own: none of these should be held out, but some must be.
    is_on = np.column_stack([np.ones(10), np.eye(10)])
    assert choose(is_on).sum() == 2
    # The picture with a class that no other picture has is trained on.
    for seed in range(5):
        assert not choose([[1, 0], [1, 0], [1, 1]], seed=seed)[2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"share": 1}, "share must be below 1, or nothing is left to train on. Received: 1"),
        ({"share": 0}, "share must be above 0 and at most 1. Received: 0"),
        ({"seed": -1}, "seed must be a whole number"),
        ({"is_on": [[1, 0], [0, 1]]}, "data must have two pictures of some class"),
        ({"is_on": np.zeros((0, 2))}, "data must have two pictures of some class"),
    ],
)
def test_what_cannot_be_split_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        choose(**{"is_on": np.ones((4, 1)), **options})


def test_folders_of_splits(tmp_path):
    for name in ("batch1", "extra", ".train"):
        (tmp_path / name).mkdir()
    assert list_split_folders(tmp_path) == {}
    (tmp_path / "valid").mkdir()
    assert list(list_split_folders(tmp_path)) == ["batch1", "extra", "valid"]


@pytest.mark.parametrize(
    ("split", "splits", "chosen"),
    [
        (None, [None], None),
        (None, ["batch1"], "batch1"),
        (None, ["test", "training"], "training"),
        ("val", ["train", "valid"], "valid"),
        ("val", ["validation", "val"], "val"),
        ("mine", ["mine", "train"], "mine"),
    ],
)
def test_splits_are_chosen(split, splits, chosen):
    assert choose_split("data", split, splits, "those of") == chosen


@pytest.mark.parametrize(
    ("split", "splits", "message"),
    [
        ("train", [None], r"data has no splits: .*`split\(0\.2\)`.* Received: split='train'"),
        (
            "val",
            ["train"],
            r"split must be one of \['train'\], those of data; --val-share .* Received: 'val'",
        ),
        (None, ["a", "b"], r"split must be one of \['a', 'b'\], those of data\. Received: None"),
    ],
)
def test_splits_that_are_missing(split, splits, message):
    with pytest.raises(ValueError, match=message):
        choose_split("data", split, splits, "those of")
