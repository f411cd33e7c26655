"""PyTorch checkpoint files as NumPy arrays, without PyTorch, and without running anything in them.

The formats: https://docs.pytorch.org/docs/stable/notes/serialization.html. Since PyTorch 1.6 it is a zip file
with `<name>/data.pkl`, `<name>/data/<key>` and sometimes `<name>/byteorder`. Before that ("legacy"), it was
five pickles in a row (magic number, version, machine, the object, storage keys), then the storages, each
after its length.
"""

import io
import os
import zipfile

import numpy as np

from van_backbones.checkpoints.pickle_machine import CheckpointError, PickleMachine, Placeholder, describe

__all__ = ["CheckpointError", "Placeholder", "is_torch_file", "load_torch_file"]


def load_torch_file(path):
    """Returns what a PyTorch checkpoint file holds, with NumPy arrays for its tensors.

    Does not read complex, quantized and sparse tensors, whole modules, big-endian files, files from Python 2,
    and pickle protocols other than 2, the default of `torch.save`.

    Args:
        path: a file that `torch.save` wrote, in the zip or in the legacy format.

    Returns:
        Dicts, lists, tuples, strings, bytes, numbers, None, NumPy scalars and dtypes as they were saved;
        ordered dicts, default dicts and counters are dicts. A tensor or a parameter is a read-only array: a
        view of its storage, so tensors that shared memory still do; bfloat16 is `ml_dtypes.bfloat16`. Other
        known objects, such as an `argparse.Namespace`, are a `Placeholder`. All this takes memory of about
        the size of the file, and copies of all arrays would take at most 8 times as much and 256 MiB.

    Raises:
        CheckpointError: for a file that is not a checkpoint, is damaged, or asks for anything else.
        OSError: where the file cannot be opened.
    """
    with open(path, "rb") as file:
        try:
            return load_torch_stream(file)
        except CheckpointError as error:
            raise CheckpointError(f"{error}. Received: {os.fspath(path)!r}") from error.__cause__


def load_torch_stream(file):
    """Returns what a PyTorch checkpoint holds: see `load_torch_file`.

    Args:
        file: a binary file object that can seek.

    Raises:
        CheckpointError: for anything but a checkpoint of tensors and plain values.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    start = file.read(len(_LEGACY_START))
    if start == _LEGACY_START:
        return _load_legacy(file, size)
    if start.startswith(_ZIP_START):
        return _load_zip(file, size)
    raise CheckpointError(f"the file is not a PyTorch checkpoint: it starts with {start[:8]!r}")


def is_torch_file(path):
    """Returns whether `torch.save` wrote a file, judging by its first bytes.

    Args:
        path: any file.

    Raises:
        OSError: where the file cannot be opened.
    """
    with open(path, "rb") as file:
        start = file.read(30)
        # The first member's name is at byte 30, its length at byte 26: other files are zip as well.
        name = file.read(int.from_bytes(start[26:28], "little"))
    return start.startswith(_LEGACY_START) or (start.startswith(_ZIP_START) and name.endswith(b"/data.pkl"))


def _load_zip(file, size):
    """Returns what a checkpoint in the zip format holds.

    Args:
        file: a binary file object.
        size: its length in bytes.
    """
    try:
        archive = zipfile.ZipFile(file)
    except Exception as error:  # damaged files make zipfile raise errors of many kinds
        raise CheckpointError("the zip file is damaged or cut off") from error
    with archive:
        members = _index_members(archive.infolist())
        folders = [name.removesuffix("data.pkl") for name in members if name.endswith("/data.pkl")]
        if len(folders) != 1:
            raise CheckpointError(f"the zip file has {len(folders)} members `<name>/data.pkl` instead of one")

        if f"{folders[0]}constants.pkl" in members:
            raise CheckpointError(
                "the file is TorchScript, a program: load it with `torch.jit.load`, and `torch.save` its "
                "state_dict()"
            )

        def read(name):
            if folders[0] + name not in members:
                raise CheckpointError(f"the zip file has no {describe(folders[0] + name)}")
            return _read_member(archive, members[folders[0] + name], size)

        def read_storage(key, byte_count):
            data = read(f"data/{key}")
            if len(data) != byte_count:
                raise CheckpointError(
                    f"storage {describe(key)} has {len(data)} bytes instead of {byte_count}"
                )
            return np.frombuffer(data, np.uint8)

        if f"{folders[0]}byteorder" in members and read("byteorder") != b"little":
            raise CheckpointError("the byte order must be little")
        return PickleMachine(io.BytesIO(read("data.pkl")), size, read_storage).run()


def _index_members(infos):
    """Returns name -> `ZipInfo`, where every name stays inside the file and means one member."""
    members = {}
    for info in infos:
        name = info.filename
        if name in members or name.startswith("/") or "\\" in name or ".." in name.split("/"):
            raise CheckpointError(f"the zip file has a member twice or outside its folder: {describe(name)}")
        members[name] = info
    return members


def _read_member(archive, info, size):
    """Returns the bytes of a member of a zip file that is `size` bytes long, and compares their checksum."""
    name = describe(info.filename)
    if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size or info.flag_bits & 1:
        raise CheckpointError(f"{name} is compressed or encrypted, which `torch.save` never does")
    if info.file_size > size:
        raise CheckpointError(f"{name} claims to be longer than the file")
    try:
        data = archive.read(info)
    except Exception as error:  # as in _load_zip
        raise CheckpointError(f"{name} is damaged or cut off") from error
    if len(data) != info.file_size:
        raise CheckpointError(f"{name} is cut off")
    return data


def _load_legacy(file, size):
    """Returns what a checkpoint in the legacy format holds.

    Args:
        file: a binary file object just behind the pickled magic number.
        size: its length in bytes.
    """
    version = PickleMachine(file, size).run()
    if not isinstance(version, int) or version != 1001:
        raise CheckpointError("the version of the legacy format must be 1001")
    machine_facts = PickleMachine(file, size).run()
    if not isinstance(machine_facts, dict) or machine_facts.get("little_endian") is not True:
        raise CheckpointError("the byte order must be little")
    # The tensors come before their storages, so they view memory that is filled later.
    machine = PickleMachine(
        file, size, lambda key, byte_count: np.empty(byte_count, np.uint8), has_parts=True
    )
    result = machine.run()
    keys = PickleMachine(file, size).run()
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise CheckpointError("the storage keys of the legacy format must be a list of strings")
    if sorted(keys) != sorted(machine.storages):
        raise CheckpointError("the storage keys of the legacy format must be those that its tensors name")
    for key in keys:
        storage = machine.storages[key]
        length = file.read(8)
        if (
            len(length) == 8
            and int.from_bytes(length, "little") * storage.dtype.itemsize != storage.buffer.nbytes
        ):
            raise CheckpointError(f"storage {describe(key)} has a length other than that of its tensors")
        if len(length) != 8 or file.readinto(storage.buffer) != storage.buffer.nbytes:
            raise CheckpointError(f"the file is cut off in storage {describe(key)}")
    return result


_ZIP_START = b"PK\x03\x04"
_LEGACY_START = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # 0x1950A86A20F9469CFC6C as a pickle
