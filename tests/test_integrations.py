"""VANBackbone under the heads of KerasCV and KerasHub: one training step, predict, save and load."""

import keras
import numpy as np
import pytest

from van_backbones import VANBackbone

SIZE = (64, 96)
CLASSES = 3

# Tracing and compiling the graphs of one detector takes half a minute.
pytestmark = pytest.mark.parametrize("eager", [True, pytest.param(False, marks=pytest.mark.slow)])


@pytest.fixture
def backbone(eager):
    return VANBackbone("b0", input_shape=(*SIZE, 3), depths=None if eager else (1, 1, 1, 1))


@pytest.fixture
def images():
    return np.random.default_rng(0).uniform(0, 255, (1, *SIZE, 3)).astype("float32")


@pytest.fixture
def boxes():
    return np.array([[[8.0, 8.0, 72.0, 56.0]]], "float32")


def train_one_step(model, images, targets):
    """Returns the loss, and checks that every weight of the backbone's first stage took part."""
    layer = next(layer for layer in model._flatten_layers() if layer.name == "stage1_block0")
    before = [np.array(variable) for variable in layer.trainable_variables]
    history = model.fit(images, targets, epochs=1, shuffle=False, verbose=0).history
    for variable, old in zip(layer.trainable_variables, before, strict=True):
        assert np.isfinite(variable).all()
        assert (np.array(variable) != old).any(), variable.path
    return history["loss"][0]


def assert_equal_after_loading(model, inputs, path):
    """Saves, loads, compares the raw outputs and returns the loaded model."""
    model.save(path)
    again = keras.models.load_model(path, compile=False)
    assert type(again) is type(model)
    keras.tree.map_structure(
        lambda got, wanted: np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5),
        again(inputs),
        model(inputs),
    )
    return again


# KerasCV's model takes {"images": ...}, but its own training step passes it the array.
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The structure of `inputs` doesn't match the expected:UserWarning")
def test_keras_cv_retinanet_trains_predicts_and_saves(eager, backbone, images, boxes, tmp_path):
    keras_cv = pytest.importorskip("keras_cv")
    model = keras_cv.models.RetinaNet(num_classes=CLASSES, bounding_box_format="xyxy", backbone=backbone)
    optimizer = keras.optimizers.Adam(1e-4)
    model.compile(optimizer=optimizer, classification_loss="focal", box_loss="smoothl1", run_eagerly=eager)
    targets = {"boxes": boxes, "classes": np.array([[1.0]], "float32")}
    assert np.isfinite(train_one_step(model, images, targets))
    detections = model.predict(images, verbose=0)
    assert detections["boxes"].shape == (1, 100, 4)
    assert detections["classes"].shape == (1, 100)
    again = assert_equal_after_loading(model, {"images": images}, tmp_path / "retinanet.keras")
    assert type(again.backbone) is VANBackbone


def test_keras_cv_deeplab_trains_predicts_and_saves(eager, backbone, images, tmp_path):
    keras_cv = pytest.importorskip("keras_cv")
    model = keras_cv.models.DeepLabV3Plus(num_classes=CLASSES, backbone=backbone)
    model.compile(
        optimizer=keras.optimizers.Adam(1e-4), loss="sparse_categorical_crossentropy", run_eagerly=eager
    )
    assert np.isfinite(train_one_step(model, images, np.ones((1, *SIZE), "int32")))
    assert model.predict(images, verbose=0).shape == (1, *SIZE, CLASSES)
    again = assert_equal_after_loading(model, images, tmp_path / "deeplab.keras")
    assert type(again.backbone) is VANBackbone


# KerasHub compiles every model with an optimizer of its own, not with the saved one.
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Skipping variable loading for optimizer:UserWarning")
def test_keras_hub_retinanet_trains_predicts_and_saves(eager, backbone, images, boxes, tmp_path):
    keras_hub = pytest.importorskip("keras_hub")
    pyramid = keras_hub.models.RetinaNetBackbone(
        image_encoder=backbone, min_level=3, max_level=7, use_p5=False, image_shape=(*SIZE, 3)
    )
    model = keras_hub.models.RetinaNetObjectDetector(
        backbone=pyramid, num_classes=CLASSES, bounding_box_format="xyxy", pre_logits_num_conv_layers=1
    )
    model.compile(optimizer=keras.optimizers.Adam(1e-4), run_eagerly=eager)
    targets = {"boxes": boxes, "labels": np.array([[1.0]], "float32")}
    assert np.isfinite(train_one_step(model, images, targets))
    detections = model.predict(images, verbose=0)
    assert detections["boxes"].shape == (1, 100, 4)
    assert detections["labels"].shape == (1, 100)
    again = assert_equal_after_loading(model, images, tmp_path / "detector.keras")
    assert type(again.backbone.image_encoder) is VANBackbone
