"""Reference outputs of the original PyTorch models, for the tests that compare: see data/golden/README.md.

The developers have more of them in ../shared/golden; if a file is in neither place, the test is skipped.
"""

import contextlib
import json
import pathlib
import zlib

import keras
import numpy as np
import pytest

TESTS = pathlib.Path(__file__).resolve().parent
ROOTS = (TESTS.parents[1] / "shared" / "golden", TESTS / "data" / "golden")


class Sampled:
    """A large output that is known at some positions: `shape`, `index` (flat), `value`, perhaps `absmax`."""

    def __init__(self, **fields):
        vars(self).update(fields)


def find(path):
    """Returns where a reference file is, or skips the test."""
    for root in ROOTS:
        if (root / path).exists():
            return root / path
    pytest.skip(f"the reference output {path} is not in {' or '.join(map(str, ROOTS))}")


def checkpoint(model):
    """Returns a model's weights as its original would save them: name -> array, all made by a formula."""
    table = json.loads(find(f"{model}/keys.json").read_text())
    weights = {name: make_weight(name, row, table["seed"]) for name, row in table["keys"].items()}
    total = weights[table["check"]["key"]].sum(dtype="float64")
    assert total == pytest.approx(table["check"]["sum"], abs=1e-4), "NumPy's random numbers have changed"
    return weights


def make_weight(name, row, seed):
    """Returns the weight that a row of `keys.json` describes."""
    shape, dtype = row["shape"], row["dtype"]
    if row["kind"] == "constant":
        return np.full(shape, row["value"], dtype)
    if row["kind"] == "explicit":
        return np.array(row["value"], dtype).reshape(shape)
    random = np.random.default_rng([seed, zlib.crc32(name.encode())])
    if row["kind"] == "uniform":
        return (row["low"] + (row["high"] - row["low"]) * random.random(shape)).astype(dtype)
    values = random.standard_normal(shape)
    if isinstance(row["std"], list):  # several matrices in one array, each with its own deviation
        deviations = np.repeat(row["std"], shape[0] // len(row["std"]))
        values *= deviations.reshape(-1, *[1] * (len(shape) - 1))
    else:
        values = row["mean"] + row["std"] * values
    if "center_axis" in row:
        values = values - values.mean(row["center_axis"], keepdims=True)
    return values.astype(dtype)


def make_input(shape, seed):
    """Returns normalised images (batch, channels, height, width): noise over squares of 16 x 16 pixels."""
    random = np.random.default_rng([0, seed])
    *rows, height, width = (int(side) for side in shape)
    noise = random.standard_normal((*rows, height, width))
    squares = random.standard_normal((*rows, -(-height // 16), -(-width // 16)))
    squares = squares.repeat(16, axis=2).repeat(16, axis=3)[:, :, :height, :width]
    return (0.6 * noise + 1.2 * squares).astype("float32")


def load(path):
    """Returns the arrays of a reference file by name; large outputs as `Sampled`."""
    fields = {}
    with np.load(find(path)) as file:
        for key in file.files:
            name, _, field = key.partition("@")
            fields.setdefault(name, {})[field] = file[key]
    found = {}
    for name, parts in fields.items():
        if "seed" in parts:
            found[name] = make_input(parts["shape"], int(parts["seed"]))
        else:
            found[name] = Sampled(**parts) if "index" in parts else parts[""]
    return found


@contextlib.contextmanager
def computing_in(dtype):
    """What is built inside computes in a dtype: in float64, what differs is the reference's own rounding."""
    floatx, policy = keras.config.floatx(), keras.config.dtype_policy()
    keras.config.set_floatx(dtype)
    keras.config.set_dtype_policy(dtype)
    try:
        yield
    finally:
        keras.config.set_floatx(floatx)
        keras.config.set_dtype_policy(policy)


def check(reference, array, tolerance=2e-5):
    """Compares an array with its reference, in units of the reference's largest absolute value."""
    array = np.asarray(array)
    assert tuple(array.shape) == tuple(map(int, reference.shape))
    expected, got = reference, array
    if isinstance(reference, Sampled):
        expected, got = reference.value, array.ravel()[reference.index]
    if got.size:
        largest = float(getattr(reference, "absmax", 0)) or np.abs(expected).max()
        error = np.abs(got.astype("float64") - expected).max() / max(largest, 1e-12)
        assert error <= tolerance, f"the relative error is {error:.3g}"


def to_nchw(array):
    """Returns an array in PyTorch's layout."""
    return np.asarray(array).transpose(0, 3, 1, 2)


def compare_training(model, reference, gradients, variables, tolerance, rounding=1e-5, head_tolerance=None):
    """Compares the gradients and the batch norms' new statistics that the reference of `model` holds.

    `rounding` is the length of a gradient that is 0 except for rounding, `head_tolerance` the limit for the
    lengths of the gradients outside of the backbone, in which rounding errors grow.
    """
    compared = 0
    for key, expected in reference.items():
        kind, _, name = key.partition(":")
        if kind not in ("grad", "buf_after"):
            continue
        array = np.asarray(gradients[name] if kind == "grad" else variables[name])
        if array.ndim == 4:
            axes = (2, 3, 0, 1) if ".conv_spatial." in name else (3, 2, 0, 1)
            array = array.transpose(axes)
        check(expected, array, tolerance)
        compared += 1
    assert compared >= 8

    lengths = json.loads(find(f"{model}/loss_train.grads.json").read_text())["grad_l2"]
    assert set(lengths) == set(gradients)
    for name, expected in lengths.items():
        # The gradients of biases right before a batch norm are rounding errors around 0.
        got = float(np.linalg.norm(np.ravel(gradients[name])))
        in_head = head_tolerance is not None and not name.startswith("backbone.")
        limit = head_tolerance if in_head else 5 * tolerance
        assert got == pytest.approx(expected, rel=limit, abs=rounding), name
