"""Files that PyTorch saves are read as NumPy arrays and plain values, and nothing in them is run."""

import argparse
import collections
import os
import pathlib
import sys
import tracemalloc
import types

import numpy as np
import pytest

from van_backbones.checkpoints.pickle_machine import CheckpointError, Placeholder
from van_backbones.checkpoints.torch_file import is_torch_file, load_torch_file

torch = pytest.importorskip("torch")

FORMATS = {"zip": {}, "legacy": {"_use_new_zipfile_serialization": False}}
both_formats = pytest.mark.parametrize("options", FORMATS.values(), ids=FORMATS)


def save(value, path, options):
    torch.save(value, path, **options)
    assert is_torch_file(path)
    return load_torch_file(path)


@both_formats
def test_every_dtype_comes_back(options, tmp_path):
    names = "float64 float32 float16 bfloat16 int64 int32 int16 int8 uint8 bool uint16 uint32 uint64".split()
    saved = {name: torch.arange(6).reshape(2, 3).to(getattr(torch, name)) for name in names}
    result = save(saved, tmp_path / "x.pth", options)
    for name in names:
        assert result[name].dtype.name == name
        assert result[name].flags.c_contiguous
        expected = saved[name].double().numpy()
        np.testing.assert_array_equal(result[name].astype(np.float64), expected)


@both_formats
def test_views_come_back_and_share_memory(options, tmp_path):
    base = torch.arange(60, dtype=torch.float32).reshape(3, 4, 5)
    saved = {
        "base": base,
        "transposed": base.permute(2, 0, 1),
        "steps": base[1:, ::2, 1::3],
        "element": base[1, 2, 3],
        "expanded": base[:, :1, :1].expand(3, 7, 2),
        "diagonal": base.as_strided((3, 3), (1, 1), 5),
        "empty": base[:0],
        "new": torch.zeros(0, 3),
        "one": torch.tensor(2.5),
        "image": torch.rand(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "parameter": torch.nn.Parameter(torch.eye(2)),
    }
    result = save(saved, tmp_path / "x.pth", options)
    for name, tensor in saved.items():
        np.testing.assert_array_equal(result[name], tensor.detach().numpy(), err_msg=name)
        assert result[name].shape == tuple(tensor.shape)
    for name in ("transposed", "steps", "element", "expanded", "diagonal"):
        assert np.shares_memory(result[name], result["base"])
    assert not np.shares_memory(result["image"], result["base"])


@both_formats
def test_a_timm_checkpoint(options, tmp_path):
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, groups=1), torch.nn.BatchNorm2d(4))
    optimizer = torch.optim.AdamW(model.parameters(), 0.1)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [8, 11])
    model(torch.rand(2, 3, 5, 5)).sum().backward()
    optimizer.step()
    saved = {
        "epoch": 299,
        "arch": "van_b0",
        "state_dict": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "version": 2,
        "args": argparse.Namespace(model="van_b0", lr=1e-3, output=pathlib.Path("x"), betas=None),
        "amp_scaler": {"scale": 65536.0, "growth_factor": 2.0, "_growth_tracker": 3},
        "metric": 75.4,
        "lr_scheduler": scheduler.state_dict(),
        "groups": collections.defaultdict(list, {"a": [1]}),
    }
    result = save(saved, tmp_path / "x.pth.tar", options)
    assert list(result) == list(saved)
    for name, tensor in saved["state_dict"].items():
        np.testing.assert_array_equal(result["state_dict"][name], tensor.numpy())
    assert list(result["state_dict"]) == list(saved["state_dict"])
    moments = result["optimizer"]["state"][0]["exp_avg"]
    np.testing.assert_array_equal(moments, saved["optimizer"]["state"][0]["exp_avg"].numpy())
    assert result["optimizer"]["param_groups"] == saved["optimizer"]["param_groups"]
    assert result["args"] == Placeholder("argparse.Namespace")
    assert result["lr_scheduler"]["milestones"] == {8: 1, 11: 1}
    for name in ("epoch", "arch", "version", "amp_scaler", "metric", "groups"):
        assert result[name] == saved[name]


@both_formats
def test_an_mmengine_checkpoint(options, tmp_path, monkeypatch):
    for name in ("mmengine", "mmengine.logging", "mmengine.logging.history_buffer"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))

    class HistoryBuffer:
        def mean(self):
            raise RuntimeError("a method of a saved object was called")

        def __setstate__(self, state):
            raise RuntimeError("a saved object was built")

    HistoryBuffer.__module__, HistoryBuffer.__qualname__ = "mmengine.logging.history_buffer", "HistoryBuffer"
    HistoryBuffer.mean.__module__ = HistoryBuffer.__module__
    HistoryBuffer.mean.__qualname__ = "HistoryBuffer.mean"
    sys.modules[HistoryBuffer.__module__].HistoryBuffer = HistoryBuffer
    buffer = HistoryBuffer()
    buffer.__dict__ |= {"log": np.arange(5.0), "empty": np.array([]), "methods": {"mean": HistoryBuffer.mean}}
    saved = {
        "meta": {"epoch": 12, "classes": ("person", "car"), "best": np.float64(41.5), "seed": np.int64(7)},
        "state_dict": collections.OrderedDict(weight=torch.eye(2)),
        "message_hub": {"log_scalars": collections.OrderedDict(loss=buffer), "resumed": {"lr": True}},
        "history": np.arange(3),
    }
    result = save(saved, tmp_path / "x.pth", options)
    content = (tmp_path / "x.pth").read_bytes()
    assert b"getattr" in content
    assert result["meta"] == saved["meta"]
    assert type(result["meta"]["best"]) is np.float64
    np.testing.assert_array_equal(result["state_dict"]["weight"], np.eye(2))
    assert result["message_hub"]["log_scalars"] == {
        "loss": Placeholder("mmengine.logging.history_buffer.HistoryBuffer")
    }
    assert isinstance(result["history"], Placeholder)


class Hostile:
    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call


@both_formats
def test_nothing_in_a_file_is_run(options, tmp_path):
    mark = tmp_path / "hostile"
    cases = [
        ("names (posix|nt).system", Hostile(os.system, (f"echo x > {mark}",))),
        ("names _?io.open", Hostile(open, (str(mark), "w"))),
        (
            "names __builtin__.eval",
            {"state_dict": {"w": torch.eye(2)}, "args": [Hostile(eval, (f"open({str(mark)!r}, 'w')",))]},
        ),
        ("calls builtins.getattr", Hostile(getattr, (torch.Size([1]), "__class__"))),
        ("torch.nn.modules.linear.Linear", torch.nn.Linear(2, 2)),
        ("torch.ComplexFloatStorage", torch.zeros(2, dtype=torch.complex64)),
        ("_rebuild_sparse_tensor", torch.eye(2).to_sparse()),
        ("_rebuild_from_type_v2", torch.nn.Buffer(torch.eye(2))),
    ]
    for message, value in cases:
        with pytest.raises(CheckpointError, match=message) as caught:
            save(value, tmp_path / "x.pth", options)
        assert "x.pth" in str(caught.value)
        assert not mark.exists()


def test_protocol_4_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="protocol must be 2"):
        save({"w": torch.eye(2)}, tmp_path / "x.pth", {"pickle_protocol": 4})


@both_formats
def test_memory_is_about_the_size_of_the_file(options, tmp_path):
    saved = {str(index): torch.full((250, 1000), float(index)) for index in range(32)}
    torch.save(saved, tmp_path / "x.pth", **options)
    tracemalloc.start()
    try:
        result = load_torch_file(tmp_path / "x.pth")
        assert tracemalloc.get_traced_memory()[1] < 1.1 * (tmp_path / "x.pth").stat().st_size
    finally:
        tracemalloc.stop()
    assert all((array == float(name)).all() for name, array in result.items())
