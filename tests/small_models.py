"""Small models with weights that matter, and images for them, for tests of `deploy` and `export`."""

import contracts
import keras
import numpy as np

from van_backbones import VANBackbone

SMALL = {"widths": (8, 8, 16, 16), "depths": (1, 2, 1, 1)}


def build(model_class=None, **arguments):
    """Returns a small backbone, or a head on it, with weights that matter."""
    keras.utils.set_random_seed(0)
    model = VANBackbone("b0", **SMALL)
    if model_class is not None:
        model = model_class(model, **arguments)
    contracts.shake_weights(model)
    return model


def draw_images(size=(49, 70), count=2):
    random = np.random.default_rng(0)
    coarse = random.integers(0, 256, (count, -(-size[0] // 7), -(-size[1] // 7), 3))
    return coarse.repeat(7, axis=1).repeat(7, axis=2)[:, : size[0], : size[1]].astype("uint8")


def relative_error(ours, theirs):
    ours, theirs = np.asarray(ours, "float64"), np.asarray(theirs, "float64")
    assert ours.shape == theirs.shape
    return np.abs(ours - theirs).max() / np.abs(theirs).max()
