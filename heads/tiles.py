"""Label maps of pictures of any size, tile by tile: blended, and with little memory."""

import itertools
import os
import pathlib

import keras
import numpy as np
from keras import ops

from heads.arguments import check_counts, check_shares, read_flag, read_size
from heads.ops.windows import fade_windows, find_step, place_windows, trim_windows
from heads.prediction import count_channels, read_pixels


def segment_in_tiles(
    model,
    picture,
    tile_size=512,
    overlap: float = 0.25,
    flip: bool = False,
    batch_size: int = 1,
    progress: bool = True,
) -> np.ndarray:
    """Returns the label map of a picture, which is segmented in overlapping tiles.

    The tiles are not resized, whatever the model's `resizing` says; choose them as large as its training
    crops. Where tiles overlap, they fade into each other: the logits are averaged, with smaller weights near
    a tile's border. Pixels become labels as soon as no further tile covers them, so that only the logits of
    overlaps are kept: 10,000 x 10,000 pixels of 150 classes take 0.8 GB in addition to the picture, the label
    map, and the memory of the model for a tile.

    Args:
        model: a semantic segmenter, or images (batch, height, width, 3) -> logits
            (batch, height, width, classes), as of `segment_images`.
        picture: a path, or an array (height, width, 3), uint8 or float 0 .. 255; also a `np.memmap`.
        tile_size: (height, width) of the tiles; a whole number stands for squares.
        overlap: share of a tile's sides by which it overlaps the next one, from 0 to below 1.
        flip: whether to add each tile's mirror image; the class probabilities are averaged then.
        batch_size: most tiles that go through the model at once.
        progress: whether to show a progress bar.

    Returns:
        (height, width), uint8 up to 256 classes, else int32.

    Raises:
        ValueError: if a file cannot be read, an array is no picture, or an argument is out of range.
    """
    tile_size, flip = read_size("tile_size", tile_size), read_flag("flip", flip)
    check_shares(overlap=overlap)
    check_counts(batch_size=batch_size)
    picture = pathlib.Path(picture) if isinstance(picture, str | os.PathLike) else picture
    pixels = read_pixels(picture, count_channels(model))
    steps = [find_step(side, overlap) for side in tile_size]
    row_windows, column_windows = map(place_windows, pixels.shape[:2], tile_size, steps)
    # The parts of the tiles that count.
    rows = trim_windows(row_windows, tile_size[0] - steps[0])
    columns = trim_windows(column_windows, tile_size[1] - steps[1])
    row_weights, column_weights = fade_windows(rows), fade_windows(columns)
    label_map = band = None
    num_pending = 0  # rows at the top of the tiles that overlap the tiles above
    bar = keras.utils.Progbar(len(rows) * len(columns), unit_name="tile", verbose=int(progress))
    for number, (top, bottom) in enumerate(rows):
        end = rows[number + 1][0] if number + 1 < len(rows) else bottom
        window_top, window_bottom = row_windows[number]
        tiles = _predict_tiles(model, pixels[window_top:window_bottom], column_windows, flip, batch_size)
        tiles = (scores[top - window_top : bottom - window_top] for scores in tiles)
        for (left, right), scores in _blend_tiles(tiles, column_windows, columns, column_weights):
            if label_map is None:
                label_map, band = _make_arrays(pixels.shape[:2], rows, scores.shape[-1])
            scores *= row_weights[number][:, None, None]
            scores[:num_pending] += band[:num_pending, left:right]
            label_map[top:end, left:right] = scores[: end - top].argmax(axis=-1)
            band[: bottom - end, left:right] = scores[end - top :]
            bar.add(1)
        num_pending = bottom - end
    return label_map


def _make_arrays(size, rows, num_classes):
    """Returns the label map to fill, and an array for scores of rows that tiles share with those below."""
    most_rows = max((before[1] - after[0] for before, after in itertools.pairwise(rows)), default=0)
    label_map = np.zeros(size, "uint8" if num_classes <= 256 else "int32")
    return label_map, np.zeros((most_rows, size[1], num_classes), "float32")


def _predict_tiles(model, strip, windows, flip, batch_size):
    """Yields the scores of each tile of a strip of a picture: float32 (height, width, classes)."""
    # In a graph, where the model has one.
    predict = getattr(model, "predict_raw", None) or (lambda images: model(images, training=False))

    def find_logits(images):
        predictions = predict(images)
        return predictions["logits"] if isinstance(predictions, dict) else predictions

    def average_views(images):
        scores = find_logits(images)
        if flip:
            mirrored = ops.flip(find_logits(images[:, :, ::-1].copy()), axis=2)
            scores = sum(ops.softmax(ops.cast(each, "float32"), axis=-1) for each in (scores, mirrored))
        return np.asarray(ops.convert_to_numpy(scores), "float32")

    for start in range(0, len(windows), batch_size):
        parts = windows[start : start + batch_size]
        images = np.stack([strip[:, left:right] for left, right in parts]).astype("float32")
        yield from average_views(images)


def _blend_tiles(tiles, windows, columns, weights):
    """Yields ((left, right), scores) of a strip's columns, as soon as no further tile covers them.

    Args:
        tiles: scores (height, width, classes) of each tile, from left to right.
        windows: (left, right) of each.
        columns: (left, right) of the part of each that counts.
        weights: weights of these columns of each.
    """
    waiting = None
    for number, (scores, (left, right)) in enumerate(zip(tiles, columns, strict=True)):
        window_left = windows[number][0]
        scores = scores[:, left - window_left : right - window_left] * weights[number][:, None]
        if waiting is not None:
            scores[:, : waiting.shape[1]] += waiting
        end = columns[number + 1][0] if number + 1 < len(columns) else right
        yield (left, end), scores[:, : end - left]
        waiting = scores[:, end - left :].copy()  # copied, so that the rest can be freed
