"""Models with random weights, their files, and a comparison of two models."""

import numpy as np
import pytest

from van_backbones.checkpoints.layouts import name_variables


def write_torch(arrays, path, wrap=lambda tensors: tensors, **options):
    torch = pytest.importorskip("torch")
    tensors = {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}
    torch.save(wrap(tensors), path, **options)
    return path


def randomize(model, seed=0):
    random = np.random.default_rng(seed)
    for variable in model.variables:
        if "seed" not in variable.path:
            variable.assign(random.uniform(0.1, 0.9, variable.shape))


def assert_equal_weights(model, other):
    ours, theirs = name_variables(model), name_variables(other)
    assert ours.keys() == theirs.keys()
    for name in ours:
        np.testing.assert_array_equal(ours[name].numpy(), theirs[name].numpy(), err_msg=name)
