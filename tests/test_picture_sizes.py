"""How pictures are resized."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from heads import Resizing
from heads.data.detection_moves import fit_size
from heads.data.semantic_moves import fit_sides


def test_pictures_keep_their_size_by_default():
    assert Resizing().fit((33, 49)) == (33, 49)
    assert Resizing().pad((33, 49)) == (33, 49)
    assert Resizing().pad((33, 64), 32) == (64, 64)


def test_views_at_other_scales():
    assert Resizing().fit((33, 49), 1.5) == (50, 74)
    assert Resizing(short_side=40, long_side=60).fit((100, 200), 2) == (60, 120)
    fixed = Resizing((40, 96))
    assert fixed.fit((33, 64), 0.5) == (20, 39)
    assert fixed.pad((20, 39), 32, 0.5) == (32, 64)  # 20 x 48, to multiples
    assert fixed.pad((40, 78), 32, 1.0) == (40, 96)
    assert fixed.fit((1, 1000), 0.01) == (1, 1)
    assert Resizing().pad((50, 74), 32, 1.5) == (64, 96)


@pytest.mark.parametrize("size", [(480, 640), (333, 500), (1, 500), (1200, 37), (801, 1333)])
def test_sizes_are_those_of_training(size):
    """The augmentations compute sizes in graphs."""
    resizing = Resizing(short_side=800, long_side=1333)
    assert resizing.fit(size) == tuple(fit_sides(tf.constant(size), 800, 1333).numpy())
    resizing = Resizing(image_size=(320, 256))
    assert resizing.fit(size) == tuple(fit_size(tf.constant(size), (320, 256)).numpy())
    assert resizing.pad(resizing.fit(size), 32) == (320, 256)


def test_sizes_by_hand():
    # 800 / 480 = 1.667 and 640 times that is 1066.7; a long side of 1000 gives 1000 / 640 = 1.5625.
    assert Resizing(short_side=800).fit((480, 640)) == (800, 1067)
    assert Resizing(short_side=800, long_side=1000).fit((480, 640)) == (750, 1000)
    assert Resizing(100).fit((50, 200)) == (25, 100)


def test_config():
    for resizing in (Resizing(), Resizing((64, 96)), Resizing(short_side=8, long_side=9)):
        config = keras.saving.serialize_keras_object(resizing)
        copy = keras.saving.deserialize_keras_object(config)
        assert copy.get_config() == resizing.get_config()
        assert copy.fit((np.int64(30), 40)) == resizing.fit((30, 40))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": (0, 64)}, "image_size must be .* Received: .0, 64."),
        ({"short_side": 0}, "short_side must be at least 1. Received: 0"),
        ({"short_side": 900, "long_side": 800}, "not above long_side.* short_side=900, long_side=800"),
        ({"short_side": 90, "image_size": 64}, "None where image_size is given"),
    ],
)
def test_refused_sizes(options, message):
    with pytest.raises(ValueError, match=message):
        Resizing(**options)
