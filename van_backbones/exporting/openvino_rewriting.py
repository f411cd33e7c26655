"""OpenVINO's graphs, rewritten where the converter's would run slowly; results stay equal."""

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
