import numpy as np
import pytest

from heads.metrics import count_mistakes, format_mistakes

BOX = (10, 10, 20, 20)


def make_truth(objects, num_pictures=2):
    """Objects are (picture, class, box) or (picture, class, box, is_crowd)."""
    return {
        "images": [{"id": key, "height": 100, "width": 100} for key in range(1, num_pictures + 1)],
        "categories": [{"id": 7, "name": "cat"}, {"id": 3, "name": "dog"}],
        "annotations": [
            {
                "id": number,
                "image_id": picture,
                "category_id": category,
                "bbox": list(box),
                "iscrowd": int(any(crowd)),
            }
            for number, (picture, category, box, *crowd) in enumerate(objects, 1)
        ],
    }


def make_results(*rows):
    return [
        {"image_id": picture, "category_id": category, "bbox": list(box), "score": score}
        for picture, category, box, score in rows
    ]


def count(objects, results, **options):
    mistakes = count_mistakes(make_truth(objects), make_results(*results), **options)
    assert mistakes["class_names"] == ["dog", "cat", "background"]  # by their ids
    return (
        mistakes["confusion"].tolist(),
        mistakes["per_picture_missed"].tolist(),
        mistakes["per_picture_false"].tolist(),
    )


def test_right_missed_and_false():
    objects = [(1, 3, BOX), (1, 7, (50, 50, 20, 20)), (2, 7, BOX)]
    results = [(1, 3, (11, 10, 20, 20), 0.9), (2, 7, (70, 70, 9, 9), 0.8), (2, 7, (1, 70, 9, 9), 0.2)]
    confusion, missed, false = count(objects, results)
    assert confusion == [[1, 0, 0], [0, 0, 2], [0, 1, 0]]
    assert (missed, false) == ([1, 1], [0, 1])
    assert count(objects, results, score_threshold=0.1)[2] == [0, 2]


def test_classes_taken_for_others():
    confusion, missed, false = count([(1, 3, BOX)], [(1, 7, BOX, 0.9)])
    assert confusion == [[0, 1, 0], [0, 0, 0], [0, 0, 0]]
    assert (missed, false) == ([1, 0], [1, 0])


def test_results_of_the_right_class_come_first():
    """A better score of another class does not take the object away."""
    confusion, *_ = count([(1, 3, BOX)], [(1, 7, BOX, 0.9), (1, 3, (12, 10, 20, 20), 0.5)])
    assert confusion == [[1, 0, 0], [0, 0, 0], [0, 1, 0]]


def test_doubles_are_false():
    confusion, *_ = count([(1, 3, BOX)], [(1, 3, BOX, 0.5), (1, 3, (11, 10, 20, 20), 0.9)])
    assert confusion == [[1, 0, 0], [0, 0, 0], [1, 0, 0]]


def test_crowds_are_no_objects_and_hide_what_is_in_them():
    crowd = (1, 3, (0, 0, 50, 50), True)
    inside, across = (1, 3, (5, 5, 5, 5), 0.9), (1, 3, (45, 45, 20, 20), 0.9)
    confusion, missed, false = count([crowd], [inside, across])
    assert confusion == [[0, 0, 0], [0, 0, 0], [1, 0, 0]]
    assert (missed, false) == ([0, 0], [1, 0])
    # An object inside of the crowd is still found.
    assert count([crowd, (1, 3, (5, 5, 5, 5))], [inside])[0][0] == [1, 0, 0]


def test_half_an_overlap_is_enough():
    # (20 - shift) / (20 + shift) of the area: 0.5 at a shift of 20 / 3.
    assert count([(1, 3, BOX)], [(1, 3, (16, 10, 20, 20), 0.9)])[0][0] == [1, 0, 0]
    assert count([(1, 3, BOX)], [(1, 3, (17, 10, 20, 20), 0.9)])[0][0] == [0, 0, 1]
    assert count([(1, 3, BOX)], [(1, 3, (17, 10, 20, 20), 0.9)], least_overlap=0.4)[0][0] == [1, 0, 0]


def test_pictures_in_the_order_of_their_ids():
    objects = [(1, 3, BOX), (2, 3, BOX), (2, 3, (50, 50, 9, 9))]
    assert count(objects, [], image_ids=np.array([2, 1]))[1] == [2, 1]
    assert count(objects, [(1, 3, BOX, 0.9)], image_ids=[2])[0] == [[0, 0, 2], [0, 0, 0], [0, 0, 0]]


def test_nothing_at_all():
    confusion, missed, false = count([], [])
    assert (confusion, missed, false) == ([[0] * 3] * 3, [0, 0], [0, 0])


@pytest.mark.parametrize(
    ("options", "results", "message"),
    [
        ({"image_ids": [9]}, [], "image_ids must be those of the truth.*9"),
        ({}, [(9, 3, BOX, 0.9)], "image_id of the results must be those of the truth.*9"),
        ({}, [(1, 4, BOX, 0.9)], "category_id of the results must be those of the truth.*4"),
    ],
)
def test_other_ids_are_refused(options, results, message):
    with pytest.raises(ValueError, match=message):
        count([(1, 3, BOX)], results, **options)


def test_table():
    objects = [(1, 3, BOX), (1, 7, (50, 50, 20, 20)), (2, 7, BOX)]
    results = [(1, 3, BOX, 0.9), (1, 3, (50, 50, 20, 20), 0.9), (2, 7, (70, 70, 9, 9), 0.8)]
    mistakes = count_mistakes(make_truth(objects), make_results(*results))
    assert format_mistakes(mistakes, 0.3).splitlines() == [
        "boxes with a score of 0.30 or more, right at an IoU of 0.5",
        "class  objects  right  other class  missed  false",
        "dog          1      1            0       0      0",
        "cat          2      0            1       1      1",
    ]
