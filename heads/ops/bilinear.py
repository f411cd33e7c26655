"""The weights of a map's cells in the bins of a box: bilinear samples along one axis."""

from typing import NamedTuple

from keras import ops


class Samples(NamedTuple):
    """Where the samples of boxes lie along one axis of a map, in cells; every field has shape (n,).

    Bilinear sampling and averaging act on each axis separately, so one axis at a time is enough.
    """

    firsts: object  # float32, position of the first sample of the first bin
    bin_sizes: object  # float32, from a bin to the next
    counts: object  # float32, samples per bin
    map_sizes: object  # int32, cells of the map
    window_starts: object  # int32, the first cell that any sample touches
    window_sizes: object  # int32, cells from there to the last that is touched


def place_samples(starts, ends, map_sizes, num_bins: int, sampling_ratio: int = 0, aligned: bool = True):
    """Returns the samples along one axis.

    Args:
        starts: (n,) float32, where the boxes begin, in cells: the centre of cell 0 is at 0.
        ends: (n,) float32, where they end.
        map_sizes: (n,) int32, cells of each box's map on the axis.
        num_bins: bins on the axis.
        sampling_ratio: samples per bin, or 0 for ceil(size of the bin in cells).
        aligned: False makes a box at least one cell long.

    Returns:
        A `Samples`.
    """
    lengths = ops.maximum(ends - starts, 0.0 if aligned else 1.0)
    bin_sizes = lengths / num_bins
    if sampling_ratio:
        counts = ops.full_like(bin_sizes, float(sampling_ratio))
    else:
        counts = ops.ceil(bin_sizes)
        # XLA multiplies by the inverse of a constant, so that 21 / 7 exceeds 3 by a rounding error and gives
        # 4.
        counts = counts - ops.cast((counts - 1.0) * num_bins >= lengths, "float32")
    margins = 0.5 * bin_sizes / ops.maximum(counts, 1.0)
    firsts, lasts = starts + margins, starts + lengths - margins
    limits = ops.cast(map_sizes, "float32") - 1.0
    window_starts, window_ends = (
        ops.cast(ops.floor(ops.clip(positions, 0.0, limits)), "int32") for positions in (firsts, lasts)
    )
    window_sizes = ops.minimum(window_ends + 2, map_sizes) - window_starts
    # Samples up to one cell beyond the border cell's centre read the border, those farther out read 0.
    touched = (counts > 0.0) & (lasts >= -1.0) & (firsts <= limits + 1.0)
    return Samples(firsts, bin_sizes, counts, map_sizes, window_starts, ops.where(touched, window_sizes, 0))


def weigh_cells(samples, cells, num_bins: int):
    """Returns the weight of each cell in each bin, summed over the bin's samples (`samples.counts`).

    A sample at p gives cell c the weight 1 - |p - c|, if that is positive. The samples of a bin are equally
    spaced, so the weights of those just before a cell are an arithmetic series, and those just after it
    another.

    Args:
        samples: `Samples` of n boxes.
        cells: (n, k) or (1, k) int32, cells of the maps; the weight of one outside of the map is meaningless.
        num_bins: bins on the axis.

    Returns:
        (n, num_bins, k) float32.
    """
    firsts, bin_sizes, counts = (
        field[:, None, None] for field in (samples.firsts, samples.bin_sizes, samples.counts)
    )
    # A box without length has its samples in one place.
    spacings = ops.maximum(bin_sizes / ops.maximum(counts, 1.0), 1e-6)
    bins = ops.arange(num_bins, dtype="float32")[None, :, None]
    distances = ops.cast(cells, "float32")[:, None, :] - (firsts + bins * bin_sizes)
    # Samples begin .. before lie up to one cell before the cell, behind .. end up to one cell after it.
    last = counts - 1.0
    nearest = ops.floor(distances / spacings)
    begin = ops.maximum(ops.ceil((distances - 1.0) / spacings), 0.0)
    before = ops.minimum(nearest, last)
    behind = ops.maximum(nearest + 1.0, 0.0)
    end = ops.minimum(ops.floor((distances + 1.0) / spacings), last)
    mean_before = 1.0 - distances + spacings * (begin + before) / 2.0
    mean_behind = 1.0 + distances - spacings * (behind + end) / 2.0
    limits = (samples.map_sizes - 1)[:, None]
    mean_before = ops.where((cells <= 0)[:, None, :], 1.0, mean_before)
    mean_behind = ops.where((cells >= limits)[:, None, :], 1.0, mean_behind)
    return (
        ops.maximum(before - begin + 1.0, 0.0) * mean_before
        + ops.maximum(end - behind + 1.0, 0.0) * mean_behind
    )
