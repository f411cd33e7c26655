"""Files that hold no weights: what they are, and what their user can do about it."""

import os
import zipfile

_ARCHIVES = {b"\x1f\x8b": "gzip", b"7z\xbc\xaf": "7z", b"Rar!": "RAR", b"BZh": "bzip2", b"\xfd7zXZ": "xz"}


def describe_file(path):
    """Returns what kind of file cannot be read as weights here, and what to do about it.

    Args:
        path: a file.

    Returns:
        A text that continues "'path' is ...", or None if it may be a damaged file of weights.
    """
    with open(path, "rb") as file:
        start = file.read(512)
    header_size = int.from_bytes(start[:8], "little")
    if start[8:9] == b"{" and 8 + header_size <= os.path.getsize(path):
        return None  # safetensors: it starts with a length, whose bytes may look like another kind
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if not start:
        return "is empty, 0 bytes: download or copy it again"
    if text.startswith((b"version https://git-lfs", b"version https://hawser")):
        return "is a Git LFS pointer, not the weights themselves: run `git lfs pull`, or download the file"
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head", b"<!--")):
        return "is a web page: the download gave an error or a log-in page; open the address in a browser"
    if start[257:262] == b"ustar":
        return "is a tar archive: unpack it and pass the file inside"
    for magic, name in _ARCHIVES.items():
        if start.startswith(magic):
            return f"is compressed ({name}): unpack it and pass the file inside"
    if start.startswith(b"PK"):
        return _describe_zip(path)
    if start.startswith(b"\x93NUMPY"):
        return "is a NumPy array: pass the whole checkpoint"
    if start.startswith(b"\x80"):
        return "is a pickle that `torch.save` did not write: load it where it was made, then use `torch.save`"
    if text.startswith((b"{", b"[")):
        return "is JSON text: pass the file with the weights, or its folder"
    if not any(byte < 9 or 13 < byte < 32 for byte in start):
        return "is text: pass the file with the weights"
    return None


def _describe_zip(path):
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except Exception:  # damaged files make zipfile raise errors of many kinds
        return "is a zip file that is damaged or cut off: download or copy it again"
    shown = ", ".join(repr(name[:64]) for name in names[:3]) or "nothing"
    return (
        "is a zip file, but neither PyTorch's nor Keras's: unpack it and pass the weights inside, if any. "
        f"It holds {shown}"
    )


def find_weights(folder):
    """Returns the path of the weights in a folder as Hugging Face's library or Keras writes it.

    Args:
        folder: a folder with `model.safetensors`, `pytorch_model.bin`, an index of their parts, or
            `model.weights.h5`.

    Returns:
        The path of the weights, or of the index.

    Raises:
        ValueError: where the folder has none of them.
    """
    names = sorted(os.listdir(folder))
    for name in WEIGHT_FILES:
        if name in names:
            return os.path.join(folder, name)
    if "saved_model.pb" in names:
        raise ValueError(
            f"{folder!r} is a TensorFlow SavedModel, whose weights cannot be read: pass the .keras or "
            ".weights.h5 file that it was exported from"
        )
    raise ValueError(
        f"a folder must hold one of {list(WEIGHT_FILES)}; pass the file itself if it has another name. "
        f"Received: {folder!r} with {names[:10]}"
    )


# In the order in which Hugging Face's library looks for them.
WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "model.weights.h5",
)
