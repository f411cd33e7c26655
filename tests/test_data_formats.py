"""Models with Keras's other image data format, which is a global setting."""

import keras
import numpy as np
import pytest

from heads import FasterRCNN, MaskRCNN, RetinaNet, SemanticFPN, UPerNet
from van_backbones import VANBackbone, VANClassifier, deploy

MODELS = {
    "SemanticFPN": lambda backbone: SemanticFPN(backbone, 3, channels=16, pyramid_channels=16),
    "UPerNet": lambda backbone: UPerNet(backbone, 2, channels=16, auxiliary_channels=16),
    "RetinaNet": lambda backbone: RetinaNet(backbone, 3, channels=8, num_convs=1),
    "FasterRCNN": lambda backbone: FasterRCNN(backbone, 3, channels=8),
    "MaskRCNN": lambda backbone: MaskRCNN(backbone, 3, channels=8),
    "VANClassifier": lambda backbone: VANClassifier("b0", num_classes=4),
}


@pytest.fixture
def channels_first():
    yield lambda: keras.config.set_image_data_format("channels_first")
    keras.config.set_image_data_format("channels_last")


def build_backbone():
    return VANBackbone("b0", widths=(8, 8, 16, 16), depths=(1, 1, 1, 1))


NAMES = [pytest.param(name, marks=[pytest.mark.slow] * (name != "SemanticFPN")) for name in MODELS]


@pytest.mark.parametrize("name", NAMES)
def test_files_give_the_same_numbers_under_channels_first(name, channels_first, tmp_path):
    images = np.random.default_rng(0).uniform(0, 255, (1, 64, 64, 3)).astype("float32")
    model = MODELS[name](build_backbone())
    expected = keras.tree.flatten(model(images, training=False))
    model.save(tmp_path / "model.keras")
    deploy(model).save(tmp_path / "deployed.keras")
    channels_first()
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    for ours, theirs in zip(expected, keras.tree.flatten(loaded(images, training=False)), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    keras.saving.load_model(tmp_path / "deployed.keras")(images)


@pytest.mark.parametrize("name", MODELS)
def test_models_are_built_under_channels_first(name, channels_first):
    images = np.random.default_rng(0).uniform(0, 255, (1, 64, 64, 3)).astype("float32")
    channels_first()
    model = MODELS[name](build_backbone())
    assert keras.tree.flatten(model(images, training=True))
