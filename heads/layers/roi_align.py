"""RoIAlign: features of boxes, on a grid of the same size for every box (Mask R-CNN, arXiv 1703.06870).

How the features are gathered, for all boxes of all levels at once:

    levels   P2, P3, ...  ->  one list of cells, (positions, channels)
    boxes    sorted by the area of their window, 32 a group, so that large ones do not hold up small ones
    window   the cells that a box's samples touch, row by row, cut into tiles of 128

        . . . . . . . .       a group goes on until its largest window is done:
        . a a a a b b .         cells   = gather a tile of each box    (32, 128, channels)
        . b b c c c c .         weights = weight of each cell          (32, bins, 128)
        . . . . . . . .         means  += weights @ cells              (32, bins, channels)

The weight of a cell in a bin is a row's weight times a column's: see `heads.ops.bilinear`. The gradient goes
the same way back and adds up into the list of cells.
"""

from typing import NamedTuple

from keras import ops, tree

from heads.ops.bilinear import Samples, place_samples, weigh_cells

# Boxes are pooled in groups of similar size, a tile of cells at a time, so that little is gathered at once
# (32 x 128 cells of 256 channels are 4 MiB), and small boxes do not wait for large ones.
GROUP_SIZE = 32
TILE_SIZE = 128


def roi_align(
    features,
    boxes,
    batch_indices,
    output_size: int,
    spatial_scale: float = 1.0,
    sampling_ratio: int = 0,
    aligned: bool = True,
):
    """Returns the features of boxes on one map: means over bins of bilinear samples.

    The numbers are those of mmcv's RoIAlign with average pooling. The features get gradients, the boxes do
    not.

    Args:
        features: (batch, height, width, channels) of any floating dtype.
        boxes: (n, 4) float32, (x1, y1, x2, y2) in the image's pixels. A side below 0 counts as 0.
        batch_indices: (n,) integers, which map each box reads.
        output_size: bins along each side.
        spatial_scale: cells of the map per pixel of the image, 1 / stride.
        sampling_ratio: samples per bin along each axis; 0 takes ceil(side of the box in cells / output_size),
            so a box without height or width gives zeros.
        aligned: whether pixel centres lie at + 0.5. False is the older convention, half a cell off, in which
            a box is at least one cell wide and high.

    Returns:
        (n, output_size, output_size, channels) of the features' dtype.

    Raises:
        ValueError: if `output_size` is below 1 or `sampling_ratio` below 0.

    Reference:
        - He et al., "Mask R-CNN", arXiv 1703.06870, section 3.
    """
    _check_grid(output_size, sampling_ratio)
    boxes = ops.cast(ops.stop_gradient(ops.convert_to_tensor(boxes)), "float32")
    batch_indices = ops.cast(batch_indices, "int32")
    height, width, channels = ops.shape(features)[1:]
    corners = boxes * spatial_scale - (0.5 if aligned else 0.0)
    heights, widths = (side * ops.ones_like(batch_indices) for side in (height, width))
    rows = place_samples(corners[:, 1], corners[:, 3], heights, output_size, sampling_ratio, aligned)
    columns = place_samples(corners[:, 0], corners[:, 2], widths, output_size, sampling_ratio, aligned)
    cells = ops.reshape(features, (-1, channels))
    return _pool_windows(cells, batch_indices * (height * width), rows, columns, output_size)


def align_regions(pyramid, boxes, output_size: int, strides=(4, 8, 16, 32), sampling_ratio: int = 0):
    """Returns the features of boxes, each from the level of a pyramid that fits its size.

    Args:
        pyramid: list over levels of (batch, height, width, channels), from fine to coarse.
        boxes: (batch, n, 4) float32, (x1, y1, x2, y2) in the images' pixels.
        output_size: bins along each side.
        strides: pixels per cell of each level.
        sampling_ratio: samples per bin along each axis; 0 adapts to the box, as in `roi_align`.

    Returns:
        (batch, n, output_size, output_size, channels) of the features' dtype.

    Raises:
        ValueError: if there is not one stride per level, or output_size or sampling_ratio make no sense.

    Reference:
        - Lin et al., "Feature Pyramid Networks for Object Detection", arXiv 1612.03144, section 4.2.
    """
    _check_grid(output_size, sampling_ratio)
    if len(strides) != len(pyramid) or not len(pyramid):
        raise ValueError(
            f"strides must have one entry per level of the pyramid. Received: {len(pyramid)} levels and "
            f"strides={strides}"
        )
    boxes = ops.cast(ops.stop_gradient(ops.convert_to_tensor(boxes)), "float32")
    batch, num_boxes = ops.shape(boxes)[:2]
    channels = ops.shape(pyramid[0])[-1]
    boxes = ops.reshape(boxes, (-1, 4))
    levels = assign_levels(boxes, len(pyramid))
    heights, widths = (
        ops.stack([ops.cast(ops.shape(level)[axis], "int32") for level in pyramid]) for axis in (1, 2)
    )
    # One list of the cells of all levels, so that one gather serves every box.
    cells = ops.concatenate([ops.reshape(level, (-1, channels)) for level in pyramid], axis=0)
    level_cells = batch * heights * widths
    level_starts = ops.cumsum(level_cells) - level_cells
    heights, widths, starts, strides = (
        ops.take(values, levels, axis=0)
        for values in (heights, widths, level_starts, ops.convert_to_tensor(strides, "float32"))
    )
    batch_indices = ops.repeat(ops.arange(batch, dtype="int32"), num_boxes)
    corners = boxes / strides[:, None] - 0.5
    rows = place_samples(corners[:, 1], corners[:, 3], heights, output_size, sampling_ratio)
    columns = place_samples(corners[:, 0], corners[:, 2], widths, output_size, sampling_ratio)
    pooled = _pool_windows(cells, starts + batch_indices * heights * widths, rows, columns, output_size)
    return ops.reshape(pooled, (batch, num_boxes, output_size, output_size, channels))


def assign_levels(boxes, num_levels: int, finest_size: float = 56.0):
    """Returns the level that each box is pooled from: 0 for sides up to 112 pixels, 1 up to 224, and so on.

    Args:
        boxes: (..., 4) float32, (x1, y1, x2, y2) in pixels.
        num_levels: number of levels.
        finest_size: half of the side, in pixels, of the smallest square that is on level 1.

    Returns:
        (...,) int32, 0 .. num_levels - 1.

    Reference:
        - arXiv 1612.03144, equation 1, as mmdetection's `SingleRoIExtractor` computes it.
    """
    boxes = ops.cast(boxes, "float32")
    areas = (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])
    levels = ops.floor(ops.log2(ops.sqrt(ops.maximum(areas, 0.0)) / finest_size + 1e-6))
    return ops.cast(ops.clip(levels, 0, num_levels - 1), "int32")


class Windows(NamedTuple):
    """The cells that boxes read."""

    map_starts: object  # (n,) int32, where the box's map begins in the list of the cells of all maps
    rows: Samples  # along the map's height
    columns: Samples  # along its width


def _pool_windows(cells, map_starts, rows, columns, num_bins):
    """Returns the means over the bins.

    Args:
        cells: (positions, channels), the cells of all maps one after another.
        map_starts: (n,) int32, where in `cells` each box's map begins.
        rows: `Samples` along the maps' height.
        columns: `Samples` along the maps' width.
        num_bins: bins along each side.

    Returns:
        (n, num_bins, num_bins, channels).
    """
    num_boxes = ops.shape(map_starts)[0]
    num_positions, channels = ops.shape(cells)
    groups, ranks = _group_boxes(Windows(map_starts, rows, columns))

    # An automatic gradient would keep every tile's cells, and JAX cannot differentiate the loop over tiles.
    @ops.custom_gradient
    def pool(cells):
        def compute_gradient(*arguments, upstream=None):
            if upstream is None:  # only PyTorch names it
                (upstream,) = arguments
            return ops.cast(_spread_groups(upstream, groups, num_positions, num_bins), cells.dtype)

        return _pool_groups(cells, groups, num_bins), compute_gradient

    pooled = ops.reshape(pool(cells), (-1, num_bins * num_bins * channels))
    return ops.reshape(ops.take(pooled, ranks, axis=0), (num_boxes, num_bins, num_bins, channels))


def _group_boxes(windows):
    """Returns the boxes in groups, sorted by the area of their windows, largest first.

    Returns:
        - `Windows` with fields of shape (groups, GROUP_SIZE); the last group ends with boxes without samples.
        - (n,) int32, where each box went.
    """
    num_boxes = ops.shape(windows.map_starts)[0]
    num_groups = num_boxes // GROUP_SIZE + 1  # never 0, as not every backend can map over nothing
    padding = num_groups * GROUP_SIZE - num_boxes
    windows = tree.map_structure(
        lambda field: ops.concatenate([field, ops.zeros((padding,), field.dtype)]), windows
    )
    order = ops.argsort(-_count_cells(windows))
    groups = tree.map_structure(
        lambda field: ops.reshape(ops.take(field, order, axis=0), (num_groups, GROUP_SIZE)), windows
    )
    return groups, ops.argsort(order)[:num_boxes]


def _count_cells(windows):
    """Returns the areas of the windows."""
    return windows.rows.window_sizes * windows.columns.window_sizes


def _pool_groups(cells, groups, num_bins):
    """Returns the means, (groups, GROUP_SIZE, num_bins * num_bins, channels), of (positions, channels)."""
    channels = ops.shape(cells)[1]

    def pool_group(group):
        def add_tile(tile, means):
            weights, positions = _weigh_tile(group, tile, num_bins)
            tile_cells = ops.cast(ops.take(cells, positions, axis=0), "float32")
            return tile + 1, means + ops.matmul(weights, tile_cells)

        means = ops.zeros((GROUP_SIZE, num_bins * num_bins, channels), "float32")
        return ops.cast(_loop_over_tiles(group, add_tile, means), cells.dtype)

    return ops.map(pool_group, groups)


def _spread_groups(upstream, groups, num_positions, num_bins):
    """Returns the gradient of the cells, float32 (positions, channels), from that of the means."""
    num_groups, channels = ops.shape(upstream)[0], ops.shape(upstream)[-1]

    def add_group(index, gradient):
        group = tree.map_structure(lambda field: ops.take(field, index, axis=0), groups)
        group_upstream = ops.cast(ops.take(upstream, index, axis=0), "float32")

        def add_tile(tile, gradient):
            weights, positions = _weigh_tile(group, tile, num_bins)
            updates = ops.matmul(ops.transpose(weights, (0, 2, 1)), group_upstream)
            updates, positions = ops.reshape(updates, (-1, channels)), ops.reshape(positions, (-1, 1))
            return tile + 1, ops.scatter_update(gradient, positions, updates, reduction="add")

        return index + 1, _loop_over_tiles(group, add_tile, gradient)

    gradient = ops.zeros((num_positions, channels), "float32")
    return ops.while_loop(lambda index, _: index < num_groups, add_group, (0, gradient))[1]


def _loop_over_tiles(group, add_tile, total):
    """Returns `total` after `add_tile(tile, total)` for every tile of the group's largest window."""
    num_cells = ops.max(_count_cells(group))
    return ops.while_loop(lambda tile, _: tile * TILE_SIZE < num_cells, add_tile, (0, total))[1]


def _weigh_tile(group, tile, num_bins):
    """Returns one tile of each window of a group, whose cells are counted row by row.

    Returns:
        - (GROUP_SIZE, num_bins * num_bins, TILE_SIZE) float32, weights of the cells in the means.
        - (GROUP_SIZE, TILE_SIZE) int32, the cells' positions in the list of all; 0 beyond the window's end.
    """
    rows, columns = group.rows, group.columns
    numbers = (ops.arange(TILE_SIZE, dtype="int32") + tile * TILE_SIZE)[None]
    inside = numbers < _count_cells(group)[:, None]
    widths = ops.maximum(columns.window_sizes, 1)[:, None]
    row_cells = rows.window_starts[:, None] + numbers // widths
    column_cells = columns.window_starts[:, None] + numbers % widths
    positions = group.map_starts[:, None] + row_cells * columns.map_sizes[:, None] + column_cells
    counts = ops.maximum(rows.counts * columns.counts, 1.0)[:, None, None]
    row_weights = ops.where(inside[:, None], weigh_cells(rows, row_cells, num_bins) / counts, 0.0)
    weights = row_weights[:, :, None] * weigh_cells(columns, column_cells, num_bins)[:, None]
    weights = ops.reshape(weights, (GROUP_SIZE, num_bins * num_bins, TILE_SIZE))
    return weights, ops.where(inside, positions, 0)


def _check_grid(output_size, sampling_ratio):
    """Raises a ValueError for less than one bin, or a negative number of samples."""
    if output_size < 1:
        raise ValueError(f"output_size must be at least 1. Received: {output_size}")
    if sampling_ratio < 0:
        raise ValueError(
            "sampling_ratio must be the number of samples per bin and axis, or 0 to adapt it to each box. "
            f"Received: {sampling_ratio}"
        )
