"""Heads on two devices of one machine learn what one device learns from the joint batch."""

import os
import pathlib
import socket
import subprocess
import sys

import numpy as np
import pytest

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).resolve().parents[1]
HEADS = [
    *("SemanticFPN", "UPerNet", "RetinaNet", "GFL", "ATSS", "MaskRCNN", "CascadeMaskRCNN", "SparseRCNN"),
    *("Mask2Former", "SimpleBaseline", "EDN", "SemanticFPN/cross_entropy+dice"),
]


def train(head, num_devices, num_pictures, folder, backend="tensorflow", num_epochs=3):
    """Returns what tests/train_on_devices.py saves: name -> array."""
    path = folder / f"{num_devices}.npz"
    numbers = (num_devices, num_pictures, num_epochs)
    command = [sys.executable, "tests/train_on_devices.py", head, *numbers, path]
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2", "KERAS_BACKEND": backend}
    environment["PYTHONPATH"] = str(ROOT)
    environment["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={num_devices}"
    environments = [environment]
    if backend == "torch" and num_devices > 1:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            door = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
        ranks = [{"RANK": str(rank), "WORLD_SIZE": str(num_devices)} for rank in range(num_devices)]
        environments = [{**environment, **door, **rank} for rank in ranks]
    options = {"cwd": ROOT, "stderr": subprocess.PIPE, "text": True}
    runs = [subprocess.Popen(list(map(str, command)), env=each, **options) for each in environments]
    for run in runs:
        errors = run.communicate()[1]
        assert run.returncode == 0, errors[-3000:]
    return dict(np.load(path))


def compare(one, two):
    """Losses, metrics, weights and the statistics of norms are equal, and something was learned."""
    assert one.keys() == two.keys()
    losses = one["history/loss"]
    assert len(losses) == 1 or losses[0] != losses[-1]
    assert any("moving_variance" in name for name in one)
    for name, values in one.items():
        limits = {"rtol": 1e-5, "atol": 1e-5 * max(np.abs(values).max(), 0.1)}
        np.testing.assert_allclose(two[name], values, err_msg=name, **limits)


@pytest.mark.parametrize("head", HEADS)
def test_two_devices_equal_one(head, tmp_path):
    compare(*(train(head, num_devices, 4, tmp_path) for num_devices in (1, 2)))


# One head for each kind of loss. On JAX a batch is one array; PyTorch's processes have their own counts.
@pytest.mark.parametrize("backend", ["jax", "torch"])
@pytest.mark.parametrize("head", ["SemanticFPN", "GFL", "EDN"])
def test_two_devices_of_other_backends(head, backend, tmp_path):
    pytest.importorskip(backend)
    # For EDN only one step: after three, a maximum that rounding has moved is visible, on JAX too, where no
    # sum over devices is ours.
    num_epochs = 1 if head == "EDN" else 3
    compare(*(train(head, num_devices, 4, tmp_path, backend, num_epochs) for num_devices in (1, 2)))


# Semantic segmenters average over pixels, detectors over objects.
@pytest.mark.parametrize("head", ["SemanticFPN", "RetinaNet"])
def test_a_smaller_share_of_a_last_batch(head, tmp_path):
    one, two = (train(head, num_devices, 7, tmp_path) for num_devices in (1, 2))
    for results in (one, two):
        # Keras weights the total of each device by its share of the pictures.
        assert results.pop("history/loss")[0] > 0
    one["history/loss"] = two["history/loss"] = sum(
        values for name, values in one.items() if name.endswith("_loss") and name.startswith("history/")
    )
    compare(one, two)


# The Dice coefficient is that of the joint batch: 4 pictures on one device, or 2 on each of two.
MASK_LOSS_SCRIPT = """
import numpy as np
import tensorflow as tf

from heads.edn import compute_mask_loss

cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
random = np.random.default_rng(0)
logits = tf.constant(random.normal(size=(4, 5, 6)), tf.float32)
masks = tf.constant(random.random((4, 5, 6)) < [[[0.1]], [[0.0]], [[0.8]], [[0.5]]], tf.int32)


def compute(logits, masks, num_devices):
    with tf.GradientTape() as tape:
        tape.watch(logits)
        loss = compute_mask_loss(masks, logits) / num_devices  # as Keras divides it
    return loss, tape.gradient(loss, logits)


loss, gradient = compute(logits, masks, 1)
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
part = lambda values: strategy.experimental_distribute_values_from_function(
    lambda context: values[2 * context.replica_id_in_sync_group :][:2]
)
losses, gradients = tf.function(lambda *parts: strategy.run(compute, (*parts, 2)))(part(logits), part(masks))
losses, gradients = (strategy.experimental_local_results(values) for values in (losses, gradients))
np.testing.assert_allclose(sum(losses), loss, rtol=1e-6)
np.testing.assert_allclose(np.concatenate(gradients), gradient, atol=1e-7)
assert abs(float(losses[0] - losses[1])) > 1e-3
"""


def test_the_mask_loss_of_two_devices_is_that_of_one():
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2", "KERAS_BACKEND": "tensorflow"}
    command = [sys.executable, "-c", MASK_LOSS_SCRIPT]
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]
