"""The reference outputs of the original PyTorch models (`../shared/golden`), for the tests that compare.

from golden_reference import check, checkpoint, load, needs_golden
"""

import importlib.util
import json
import pathlib

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2] / "shared" / "golden"


def _import_reader():
    """Gives the module `golden.py` that lies with the reference outputs, or None where they are missing."""
    path = ROOT / "golden.py"
    if not path.exists():
        return None
    spec = importlib.util.spec_from_file_location("golden", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _skip(*args, **kwargs):
    pytest.skip(f"the reference outputs are not at {ROOT}")


_reader = _import_reader()
needs_golden = pytest.mark.skipif(_reader is None, reason=f"the reference outputs are not at {ROOT}")
checkpoint = _reader.checkpoint if _reader else _skip
load = _reader.load if _reader else _skip
check = _reader.check if _reader else _skip


def to_nchw(array):
    """Gives an array in PyTorch's layout."""
    return np.asarray(array).transpose(0, 3, 1, 2)


def compare_training(model, reference, gradients, variables, tolerance, rounding=1e-5):
    """Compares the gradients and the batch norms' new statistics that the reference of `model` holds.

    `rounding` is the length of a gradient that is 0 but for rounding.
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

    lengths = json.loads((ROOT / model / "loss_train.grads.json").read_text())["grad_l2"]
    assert set(lengths) == set(gradients)
    for name, expected in lengths.items():
        # The gradients of biases right before a batch norm are rounding errors around 0.
        got = float(np.linalg.norm(np.ravel(gradients[name])))
        assert got == pytest.approx(expected, rel=5 * tolerance, abs=rounding), name
