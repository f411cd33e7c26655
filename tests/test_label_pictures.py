"""Label pictures hold class numbers as they are stored, whatever the bits and colours."""

import zlib

import numpy as np
import pytest
from PIL import Image

from heads.data.label_pictures import decode_label, find_other_order, map_numbers

NUMBERS = np.array([[0, 1, 2], [3, 1, 0]], "uint8")
TURNED = Image.Exif()
TURNED[274] = 3


@pytest.mark.parametrize("bits", [2, 4])
def test_grey_of_few_bits(tmp_path, bits):
    # Pillow does not write such files: a palette picture's colour type is changed to grey.
    picture = Image.fromarray(NUMBERS)
    picture.putpalette(bytes(range(48)))
    picture.save(tmp_path / "a.png", bits=bits)
    data = grey_header((tmp_path / "a.png").read_bytes())
    (tmp_path / "a.png").write_bytes(data)
    with Image.open(tmp_path / "a.png") as stored:
        assert stored.mode == "L"
        assert np.asarray(stored).max() == 3 * {2: 85, 4: 17}[bits]
    np.testing.assert_array_equal(decode_label(tmp_path / "a.png"), NUMBERS)


def grey_header(data):
    """Returns a palette PNG as a grey one: colour type 0, without a palette."""
    header = data[16:25] + b"\0" + data[26:29]
    checksum = zlib.crc32(b"IHDR" + header).to_bytes(4, "big")
    palette = data.index(b"PLTE") - 4
    length = int.from_bytes(data[palette : palette + 4], "big") + 12
    return data[:16] + header + checksum + data[33:palette] + data[palette + length :]


@pytest.mark.parametrize(
    ("save", "reason"),
    [
        (lambda p, path: p.save(path, "JPEG"), "PNG by content; JPEG blurs.*Received: JPEG"),
        (lambda p, path: p.convert("F").save(path, "TIFF"), "PNG by content. Received: TIFF"),
        (lambda p, path: p.save(path, "WEBP"), "PNG by content. Received: WEBP"),
        (lambda p, path: p.convert("LA").save(path), "map its colours.*'LA'"),
        (lambda p, path: p.save(path, exif=TURNED), "no EXIF orientation.*Received: orientation 3"),
        (lambda p, path: path.write_bytes(b"text"), "not a picture"),
    ],
)
def test_what_holds_no_numbers_is_refused(tmp_path, save, reason):
    path = tmp_path / "label.png"
    save(Image.fromarray(NUMBERS), path)
    with pytest.raises(ValueError, match=rf"^{path}: cannot be read \(.*{reason}"):
        decode_label(path)


def test_numbers_out_of_range_are_named():
    numbers = np.array([[0, 2, 255, 65535]], "int32")
    with pytest.raises(ValueError, match=r"^a\.png: labels must be 0 \.\. 1 or 255\. Received: 2, 65535$"):
        map_numbers(numbers, 2, False, "a.png")
    np.testing.assert_array_equal(map_numbers(numbers[:, :3], 2, True, "a.png"), [[255, 1, 255]])
    np.testing.assert_array_equal(map_numbers(numbers[:, :3], 3, False, "a.png"), [[0, 2, 255]])


BLACK, RED, GREEN = b"\0\0\0", b"\xff\0\0", b"\0\xff\0"


@pytest.mark.parametrize(
    ("first", "second", "numbers", "found"),
    [
        (BLACK + RED + GREEN, BLACK + GREEN + RED, ({0, 1}, {0, 1}), ("a", 1, "b", 2)),
        (BLACK + RED + GREEN, BLACK + GREEN, ({0, 1}, {0, 1}), ("b", 1, "a", 2)),
        (BLACK + RED, BLACK + RED + GREEN, ({0, 1}, {0, 1, 2}), None),  # cut to the numbers that occur
        (BLACK + RED + BLACK, BLACK + RED + BLACK * 3, ({0, 1}, {0, 1}), None),
        (BLACK + RED + GREEN, BLACK + GREEN + RED, ({0}, {0}), None),  # the colours that differ do not occur
        (BLACK + RED, BLACK + GREEN, ({0, 1}, {0, 1}), None),  # no colour has two numbers
    ],
)
def test_palettes_of_other_order(first, second, numbers, found):
    palettes = {first: ("a", numbers[0]), second: ("b", numbers[1])}
    assert find_other_order(palettes) == found
    assert find_other_order({first: ("a", numbers[0])}) is None
    assert find_other_order({}) is None
