"""TIFF files of any number of bands to arrays: one reader for training, checks, predictions and drawings."""

import pathlib

import numpy as np

from heads.pictures import named_faults, show_path

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
    try:
        import tifffile
    except ImportError as error:
        raise ImportError(
            "pictures with other than 3 channels need tifffile, which is not installed: run pip install "
            f'"van-backbones[multispectral]". Received: {show_path(path)}'
        ) from error
    with named_faults(path), pathlib.Path(path).open("rb") as file, tifffile.TiffFile(file) as pages:
        series = pages.series[0]
        axes, shape = series.get_axes(squeeze=False), series.get_shape(squeeze=False)
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


def _put_bands_last(values, axes):
    """Returns (height, width, bands) of an array with an axis each for these letters of tifffile."""
    others = [place for place, axis in enumerate(axes) if axis not in "YX"]
    if "Y" not in axes or "X" not in axes or sum(values.shape[place] > 1 for place in others) > 1:
        raise ValueError(
            f"a file must hold one picture with its bands. Received: shape {values.shape}, axes {axes!r}"
        )
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
