"""One reader for all pictures: what becomes RGB and how, what is refused, and how the file is named."""

import io
import os
import struct

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from heads.data.coco import load_picture
from heads.pictures import DATA_FORMATS, decode_picture, read_picture

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 8, 3)).astype("uint8")
GREY = PIXELS[..., 0]
# What viewers show of stored pixels, by EXIF orientation, according to the standard.
UPRIGHT = {
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.swapaxes(0, 1),
    6: lambda x: x[::-1].swapaxes(0, 1),
    7: lambda x: x[::-1, ::-1].swapaxes(0, 1),
    8: lambda x: x.swapaxes(0, 1)[::-1],
}


def write(path, picture, **options):
    (picture if isinstance(picture, Image.Image) else Image.fromarray(picture)).save(path, **options)
    return path


def make_exif(orientation):
    exif = Image.Exif()
    exif[274] = orientation
    return exif.tobytes()


def repeat(grey):
    return np.repeat(np.asarray(grey, "uint8")[..., None], 3, axis=-1)


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("side", [8, 6])
def test_every_orientation(tmp_path, orientation, side):
    stored = PIXELS[:, :side]
    path = write(tmp_path / "a.png", np.ascontiguousarray(stored), exif=make_exif(orientation))
    upright = UPRIGHT[orientation](stored)
    picture = decode_picture(path)
    np.testing.assert_array_equal(picture.pixels, upright)
    assert (picture.orientation, picture.is_turned) == (orientation, orientation != 1)
    np.testing.assert_array_equal(read_picture(path, upright.shape[:2]), upright)
    # Only the stored pixels have this size: they are what the annotation was drawn on.
    picture = decode_picture(path, stored.shape[:2])
    is_left = orientation > 4 and side == 8
    np.testing.assert_array_equal(picture.pixels, stored if is_left else upright)
    assert picture.is_turned == (orientation != 1 and not is_left)


def test_jpeg_is_turned_and_equals_the_accurate_decoder(tmp_path):
    smooth = np.add.outer(np.arange(40), 2 * np.arange(60)).astype("uint8")
    path = write(tmp_path / "a.jpg", np.stack([smooth, 255 - smooth, smooth // 2], -1), exif=make_exif(8))
    stored = tf.io.decode_jpeg(path.read_bytes(), dct_method="INTEGER_ACCURATE").numpy()
    np.testing.assert_array_equal(read_picture(path), UPRIGHT[8](stored))
    np.testing.assert_array_equal(read_picture(path, (40, 60)), stored)
    with pytest.raises(ValueError, match=r"a\.jpg: .*\(9, 9\).*Received: \(40, 60\), \(60, 40\) upright"):
        read_picture(path, (9, 9))


@pytest.mark.parametrize("value", [0, 9, 65535])
def test_orientations_that_are_none(tmp_path, value):
    path = write(tmp_path / "a.jpg", PIXELS, exif=make_exif(value), quality=100)
    assert decode_picture(path).orientation == 1


def test_damaged_exif_never_ends_the_reading(tmp_path):
    whole = Image.Exif()
    whole[274], whole[271], whole[282] = 6, "maker", 72.0
    whole = whole.tobytes()
    random = np.random.default_rng(1)
    for _ in range(200):
        block = bytearray(whole)
        for place in random.integers(6, len(block), 4):
            block[place] = random.integers(256)
        path = write(tmp_path / "a.png", PIXELS, exif=bytes(block[: random.integers(6, len(block))]))
        picture = decode_picture(path)
        np.testing.assert_array_equal(picture.pixels, UPRIGHT[picture.orientation](PIXELS))


@pytest.mark.parametrize("suffix", [".png", ".tif", ".jp2"])
def test_16_bits_give_the_upper_8(tmp_path, suffix):
    wide = GREY.astype("uint16") * 256 + 200
    options = {"irreversible": False} if suffix == ".jp2" else {}
    np.testing.assert_array_equal(read_picture(write(tmp_path / f"a{suffix}", wide, **options)), repeat(GREY))


def write_tiff(path, data, num_bits, photometric=1):
    """Returns a little-endian grey TIFF of 8 x 6 pixels, uncompressed."""
    tags = [(256, 8), (257, 6), (258, num_bits), (259, 1), (262, photometric), (273, 8)]
    tags += [(277, 1), (278, 6), (279, len(data))]
    entries = b"".join(struct.pack("<HHII", tag, 4 if tag in (273, 279) else 3, 1, v) for tag, v in tags)
    header = b"II*\0" + struct.pack("<I", 8 + len(data))
    path.write_bytes(header + data + struct.pack("<H", len(tags)) + entries + bytes(4))
    return path


def test_12_bits_give_the_upper_8(tmp_path):
    high, low = GREY.astype(int).reshape(-1, 2).T  # two pixels in three bytes, the lower 4 bits are 15
    packed = np.stack([high, 15 * 16 + low // 16, low % 16 * 16 + 15], -1).astype("uint8").tobytes()
    np.testing.assert_array_equal(read_picture(write_tiff(tmp_path / "a.tif", packed, 12)), repeat(GREY))


def test_16_bits_where_zero_is_white(tmp_path):
    wide = (GREY.astype("<u2") * 256).tobytes()
    path = write_tiff(tmp_path / "a.tif", wide, 16, photometric=0)
    np.testing.assert_array_equal(read_picture(path), repeat(255 - GREY))


def test_pgm_of_12_bits(tmp_path):
    (tmp_path / "a.pgm").write_bytes(b"P5 2 1 4095\n" + struct.pack(">HH", 0, 4095))
    np.testing.assert_array_equal(read_picture(tmp_path / "a.pgm"), repeat([[0, 255]]))


def test_1_bit_and_few_bits(tmp_path):
    bits = write(tmp_path / "a.png", Image.fromarray(GREY > 99))
    np.testing.assert_array_equal(read_picture(bits), repeat((GREY > 99) * 255))
    palette = Image.fromarray(GREY % 4)
    palette.putpalette([9, 8, 7, 200, 0, 0, 0, 200, 0, 1, 2, 3])
    expected = np.array([[9, 8, 7], [200, 0, 0], [0, 200, 0], [1, 2, 3]])[GREY % 4]
    for options in ({}, {"transparency": 1}, {"transparency": b"\0\x80"}):
        path = write(tmp_path / "b.png", palette, bits=2, **options)
        np.testing.assert_array_equal(read_picture(path), expected)


def test_alpha_is_dropped(tmp_path):
    alpha = Image.fromarray(PIXELS).convert("RGBA")
    alpha.putalpha(7)
    np.testing.assert_array_equal(read_picture(write(tmp_path / "a.png", alpha)), PIXELS)
    np.testing.assert_array_equal(
        read_picture(write(tmp_path / "b.png", Image.fromarray(GREY).convert("LA"))), repeat(GREY)
    )
    np.testing.assert_array_equal(
        read_picture(write(tmp_path / "c.png", PIXELS, transparency=(1, 2, 3))), PIXELS
    )


def test_cmyk(tmp_path):
    inks = Image.new("CMYK", (8, 6), (255, 0, 0, 0))
    path = write(tmp_path / "a.jpg", inks, quality=100)
    assert np.abs(read_picture(path).astype(int) - (0, 255, 255)).max() < 4


@pytest.mark.parametrize("dtype", ["float32", "int32"])
def test_numbers_without_range_are_refused(tmp_path, dtype):
    path = write(tmp_path / "a.tif", GREY.astype(dtype))
    with pytest.raises(ValueError, match=r"a\.tif: cannot be read \(.*no known range"):
        read_picture(path)


def cut(data):
    return data[: len(data) // 2]


def flip(data):
    place = data.index(b"IDAT") + 20
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda data: b"", "not a picture"),
        (lambda data: b"<html>", "not a picture"),
        (cut, ""),
        (lambda data: data[:-14], ""),
        (flip, "bad header checksum"),
    ],
)
@pytest.mark.parametrize("load", [read_picture, lambda path: load_picture(os.fsencode(path))])
def test_damaged_files_are_named(tmp_path, damage, reason, load):
    path = write(tmp_path / "a.png", PIXELS)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(
        (ValueError, tf.errors.InvalidArgumentError), match=rf"{path}: cannot be read.*{reason}"
    ):
        load(path)


def test_missing_large_and_other_files_are_named(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"none\.png: cannot be read \(No such file"):
        read_picture(tmp_path / "none.png")
    with pytest.raises(ValueError, match=r"cannot be read \(Is a directory"):
        read_picture(tmp_path)
    path = write(tmp_path / "a.png", PIXELS, format="WEBP", lossless=True)
    np.testing.assert_array_equal(read_picture(path), PIXELS)
    with pytest.raises(ValueError, match=r"a\.png: .*one of JPEG, MPO, PNG\. Received: WEBP"):
        read_picture(path, formats=DATA_FORMATS)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(ValueError, match=r"a\.png: .*exceeds limit"):
        read_picture(path)


def test_mpo_reads_the_first_picture(tmp_path):
    first, second = (Image.fromarray(repeat(np.full((8, 8), value))) for value in (200, 20))
    path = write(tmp_path / "a.jpg", first, format="MPO", save_all=True, append_images=[second])
    assert (read_picture(path, formats=DATA_FORMATS) > 190).all()


def test_names_that_are_not_utf8(tmp_path):
    picture = io.BytesIO()
    Image.fromarray(PIXELS).save(picture, "PNG")
    path = os.fsencode(tmp_path) + b"/gr\xfcn.png"
    with open(path, "wb") as file:
        file.write(picture.getvalue())
    np.testing.assert_array_equal(read_picture(os.fsdecode(path)), PIXELS)
    np.testing.assert_array_equal(load_picture(path), PIXELS)
    with pytest.raises(ValueError, match=r"gr\\xfcn\.png: the picture must have"):
        read_picture(path, (1, 1))
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"gr\\xfcn\.png: the picture must have"):
        list(tf.data.Dataset.from_tensors(path).map(lambda path: load_picture(path, (1, 1))))


def test_load_picture_in_a_graph(tmp_path):
    path = write(tmp_path / "a.png", PIXELS, exif=make_exif(6))
    paths = tf.data.Dataset.from_tensors((str(path), [6, 8]))
    for (loaded,) in (paths.map(load_picture).batch(1),):
        np.testing.assert_array_equal(loaded[0], PIXELS)
    (loaded,) = paths.map(lambda path, size: load_picture(path))
    np.testing.assert_array_equal(loaded, UPRIGHT[6](PIXELS))
