import functools
import json
import os
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops

from heads import AdamW, WarmUpPolynomialDecay

SCHEDULE = functools.partial(WarmUpPolynomialDecay, 0.01, 2, 10, 0.9)


def train(optimizer, dtype="float32", num_steps=5, decorate=tf.function):
    """Returns the weights, and the optimizer's state, after some steps on drawn gradients."""
    generator = np.random.default_rng(0)
    shapes = {"kernel": (3, 4), "bias": (4,), "gamma": (4,)}
    variables = [
        keras.Variable(generator.normal(size=shape), dtype=dtype, name=name) for name, shape in shapes.items()
    ]
    optimizer.exclude_from_weight_decay(var_names=["gamma", "bias"])
    optimizer.build(variables)
    step = decorate(lambda *gradients: optimizer.apply(list(gradients)))
    for _ in range(num_steps):
        step(*(ops.convert_to_tensor(generator.normal(size=each.shape), dtype) for each in variables))
    return [ops.convert_to_numpy(each) for each in (*variables, *optimizer.variables)]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"learning_rate": SCHEDULE, "weight_decay": 0.05, "global_clipnorm": 1.0},
        {"amsgrad": True, "beta_1": 0.8, "beta_2": 0.99, "epsilon": 1e-3},
        {"learning_rate": SCHEDULE, "gradient_accumulation_steps": 2, "use_ema": True},
        {"loss_scale_factor": 4.0, "weight_decay": 0.0},
    ],
    ids=str,
)
def test_numbers_are_those_of_keras(options, dtype):
    def make(optimizer):
        rate = options.get("learning_rate", 0.01)
        return optimizer(**{**options, "learning_rate": rate() if callable(rate) else rate})

    results = train(make(AdamW), dtype), train(make(keras.optimizers.AdamW), dtype)
    if not options.get("amsgrad"):
        assert_equal_but_for_rounding(*results)
        return
    for our, their in zip(*results, strict=True):  # the same operations
        np.testing.assert_array_equal(our, their)


def assert_equal_but_for_rounding(ours, theirs):
    """Compares weights and states; in float32, 1 - 0.999 is wrong by 1e-5 of its value."""
    for our, their in zip(ours, theirs, strict=True):
        tolerance = 2e-5 if our.dtype == np.float32 else 1e-12
        np.testing.assert_allclose(our, their, rtol=tolerance, atol=0.05 * tolerance)


@pytest.mark.parametrize("decorate", [lambda step: step, functools.partial(tf.function, jit_compile=True)])
def test_steps_outside_of_graphs_and_in_compiled_ones_are_those_of_keras(decorate):
    assert_equal_but_for_rounding(
        *(train(make(0.01), decorate=decorate) for make in (AdamW, keras.optimizers.AdamW))
    )


def test_steps_are_as_the_paper_writes_them():
    """Loshchilov and Hutter, https://arxiv.org/abs/1711.05101, algorithm 2, in double precision."""
    rates, weight_decay = (0.1, 0.05, 0.02), 0.25
    gradients = np.random.default_rng(0).normal(size=(3, 2, 4))
    weights, mean, square = np.ones((2, 4)), 0.0, 0.0
    beta_1, beta_2 = np.float32([0.9, 0.999]).astype("float64")  # as Keras rounds them for the correction
    for step, (rate, gradient) in enumerate(zip(rates, gradients, strict=True), 1):
        mean, square = 0.9 * mean + 0.1 * gradient, 0.999 * square + 0.001 * gradient**2
        epsilon = 1e-7 / np.sqrt(1 - beta_2**step)  # Keras adds it before the correction
        change = (mean / (1 - beta_1**step)) / (np.sqrt(square / (1 - beta_2**step)) + epsilon)
        weights = weights - rate * weight_decay * weights - rate * change
    optimizer = AdamW(
        keras.optimizers.schedules.PiecewiseConstantDecay([0, 1], list(rates)), weight_decay=weight_decay
    )
    variable = keras.Variable(np.ones((2, 4)), dtype="float64")
    optimizer.build([variable])
    for gradient in gradients:
        optimizer.apply([ops.convert_to_tensor(gradient, "float64")])
    np.testing.assert_allclose(variable, weights, rtol=1e-7)  # the rates are in float32


def test_norms_are_not_decayed():
    optimizer = AdamW(0.1, weight_decay=0.5)
    variables = [keras.Variable(np.ones(2), name=name) for name in ("kernel", "gamma")]
    optimizer.exclude_from_weight_decay(var_names=["gamma"])
    optimizer.build(variables)
    optimizer.apply([ops.zeros(2), ops.zeros(2)])
    np.testing.assert_allclose(variables[0], 0.95)
    np.testing.assert_array_equal(variables[1], 1.0)


def test_variables_add_few_operations():
    """Nothing that is the same for all variables is computed for each of them."""

    def count_operations(num_variables):
        optimizer = AdamW(SCHEDULE())
        optimizer.build([keras.Variable(np.ones(2)) for _ in range(num_variables)])
        step = tf.function(lambda *gradients: optimizer.apply(list(gradients)))
        graph = step.get_concrete_function(*[tf.ones(2)] * num_variables).graph
        return len(graph.get_operations())

    assert (count_operations(12) - count_operations(2)) / 10 <= 10


REPLICAS = """
import keras, numpy as np, tensorflow as tf
from heads import AdamW, WarmUpPolynomialDecay

cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])

def train(optimizer_class):
    with strategy.scope():
        variable = keras.Variable(np.ones(3), name="kernel")
        optimizer = optimizer_class(WarmUpPolynomialDecay(0.1, 2, 10), weight_decay=0.1)
        optimizer.build([variable])

    @tf.function
    def step():
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group
        optimizer.apply([tf.constant([1.0, -2.0, 0.5]) * (1.0 + tf.cast(replica, "float32"))], [variable])

    for _ in range(3):
        strategy.run(step)
    return np.stack([value.numpy() for value in strategy.experimental_local_results(variable.value)])

ours, theirs = train(AdamW), train(keras.optimizers.AdamW)
assert ours.shape == (2, 3)
assert (ours != 1.0).all()
np.testing.assert_array_equal(ours[0], ours[1])
np.testing.assert_allclose(ours, theirs, rtol=2e-6)
"""


def test_replicas_learn_what_they_learn_with_keras():
    run = subprocess.run([sys.executable, "-c", REPLICAS], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]


def test_a_compiled_model_keeps_it(tmp_path):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile(AdamW(SCHEDULE(), weight_decay=0.1), "mse")
    model.fit(np.ones((2, 2)), np.ones((2, 1)), verbose=0)
    model.save(tmp_path / "model.keras")
    optimizer = keras.saving.load_model(tmp_path / "model.keras").optimizer
    assert type(optimizer) is AdamW
    assert optimizer.get_config() == model.optimizer.get_config()
    for ours, theirs in zip(optimizer.variables, model.optimizer.variables, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_states_of_keras_resume(tmp_path):
    def make(optimizer):
        model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        model.compile(optimizer(SCHEDULE()), "mse")
        model.optimizer.build(model.trainable_variables)
        return model

    before, after = make(keras.optimizers.AdamW), make(AdamW)
    before.fit(np.ones((2, 2)), np.ones((2, 1)), verbose=0)
    before.save_weights(tmp_path / "state.weights.h5")
    after.load_weights(tmp_path / "state.weights.h5")
    assert int(after.optimizer.iterations) == 1
    for ours, theirs in zip(after.optimizer.variables, before.optimizer.variables, strict=True):
        np.testing.assert_array_equal(ours, theirs)


SCRIPT = """
import json, keras, numpy as np
from keras import ops
from heads import AdamW, WarmUpPolynomialDecay

model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
model.layers[0].set_weights([np.arange(6.0).reshape(3, 2) / 6, np.ones(2)])
model.compile(AdamW(WarmUpPolynomialDecay(0.01, 2, 10, 0.9), weight_decay=0.1), "mse")
inputs = np.arange(24.0).reshape(8, 3) / 24
model.fit(inputs, inputs[:, :2], batch_size=2, shuffle=False, verbose=0)
values = [ops.convert_to_numpy(value).tolist() for value in model.trainable_variables]
print(json.dumps([type(model.optimizer).__module__, values]))
"""


@pytest.mark.slow
def test_other_backends():
    results = {}
    for backend in ("tensorflow", "jax", "torch"):
        environment = {**os.environ, "KERAS_BACKEND": backend}
        run = subprocess.run(
            [sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, check=True
        )
        results[backend] = json.loads(run.stdout.splitlines()[-1])
    modules = {backend: module for backend, (module, _) in results.items()}
    assert modules["tensorflow"] == modules["jax"] == "heads.optimizers"
    assert modules["torch"].startswith("keras.")
    for backend in ("jax", "torch"):
        for ours, theirs in zip(results[backend][1], results["tensorflow"][1], strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-5)
