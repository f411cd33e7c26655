"""Training with `recompute=True` has the same numbers as without it, on every backend."""

import os
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest

from van_backbones import VANBackbone
from van_backbones.layers import VANBlock

TESTS = pathlib.Path(__file__).resolve().parent
SMALL = {"widths": (8, 8, 16, 16), "depths": (1, 1, 1, 1)}


def build_small(**kwargs):
    # Every Dropout takes its seed from Python's generator: the same noise in each model.
    keras.utils.set_random_seed(0)
    backbone = VANBackbone("b0", **{**SMALL, "drop_path_rate": 0.5, **kwargs})
    random = np.random.default_rng(1)
    for variable in backbone.weights:
        if variable.ndim == 1:
            # Values that matter: initially, the layer scale hides the branches.
            variable.assign(random.uniform(0.5, 1.5, variable.shape))
    return backbone


def train_one_step(backbone, **compile_arguments):
    """Returns name -> array: the loss of a training step, the gradients and the state after it."""
    random = np.random.default_rng(0)
    images = random.uniform(0, 255, (6, 33, 48, 3)).astype("float32")
    pooled = [keras.layers.GlobalAveragePooling2D()(x) for x in backbone.pyramid_outputs.values()]
    head = keras.layers.Dense(1, kernel_initializer="ones", dtype="float32")
    model = keras.Model(backbone.input, head(keras.layers.Concatenate()(pooled)))
    # After one step at a rate of 1, the momenta are the gradients with the opposite sign.
    model.compile(optimizer=keras.optimizers.SGD(1.0, momentum=0.9), loss="mse", **compile_arguments)
    results = {"loss": model.train_on_batch(images, np.arange(6.0).reshape(6, 1))}
    for index, variable in enumerate(model.trainable_variables):
        results[f"gradient {index} {variable.name}"] = model.optimizer.momentums[index]
    for index, variable in enumerate(model.non_trainable_variables):
        results[f"state {index} {variable.name}"] = variable
    return {name: keras.ops.convert_to_numpy(array).astype("float64") for name, array in results.items()}


def largest_difference(results, expected):
    """Returns the largest difference of any array, relative to the largest value in it."""
    assert results.keys() == expected.keys()
    largest_gradient = max(np.abs(array).max() for name, array in expected.items() if "kernel" in name)
    differences = []
    for name, array in expected.items():
        # A bias before a norm has no gradient but rounding errors.
        unit = largest_gradient if "bias" in name else max(np.abs(array).max(), 1e-30)
        differences.append(np.abs(results[name] - array).max() / unit)
    return max(differences)


def compare_steps(policy="float32", frozen=(0, False), **compile_arguments):
    """Returns `largest_difference` between a step with recomputation and one without."""
    keras.config.set_dtype_policy(policy)
    results = []
    try:
        for recompute in (False, True):
            backbone = build_small(recompute=recompute)
            backbone.freeze(*frozen)
            results.append(train_one_step(backbone, **compile_arguments))
    finally:
        keras.config.set_dtype_policy("float32")
    return largest_difference(*results)


CASES = {
    "float32": {"frozen": (1, False)},  # the first stage frozen, the others not
    "half": {"policy": "mixed_bfloat16"},
    "frozen norms": {"frozen": (0, True)},
}
MODES = {"eager": {"run_eagerly": True}, "graph": {"jit_compile": False}, "xla": {"jit_compile": True}}


@pytest.mark.parametrize(
    ("case", "mode"),
    [
        ("float32", "eager"),
        ("half", "eager"),
        ("frozen norms", "eager"),
        pytest.param("float32", "graph", marks=pytest.mark.slow),
        pytest.param("half", "graph", marks=pytest.mark.slow),
        pytest.param("float32", "xla", marks=pytest.mark.slow),
    ],
)
def test_a_training_step_gives_the_same_numbers(case, mode):
    assert compare_steps(**CASES[case], **MODES[mode]) <= 1e-5


def test_other_noise_would_show():
    keras.utils.set_random_seed(0)
    expected = train_one_step(build_small(), run_eagerly=True)
    backbone = build_small()
    seeds = [variable for variable in backbone.non_trainable_variables if "seed" in variable.path]
    assert len(seeds) == 3  # the first block has a rate of 0
    seeds[-1].assign(seeds[-1] + 1)
    assert largest_difference(train_one_step(backbone, run_eagerly=True), expected) > 1e-2


# Prints the largest difference for each named case.
SCRIPT = """
import sys
import test_recompute

for name in sys.argv[1:]:
    print("difference", test_recompute.compare_steps(**test_recompute.CASES[name]))
"""


# Compiling takes JAX many seconds for every case.
@pytest.mark.slow
@pytest.mark.parametrize(("backend", "cases"), [("jax", ["float32"]), ("torch", list(CASES))])
def test_other_backends_give_the_same_numbers_too(backend, cases):
    pytest.importorskip(backend)
    environment = os.environ | {
        "KERAS_BACKEND": backend,
        "TF_CPP_MIN_LOG_LEVEL": "2",
        # Compiling is nearly all that JAX does here.
        "XLA_FLAGS": "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true",
    }
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT, *cases],
        cwd=TESTS,
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert run.returncode == 0, run.stderr[-4000:]
    differences = [float(line.split()[1]) for line in run.stdout.splitlines() if "difference" in line]
    assert len(differences) == len(cases)
    assert max(differences) <= 1e-5


@pytest.mark.parametrize("recompute", [False, True])
def test_blocks_run_again_in_the_backward_pass(recompute, monkeypatch):
    calls = []
    train = VANBlock._train

    def counted(block, *args):
        calls.append(block.name)
        return train(block, *args)

    monkeypatch.setattr(VANBlock, "_train", counted)
    train_one_step(build_small(recompute=recompute), run_eagerly=True)
    names = [f"stage{stage}_block0" for stage in (1, 2, 3, 4)]
    assert calls == (names + names[::-1] if recompute else names)


@pytest.mark.slow
def test_training_takes_images_of_another_size():
    backbone = build_small(recompute=True)
    pooled = keras.layers.GlobalAveragePooling2D()(backbone.pyramid_outputs["P5"])
    model = keras.Model(backbone.input, pooled)
    model.compile(optimizer="sgd", loss="mse")
    for height, width in ((32, 64), (47, 33)):
        loss = model.train_on_batch(np.ones((2, height, width, 3), "float32"), np.ones((2, 16), "float32"))
        assert np.isfinite(loss)


def test_recompute_is_saved(tmp_path):
    assert not build_small().recompute
    backbone = build_small(recompute=True)
    backbone.save(tmp_path / "backbone.keras")
    again = keras.saving.load_model(tmp_path / "backbone.keras")
    assert again.recompute
    assert again.get_config() == backbone.get_config()
    assert all(again.get_layer(f"stage{stage}_block0").recompute for stage in (1, 2, 3, 4))
    images = np.random.default_rng(0).uniform(0, 255, (1, 40, 33, 3)).astype("float32")
    for level, outputs in build_small()(images).items():
        np.testing.assert_array_equal(again(images)[level], outputs)
