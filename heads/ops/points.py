"""Values of maps at points between their positions."""

import keras
from keras import ops

from heads.ops.backends import top_k


def sample_maps(maps, points):
    """Returns bilinearly interpolated values of maps at points; outside of a map everything is 0.

    PyTorch's `grid_sample(mode="bilinear", padding_mode="zeros", align_corners=False)`, except for the
    coordinates: here 0 is a map's left or upper border, 1 its right or lower one.

    Args:
        maps: (n, height, width, channels), any dtype.
        points: float32 (n, p, 2), (x, y) as shares of the width and height.

    Returns:
        (n, p, channels) of the maps' dtype if that is a float, else float32.
    """
    count, height, width, channels = ops.shape(maps)
    places = points * ops.cast(ops.stack([width, height]), "float32") - 0.5
    corners = ops.floor(places)
    shares = places - corners
    flat = ops.reshape(maps, (count * height * width, channels))
    starts = ops.expand_dims(ops.arange(count, dtype="int32"), 1) * (height * width)
    dtype = maps.dtype if "float" in keras.backend.standardize_dtype(maps.dtype) else "float32"
    columns, rows = (
        _weigh_neighbours(ops.cast(corners[..., axis], "int32"), shares[..., axis], side)
        for axis, side in ((0, width), (1, height))
    )
    total = 0.0
    for row, row_weights in rows:
        row_starts = starts + row * width
        for column, column_weights in columns:
            values = ops.cast(ops.take(flat, row_starts + column, axis=0), dtype)
            # Not `[..., None]`, which LiteRT does not support for unknown sizes.
            weights = ops.expand_dims(column_weights * row_weights, -1)
            total = total + values * ops.cast(weights, dtype)
    return total


def _weigh_neighbours(positions, shares, side):
    """Returns the two positions on an axis that points lie between, each with its weights.

    Args:
        positions: int32 (n, p), the first of the two; may lie outside of the map.
        shares: float32 (n, p), how far the points lie towards the second one, 0 .. 1.
        side: positions of the map.

    Returns:
        Two pairs of int32 (n, p), inside of the map, and float32 (n, p), 0 for positions outside.
    """
    pairs = ((positions, 1.0 - shares), (positions + 1, shares))
    return [
        (ops.clip(each, 0, side - 1), ops.where((each >= 0) & (each < side), weights, 0.0))
        for each, weights in pairs
    ]


def choose_uncertain_points(logits, candidates, num_points: int):
    """Returns the candidate points at which masks are most uncertain: those of the smallest absolute logits.

    PointRend (arXiv 1912.08193, section 3.1).

    Args:
        logits: (n, height, width), of the masks.
        candidates: (n, c, 2), (x, y) as shares of the width and height.
        num_points: how many are chosen, at most c.

    Returns:
        (n, num_points, 2).
    """
    certainties = ops.abs(sample_maps(logits[..., None], candidates)[..., 0])
    _, chosen = top_k(-certainties, num_points)
    return ops.take_along_axis(candidates, ops.cast(chosen, "int32")[..., None], axis=1)


def sample_truth(masks, points):
    """Returns the truth of segments at points that differ between segments and layers.

    Args:
        masks: (batch, n, height, width).
        points: (batch, layers, n, p, 2).

    Returns:
        float32 (batch, layers, n, p).
    """
    batch, num_layers, count, num_points, _ = ops.shape(points)
    points = ops.reshape(ops.transpose(points, (0, 2, 1, 3, 4)), (batch * count, num_layers * num_points, 2))
    maps = ops.reshape(masks, (batch * count, *ops.shape(masks)[2:], 1))
    truth = ops.reshape(sample_maps(maps, points), (batch, count, num_layers, num_points))
    return ops.transpose(truth, (0, 2, 1, 3))
