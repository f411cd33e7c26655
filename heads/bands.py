"""TIFF files of any number of bands to arrays: one reader for training, checks, predictions and drawings."""

import contextlib
import math
import os
import pathlib

import numpy as np

from heads.pictures import (
    DATA_FORMATS,
    RGB_CHANNELS,
    Picture,
    decode_picture,
    named_faults,
    read_upright_size,
    show_path,
)

BAND_SUFFIXES = (".tif", ".tiff")
MAX_INTEGER_BYTES = 2  # float32 holds the integers of 16 bits, and not all of 32


def read_bands(
    path,
    num_bands: int | None = None,
    size: tuple[int, int] | None = None,
    size_from: str = "its annotation",
) -> np.ndarray:
    """The bands of a TIFF file as they are stored: neither scaled nor turned by an orientation.

    Bands may lie beside each other, one behind the other, or on a page each; of several pictures the first
    one is read. Integers of 8 and 16 bits and floats are read.

    Args:
        path: Path of the file.
        num_bands: How many bands it must have. Default: any number.
        size: The (height, width) that it must have.
        size_from: What says the size, for the message.

    Returns:
        float32 `(height, width, bands)`.

    Raises:
        ImportError: If tifffile is not installed.
        ValueError: If the file is missing, damaged or no TIFF file, has another size or number of bands, or
            holds other numbers, or some that are not finite. The message starts with the path.
    """
    with _open_series(path) as (series, axes, shape):
        _check_axes(axes, shape)
        values = _put_bands_last(series.asarray().reshape(shape), axes)
        values = _check_numbers(values)
    if num_bands is not None and values.shape[-1] != num_bands:
        raise ValueError(
            f"{show_path(path)}: the picture must have {num_bands} channels. Received: {values.shape[-1]}"
        )
    if size is not None and values.shape[:2] != tuple(map(int, size)):
        raise ValueError(
            f"{show_path(path)}: the picture must have the (height, width) of {size_from}, "
            f"{tuple(map(int, size))}. Received: {values.shape[:2]}"
        )
    return values


def count_bands(path) -> int:
    """The number of bands of a TIFF file, from its header; the pixels are not decoded.

    Raises:
        ImportError: If tifffile is not installed.
        ValueError: If the file is missing, damaged or no TIFF file. The message starts with the path.
    """
    with _open_series(path) as (_, axes, shape):
        _check_axes(axes, shape)
        sides = zip(axes, shape, strict=True)
        return math.prod(side for axis, side in sides if axis not in "YX")


def find_num_channels(paths) -> int:
    """How many channels pictures have: those of the first if all are TIFF files, else 3.

    Args:
        paths: Paths of the files.

    Raises:
        ImportError: If tifffile is not installed.
        ValueError: If the first of them is no TIFF file. The message starts with the path.
    """
    paths = list(paths)
    if not paths or not all(path.suffix.lower() in BAND_SUFFIXES for path in paths):
        return RGB_CHANNELS
    return count_bands(paths[0])


def read_size(path) -> tuple[int, int]:
    """The (height, width) of a picture file, from its header: of RGB as viewers show it, else as stored.

    Raises:
        ImportError: If it needs tifffile, which is not installed.
        ValueError: If the file is missing or not a picture. The message starts with the path.
    """
    try:
        return read_upright_size(path)
    except ValueError:
        if not os.fsencode(path).lower().endswith(tuple(map(str.encode, BAND_SUFFIXES))):
            raise
    with _open_series(path) as (_, axes, shape):
        _check_axes(axes, shape)
        return shape[axes.index("Y")], shape[axes.index("X")]


def read_data_picture(
    path,
    num_channels: int = RGB_CHANNELS,
    size: tuple[int, int] | None = None,
    size_from: str = "its annotation",
) -> Picture:
    """A picture of a data folder: JPEG or PNG as `decode_picture` reads them, or the bands of a TIFF file.

    Args:
        path: Path of the file.
        num_channels: 3 for RGB, else how many bands it must have.
        size: The (height, width) that it must have.
        size_from: What says the size, for the message.

    Raises:
        ImportError: If it needs tifffile, which is not installed.
        ValueError: If the file is missing, damaged, of another format, size or number of bands. The message
            starts with the path.
    """
    if num_channels == RGB_CHANNELS:
        return decode_picture(path, size, DATA_FORMATS, size_from)
    return Picture(read_bands(path, num_channels, size, size_from), is_turned=False)


@contextlib.contextmanager
def _open_series(path):
    """Gives the first picture of a TIFF file, tifffile's letters of its axes, and its shape."""
    try:
        import tifffile
    except ImportError as error:
        raise ImportError(
            f"tifffile is not installed, which reads pictures of other than 3 channels: "
            f'run pip install "van-backbones[multispectral]". Received: {show_path(path)}'
        ) from error
    with named_faults(path), pathlib.Path(path).open("rb") as file, tifffile.TiffFile(file) as pages:
        series = pages.series[0]
        yield series, series.get_axes(squeeze=False), series.get_shape(squeeze=False)


def _check_axes(axes, shape):
    """Raises a ValueError unless a picture has rows, columns and at most one further axis."""
    sides = [side for axis, side in zip(axes, shape, strict=True) if axis not in "YX"]
    if "Y" not in axes or "X" not in axes or sum(side > 1 for side in sides) > 1:
        raise ValueError(
            f"a file must hold one picture with its bands. Received: shape {shape}, axes {axes!r}"
        )


def _put_bands_last(values, axes):
    """Returns (height, width, bands) of an array with an axis each for these letters of tifffile."""
    others = [place for place, axis in enumerate(axes) if axis not in "YX"]
    values = values.transpose(axes.index("Y"), axes.index("X"), *others)
    return values.reshape(*values.shape[:2], -1)


def _check_numbers(values):
    """Returns the values as float32."""
    is_small = values.dtype.kind in "ui" and values.dtype.itemsize <= MAX_INTEGER_BYTES
    if not is_small and values.dtype.kind != "f":
        raise ValueError(f"bands must be integers of 8 or 16 bits, or floats. Received: {values.dtype}")
    with np.errstate(over="ignore"):  # the check finds them
        values = values.astype("float32")
    if num_odd := values.size - np.count_nonzero(np.isfinite(values)):
        raise ValueError(
            "values must be finite; where nothing was measured, store 0 and label the pixels 255, which is "
            f"ignored. Received: {num_odd} that are not finite"
        )
    return values
