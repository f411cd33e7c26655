import numpy as np
import pytest

from heads.drawing import draw_detection_comparison, draw_detections
from heads.drawing.comparison import describe_outcomes, keep_best, match_objects
from heads.drawing.pages import draw_legend, enlarge_picture, label_picture
from heads.drawing.palette import class_palette

NAMES = ("cat", "dog", "bird")
GREY = np.full((300, 400, 3), 128, np.uint8)


def make_objects(boxes, labels=None, **others):
    labels = np.zeros(len(boxes), np.int32) if labels is None else np.array(labels, np.int32)
    return {"boxes": np.array(boxes, np.float32).reshape(-1, 4), "labels": labels, **others}


# Which detection belongs to which object


def test_the_best_scores_choose_first():
    truth = make_objects([(0, 0, 100, 100), (200, 0, 300, 100)])
    found = make_objects(
        [(0, 0, 90, 100), (0, 0, 100, 100), (150, 0, 249, 100)], scores=np.array([0.6, 0.9, 0.8])
    )
    matches = match_objects(truth, found)
    assert matches.found.tolist() == [-1, 0, -1]  # the second truth has an IoU below a half
    assert matches.truth.tolist() == [1, -1]
    no_scores = match_objects(truth, truth)
    assert no_scores.found.tolist() == [0, 1]


def test_classes_must_be_equal():
    truth = make_objects([(0, 0, 100, 100)], [1])
    assert match_objects(truth, make_objects([(0, 0, 100, 100)], [2])).found.tolist() == [-1]
    assert match_objects(truth, make_objects([(0, 0, 100, 100)], [1])).found.tolist() == [0]


def test_masks_decide_where_both_have_them():
    left, right = np.zeros((2, 1, 20, 20), bool)
    left[:, :, :8], right[:, :, 12:] = True, True
    box = [(0, 0, 20, 20)]
    assert match_objects(make_objects(box, masks=left), make_objects(box, masks=right)).found.tolist() == [-1]
    assert match_objects(make_objects(box, masks=left), make_objects(box, masks=left)).found.tolist() == [0]
    assert match_objects(make_objects(box), make_objects(box, masks=right)).found.tolist() == [0]


@pytest.mark.parametrize("masks", [False, True])
def test_no_object_matches_nothing(masks):
    more = {"masks": np.zeros((0, 20, 20), bool)} if masks else {}
    one = make_objects([(0, 0, 9, 9)], **({"masks": np.ones((1, 20, 20), bool)} if masks else {}))
    nothing = make_objects([], **more)
    assert match_objects(nothing, one).found.tolist() == [-1]
    assert match_objects(one, nothing).truth.tolist() == [-1]
    assert match_objects(nothing, nothing).found.size == 0


def test_the_best_are_kept_in_their_order():
    objects = make_objects([(k, 0, k + 9, 9) for k in range(5)], scores=np.array([0.5, 0.9, 0.1, 0.9, 0.6]))
    assert keep_best(objects, 3)["boxes"][:, 0].tolist() == [1, 3, 4]
    assert keep_best(objects, 5) is objects
    without = make_objects([(k, 0, k + 9, 9) for k in range(5)])
    assert keep_best(without, 3) is without


def test_captions():
    truth = make_objects([(0, 0, 100, 100), (200, 0, 300, 100)])
    found = make_objects([(0, 0, 100, 100), (0, 50, 60, 90)], scores=np.array([0.9, 0.8]))
    assert describe_outcomes(truth, truth, match_objects(truth, truth)) == "detections: 2 right"
    matches = match_objects(truth, found)
    text = "detections: 1 right, 1 false (dashed), 1 missed (dotted)"
    assert describe_outcomes(found, found, matches) == text
    many = make_objects(np.zeros((76, 4)))
    assert describe_outcomes(many, found, matches) == f"{text}; the best 2 of 76"


# The pictures


def draw_found(truth, found, names=("", "", "")):
    """Returns the third picture of a comparison, 400 x 300."""
    page = draw_detection_comparison([GREY], [truth], [found], names, 0.0)
    top = 6 + len(label_picture(GREY, "")) - 300
    return page[top : top + 300, 6 + 2 * 406 : 6 + 2 * 406 + 400]


def test_matched_boxes_are_solid_and_false_ones_dashed():
    colour = class_palette(3)[0]
    truth = make_objects([(100, 50, 200, 120)])
    right = draw_found(truth, truth)
    assert (right[50, 100:200] == colour).all()
    wrong = draw_found(make_objects([(300, 200, 380, 280)]), truth)
    share = (wrong[50, 100:200] == colour).all(axis=-1).mean()
    assert 0.4 < share < 0.75


def test_missed_objects_are_dotted_white_and_black():
    truth = make_objects([(100, 50, 200, 120)])
    picture = draw_found(truth, make_objects([], scores=np.zeros(0)))
    line = picture[50, 100:200]
    assert 0.3 < (line == 255).all(axis=-1).mean() < 0.7
    assert (picture[51, 100:200] == 0).all(axis=-1).any()
    assert (picture[60:110, 110:190] == 128).all()


def test_matched_objects_of_a_single_class_have_the_colour_of_their_truth():
    boxes = [(20, 20, 80, 80), (120, 20, 180, 80), (220, 20, 280, 80)]
    found = make_objects(boxes[::-1], scores=np.array([0.9, 0.8, 1.0]))
    page = draw_detection_comparison([GREY], [make_objects(boxes)], [found], [""], 0.0)
    top = 6 + len(label_picture(GREY, "")) - 300
    truth, drawn = (page[top : top + 300, 6 + k * 406 : 6 + k * 406 + 400] for k in (1, 2))
    assert (truth[20, 50] == drawn[20, 50]).all()  # of the score 1
    assert not (truth[20, 50] == truth[20, 150]).all()


def test_a_young_detector_does_not_bury_the_picture():
    random = np.random.default_rng(0)
    corners = random.uniform(0, (360, 260), (76, 2))
    found = make_objects(np.concatenate([corners, corners + 30], axis=1), scores=random.uniform(0.5, 1, 76))
    truth = make_objects([(300, 200, 380, 280)])
    best = np.sort(np.argsort(-found["scores"])[:20])
    fewer = {name: values[best] for name, values in found.items()}
    np.testing.assert_array_equal(draw_found(truth, found), draw_found(truth, fewer))


def test_comparison_shows_image_truth_and_detections_with_one_legend():
    random = np.random.default_rng(3)
    images = [
        random.integers(0, 256, (100, 200, 3), np.uint8),
        random.integers(0, 256, (400, 300, 3), np.uint8),
    ]
    truths = [make_objects([(20, 20, 80, 80)], [1]), make_objects([(20, 20, 80, 80), (0, 0, 1, 1)], [1, -1])]
    found = [make_objects([(25, 20, 80, 80)], [2], scores=np.array([0.8])), make_objects([])]
    picture = draw_detection_comparison(images, truths, found, NAMES)
    assert picture.dtype == np.uint8
    strip = label_picture(np.zeros((1, 400, 3), np.uint8), "")
    top = 6 + len(strip) - 1
    np.testing.assert_array_equal(picture[top : top + 200, 6:406], enlarge_picture(images[0], 2))
    for index, objects in enumerate((truths[0], found[0]), 1):
        expected = draw_detections(images[0], objects, NAMES, factor=2, legend=False)
        left = 6 + index * 406
        if index == 1:
            np.testing.assert_array_equal(picture[top : top + 200, left : left + 400], expected)
        caption = ("", "truth: 1", "detections: 0 right, 1 false (dashed), 1 missed (dotted)")[index]
        np.testing.assert_array_equal(
            picture[6:top, left : left + 400], label_picture(expected, caption)[: top - 6]
        )
    legend = draw_legend(("dog", "bird"), picture.shape[1], class_palette(3)[[1, 2]])
    np.testing.assert_array_equal(picture[-len(legend) :], legend)


def test_comparison_uses_the_threshold_and_refuses_what_does_not_fit():
    objects = make_objects([(20, 20, 80, 80)], scores=np.array([0.4]))
    truth = make_objects([(200, 20, 280, 80)])
    with_it, without = (draw_detection_comparison([GREY], [truth], [objects], NAMES, at) for at in (0.3, 0.5))
    assert with_it.shape != without.shape or (with_it != without).any()
    nothing = draw_detection_comparison([GREY], [truth], [make_objects([])], NAMES)
    np.testing.assert_array_equal(nothing, without)
    with pytest.raises(ValueError, match=r"Received: \(2, 1, 1\)"):
        draw_detection_comparison([GREY, GREY], [objects], [objects], NAMES)
    with pytest.raises(ValueError, match="at least one"):
        draw_detection_comparison([], [], [], NAMES)
