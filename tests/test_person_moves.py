import numpy as np
import pytest

from heads.data import PersonMove, PoseAugmentation, move_person
from heads.data.coco_keypoints import COCO_UPPER_BODY
from heads.data.person_moves import choose_half, draw_cut_normal
from heads.person_crops import warp_points


def test_a_move_carries_pixels_and_keypoints():
    pixels = np.zeros((40, 50, 3), np.uint8)
    keypoints = np.array([[12, 9, 2], [30, 20, 1], [0, 0, 0]], np.float32)
    pixels[9, 12] = 255
    identity = np.array([[1.0, 0, 0], [0, 1, 0]])
    crop, points, weights = move_person(PersonMove(identity), pixels, keypoints, (40, 50), np.arange(3))
    np.testing.assert_array_equal(crop, pixels)
    np.testing.assert_array_equal(points, keypoints[:, :2])
    np.testing.assert_array_equal(weights, [1, 1, 0])
    mirror = np.array([[-1.0, 0, 49], [0, 1, 0]])
    order = np.array([0, 2, 1])
    crop, points, weights = move_person(PersonMove(mirror, True), pixels, keypoints, (40, 50), order)
    np.testing.assert_array_equal(crop, pixels[:, ::-1])
    np.testing.assert_array_equal(points, [[37, 9], [0, 0], [19, 20]])
    np.testing.assert_array_equal(weights, [1, 0, 1])


def test_without_chance_a_box_gives_the_crop_of_evaluation():
    augment = PoseAugmentation((64, 48), False, 0.0, 0.0, (1.0, 1.0), 0.0)
    box, keypoints = np.array([5, 6, 35, 28.0]), np.ones((3, 3))
    move = augment((40, 50), box, keypoints, (), np.random.default_rng(0))
    assert not move.is_mirrored
    # 1.25 times the box, widened to the ratio of 3 to 4.
    corners = warp_points([(20 - 18.75, 17 - 25), (20 + 18.75, 17 + 25)], move.warp)
    np.testing.assert_allclose(corners, [(0, 0), (48, 64)], atol=1e-9)


def test_what_is_drawn_has_the_ranges_of_the_recipe():
    augment = PoseAugmentation((64, 64), half_body_share=0.0)
    random = np.random.default_rng(0)
    box, keypoints = np.array([100, 100, 140, 140.0]), np.zeros((17, 3))
    moves = [augment((300, 400), box, keypoints, COCO_UPPER_BODY, random) for _ in range(2000)]
    mirrored = np.array([move.is_mirrored for move in moves])
    assert 0.45 < mirrored.mean() < 0.55
    turns = np.array([move.warp[:, :2] for move in moves])
    scales = np.sqrt(np.abs(np.linalg.det(turns)))
    sides = 64 / scales / 50  # 50 is 1.25 times the side of the box
    assert 0.5 <= sides.min() < 0.53
    assert 1.47 < sides.max() <= 1.5
    assert 0.98 < sides.mean() < 1.02
    angles = np.rad2deg(np.arctan2(turns[:, 0, 1], turns[:, 1, 1]))
    assert 0.37 < np.mean(np.abs(angles) < 1e-9) < 0.43
    assert 76 < np.abs(angles).max() <= 80
    # The middle of the crop, mirrored back.
    middles = np.array([np.linalg.solve(move.warp[:, :2], 32 - move.warp[:, 2]) for move in moves])
    shifts = np.abs(middles - 120) / 50
    shifted = (shifts > 1e-9).any(1)
    assert 0.26 < shifted.mean() < 0.34
    assert 0.14 < shifts.max() <= 0.16


def test_halves_of_people():
    random = np.random.default_rng(0)
    labelled = np.ones(17, bool)
    chosen = [choose_half(labelled, COCO_UPPER_BODY, 0.3, random) for _ in range(2000)]
    halves = [tuple(half) for half in chosen if half is not None]
    assert 0.26 < len(halves) / 2000 < 0.34
    assert set(halves) == {tuple(range(11)), tuple(range(11, 17))}
    assert 0.63 < halves.count(tuple(range(11))) / len(halves) < 0.77
    few_below = labelled.copy()
    few_below[[11, 12, 13, 14]] = False
    assert choose_half(few_below, COCO_UPPER_BODY, 1.0, random).tolist() == list(range(11))
    few = np.arange(17) < 8
    assert choose_half(few, COCO_UPPER_BODY, 1.0, random) is None
    assert choose_half(labelled, (), 1.0, random) is None
    # The window is 1.5 times as wide as the half, around the mean of its keypoints.
    keypoints = np.concatenate([random.uniform(50, 90, (17, 2)), np.full((17, 1), 2.0)], axis=1)
    augment = PoseAugmentation((64, 64), False, 1.0, 0.0, (1.0, 1.0), 0.0)
    few_below = np.where(few_below[:, None], keypoints, 0.0)
    move = augment((100, 100), np.array([0, 0, 100, 100.0]), few_below, COCO_UPPER_BODY, random)
    upper = keypoints[:11, :2]
    np.testing.assert_allclose(warp_points(upper.mean(0), move.warp), (32, 32))
    assert 64 / move.warp[0, 0] == pytest.approx(1.5 * np.ptp(upper, axis=0).max())


def test_numbers_of_the_normal_distribution_are_cut():
    drawn = draw_cut_normal(np.random.default_rng(0), 5000)
    assert len(drawn) == 5000
    assert np.abs(drawn).max() <= 1
    assert np.std(drawn) == pytest.approx(0.54, abs=0.02)  # of the truncated normal distribution


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image_size": (0, 3)}, "image_size must be"),
        ({"half_body_share": 1.5}, "half_body_share must be a number from 0 to 1"),
        ({"scale_range": (2, 1)}, "scale_range must be"),
        ({"rotation": 200}, "rotation must be 0 .. 180 degrees. Received: 200"),
        ({"padding": 0}, "padding must be"),
        ({"flip": 0.5}, "flip must be True or False"),
    ],
)
def test_augmentation_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        PoseAugmentation(**arguments)
