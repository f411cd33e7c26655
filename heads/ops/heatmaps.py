"""Heatmaps of keypoints: drawn as targets, read as results, mirrored. Points are (x, y)."""

from keras import ops

REACH = 3  # a peak ends after this many standard deviations
FARTHEST_POINT = 1e6  # so that points far outside stay whole numbers


def draw_heatmaps(points, weights, size, deviation: float = 2.0):
    """Returns a heatmap for each keypoint, a Gaussian of height 1 around its nearest cell.

    Like mmpose's `MSRAHeatmap`: the Gaussian ends after three standard deviations, and a keypoint gets the
    weight 0 if no part of its Gaussian lies on the map.

    Args:
        points: (batch, keypoints, 2), in cells of the map.
        weights: (batch, keypoints), 0 for a keypoint without a label.
        size: (height, width) of the maps.
        deviation: standard deviation of the Gaussians, in cells.

    Returns:
        (heatmaps, weights): float32 (batch, height, width, keypoints), 0 where a keypoint has no weight; and
        float32 (batch, keypoints).
    """
    points = ops.clip(ops.cast(points, "float32"), -FARTHEST_POINT, FARTHEST_POINT)
    weights = ops.cast(weights, "float32")
    radius = int(REACH * deviation)
    centers = ops.cast(ops.cast(points + 0.5, "int32"), "float32")  # towards 0, as in the reference
    axes = []
    for axis, length in ((1, size[0]), (0, size[1])):
        center = centers[..., axis]
        inside = ops.logical_and(center - radius < ops.cast(length, "float32"), center + radius >= -1.0)
        weights = ops.where(inside, weights, 0.0)
        cells = ops.cast(ops.arange(length, dtype="int32"), "float32")
        offsets = cells[None, :, None] - center[:, None]  # (batch, length, keypoints)
        heights = ops.exp(-(offsets**2) / (2.0 * deviation**2))
        axes.append(ops.where(ops.abs(offsets) <= radius, heights, 0.0))
    rows, columns = axes
    heatmaps = rows[:, :, None] * columns[:, None]
    return ops.where(weights[:, None, None] > 0.0, heatmaps, 0.0), weights


def find_peaks(heatmaps):
    """Returns the highest cell of each heatmap, moved by a quarter of a cell towards its higher neighbours.

    Args:
        heatmaps: (batch, height, width, keypoints).

    Returns:
        (points, scores): float32 (batch, keypoints, 2), in cells, (-1, -1) where nothing is above 0; and
        float32 (batch, keypoints), the heights of the cells.
    """
    batch, height, width, num_keypoints = ops.shape(heatmaps)
    flat = ops.reshape(ops.transpose(heatmaps, (0, 3, 1, 2)), (batch, num_keypoints, height * width))
    # Not `ops.argmax`, for which ONNX lacks an operation: see `heads.ops.selection.label_pixels`.
    scores, indices = ops.top_k(flat, 1)
    indices = ops.cast(indices, "int32")  # (batch, keypoints, 1)
    x, y = indices % width, indices // width

    def look(step):
        return ops.take_along_axis(flat, ops.clip(indices + step, 0, height * width - 1), axis=2)

    def is_inside(along, length):
        # As in the reference: points in the first two cells and the last one are not moved.
        return ops.logical_and(along > 1, along < length - 1)

    moves_x = ops.logical_and(is_inside(x, width), y > 0)
    moves_y = ops.logical_and(is_inside(y, height), x > 0)
    points = ops.concatenate([x, y], axis=-1)
    steps = ops.concatenate([look(1) - look(-1), look(width) - look(-width)], axis=-1)
    moves = ops.cast(ops.concatenate([moves_x, moves_y], axis=-1), "float32")
    points = ops.cast(points, "float32") + 0.25 * moves * ops.sign(ops.cast(steps, "float32"))
    return ops.where(scores > 0.0, points, -1.0), ops.cast(scores[..., 0], "float32")


def mirror_heatmaps(heatmaps, order):
    """Returns the heatmaps of mirrored images, turned into heatmaps of the images themselves.

    They are mirrored back, left and right keypoints are swapped, and the maps are shifted by one cell to the
    right: mirroring maps the first pixel of an image onto the last one, but not the corners of their cells.

    Args:
        heatmaps: (batch, height, width, keypoints).
        order: for each keypoint the number of its counterpart, or its own if it has none.
    """
    back = ops.take(ops.flip(heatmaps, axis=2), ops.convert_to_tensor(order, "int32"), axis=3)
    return ops.concatenate([back[:, :, :1], back[:, :, :-1]], axis=2)
