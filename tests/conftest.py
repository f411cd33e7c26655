"""What all tests share. No test uses the network: an attempt of the hub's client to download is an error."""

import contextlib
import gc
import os

import numpy as np
import pytest

with contextlib.suppress(ImportError):
    import triton  # noqa: F401  Part of PyTorch's CUDA build; loaded after TensorFlow, it crashes the process.

os.environ["HF_HUB_OFFLINE"] = "1"


@pytest.fixture(autouse=True, scope="module")
def _leave_old_graphs_alone():
    """Hides the graphs of earlier modules, which TensorFlow keeps for ever, from the garbage collector."""
    yield
    gc.collect()
    gc.freeze()


# A small segmenter and its files, for the tests of checkpoints.
SMALL = {"widths": (8, 8, 16, 16), "depths": (1, 1, 1, 1), "drop_path_rate": 0.0}


def build_segmenter(num_classes=3):
    # Imported here, because not every test needs to wait for TensorFlow.
    from heads import SemanticFPN
    from van_backbones import VANBackbone

    return SemanticFPN(VANBackbone("b0", **SMALL), num_classes, channels=8, pyramid_channels=8)


@pytest.fixture(scope="module")
def small_segmenter():
    model = build_segmenter()
    random = np.random.default_rng(0)
    for variable in model.weights:
        variable.assign(random.uniform(0.1, 0.9, variable.shape))
    return model


@pytest.fixture(scope="module")
def segmenter_files(small_segmenter, tmp_path_factory):
    """The same segmenter as safetensors, .weights.h5 and .keras: suffix -> path."""
    from van_backbones.checkpoints import save_state_dict

    folder = tmp_path_factory.mktemp("files")
    save_state_dict(small_segmenter, folder / "model.safetensors")
    small_segmenter.save_weights(folder / "model.weights.h5")
    small_segmenter.save(folder / "model.keras")
    return {"".join(path.suffixes): path for path in folder.iterdir()}


@pytest.fixture(scope="module")
def other_segmenter():
    return build_segmenter()
