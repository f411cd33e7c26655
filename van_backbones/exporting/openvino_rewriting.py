"""Repairs OpenVINO's converter and rewrites slow parts of its graphs; results stay equal."""

import contextlib

from van_backbones.exporting.openvino_lists import replace_lists
from van_backbones.exporting.openvino_sorting import replace_sorts


def rewrite_openvino(path):
    """Rewrites an OpenVINO export: its sorts, and the lists that its loops fill.

    Args:
        path: the `.xml` file, which is written anew with its `.bin`.
    """
    import openvino

    core = openvino.Core()
    core.set_property({"ENABLE_MMAP": False})  # the file of weights is written while the model lives
    model = core.read_model(str(path))
    if replace_sorts(model) + replace_lists(model):
        openvino.serialize(model, str(path))


@contextlib.contextmanager
def mended_converter():
    """Lets OpenVINO convert models on Python 3.13 and later.

    Version 2026.4 looks up TensorFlow's version between `exec("import tensorflow")` and `exec("del
    tensorflow")`, in a function, where the second no longer sees the name from the first. Both do nothing
    here, since TensorFlow is imported already.
    """
    from openvino.frontend.tensorflow import utils

    utils.exec = lambda code: None
    try:
        yield
    finally:
        del utils.exec
