"""The keypoints of COCO's annotations, and their names and skeletons in its categories, checked."""

import numpy as np

from heads.coco.entries import is_number, show

VISIBILITIES = (0, 1, 2)  # no label, covered, visible
# Rounded positions may be this far outside of a picture, in pixels.
LARGEST_EXCESS = 1.0


def read_points(values, num_keypoints: int, image_size) -> np.ndarray:
    """The keypoints of an annotation.

    Args:
        values: [x, y, v, x, y, v, ...]; v is 0 without a label, 1 covered, 2 visible. None or an empty list
            stands for no label.
        num_keypoints: Their number.
        image_size: (height, width) of the picture, or None where it is not known.

    Returns:
        float32 (num_keypoints, 3); x and y are 0 where v is 0.

    Raises:
        ValueError: If there are not 3 numbers for each, v is not 0, 1 or 2, or a labelled keypoint lies
            outside of the picture.
    """
    if values is None or (isinstance(values, list | tuple) and not values):
        return np.zeros((num_keypoints, 3), np.float32)
    is_list = isinstance(values, list | tuple | np.ndarray) and len(values) == 3 * num_keypoints
    if not is_list or not all(map(is_number, values)):
        count = f", of {len(values)}" if isinstance(values, list | tuple) else ""
        raise ValueError(
            f"the keypoints must be [x, y, v, ...], {3 * num_keypoints} numbers for {num_keypoints} of them. "
            f"Received: {show(values)}{count}"
        )
    points = np.array(values, np.float64).reshape(num_keypoints, 3)
    faulty = ~np.isin(points[:, 2], VISIBILITIES)
    if faulty.any():
        raise ValueError(
            "the visibility of a keypoint must be 0 (no label), 1 (covered) or 2. "
            f"Received: {points[faulty][0].tolist()}"
        )
    labelled = points[:, 2] > 0
    points[~labelled] = 0.0
    limits = (np.inf, np.inf) if image_size is None else (image_size[1], image_size[0])
    inside = (points[:, :2] >= -LARGEST_EXCESS) & (points[:, :2] <= np.add(limits, LARGEST_EXCESS))
    outside = ~(inside & np.isfinite(points[:, :2])).all(axis=1)
    if outside.any():
        place = int(np.flatnonzero(outside)[0])
        raise ValueError(
            f"keypoint {place}, {points[place].tolist()}, lies outside of the picture, (height, width) "
            f"{image_size}: it must have v = 0 there"
        )
    return points.astype(np.float32)


def find_keypoint_category(categories: dict, source):
    """The id of the one category that has keypoints, their names, and the skeleton with numbers from 0.

    Args:
        categories: COCO's categories by their ids.
        source: Where they are from, for the messages.

    Raises:
        ValueError: If none has keypoints, or several have, or names or skeleton are malformed.
    """
    found = {key: category for key, category in categories.items() if category.get("keypoints")}
    if len(found) != 1:
        raise ValueError(
            f'{source} must hold one category with "keypoints", their names. Received: {len(found)} of '
            f"{len(categories)} categories"
        )
    ((key, category),) = found.items()
    names = category["keypoints"]
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        raise ValueError(f'{source}: "keypoints" of a category must be names. Received: {show(names)}')
    skeleton = category.get("skeleton") or []
    try:
        pairs = [(int(first) - 1, int(second) - 1) for first, second in skeleton]
    except (TypeError, ValueError):
        pairs = [(-1, -1)]
    if not all(0 <= min(pair) <= max(pair) < len(names) and pair[0] != pair[1] for pair in pairs):
        raise ValueError(
            f'{source}: "skeleton" must be pairs of the numbers of keypoints, 1 .. {len(names)}. '
            f"Received: {show(skeleton)}"
        )
    return key, tuple(names), pairs
