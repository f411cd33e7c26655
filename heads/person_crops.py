"""People cut out of pictures: affine maps of points and pixels, for training, scores and predictions.

A map is float64 (2, 3), from (x, y, 1) to (x, y). In both pictures the centre of the first pixel is (0, 0),
as in COCO's keypoints. The arithmetic is mmpose's, which treats the corner (0, 0) of a box as that centre.
"""

import numpy as np
from PIL import Image

# mmpose's margin around a box: a quarter of its sides.
BOX_PADDING = 1.25


def fit_box(box, padding: float = BOX_PADDING):
    """Returns the centre (x, y) and the padded (width, height) of a box, xyxy."""
    box = np.asarray(box, np.float64)
    return (box[:2] + box[2:]) / 2, (box[2:] - box[:2]) * padding


def make_warp(center, size, crop_size, rotation: float = 0.0) -> np.ndarray:
    """Returns the map from a picture to a crop around a point: scaled and rotated, with its ratio kept.

    Args:
        center: (x, y) in the picture, which becomes the middle of the crop.
        size: (width, height) in the picture; the shorter one is made longer to have the crop's ratio.
        crop_size: (height, width) of the crop.
        rotation: clockwise rotation of the window in the picture, in degrees.
    """
    height, width = crop_size
    scale = min(width / max(size[0], 1e-6), height / max(size[1], 1e-6))
    angle = np.deg2rad(rotation)
    turn = scale * np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    offset = np.array([width / 2, height / 2]) - turn @ np.asarray(center, np.float64)
    return np.concatenate([turn, offset[:, None]], axis=1)


def invert_warp(warp) -> np.ndarray:
    """Returns the inverse map."""
    inverse = np.linalg.inv(warp[:, :2])
    return np.concatenate([inverse, -inverse @ warp[:, 2:]], axis=1)


def warp_points(points, warp) -> np.ndarray:
    """Returns the positions of points (..., 2) in the other picture, float64."""
    return np.asarray(points, np.float64) @ warp[:, :2].T + warp[:, 2]


def warp_picture(pixels, warp, crop_size) -> np.ndarray:
    """Returns the crop of a picture, by bilinear interpolation that is not antialiased; black outside.

    Args:
        pixels: uint8 (height, width, 3).
        warp: the map from the picture to the crop.
        crop_size: (height, width).

    Returns:
        uint8 (*crop_size, 3).
    """
    back = invert_warp(warp)
    # For Pillow, the first pixel's corner is at (0, 0).
    back[:, 2] += 0.5 - back[:, :2] @ (0.5, 0.5)
    picture = Image.fromarray(pixels)
    size = crop_size[::-1]
    return np.array(picture.transform(size, Image.Transform.AFFINE, back.ravel(), Image.Resampling.BILINEAR))


def mirror_warp(warp, picture_width: int) -> np.ndarray:
    """Returns the map from a picture whose mirror image `warp` expects."""
    mirror = np.array([[-1.0, 0.0, picture_width - 1.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    return warp @ mirror


def cut_out(pixels, box, crop_size):
    """Returns a person's crop, float32 (*crop_size, 3), and the map from it to the picture, float32 (2, 3).

    Args:
        pixels: (height, width, 3), uint8 or float 0 .. 255.
        box: xyxy.
        crop_size: (height, width).
    """
    warp = make_warp(*fit_box(box), crop_size)
    pixels = pixels if pixels.dtype == np.uint8 else np.rint(np.clip(pixels, 0, 255)).astype("uint8")
    crop = warp_picture(pixels, warp, crop_size)
    return crop.astype("float32"), invert_warp(warp).astype("float32")
