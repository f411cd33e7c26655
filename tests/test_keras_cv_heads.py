import json
import pathlib
import sys

import keras
import numpy as np
import pytest
from PIL import Image

pytest.importorskip("keras_cv")
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "examples"))

import keras_cv_heads

from van_backbones import VANBackbone


class Detector:
    """Answers like KerasCV's RetinaNet: two boxes, and a row without one."""

    def __call__(self, images, training):
        assert not training
        return None

    def decode_predictions(self, predictions, images):
        boxes = np.array([[[-4.0, 2, 30, 20], [8, 8, 40, 24], [-1, -1, -1, -1]]])
        return {
            "boxes": boxes.repeat(len(images), 0),
            "confidence": np.array([[0.9, 0.4, -1.0]]).repeat(len(images), 0),
            "classes": np.array([[2, 0, 0]]).repeat(len(images), 0),
        }


def test_detections_are_in_pixels_of_the_pictures_and_rows_without_an_object_are_empty():
    sizes = np.array([[32, 32]]), np.array([[64, 96]])
    inputs = {"images": np.zeros((1, 32, 32, 3)), "image_sizes": sizes[0], "original_sizes": sizes[1]}
    found = keras_cv_heads.KerasCVDetector(Detector()).predict_on_batch(inputs)
    np.testing.assert_array_equal(found["labels"], [[2, 0, -1]])
    np.testing.assert_allclose(found["boxes"][0, :2], [[0, 4, 90, 40], [24, 16, 96, 48]])


@pytest.mark.parametrize("size", [(32, 64), (33, 50), (1, 1)])
def test_label_maps_have_the_size_of_the_pictures(size):
    class Segmenter:
        def predict_on_batch(self, images):
            assert not any(side % 32 for side in images.shape[1:3])
            return keras.ops.one_hot(images[..., 0].astype("int32"), 5)

    images = np.random.default_rng(0).integers(0, 5, (2, *size, 3)).astype("float32")
    label_maps = keras_cv_heads.KerasCVSegmenter(Segmenter(), 5).predict_on_batch(images)
    np.testing.assert_array_equal(label_maps, images[..., 0])


def test_sizes_that_keras_cv_does_not_take_are_refused(capsys):
    with pytest.raises(SystemExit):
        keras_cv_heads.parse_arguments(["detection", "--image-size", "100"])
    assert "--image-size must be a multiple of 32. Received: 100" in capsys.readouterr().err


@pytest.fixture
def small_backbone(monkeypatch):
    small = {"widths": (8, 8, 16, 16), "depths": (1, 1, 1, 1)}
    monkeypatch.setattr(
        keras_cv_heads, "VANBackbone", lambda *names, **options: VANBackbone(*names, **options, **small)
    )


def write_folder(root):
    """Pictures of a size that suits no model, with boxes and label maps."""
    generator = np.random.default_rng(0)
    for split in ("train", "val"):
        for kind in ("images", "labels"):
            (root / kind / split).mkdir(parents=True)
        rows = []
        for index in range(3):
            name = f"{index}.png"
            image = generator.integers(0, 255, (50, 70, 3), "uint8")
            Image.fromarray(image).save(root / "images" / split / name)
            label_map = generator.integers(0, 2, (50, 70), "uint8")
            Image.fromarray(label_map).save(root / "labels" / split / name)
            rows.append({"id": index, "file_name": name, "height": 50, "width": 70})
        box = {"bbox": [10, 10, 30, 20], "area": 600, "iscrowd": 0}
        truth = {
            "images": rows,
            "annotations": [{"id": 1, "image_id": 0, "category_id": 1, **box}],
            "categories": [{"id": 1, "name": "thing"}],
        }
        (root / "annotations").mkdir(exist_ok=True)
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(truth))
    (root / "classes.txt").write_text("wall\nwindow\n")
    return root


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "names"),
    [
        ("detection", ("RetinaNet of heads", "RetinaNet of KerasCV")),
        ("segmentation", ("SemanticFPN of heads", "DeepLabV3Plus of KerasCV")),
    ],
)
def test_both_models_are_trained_and_scored(task, names, small_backbone, tmp_path, capsys):
    data = str(write_folder(tmp_path))
    options = ["--data", data, "--image-size", "64", "--batch-size", "2", "--steps", "2"]
    keras_cv_heads.main([task, *options])
    printed = capsys.readouterr().out
    for name in names:
        assert name in printed
    assert printed.count("2 steps") == 2
    assert printed.count("AP50" if task == "detection" else "all pixels") >= 2
