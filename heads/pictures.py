"""Picture files to RGB pixels: the one reader for training, checks, scores, predictions and drawings."""

import base64
import contextlib
import io
import json
import os
import pathlib
import typing

import numpy as np
from PIL import Image, UnidentifiedImageError

# The formats of data folders; MPO is a JPEG followed by further pictures, which many phones write.
DATA_FORMATS = ("JPEG", "MPO", "PNG")

# ImageNet's mean, which normalisation turns into 0. All padding of pictures has this colour.
MEAN_PIXEL = (123.675, 116.28, 103.53)
RGB_CHANNELS = len(MEAN_PIXEL)

# How to turn the stored pixels of each EXIF orientation upright.
UPRIGHT_MOVES = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
TURNED_ORIENTATIONS = (5, 6, 7, 8)  # these swap height and width
EXIF_ORIENTATION = 274
TIFF_BITS_PER_SAMPLE = 258
TIFF_PHOTOMETRIC = 262
TIFF_WHITE_IS_ZERO = 0


class Picture(typing.NamedTuple):
    """A picture's RGB pixels, uint8 `(height, width, 3)`, or bands, float32 `(height, width, bands)`.

    `orientation` is that of its EXIF block, 1 .. 8 with 1 for upright; `is_turned` tells whether the pixels
    were turned or mirrored by it. If it is above 1 but they were not turned, this was because of the size.
    """

    pixels: np.ndarray
    is_turned: bool
    orientation: int = 1


def read_picture(path, size: tuple[int, int] | None = None, formats: tuple[str, ...] | None = None):
    """The RGB pixels of a picture file, as viewers show it. See `decode_picture`."""
    return decode_picture(path, size, formats).pixels


def decode_picture(
    path,
    size: tuple[int, int] | None = None,
    formats: tuple[str, ...] | None = None,
    size_from: str = "its annotation",
) -> Picture:
    """The RGB pixels of a picture file, and whether they were turned.

    The EXIF orientation is applied; if its block is damaged, the picture stays as stored. Only the first of
    several frames or pages is read. Colour profiles are ignored. Pixels become 8 bits of RGB like this:

    - grey, also of 1, 2 and 4 bits with the largest value as white: three equal channels;
    - 12 and 16 bits: the upper 8 bits, not stretched to the values that occur;
    - palettes: their colours;
    - alpha: dropped, the colours under it stay;
    - CMYK, YCbCr and HSV: Pillow's formulas.

    Floats and 32-bit numbers, whose range is unknown, raise an error; so does a PNG with wrong checksums.

    Args:
        path: Path of the file, also as bytes.
        size: The (height, width) that the picture must have, from its annotation or label. If only the stored
            pixels have it, they are not turned: the annotation was drawn on these. If both have it (square
            pictures, half turns), they are turned, as viewers and labelling tools do.
        formats: Pillow's names of the formats to read, such as `DATA_FORMATS`. Default: any.
        size_from: Where the size comes from, for the message.

    Returns:
        A `Picture`.

    Raises:
        ValueError: If the file is missing, damaged, too large, of another format or size, or cannot become
            RGB. The message starts with the path.
    """
    with named_faults(path):
        picture = open_picture(path, formats)
        picture.load()
        orientation = read_orientation(picture)
        rgb = _convert_to_rgb(picture)
    upright_move = UPRIGHT_MOVES.get(orientation)
    stored_size = (rgb.height, rgb.width)
    upright_size = stored_size[::-1] if orientation in TURNED_ORIENTATIONS else stored_size
    if size is not None:
        size = tuple(int(side) for side in size)
        if size not in (stored_size, upright_size):
            turned = f", {upright_size} upright by its EXIF orientation" * (upright_size != stored_size)
            raise ValueError(
                f"{show_path(path)}: the picture must have the (height, width) of {size_from}, {size}. "
                f"Received: {stored_size}{turned}"
            )
    is_turned = upright_move is not None and size in (None, upright_size)
    return Picture(np.asarray(rgb.transpose(upright_move) if is_turned else rgb), is_turned, orientation)


def read_upright_size(path) -> tuple[int, int]:
    """The (height, width) of a picture file as viewers show it, from its header; the pixels are not decoded.

    Raises:
        ValueError: If the file is missing or not a picture. The message starts with the path.
    """
    with named_faults(path), _open_file(path) as file, Image.open(file) as picture:
        size = (picture.height, picture.width)
        return size[::-1] if read_orientation(picture) in TURNED_ORIENTATIONS else size


def open_picture(path, formats: tuple[str, ...] | None = None) -> Image.Image:
    """Opens a picture without decoding it, but checks a PNG's checksums. Call it within `named_faults`."""
    with _open_file(path) as file:
        data = file.read()
    picture = Image.open(io.BytesIO(data))
    if formats is not None and picture.format not in formats:
        raise ValueError(f"the format must be one of {', '.join(formats)}. Received: {picture.format}")
    if picture.format == "PNG":
        # Decoding ignores the checksums, so damaged pixels would go unnoticed.
        Image.open(io.BytesIO(data)).verify()
    return picture


def read_orientation(picture: Image.Image) -> int:
    """The EXIF orientation of a decoded picture, 1 .. 8; 1 where there is none or its block is damaged."""
    try:
        orientation = int(picture.getexif().get(EXIF_ORIENTATION, 1))
    except Exception:  # Pillow raises many kinds of errors for damaged blocks, whose pixels are fine
        return 1
    return orientation if orientation in UPRIGHT_MOVES else 1


@contextlib.contextmanager
def named_faults(path):
    """Turns whatever is raised while a file is read into a ValueError that starts with its path."""
    try:
        yield
    except Exception as error:  # Pillow's decoders raise many kinds; each means that the file is no use
        raise ValueError(f"{show_path(path)}: cannot be read ({_explain(error, path)})") from error


def choose_padding(num_channels: int) -> tuple[float, ...]:
    """What pictures are padded with: the mean pixel of RGB, and zeros of others, whose mean nobody knows."""
    return MEAN_PIXEL if num_channels == RGB_CHANNELS else (0.0,) * num_channels


def show_path(path) -> str:
    """The path as text that can be printed, whatever bytes the file system holds."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _open_file(path):
    """The bytes of a picture as an open file; labelme's JSON files hold theirs as text."""
    path = pathlib.Path(os.fsdecode(path))
    if path.suffix.lower() != ".json":
        return path.open("rb")
    return io.BytesIO(base64.b64decode(json.loads(path.read_bytes())["imageData"]))


def _convert_to_rgb(picture):
    """Returns a Pillow picture as RGB; `decode_picture` says how each mode is converted."""
    # In these formats mode "I" means numbers from 0 to 65535, in others true 32-bit numbers.
    is_wide_grey = picture.mode == "I" and picture.format in ("PNG", "PPM")
    if picture.mode.startswith("I;16") or is_wide_grey:
        tags = getattr(picture, "tag_v2", {})
        num_bits = tags.get(TIFF_BITS_PER_SAMPLE, (16,))[0]
        grey = (np.asarray(picture) >> (num_bits - 8)).astype("uint8")
        if tags.get(TIFF_PHOTOMETRIC) == TIFF_WHITE_IS_ZERO:  # Pillow inverts these in 8 bits only
            grey = 255 - grey
        return Image.fromarray(grey).convert("RGB")
    if picture.mode in ("F", "I"):
        numbers = "floats" if picture.mode == "F" else "32-bit numbers"
        raise ValueError(f"{numbers} have no known range; save the picture with 8 or 16 bits per channel")
    picture.info.pop("transparency", None)  # Pillow would warn that it is lost
    return picture if picture.mode == "RGB" else picture.convert("RGB")


def _explain(error, path):
    """The reason of an error as text; Pillow's names the bytes it was given instead of the file."""
    if isinstance(error, UnidentifiedImageError):
        is_tiff = os.fsencode(path).lower().endswith((b".tif", b".tiff"))
        hint = ", or a TIFF file of many bands, which is not an RGB picture: see heads.bands" * is_tiff
        return f"not a picture, or its header is damaged{hint}"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__
