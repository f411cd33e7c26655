"""Tiles against the whole picture, and against the sum of all tiles."""

import tracemalloc

import keras
import numpy as np
import pytest
from PIL import Image
from test_prediction import make_segmenter
from test_semantic_model import WindowModel

from heads import Resizing, segment_images, segment_in_tiles
from heads.ops.windows import find_step, place_windows, trim_windows


def make_picture(size=(37, 53), seed=0):
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), "uint8")


class PixelModel:
    """Logits that depend only on the pixel."""

    def __init__(self, num_classes=5):
        self.weights = np.random.default_rng(1).normal(size=(3, num_classes)).astype("float32")
        self.shapes = []

    def __call__(self, images, training=None):
        assert training is False
        self.shapes.append(images.shape)
        return (np.asarray(images, "float32") - 128) @ self.weights


@pytest.mark.parametrize("overlap", [0, 0.25, 0.5, 0.8])
@pytest.mark.parametrize("tile_size", [16, (9, 20), (64, 12), (12, 64), 100, 1])
def test_where_pixels_decide_tiles_change_nothing(tile_size, overlap):
    picture, model = make_picture(), PixelModel()
    label_map = segment_in_tiles(model, picture, tile_size, overlap, batch_size=3, progress=False)
    assert label_map.dtype == np.uint8
    np.testing.assert_array_equal(label_map, model(picture[None], training=False)[0].argmax(-1))
    assert max(shape[0] for shape in model.shapes) <= 3


def fade_by_loop(place, start, end, length, previous, following):
    """Returns the weights of a window's positions, before all are scaled to a sum of 1."""
    weight = 1.0
    if start > 0:
        weight = min(weight, (place + 0.5 - start) / max(1, previous[1] - start))
    if end < length:
        weight = min(weight, (end - place - 0.5) / max(1, end - following[0]))
    return weight


def blend_by_loop(model, picture, tile_size, overlap):
    """Returns all tiles with their weights, added up in an array of the picture's size."""
    size = picture.shape[:2]
    windows = [
        place_windows(length, side, find_step(side, overlap))
        for length, side in zip(size, tile_size, strict=True)
    ]
    parts = [
        trim_windows(each, side - find_step(side, overlap))
        for each, side in zip(windows, tile_size, strict=True)
    ]
    total, weights = 0.0, 0.0
    for row, (top, bottom) in enumerate(windows[0]):
        for column, (left, right) in enumerate(windows[1]):
            weight = np.zeros(size)
            for y in range(*parts[0][row]):
                neighbours = [parts[0][max(row - 1, 0)], parts[0][min(row + 1, len(parts[0]) - 1)]]
                down = fade_by_loop(y, *parts[0][row], size[0], *neighbours)
                for x in range(*parts[1][column]):
                    neighbours = [parts[1][max(column - 1, 0)], parts[1][min(column + 1, len(parts[1]) - 1)]]
                    weight[y, x] = down * fade_by_loop(x, *parts[1][column], size[1], *neighbours)
            scores = np.zeros((*size, 4))
            scores[top:bottom, left:right] = model(picture[None, top:bottom, left:right], training=False)[0]
            total = total + weight[..., None] * scores
            weights = weights + weight
    return total / weights[..., None]


@pytest.mark.parametrize(("tile_size", "overlap"), [((16, 16), 0.25), ((13, 20), 0.5), ((10, 30), 0.7)])
def test_tiles_are_blended(tile_size, overlap):
    """With a model that sees the tile's border."""
    picture = make_picture()
    expected = blend_by_loop(WindowModel(), picture, tile_size, overlap)
    found = segment_in_tiles(WindowModel(), picture, tile_size, overlap, progress=False)
    best = np.sort(expected, axis=-1)
    clear = best[..., -1] - best[..., -2] > 1e-4
    assert clear.mean() > 0.99
    np.testing.assert_array_equal(found[clear], expected.argmax(-1)[clear])
    alone = segment_in_tiles(WindowModel(), picture, tile_size, 0, progress=False)
    assert (alone != found).any()


def test_a_segmenter_in_one_tile_is_the_whole_picture(tmp_path):
    picture = make_picture()
    for resizing in (None, Resizing((20, 30))):  # tiles keep their pixels
        model = make_segmenter(resizing)
        (expected,) = segment_images(model, picture[None])
        np.testing.assert_array_equal(segment_in_tiles(model, picture, 64, progress=False), expected)
        (expected,) = segment_images(model, picture[None], flip=True)
        found = segment_in_tiles(model, picture, 64, flip=True, progress=False)
        np.testing.assert_array_equal(found, expected)
    Image.fromarray(picture).save(tmp_path / "a.png")
    found = segment_in_tiles(model, str(tmp_path / "a.png"), 16, flip=True, progress=False)
    np.testing.assert_array_equal(
        found, segment_in_tiles(model, picture.astype("float32"), 16, flip=True, progress=False)
    )


def test_many_classes_take_wider_labels():
    label_map = segment_in_tiles(PixelModel(300), make_picture(), 16, progress=False)
    assert label_map.dtype == np.int32
    assert label_map.max() > 255


def test_memory_does_not_grow_with_the_picture():
    """All logits would take 320 MB; those of the overlaps take 10."""
    picture, model = make_picture((1600, 1250)), PixelModel(40)
    tracemalloc.start()
    try:
        segment_in_tiles(model, picture, 192, 0.25, progress=False)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 60e6


def test_the_last_tile_does_not_keep_more_than_the_overlap():
    """It is 4 pixels below the one before."""
    picture, model = make_picture((228, 3000)), PixelModel(40)
    tracemalloc.start()
    try:
        segment_in_tiles(model, picture, 128, 0.25, progress=False)  # tops 0, 96, 100
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # The overlap takes 15 MB and a tile 3; the last two tiles have 124 rows in common, which would take 60.
    assert peak < 45e6


def test_progress_is_shown(capsys):
    segment_in_tiles(PixelModel(), make_picture(), 32)
    assert "4/4" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tile_size": 0}, r"tile_size must be .* Received: 0"),
        ({"overlap": 1}, "overlap must be a number from 0 to below 1. Received: 1"),
        ({"flip": 0.5}, "flip must be True or False. Received: 0.5"),
        ({"batch_size": 0}, "batch_size must be at least 1. Received: 0"),
        ({"picture": np.zeros((4, 5))}, r"a picture must be a path, .* Received: float64 of shape \(4, 5\)"),
        ({"picture": "missing.png"}, r"missing.png: cannot be read"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(ValueError, match=message):
        segment_in_tiles(**{"model": PixelModel(), "picture": make_picture(), **options})


def test_results_of_all_backends_are_read():
    """A model may return tensors, or a dict, in half precision."""
    picture, model = make_picture(), PixelModel()

    def give_tensors(images, training):
        return {"logits": keras.ops.cast(model(images, training), "bfloat16")}

    found = segment_in_tiles(give_tensors, picture, 16, progress=False)
    assert (found == segment_in_tiles(model, picture, 16, progress=False)).mean() > 0.95
