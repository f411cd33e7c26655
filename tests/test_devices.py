"""Detectors on two devices of one machine learn what one device learns from the joint batch."""

import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).resolve().parents[1]
HEADS = ["RetinaNet", "GFL", "ATSS", "MaskRCNN", "CascadeMaskRCNN", "SparseRCNN", "Mask2Former"]

# Two logical devices are a setting of the process.
SCRIPT = """
import contextlib
import sys

import keras
import numpy as np
import tensorflow as tf

sys.path.insert(0, "tests")
import contracts
import heads
from detection_reference import take_first

head, devices, path = sys.argv[1], int(sys.argv[2]), sys.argv[3]
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * devices)
names = [f"CPU:{device}" for device in range(devices)]
scope = tf.distribute.MirroredStrategy(names).scope() if devices > 1 else contextlib.nullcontext()
options = {"channels": 8} | ({"box_head": "2fc"} if head == "CascadeMaskRCNN" else {})
if head.endswith("RCNN"):
    options["num_proposals"] = 12
if head == "SparseRCNN":
    options["num_stages"] = 1  # rounding grows from stage to stage
classes = {"num_classes": 3}
if head == "Mask2Former":
    classes = {"num_things": 2, "num_stuff": 1}
    options |= {"num_queries": 12, "num_encoder_layers": 1, "num_decoder_layers": 1, "num_points": 64}


def draw_points(shape):
    places = np.outer(np.arange(1, shape[-2] + 1), (0.7549, 0.5698)) % 1.0
    return keras.ops.broadcast_to(keras.ops.convert_to_tensor(places.astype("float32")), shape)


with scope:
    keras.utils.set_random_seed(0)
    model = getattr(heads, head)(contracts.PooledBackbone(), **classes, **options)
    model.draw_priorities, model.draw_points = take_first, draw_points
    model.compile(keras.optimizers.SGD(0.001))
# Three objects on the first device, one on the second.
boxes = np.zeros((4, 2, 4), "float32")
boxes[0] = [[4, 6, 30, 40], [20, 30, 60, 62]]
boxes[1, 0], boxes[3, 0] = [10, 10, 50, 30], [0, 20, 33, 60]
labels = np.array([[0, 1], [2, -1], [-1, -1], [1, -1]], "int32")
targets = {"labels": labels} if head == "Mask2Former" else {"boxes": boxes, "labels": labels}
if model.with_masks or head == "Mask2Former":
    targets["masks"] = np.zeros((4, 2, 64, 64), "uint8")
    for index, row in np.argwhere(labels >= 0):
        left, top, right, bottom = boxes[index, row].astype(int)
        targets["masks"][index, row, top:bottom, left:right] = 1
images = np.random.default_rng(0).uniform(0, 255, (4, 64, 64, 3)).astype("float32")
history = model.fit(images, targets, batch_size=4, epochs=2, shuffle=False, verbose=0).history
weights = np.concatenate([np.ravel(weight) for weight in model.get_weights() if weight.dtype == "float32"])
np.savez(path, weights=weights, **history)
"""


@pytest.mark.parametrize("head", HEADS)
def test_two_devices_equal_one(head, tmp_path):
    results = []
    for devices in ("1", "2"):
        path = tmp_path / f"{devices}.npz"
        command = [sys.executable, "-c", SCRIPT, head, devices, str(path)]
        environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2", "KERAS_BACKEND": "tensorflow"}
        run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        assert run.returncode == 0, run.stderr[-3000:]
        results.append(dict(np.load(path)))
    one, two = results
    assert one["loss"][0] != one["loss"][1]
    np.testing.assert_allclose(two["loss"], one["loss"], rtol=1e-5)
    np.testing.assert_allclose(two["weights"], one["weights"], rtol=1e-5, atol=1e-6)


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
