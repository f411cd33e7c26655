"""Depthwise convolutions on JAX and PyTorch, outputs and gradients against loops."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from test_cpu_kernels import convolve_depthwise_slowly, differentiate_depthwise_slowly

ROOT = pathlib.Path(__file__).parent.parent
CASES = [
    ((9, 12), 3, 1),
    ((7, 5), 5, 1),
    ((9, 12), 7, 3),
    ((16, 10), 7, 3),
    ((2, 3), 7, 3),
    ((1, 1), 7, 3),
    ((8, 1), 3, 2),
]
# Every case runs in the form for CPUs and in that for accelerators.
SCRIPT = """
import json, sys
import keras
import numpy as np
from van_backbones import depthwise

cases, folder = json.loads(sys.argv[1]), sys.argv[2]
backend = keras.backend.backend()


def differentiate(function, maps, kernel, weights):
    if backend == "jax":
        import jax
        measure = lambda maps, kernel: (function(maps, kernel) * weights).sum()
        return jax.jit(function)(maps, kernel), jax.jit(jax.grad(measure, (0, 1)))(maps, kernel)
    maps.requires_grad_(), kernel.requires_grad_()
    outputs = function(maps, kernel)
    (outputs * weights).sum().backward()
    return outputs, (maps.grad, kernel.grad)


forms = {"own": depthwise._runs_on_jax_cpu, "accelerators": lambda: False}
for form, runs_on_jax_cpu in forms.items():
    depthwise._runs_on_jax_cpu = runs_on_jax_cpu
    for number, (_, _, dilation) in enumerate(cases):
        for dtype in ("float32", "bfloat16", "float64") if number in (2, 5) else ("float32",):
            with np.load(f"{folder}/{number}.npz") as file:
                names = ("maps", "kernel", "weights")
                arrays = [keras.ops.convert_to_tensor(file[name], dtype) for name in names]
            outputs, gradients = differentiate(
                lambda maps, kernel: depthwise.convolve_depthwise(maps, kernel, dilation), *arrays
            )
            tensors = (outputs, *gradients)
            assert {keras.backend.standardize_dtype(each.dtype) for each in tensors} == {dtype}
            found = [keras.ops.convert_to_numpy(keras.ops.cast(each, "float32")) for each in tensors]
            np.savez(f"{folder}/{number}_{form}_{dtype}.npz", *found)
"""


@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_outputs_and_gradients(tmp_path, backend):
    pytest.importorskip(backend)
    random = np.random.default_rng(0)
    expected = []
    for number, (size, side, dilation) in enumerate(CASES):
        # Quarters are exact in half precision, and so are their products.
        shapes = {"maps": (2, *size, 6), "kernel": (side, side, 6, 1), "weights": (2, *size, 6)}
        arrays = {
            name: (random.integers(-2, 3, shape) / 4).astype("float32") for name, shape in shapes.items()
        }
        np.savez(tmp_path / f"{number}.npz", **arrays)
        maps, kernel, weights = arrays.values()
        outputs = convolve_depthwise_slowly(maps, kernel, 0.0, dilation)
        expected.append([outputs, *differentiate_depthwise_slowly(maps, kernel, weights, dilation)[:2]])
    environment = {**os.environ, "KERAS_BACKEND": backend, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    environment["JAX_ENABLE_X64"] = "1"  # JAX has no float64 otherwise
    command = [sys.executable, "-c", SCRIPT, json.dumps(CASES), str(tmp_path)]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stderr[-4000:]
    roundings = {"float32": 1e-6, "bfloat16": 2**-8, "float64": 1e-6}  # compared as float32
    files = sorted(tmp_path.glob("*_*_*.npz"))
    assert len(files) == 2 * (len(CASES) + 2 * 2)  # two forms; half and double precision in two of the cases
    for file in files:
        number, form, dtype = file.stem.split("_")
        number, rounding = int(number), roundings[dtype]
        with np.load(file) as found:
            for name, wanted in zip(found.files, expected[number], strict=True):
                case = f"{CASES[number]}, {form}, {dtype}, {name}"
                np.testing.assert_allclose(found[name], wanted, rtol=rounding, atol=1e-5, err_msg=case)
