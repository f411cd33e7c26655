"""Keras's own files, `.weights.h5` and `.keras`, as arrays, without running anything in them."""

import contextlib
import json
import os
import re
import shutil
import tempfile
import zipfile

import h5py
import keras
import ml_dtypes
import numpy as np
from keras.src.saving import saving_lib

from van_backbones.variants import VARIANTS

MEMBER = "model.weights.h5"


class KerasFile:
    """The arrays of an open file.

    Attributes:
        datasets: path inside of the file -> `h5py.Dataset`, without an optimizer's state.
        layer_norm_epsilon: the epsilon of the model in a `.keras` file, or None.
    """

    def __init__(self, file, config=None):
        self.datasets = {}
        file.visititems(self._visit)
        self.layer_norm_epsilon = _find_number(config, "layer_norm_epsilon")

    def _visit(self, name, item):
        if isinstance(item, h5py.Dataset) and not name.startswith("optimizer/"):
            if item.external or item.is_virtual:
                raise ValueError(f"{name} lies in another file")
            self.datasets[name] = item

    def find_variant(self):
        """Returns the published variant with the widths and depths of the arrays, or None."""
        embedding = re.compile(r"(?:.*/)?layers/overlap_patch_embedding(?:_\d)?/proj/vars/1")
        block = re.compile(r"(?:.*/)?layers/van_block(?:_\d+)?/norm1/vars/0")
        widths, depths = [], {}
        for name, dataset in self.datasets.items():
            if embedding.fullmatch(name):
                widths.append(dataset.shape[:1])
            elif block.fullmatch(name):
                depths[dataset.shape[:1]] = depths.get(dataset.shape[:1], 0) + 1
        for name, row in VARIANTS.items():
            rows = {(width,): depth for width, depth in zip(row.widths, row.depths, strict=True)}
            if sorted(widths) == sorted(rows) and depths == rows:
                return name
        return None


def is_keras_file(path):
    """Returns whether a file is HDF5 or a `.keras` archive, by its content.

    Args:
        path: a file.
    """
    with open(path, "rb") as file:
        if file.read(8) == b"\x89HDF\r\n\x1a\n":
            return True
        file.seek(0)
        if file.read(2) != b"PK":
            return False
        try:
            with zipfile.ZipFile(file) as archive:
                return MEMBER in archive.namelist()
        except Exception:  # damaged files make zipfile raise errors of many kinds
            return False


@contextlib.contextmanager
def open_keras_file(path):
    """Opens a `.weights.h5` or `.keras` file; a context manager that gives a `KerasFile`.

    Args:
        path: a file that `is_keras_file` knows.

    Raises:
        ValueError: where the file is damaged.
    """
    with contextlib.ExitStack() as stack:
        # Depending on the damage, HDF5 raises RuntimeError, OSError, KeyError, TypeError and others.
        with name_damage(path):
            if not h5py.is_hdf5(path):
                archive = stack.enter_context(zipfile.ZipFile(path))
                with archive.open("config.json") as member:
                    config = json.loads(member.read(2**26))
                extracted = stack.enter_context(_extract(archive, os.path.getsize(path)))
                opened = KerasFile(stack.enter_context(h5py.File(extracted)), config)
            else:
                opened = KerasFile(stack.enter_context(h5py.File(path)))
        yield opened


@contextlib.contextmanager
def _extract(archive, size):
    """Yields the arrays of a `.keras` archive of `size` bytes as a temporary file.

    HDF5 seeks back and forth, and inside an archive each seek backwards reads from the start again: half a
    minute for a small Sparse R-CNN.
    """
    limit = 8 * size + 2**28  # as for PyTorch's files; Keras does not compress
    if archive.getinfo(MEMBER).file_size > limit:
        raise ValueError(f"{MEMBER} unpacks to more than {limit} bytes")
    with tempfile.TemporaryFile() as extracted, archive.open(MEMBER) as member:
        shutil.copyfileobj(member, extracted, 2**20)
        yield extracted


@contextlib.contextmanager
def name_damage(path):
    """Turns whatever a damaged file raises into a ValueError with its path."""
    try:
        yield
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise ValueError(
            f"the Keras file is damaged or cut off; nothing was loaded. Copy it again ({reason}). "
            f"Received: {path!r}"
        ) from error


def read_array(dataset):
    """Returns a dataset of a Keras file as a NumPy array; bfloat16 as `ml_dtypes.bfloat16`."""
    kind = ml_dtypes.bfloat16 if dataset.attrs.get("dtype") == "bfloat16" else None
    return np.array(dataset, dtype=kind)


class _PathRecorder(saving_lib.H5IOStore):
    """Records where Keras would write each variable in a file."""

    # Keras has no public way from a variable to its place in a file.

    def __init__(self):
        self.mode, self.h5_file, self.variables = "w", True, {}

    def make(self, path, metadata=None):
        self._path = path
        return self

    def __setitem__(self, key, value):
        if isinstance(value, keras.Variable):
            self.variables[f"{self._path}/vars/{key}".lstrip("/")] = value


def name_keras_variables(model):
    """Returns a model's weights by their places in Keras's files: path inside the file -> variable.

    Args:
        model: a built Keras model.
    """
    recorder, weights = _PathRecorder(), {id(variable) for variable in model.weights}
    saving_lib._save_state(model, recorder, None, "", set())
    return {name: variable for name, variable in recorder.variables.items() if id(variable) in weights}


def _find_number(config, key):
    """Returns the first number under a key in nested dictionaries and lists, or None."""
    todo = [config]
    while todo:
        item = todo.pop()
        if isinstance(item, dict) and isinstance(item.get(key), int | float):
            return item[key]
        if isinstance(item, dict | list):
            todo.extend(item.values() if isinstance(item, dict) else item)
    return None
