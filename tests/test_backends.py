"""The backbone and the heads on JAX and PyTorch: each in a process of its own, compared with TensorFlow."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from van_backbones import VANBackbone

ROOT = pathlib.Path(__file__).resolve().parents[1]

# Reads weights and images from the folder given, writes the pyramid and what training gave.
SCRIPT = """
import json
import pathlib
import sys

import keras
import numpy as np

from heads import SemanticFPN, UPerNet
from van_backbones import VANBackbone, deploy

folder = pathlib.Path(sys.argv[1])
backbone = VANBackbone("b0", normalization=None, weights=folder / "b0.weights.h5")
np.savez(folder / "pyramid.npz", **backbone.predict_on_batch(np.load(folder / "images.npy")))
np.savez(folder / "deployed.npz", **deploy(backbone).predict_on_batch(np.load(folder / "images.npy")))

random = np.random.default_rng(0)
images = random.uniform(0, 255, (2, 64, 64, 3)).astype("float32")
labels = random.integers(0, 3, (2, 64, 64)).astype("int32")
report = {"backend": keras.backend.backend()}
arguments = {
    SemanticFPN: {"channels": 8, "pyramid_channels": 16},
    UPerNet: {"channels": 16, "auxiliary_channels": 8},
}
for head, sizes in arguments.items():
    model = head(VANBackbone("b0", depths=(1, 1, 1, 1), drop_path_rate=0.0), num_classes=3, **sizes)
    model.compile(optimizer=keras.optimizers.AdamW(1e-3))
    before = [keras.ops.convert_to_numpy(variable).copy() for variable in model.backbone.weights]
    history = model.fit(images, labels, batch_size=2, epochs=1, verbose=0).history
    changed = [
        bool((keras.ops.convert_to_numpy(variable) != old).any())
        for variable, old in zip(model.backbone.weights, before)
    ]
    maps = model.predict_on_batch(images)
    report[head.__name__] = {
        "history": history,
        "changed": sum(changed),
        "weights": len(changed),
        "maps": [str(maps.dtype), list(maps.shape), int(maps.min()), int(maps.max())],
    }
(folder / "report.json").write_text(json.dumps(report))
"""


@pytest.fixture(scope="module")
def reference():
    """Returns TensorFlow's backbone with norms and layer scales that matter, images and the pyramid."""
    random = np.random.default_rng(0)
    backbone = VANBackbone("b0", normalization=None)
    for variable in backbone.weights:
        if variable.ndim == 1:
            # Larger layer scales would square the features away from block to block.
            factor = 0.1 if "layer_scale" in variable.name else 1.0
            variable.assign(factor * random.uniform(0.5, 1.5, variable.shape))
    images = random.normal(size=(2, 65, 97, 3)).astype("float32")
    return backbone, images, backbone(images)


@pytest.fixture(scope="module", params=[pytest.param("jax", marks=pytest.mark.slow), "torch"])
def backend(request, reference, tmp_path_factory):
    """Returns a backend's name, its pyramid, that of the deployed backbone and its report."""
    pytest.importorskip(request.param)
    backbone, images, _ = reference
    folder = tmp_path_factory.mktemp(request.param)
    backbone.save_weights(folder / "b0.weights.h5")
    np.save(folder / "images.npy", images)
    environment = os.environ | {
        "KERAS_BACKEND": request.param,
        "TF_CPP_MIN_LOG_LEVEL": "2",
        # Compiling is nearly all that JAX does here.
        "XLA_FLAGS": "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true",
    }
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(folder)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert run.returncode == 0, run.stderr[-4000:]
    report = json.loads((folder / "report.json").read_text())
    pyramids = [dict(np.load(folder / f"{name}.npz")) for name in ("pyramid", "deployed")]
    return request.param, *pyramids, report


def test_pyramid_equals_tensorflows(reference, backend):
    _, _, expected = reference
    name, pyramid, deployed, report = backend
    assert report["backend"] == name
    assert list(pyramid) == list(deployed) == list(expected)
    for level, outputs in expected.items():
        outputs = np.asarray(outputs)
        assert outputs.std((0, 1, 2)).mean() > 0.1
        assert pyramid[level].shape == deployed[level].shape == outputs.shape
        assert np.abs(pyramid[level] - outputs).max() <= 2e-5 * np.abs(outputs).max()
        assert np.abs(deployed[level] - outputs).max() <= 1e-4 * np.abs(outputs).max()


@pytest.mark.parametrize("head", ["SemanticFPN", "UPerNet"])
def test_heads_train(backend, head):
    *_, report = backend
    history = report[head]["history"]
    assert "segmentation_loss" in history
    assert ("auxiliary_loss" in history) == (head == "UPerNet")
    assert all(np.isfinite(values).all() for values in history.values())
    # Random weights and three classes: the cross entropy is about log 3.
    assert 0.5 < history["segmentation_loss"][0] < 3.0
    assert report[head]["changed"] == report[head]["weights"]


@pytest.mark.parametrize("head", ["SemanticFPN", "UPerNet"])
def test_heads_predict_label_maps(backend, head):
    *_, report = backend
    dtype, shape, smallest, largest = report[head]["maps"]
    assert (dtype, shape) == ("int32", [2, 64, 64])
    assert 0 <= smallest <= largest <= 2


# What is chosen from the pictures of one device needs none of the others'.
SHARED_SCRIPT = """
import jax
import keras
import numpy as np

from heads.ops import backends, selection

keras.distribution.set_distribution(keras.distribution.DataParallel(auto_shard_dataset=False))
mesh = keras.distribution.distribution().device_mesh.backend_mesh
rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("batch"))
values = np.random.default_rng(0).normal(size=(4, 3, 50)).astype("float32")
functions = {
    "top_k": lambda values: backends.top_k(values, 7),
    "label_pixels": selection.label_pixels,
    "select_pairs": lambda values: selection.select_pairs(values, 5),
}
for name, function in functions.items():
    compiled = jax.jit(function, in_shardings=rows).lower(values).compile()
    assert "all-gather" not in compiled.as_text(), name
    found = compiled(jax.device_put(values, rows))
    for given, expected in zip(jax.tree.leaves(found), jax.tree.leaves(function(values[:3])), strict=True):
        np.testing.assert_array_equal(given[:3], expected)
plain = jax.jit(lambda values: keras.ops.top_k(values, 7), in_shardings=rows).lower(values).compile()
print("all-gather" in plain.as_text())
"""


def test_devices_on_jax_choose_from_their_own_pictures():
    pytest.importorskip("jax")
    environment = {**os.environ, "KERAS_BACKEND": "jax", "PYTHONPATH": str(ROOT)}
    environment["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"
    command = [sys.executable, "-c", SHARED_SCRIPT]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip() == "True"  # otherwise Keras's own `top_k` works by now


# Around 1000, neighbours in float32 differ by 6e-5, a two-hundredth of these values' deviations. PyTorch's
# moments, which Keras takes as a difference of squares, have six digits left in float64.
DOUBLE_SCRIPT = """
import keras
import numpy as np

from heads.layers.blocks import BatchNormalization as OfHeads
from van_backbones.normalization import BatchNormalization as OfBackbone

inputs = 1000.0 + 1e-2 * np.random.default_rng(0).normal(size=(2, 3, 4, 5))
expected = (inputs - inputs.mean((0, 1, 2))) / np.sqrt(inputs.var((0, 1, 2)) + 1e-12)
for layer_class in (OfHeads, OfBackbone):
    layer = layer_class(epsilon=1e-12, dtype="float64")
    outputs = layer(keras.ops.convert_to_tensor(inputs, "float64"), training=True)
    assert keras.backend.standardize_dtype(outputs.dtype) == "float64"
    np.testing.assert_allclose(keras.ops.convert_to_numpy(outputs), expected, rtol=1e-4, atol=1e-4)
"""


@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_norms_in_float64(backend):
    pytest.importorskip(backend)
    environment = {**os.environ, "KERAS_BACKEND": backend, "PYTHONPATH": str(ROOT), "JAX_ENABLE_X64": "1"}
    command = [sys.executable, "-c", DOUBLE_SCRIPT]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
