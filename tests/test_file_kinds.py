"""What files without weights are."""

import json
import zipfile

import numpy as np
import pytest

from van_backbones import load_checkpoint
from van_backbones.checkpoints.file_kinds import describe_file
from van_backbones.checkpoints.formats import read_state_dict


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "empty, 0 bytes"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 16490000\n", "git lfs pull"),
        (b"\n<!DOCTYPE html><html><body>Log in</body></html>", "web page"),
        (b'{"architectures": ["VanForImageClassification"]}', "JSON"),
        (b"not weights at all", "is text"),
        (b"\x1f\x8b\x08\x00", "gzip"),
        (b"\x93NUMPY\x01\x00", "NumPy array"),
        (b"\x80\x04\x95", "pickle that"),
        (b"PK\x03\x04 cut", "damaged or cut off"),
        (b"x" * 257 + b"ustar", "tar archive"),
    ],
)
@pytest.mark.parametrize("name", ["weights.bin", "weights.weights.h5", "weights.keras"])
def test_what_is_no_checkpoint_is_called_what_it_is(tmp_path, other_segmenter, content, match, name):
    (tmp_path / name).write_bytes(content)
    before = other_segmenter.get_weights()
    with pytest.raises(ValueError, match=match) as caught:
        load_checkpoint(other_segmenter, tmp_path / name)
    assert name in str(caught.value)
    for one, two in zip(before, other_segmenter.get_weights(), strict=True):
        np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("first", [b"\x80", b"{", b"PK", b"\x1f\x8b"])
def test_safetensors_whose_length_looks_like_another_format(tmp_path, first):
    # A file starts with the length of its header, so its first two bytes may be any.
    header = {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}
    length = int.from_bytes(first.ljust(2, b"\x01"), "little")
    text = json.dumps(header).ljust(length).encode()
    path = tmp_path / "weights.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + np.float32(1).tobytes())
    assert path.read_bytes().startswith(first)
    assert describe_file(path) is None
    with pytest.raises(ValueError, match="must hold VAN weights"):
        read_state_dict(path)


def test_zip_files_of_others(tmp_path):
    path = tmp_path / "weights.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("van/weights.pth", b"")
    with pytest.raises(ValueError, match=r"zip file, but neither.*van/weights\.pth"):
        read_state_dict(path)
    with zipfile.ZipFile(path, "w") as archive:
        for member in ("data.pkl", "constants.pkl", "code/__torch__.py"):
            archive.writestr(f"van/{member}", b"\x80\x02}q\x00.")
    with pytest.raises(ValueError, match=r"TorchScript.*torch\.jit\.load.*weights\.pth"):
        read_state_dict(path)
