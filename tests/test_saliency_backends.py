"""EDN on JAX and PyTorch: a process each, with TensorFlow's weights, compared with its results."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).resolve().parents[1]

# Every backend reads the weights that TensorFlow wrote, and writes maps, losses and the changes of a step.
SCRIPT = """
import json
import pathlib
import sys

import keras
import numpy as np

from heads import EDN
from van_backbones import VANBackbone, deploy

folder = pathlib.Path(sys.argv[1])
name = keras.backend.backend()
keras.utils.set_random_seed(0)
backbone = VANBackbone("b0", widths=(8, 8, 16, 16), depths=(1, 1, 1, 1), drop_path_rate=0.0)
model = EDN(backbone, channels=(8,) * 6, extra_channels=8)
if name == "tensorflow":
    random = np.random.default_rng(0)
    for variable in model.weights:
        if variable.ndim == 1 and "layer_scale" not in variable.name:
            variable.assign(random.uniform(0.5, 1.5, variable.shape))
    model.save_weights(folder / "edn.weights.h5")
model.load_weights(folder / "edn.weights.h5")
random = np.random.default_rng(1)
images = random.uniform(0, 255, (2, 70, 97, 3)).astype("float32")
masks = random.integers(0, 2, (2, 70, 97)).astype("int32")
masks[0, :9] = 255
maps = model.predict_on_batch(images)
deployed = deploy(model).predict_on_batch(images)
losses = model.compute_losses(masks, model(images, training=True))
losses = {key: float(keras.ops.convert_to_numpy(loss)) for key, loss in losses.items()}
model.load_weights(folder / "edn.weights.h5")  # statistics may have moved
model.compile(optimizer=keras.optimizers.Adam(1e-2))  # its steps show however small the gradients are
before = [keras.ops.convert_to_numpy(weight).copy() for weight in model.trainable_variables]
history = model.fit(images, masks, batch_size=2, verbose=0).history
changed = [
    bool((keras.ops.convert_to_numpy(weight) != old).any())
    for weight, old in zip(model.trainable_variables, before)
    if weight.path.endswith("kernel")
]
np.savez(folder / f"{name}.npz", maps=maps, deployed=deployed)
report = {"losses": losses, "history": history, "changed": sum(changed), "kernels": len(changed)}
(folder / f"{name}.json").write_text(json.dumps(report))
"""


def run(backend, folder):
    environment = os.environ | {
        "KERAS_BACKEND": backend,
        "TF_CPP_MIN_LOG_LEVEL": "2",
        # Compiling is nearly all that JAX does here.
        "XLA_FLAGS": "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true",
    }
    command = [sys.executable, "-c", SCRIPT, str(folder)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, done.stderr[-4000:]
    return dict(np.load(folder / f"{backend}.npz")), json.loads((folder / f"{backend}.json").read_text())


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    folder = tmp_path_factory.mktemp("backends")
    return folder, *run("tensorflow", folder)


@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_maps_losses_and_training_equal_tensorflows(reference, backend):
    pytest.importorskip(backend)
    folder, expected, expected_report = reference
    arrays, report = run(backend, folder)
    for name in ("maps", "deployed"):
        assert arrays[name].std() > 1e-3
        assert arrays[name].shape == (2, 70, 97)
        np.testing.assert_allclose(arrays[name], expected["maps"], atol=1e-4)
    assert report["losses"] == pytest.approx(expected_report["losses"], rel=1e-4)
    # Batch norms of the coarsest level see one position of two images: what comes before has no gradient.
    assert report["changed"] == expected_report["changed"] > 0.9 * report["kernels"]
    assert report["history"].keys() == expected_report["history"].keys()
    for name, values in report["history"].items():
        assert values == pytest.approx(expected_report["history"][name], rel=1e-3)
