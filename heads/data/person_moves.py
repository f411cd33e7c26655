"""Crops of people, with places, sizes and rotations drawn at random as in mmpose's top-down recipes.

A crop is one affine map from the picture for pixels and keypoints, so that pixels are sampled only once.
"""

from typing import NamedTuple

import numpy as np

from heads.arguments import check_shares, read_flag, read_range, read_size
from heads.person_crops import BOX_PADDING, fit_box, make_warp, mirror_warp, warp_picture, warp_points

# As in mmpose: crops show half of a person only if enough keypoints are labelled.
FEWEST_KEYPOINTS, FEWEST_UPPER, FEWEST_LOWER = 9, 2, 3
HALF_BODY_PADDING = 1.5
UPPER_SHARE = 0.7
# The shares of the crops that are rotated, and that are shifted.
TURNED_SHARE, SHIFTED_SHARE = 0.6, 0.3


class PersonMove(NamedTuple):
    """How a person is cut out.

    Attributes:
        warp: float64 (2, 3), the map from the picture to the crop, see `heads.person_crops`.
        is_mirrored: Whether left and right change places.
    """

    warp: np.ndarray
    is_mirrored: bool = False


class PoseAugmentation:
    """A random place, size, rotation and mirror of one person; sometimes only one half of it.

    The defaults are those of mmpose 1.3's heatmap recipes for COCO, VAN's among them. Values in a range are
    drawn from the normal distribution, cut off at one standard deviation, so that the middle is more likely.

    Args:
        image_size: (height, width) of the crops.
        flip: Whether to mirror half of the crops left to right.
        half_body_share: Share of the people with at least 9 labelled keypoints whose crop shows only the
            upper or the lower half. Needs a source with an `upper_body`.
        shift: Largest shift of 3 of 10 crops, in units of their sides.
        scale_range: Lowest and highest factor of the crops' sides.
        rotation: Largest rotation of 6 of 10 crops, in degrees, to either side.
        padding: Factor of the boxes' sides.

    Call arguments:
        picture_size: (height, width) of the picture.
        box: (4,), xyxy in its pixels.
        keypoints: (keypoints, 3), x, y and visibility.
        upper_body: Numbers of the keypoints of the upper body; empty for no half bodies.
        random: A NumPy generator.

    Returns:
        A `PersonMove`.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(
        self,
        image_size: tuple[int, int] = (256, 192),
        flip: bool = True,
        half_body_share: float = 0.3,
        shift: float = 0.16,
        scale_range: tuple[float, float] = (0.5, 1.5),
        rotation: float = 80.0,
        padding: float = BOX_PADDING,
    ):
        self.image_size = read_size("image_size", image_size)
        self.flip = read_flag("flip", flip)
        check_shares(with_one=True, half_body_share=half_body_share, shift=shift)
        self.half_body_share, self.shift = half_body_share, shift
        self.scale_range = read_range("scale_range", scale_range)
        if not 0 <= rotation <= 180:
            raise ValueError(f"rotation must be 0 .. 180 degrees. Received: {rotation!r}")
        self.rotation = rotation
        self.padding = read_range("padding", (padding, padding))[0]

    def __call__(self, picture_size, box, keypoints, upper_body, random):
        center, size = fit_box(box, self.padding)
        is_mirrored = self.flip and random.random() < 0.5
        half = choose_half(keypoints[:, 2] > 0, upper_body, self.half_body_share, random)
        if half is not None:
            points = np.asarray(keypoints[half, :2], np.float64)
            center, size = points.mean(axis=0), np.ptp(points, axis=0) * HALF_BODY_PADDING
        shift_x, shift_y, scale, turn = draw_cut_normal(random, 4)
        if random.random() < SHIFTED_SHARE:
            center = center + self.shift * np.array([shift_x, shift_y]) * size
        lowest, highest = self.scale_range
        size = size * ((highest + lowest) / 2 + scale * (highest - lowest) / 2)
        rotation = self.rotation * turn if random.random() < TURNED_SHARE else 0.0
        if is_mirrored:
            width = picture_size[1]
            center = np.array([width - 1 - center[0], center[1]])
            warp = mirror_warp(make_warp(center, size, self.image_size, rotation), width)
        else:
            warp = make_warp(center, size, self.image_size, rotation)
        return PersonMove(warp, is_mirrored)


def choose_half(is_labelled, upper_body, share: float, random):
    """Returns the labelled keypoints of the half of a person that the crop shows, or None for all.

    Args:
        is_labelled: bool (keypoints,).
        upper_body: Numbers of the keypoints of the upper body; empty for no halves.
        share: Share of the people with enough labels who are halved.
        random: A NumPy generator.
    """
    if not len(upper_body) or is_labelled.sum() < FEWEST_KEYPOINTS or random.random() > share:
        return None
    is_upper = np.isin(np.arange(len(is_labelled)), upper_body)
    upper, lower = np.flatnonzero(is_labelled & is_upper), np.flatnonzero(is_labelled & ~is_upper)
    prefers_upper = random.random() < UPPER_SHARE
    if len(upper) < FEWEST_UPPER and len(lower) < FEWEST_LOWER:
        return None
    if len(upper) < FEWEST_UPPER:
        return lower
    if len(lower) < FEWEST_LOWER:
        return upper
    return upper if prefers_upper else lower


def draw_cut_normal(random, count: int) -> np.ndarray:
    """Returns `count` numbers of the normal distribution within -1 .. 1."""
    found = np.zeros(0)
    while len(found) < count:
        drawn = random.standard_normal(4 * count)
        found = np.concatenate([found, drawn[np.abs(drawn) <= 1]])
    return found[:count]


def move_person(move: PersonMove, pixels, keypoints, crop_size, counterparts):
    """Returns a person's crop, keypoints and their weights.

    Args:
        move: The move.
        pixels: uint8 (height, width, 3), the picture.
        keypoints: float32 (keypoints, 3), x, y and visibility, in its pixels.
        crop_size: (height, width).
        counterparts: For each keypoint the number of the one that a mirror swaps it with.

    Returns:
        The crop, uint8 (*crop_size, 3); the keypoints in it, float32 (keypoints, 2), 0 without a label; and
        the weights, float32 (keypoints,), 1 for a labelled keypoint, covered or not, else 0.
    """
    keypoints = keypoints[counterparts] if move.is_mirrored else keypoints
    weights = (keypoints[:, 2] > 0).astype(np.float32)
    points = warp_points(keypoints[:, :2], move.warp) * weights[:, None]
    return warp_picture(pixels, move.warp, crop_size), points.astype(np.float32), weights
