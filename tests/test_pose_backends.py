"""The pose model on JAX and PyTorch: a process each, with TensorFlow's weights, compared with its results."""

import os
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).resolve().parents[1]

# What all backends run.
COMMON = """
import pathlib
import sys

import keras
import numpy as np

from heads import Resizing, SimpleBaseline
from van_backbones import VANBackbone


def make_model():
    backbone = VANBackbone("b0", widths=(8, 8, 16, 16), depths=(1, 1, 1, 1), drop_path_rate=0.0)
    return SimpleBaseline(backbone, 3, channels=8, flip_pairs=[(1, 2)], resizing=Resizing((64, 32)))


def run(folder):
    model = make_model()
    model.load_weights(folder / "pose.weights.h5")
    model.compile(optimizer=keras.optimizers.SGD(0.01))
    random = np.random.default_rng(0)
    images = random.uniform(0, 255, (2, 64, 50, 3)).astype("float32")
    keypoints = random.uniform(-5, 55, (2, 3, 2)).astype("float32")
    targets = {"keypoints": keypoints, "weights": np.array([[1, 1, 0], [1, 0, 1]], "float32")}
    arrays = {"heatmaps": keras.ops.convert_to_numpy(model(images))}
    inputs = {"images": images, "to_pictures": random.normal(size=(2, 2, 3)).astype("float32")}
    for name, part in (("plain", model), ("mirrored", model.with_flip_test())):
        found = part.predict_on_batch(inputs)
        arrays |= {f"{name}_{key}": value for key, value in found.items()}
    picture = images[0].astype("uint8")
    arrays["picture"] = model.predict_pictures(picture, [[[4, 5, 40, 60]]], progress=False)[0]["scores"]
    losses = model.evaluate(images, targets, verbose=0, return_dict=True)
    arrays |= {f"loss_{key}": value for key, value in losses.items()}
    before = [keras.ops.convert_to_numpy(variable).copy() for variable in model.trainable_variables]
    model.fit(images, targets, batch_size=2, verbose=0)
    after = [keras.ops.convert_to_numpy(variable) for variable in model.trainable_variables]
    arrays["steps"] = np.array([np.abs(new - old).max() for new, old in zip(after, before)])
    np.savez(folder / f"{keras.backend.backend()}.npz", **arrays)
"""


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """Returns a folder with TensorFlow's weights and results."""
    folder = tmp_path_factory.mktemp("pose")
    common = {}
    exec(COMMON, common)
    keras.utils.set_random_seed(0)
    model = common["make_model"]()
    for variable in model.weights:
        if "doubling" in variable.path or "output" in variable.path:
            if variable.ndim == 4:
                variable.assign(100.0 * variable)  # heatmaps with visible peaks
    model.save_weights(folder / "pose.weights.h5")
    common["run"](folder)
    return folder


@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_results_equal_tensorflows(reference, backend):
    pytest.importorskip(backend)
    environment = os.environ | {
        "KERAS_BACKEND": backend,
        "TF_CPP_MIN_LOG_LEVEL": "2",
        # Compiling is nearly all that JAX does here.
        "XLA_FLAGS": "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true",
    }
    script = COMMON + "run(pathlib.Path(sys.argv[1]))"
    command = [sys.executable, "-c", script, str(reference)]
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900)
    assert run.returncode == 0, run.stderr[-4000:]
    ours, expected = (dict(np.load(reference / f"{name}.npz")) for name in (backend, "tensorflow"))
    assert ours.keys() == expected.keys()
    assert expected["heatmaps"].shape == (2, 16, 13, 3)
    largest = np.abs(expected["heatmaps"]).max()
    assert np.abs(ours["heatmaps"] - expected["heatmaps"]).max() <= 2e-5 * largest
    for name in ("plain", "mirrored"):
        np.testing.assert_allclose(ours[f"{name}_keypoints"], expected[f"{name}_keypoints"], atol=1e-3)
        np.testing.assert_allclose(ours[f"{name}_scores"], expected[f"{name}_scores"], rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(ours["picture"], expected["picture"], rtol=1e-3, atol=1e-5)
    assert float(ours["loss_loss"]) == pytest.approx(float(expected["loss_loss"]), rel=1e-4)
    steady = expected["steps"] > 1e-3 * expected["steps"].max()
    assert steady.any()
    np.testing.assert_allclose(ours["steps"][steady], expected["steps"][steady], rtol=1e-2)
