"""The detectors on JAX and PyTorch: a process each, with TensorFlow's weights, compared with its results."""

import os
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).resolve().parents[1]

NAMES = ["retinanet", "gfl", "atss", "mask_rcnn", "cascade_mask_rcnn", "sparse_rcnn", "mask2former"]
# What all backends run: it writes raw predictions, losses, detections and the weights after a step.
COMMON = """
import pathlib
import sys

import keras
import numpy as np

from heads import ATSS, GFL, CascadeMaskRCNN, Mask2Former, MaskRCNN, RetinaNet, SparseRCNN
from van_backbones import VANBackbone

DETECTOR = {"num_classes": 3, "score_threshold": 0.001, "max_detections": 10}
HEADS = {
    "retinanet": (RetinaNet, {"channels": 8, "num_convs": 1}),
    "gfl": (GFL, {"channels": 8, "num_convs": 1}),
    "atss": (ATSS, {"channels": 8, "num_convs": 1}),
    "mask_rcnn": (MaskRCNN, {"channels": 8, "num_proposals": 12, "num_samples": 8}),
    "cascade_mask_rcnn": (CascadeMaskRCNN, {"channels": 8, "num_proposals": 12, "num_samples": 8}),
    "sparse_rcnn": (SparseRCNN, {"channels": 8, "num_proposals": 12, "num_stages": 2}),
    "mask2former": (Mask2Former, {
        "channels": 8, "num_queries": 6, "num_points": 64, "num_encoder_layers": 1, "num_decoder_layers": 2
    }),
}
SEGMENTER = {"num_things": 2, "num_stuff": 1, "task": "instance"}


def take_first(values):
    return keras.ops.cumsum(keras.ops.ones_like(values, "float32"), axis=1)


def make_model(name):
    head, options = HEADS[name]
    backbone = VANBackbone("b0", widths=(8, 8, 16, 16), depths=(1, 1, 1, 1), drop_path_rate=0.0)
    model = head(backbone, **(SEGMENTER if name == "mask2former" else DETECTOR), **options)
    model.draw_priorities = take_first
    model.draw_points = draw_points
    for layer in model.pixel_decoder.encoder_layers if name == "mask2former" else ():
        # On the positions themselves, where the points start, the slope of a map is a matter of rounding.
        layer.attention.offset_dense.bias.assign_add([0.3] * 192)
    return model


def draw_points(shape):
    # As scattered as random ones, and the same on each backend.
    places = np.outer(np.arange(1, shape[-2] + 1), (0.7549, 0.5698)) % 1.0
    return keras.ops.broadcast_to(keras.ops.convert_to_tensor(places.astype("float32")), shape)


def make_batch(name):
    random = np.random.default_rng(0)
    images = random.uniform(0, 255, (2, 64, 96, 3)).astype("float32")
    # Off the grid: of equally near anchors each backend takes its own.
    boxes = np.array([[[8.3, 8.1, 40.2, 47.6], [50.4, 19.7, 89.5, 60]], np.zeros((2, 4))], "float32")
    targets = {"boxes": boxes, "labels": np.array([[1, 2], [-1, -1]], "int32")}
    if name.endswith("mask_rcnn"):
        masks = np.zeros((2, 2, 64, 96), "uint8")
        masks[0, 0, 8:48, 8:40] = 1
        masks[0, 1, 20:60, 50:90] = 1
        targets["masks"] = masks
    if name == "mask2former":
        segments = np.full((2, 64, 96), -1, "int32")
        segments[0, 8:48, 8:40], segments[0, 20:60, 50:90] = 0, 1
        targets = {"labels": targets["labels"], "segments": segments}
    return {"images": images, "image_sizes": np.array([[64, 96], [50, 70]], "int32")}, targets


def run(folder, name):
    model = make_model(name)
    inputs, targets = make_batch(name)
    model.load_weights(folder / f"{name}.weights.h5")
    model.compile(optimizer=keras.optimizers.SGD(0.01))
    arrays = {}
    for key, value in model.predict_on_batch(inputs).items():
        arrays[f"detections_{key}"] = value
    losses = model.evaluate(inputs, targets, verbose=0, return_dict=True)
    arrays |= {f"loss_{key}": value for key, value in losses.items()}
    before = [keras.ops.convert_to_numpy(variable).copy() for variable in model.trainable_variables]
    history = model.fit(inputs, targets, batch_size=2, verbose=0).history
    arrays |= {f"train_{key}": value[0] for key, value in history.items()}
    after = [keras.ops.convert_to_numpy(variable) for variable in model.trainable_variables]
    arrays["steps"] = np.array([np.abs(new - old).max() for new, old in zip(after, before)])
    np.savez(folder / f"{name}_{keras.backend.backend()}.npz", **arrays)
"""

SCRIPT = COMMON + "run(pathlib.Path(sys.argv[1]), sys.argv[2])"


@pytest.fixture(scope="module", params=NAMES)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def reference(name, tmp_path_factory):
    """Returns a folder with TensorFlow's weights and results."""
    folder = tmp_path_factory.mktemp(name)
    common = {}
    exec(COMMON, common)
    keras.utils.set_random_seed(0)
    common["make_model"](name).save_weights(folder / f"{name}.weights.h5")
    common["run"](folder, name)
    return folder


@pytest.fixture(scope="module", params=["jax", "torch"])
def backend(request, name, reference):
    """Returns the name of a backend that has written its results beside TensorFlow's."""
    pytest.importorskip(request.param)
    environment = os.environ | {
        "KERAS_BACKEND": request.param,
        "TF_CPP_MIN_LOG_LEVEL": "2",
        # Compiling is nearly all that JAX does here.
        "XLA_FLAGS": "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true",
    }
    command = [sys.executable, "-c", SCRIPT, str(reference), name]
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1200)
    assert run.returncode == 0, run.stderr[-4000:]
    return request.param


def test_results_equal_tensorflows(reference, backend, name):
    ours, expected = (dict(np.load(reference / f"{name}_{each}.npz")) for each in (backend, "tensorflow"))
    assert ours.keys() == expected.keys()
    assert (expected["detections_labels"] >= 0).sum() > 4
    for key, values in expected.items():
        if key.startswith(("loss_", "train_")):
            assert float(ours[key]) == pytest.approx(float(values), rel=1e-4, abs=1e-6), key
    # A near-tie may swap two detections.
    np.testing.assert_allclose(ours["detections_scores"], expected["detections_scores"], rtol=0, atol=1e-5)
    same = np.abs(ours["detections_boxes"] - expected["detections_boxes"]).max(axis=2) <= 1e-2
    assert same.mean() > 0.8
    if name == "mask2former":
        assert (ours["detections_masks"] != expected["detections_masks"])[same].mean() < 1e-3
    elif name.endswith("mask_rcnn"):
        differences = np.abs(ours["detections_masks"] - expected["detections_masks"]).max(axis=(2, 3))
        assert (differences[same] <= 1e-4).mean() > 0.9


def test_the_same_weights_learn(reference, backend, name):
    ours, expected = (np.load(reference / f"{name}_{each}.npz")["steps"] for each in (backend, "tensorflow"))
    assert (expected > 0).mean() > 0.9
    # Gradients that are only rounding errors (biases right before a batch norm) are left out.
    steady = expected > 1e-3 * expected.max()
    np.testing.assert_allclose(ours[steady], expected[steady], rtol=1e-2)
