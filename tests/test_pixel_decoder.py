import keras
import numpy as np
import pytest

from heads.layers.pixel_decoder import PixelDecoder, encode_positions, place_centers


def test_positions_equal_loop():
    encoded = np.asarray(encode_positions(3, 5, 8)).reshape(3, 5, 8)
    for row in range(3):
        for column in range(5):
            expected = []
            for place, side in ((row, 3), (column, 5)):
                for wave in (0, 2):
                    angle = 2 * np.pi * (place + 1) / side / 10000 ** (wave / 4)
                    expected += [np.sin(angle), np.cos(angle)]
            np.testing.assert_allclose(encoded[row, column], expected, atol=1e-5)


def test_centers():
    centers = np.asarray(place_centers(1, 2))
    np.testing.assert_allclose(centers, [[0.25, 0.5], [0.75, 0.5]])


@pytest.mark.parametrize("size", [(8, 8), (5, 7), (1, 3)])
def test_sizes_stay_as_they_are(size):
    keras.utils.set_random_seed(0)
    shapes = [(None, None, None, 8 * factor) for factor in (1, 2, 4)]
    decoder = PixelDecoder(16, num_layers=1)
    decoder.build(shapes)
    sizes = [tuple(-(-side // stride) for side in size) for stride in (1, 2, 4)]
    maps = [np.ones((2, *each, shape[-1]), "float32") for each, shape in zip(sizes, shapes, strict=True)]
    levels, mask_features = decoder(maps)
    assert [tuple(level.shape) for level in levels] == [(2, *each, 16) for each in (sizes[2], sizes[1])]
    assert mask_features.shape == (2, *size, 16)
