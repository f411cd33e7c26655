"""The reference outputs of the original PyTorch models (`../shared/golden`), for the tests that compare.

from golden_reference import check, checkpoint, load, needs_golden
"""

import importlib.util
import pathlib

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
