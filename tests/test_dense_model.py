"""What `fit` does beside minimising a head's own losses."""

import json
import subprocess
import sys

import contracts
import keras
import numpy as np
import pytest

from heads import SemanticFPN


@pytest.fixture(scope="module")
def model():
    return SemanticFPN(contracts.PooledBackbone(), 3, channels=8, pyramid_channels=8)


@pytest.fixture(scope="module")
def batch():
    generator = np.random.default_rng(0)
    images = generator.uniform(0, 255, (2, 64, 64, 3)).astype("float32")
    return images, generator.integers(0, 3, (2, 64, 64)).astype("int32")


def test_regularizers_are_part_of_the_loss(model, batch):
    kernel = model.classifier.conv.kernel
    kernel.regularizer = keras.regularizers.L2(100.0)
    try:
        model.compile("sgd")
        scores = model.evaluate(*batch, verbose=0, return_dict=True)
    finally:
        kernel.regularizer = None
    penalty = 100.0 * float(np.sum(kernel.numpy() ** 2))
    assert penalty > 0.1
    assert scores["loss"] == pytest.approx(scores["segmentation_loss"] + penalty, rel=1e-5)


def test_compiled_options_come_back_from_files(model, batch, tmp_path):
    model.compile(keras.optimizers.SGD(0.5), metrics=[keras.metrics.SparseCategoricalAccuracy(name="right")])
    model.fit(*batch, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert int(loaded.optimizer.iterations) == 1
    ours, theirs = (each.evaluate(*batch, verbose=0, return_dict=True) for each in (loaded, model))
    assert ours == pytest.approx(theirs, rel=1e-5)
    assert "right" in ours


TWO_REPLICAS = """
import json, sys
import numpy as np, tensorflow as tf
devices = tf.config.list_physical_devices("CPU")
tf.config.set_logical_device_configuration(devices[0], [tf.config.LogicalDeviceConfiguration()] * 2)
import keras
sys.path.insert(0, "tests")
import contracts
from heads import RetinaNet, SemanticFPN

generator = np.random.default_rng(0)
# Both replicas get the same picture, so that both count as many objects.
images = np.repeat(generator.uniform(0, 255, (1, 64, 64, 3)).astype("float32"), 2, axis=0)
targets = {
    "SemanticFPN": np.repeat(generator.integers(0, 3, (1, 64, 64)).astype("int32"), 2, axis=0),
    "RetinaNet": {"boxes": np.array([[[5, 5, 40, 40]]] * 2, "float32"), "labels": np.zeros((2, 1), "int32")},
}

def train(head, strategy):
    with strategy.scope():
        keras.utils.set_random_seed(0)
        backbone = contracts.PooledBackbone()
        model = SemanticFPN(backbone, 3, channels=8, pyramid_channels=8, dropout_rate=0.0) \
            if head == "SemanticFPN" else RetinaNet(backbone, 3, channels=8, num_convs=1)
        for layer in model._flatten_layers():
            if isinstance(layer, keras.layers.BatchNormalization):
                layer.trainable = False
        model.compile(keras.optimizers.SGD(0.01))
    before = [variable.numpy() for variable in model.trainable_variables]
    data = tf.data.Dataset.from_tensor_slices((images, targets[head])).batch(2)
    history = model.fit(data, verbose=0).history
    moved = [variable.numpy() - old for variable, old in zip(model.trainable_variables, before)]
    return {name: values[0] for name, values in history.items()}, np.concatenate([m.ravel() for m in moved])

results = {}
for head in targets:
    one_losses, one = train(head, tf.distribute.OneDeviceStrategy("CPU:0"))
    two_losses, two = train(head, tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]))
    results[head] = {"one": one_losses, "two": two_losses, "step": float(two @ one / (one @ one))}
print(json.dumps(results))
"""


@pytest.mark.slow
def test_two_replicas_take_the_step_of_one_device():
    done = subprocess.run([sys.executable, "-c", TWO_REPLICAS], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    for head, result in json.loads(done.stdout.splitlines()[-1]).items():
        assert result["step"] == pytest.approx(1.0, rel=1e-3), head
        assert result["two"] == pytest.approx(result["one"], rel=1e-4), head
