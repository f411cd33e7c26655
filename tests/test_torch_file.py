"""Files made by hand: honest ones are read, damaged and hostile ones raise only a CheckpointError."""

import io
import pickle
import random
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest

from van_backbones.checkpoints.pickle_machine import CheckpointError, Placeholder
from van_backbones.checkpoints.torch_file import is_torch_file, load_torch_file, load_torch_stream

# A pickle of a dictionary with two tensors that share a storage, a namespace, an integer and a NumPy scalar.
STORAGE = b"X\7\0\0\0storagectorch\nFloatStorage\nX\1\0\0\0000X\3\0\0\0cpuK\6"
VIEWS = (b"K\0K\2K\3\x86K\3K\1\x86\x89ccollections\nOrderedDict\n)R", b"K\3K\3\x85K\1\x85\x89N")
REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\n(("
OTHERS = b"X\4\0\0\0argscargparse\nNamespace\n)\x81}X\1\0\0\0aNsbX\5\0\0\0epochM,\1"
SCALAR = b"X\6\0\0\0metriccnumpy.core.multiarray\nscalar\n"
SCALAR += b"cnumpy\ndtype\nX\2\0\0\0f8\x89\x88\x87R(K\3X\1\0\0\0<NNNtb"
SCALAR += b"c_codecs\nencode\nX\x09\0\0\0\0\0\0\0\0\0\xc3\xb0?X\6\0\0\0latin1\x86R\x86R"
ELEMENTS = np.arange(6, dtype="<f4")


def make_program(ending=b"tQ"):
    tensors = [REBUILD + STORAGE + ending + view + b"tR" for view in VIEWS]
    weights = b"X\1\0\0\0wq\1" + tensors[0] + b"q\2X\1\0\0\0b" + tensors[1] + b"X\4\0\0\0moreh\2"
    return b"\x80\x02}q\0(" + weights + OTHERS + SCALAR + b"u."


def make_zip(program=None, members=None, order=b"little"):
    """Returns a zip checkpoint; `members` are further ones, name -> content."""
    contents = {"name/data.pkl": make_program() if program is None else program, "name/byteorder": order}
    contents |= {"name/data/0": ELEMENTS.tobytes()} | (members or {})
    with io.BytesIO() as file:
        with zipfile.ZipFile(file, "w") as archive:
            for name, content in contents.items():
                archive.writestr(zipfile.ZipInfo(name), content)
        return file.getvalue()


def make_legacy(program=None):
    program = make_program(b"NtQ") if program is None else program
    start = [0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": True}]
    start = b"".join(pickle.dumps(value, 2) for value in start)
    return start + program + pickle.dumps(["0"], 2) + struct.pack("<q", 6) + ELEMENTS.tobytes()


def load(data):
    return load_torch_stream(io.BytesIO(data))


@pytest.mark.parametrize("data", [make_zip(), make_legacy()], ids=["zip", "legacy"])
def test_small_files_by_hand(data):
    result = load(data)
    np.testing.assert_array_equal(result["w"], ELEMENTS.reshape(2, 3))
    np.testing.assert_array_equal(result["b"], [3, 4, 5])
    assert result["more"] is result["w"]
    assert np.shares_memory(result["w"], result["b"])
    assert not result["w"].flags.writeable
    assert list(result) == ["w", "b", "more", "args", "epoch", "metric"]
    assert (result["args"], result["epoch"], result["metric"]) == (
        Placeholder("argparse.Namespace"),
        300,
        1.0,
    )


def test_first_bytes_tell_a_torch_file(tmp_path):
    path = tmp_path / "x"
    for data, expected in [
        (make_zip(), True),
        (make_legacy(), True),
        (make_zip()[:100], True),
        (make_zip()[:20], False),
        (b"", False),
        (b"\x89HDF\r\n\x1a\n" + bytes(100), False),
        (pickle.dumps({"a": 1}, 2), False),
        (make_zip()[:30].replace(b"data.pkl", b"data.txt") + b"name/config.json", False),
    ]:
        path.write_bytes(data)
        assert is_torch_file(path) is expected
    path.write_bytes(b"{}")
    with pytest.raises(CheckpointError, match=r"not a PyTorch checkpoint.*b'{}'.*Received: '.*x'"):
        load_torch_file(path)
    for read in (is_torch_file, load_torch_file):
        with pytest.raises(FileNotFoundError):
            read(tmp_path / "missing")


def test_hostile_zip_files_are_refused(recwarn):
    for name in ("../x", "/x", "name/../../x", "name\\..\\x"):
        with pytest.raises(CheckpointError, match="outside its folder"):
            load(make_zip(members={name: b"x"}))
    with pytest.raises(CheckpointError, match="twice"):
        load(make_zip(members={"name/data/1": b"x"}).replace(b"name/data/1", b"name/data/0"))
    with pytest.raises(CheckpointError, match="2 members"):
        load(make_zip(members={"other/data.pkl": b"x"}))
    with pytest.raises(CheckpointError, match="0 members"):
        load(make_zip().replace(b"data.pkl", b"data.txt"))
    with pytest.raises(CheckpointError, match="no 'name/data/0'"):
        load(make_zip().replace(b"name/data/0", b"name/data/1"))
    for size in (20, 28):
        with pytest.raises(CheckpointError, match=f"{size} bytes instead of 24"):
            load(make_zip(members={"name/data/0": bytes(size)}))
    for order in (b"big", b"", b"little "):
        with pytest.raises(CheckpointError, match="byte order"):
            load(make_zip(order=order))
    encrypted = bytearray(make_zip())
    encrypted[encrypted.index(b"PK\1\2") + 8] |= 1
    with pytest.raises(CheckpointError, match="encrypted"):
        load(bytes(encrypted))


def test_zip_bombs_stay_packed(tmp_path):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("name/data.pkl", b"\x80\x02(" + b"N" * 50_000_000 + b"t.")
    data = file.getvalue()
    assert len(data) < 100_000
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match="compressed"):
            load(data)
        claim = bytearray(make_zip())  # a member of 24 bytes that claims two thousand million
        entry = claim.rindex(b"PK\1\2")
        claim[entry + 20 : entry + 28] = struct.pack("<2I", 2**31 - 1, 2**31 - 1)
        (tmp_path / "x").write_bytes(claim)
        with pytest.raises(CheckpointError, match="claims to be longer"):
            load_torch_file(tmp_path / "x")
        assert tracemalloc.get_traced_memory()[1] < 5e6
    finally:
        tracemalloc.stop()


def test_hostile_legacy_files_are_refused():
    data = make_legacy()
    keys = pickle.dumps(["0"], 2)
    for old, new, message in [
        (b"M\xe9\3.", b"M\xe8\3.", "version"),
        (b"\x88", b"\x89", "byte order"),
        (keys, pickle.dumps(["1"], 2), "keys"),
        (keys, pickle.dumps(["0", "0"], 2), "keys"),
        (keys, pickle.dumps([0], 2), "list of strings"),
        (keys, pickle.dumps({"0": 1}, 2), "list of strings"),
        (struct.pack("<q", 6), struct.pack("<q", 7), "a length other"),
        (struct.pack("<q", 6), struct.pack("<q", -1), "a length other"),
        (b"cpuK\6", b"cpuJ\xff\xff\xff\x7f", "longer than the file"),
    ]:
        assert old in data
        with pytest.raises(CheckpointError, match=message):
            load(data.replace(old, new, 1))


def test_every_cut_is_refused():
    empty = make_legacy(REBUILD + STORAGE[:-1] + b"\0NtQK\0K\0\x85K\1\x85\x89NtR.")[:-32] + bytes(8)
    assert load(empty).shape == (0,)
    for data in (make_zip(), make_legacy(), empty):
        for length in range(len(data)):
            with pytest.raises(CheckpointError):
                load(data[:length])


def test_a_flipped_bit_is_found_or_does_not_matter():
    data, expected = make_zip(), repr(load(make_zip()))
    start, end = data.index(ELEMENTS.tobytes()), data.index(ELEMENTS.tobytes()) + 24
    for position in range(len(data)):
        flipped = bytearray(data)
        flipped[position] ^= 1 << position % 8
        try:
            assert repr(load(bytes(flipped))) == expected
            assert not start <= position < end
        except CheckpointError:
            pass


# What random programs are put together from: opcodes, values, and functions that fit them or do not.
ARRAY = REBUILD + STORAGE + b"tQ" + VIEWS[0] + b"tR"
OPCODES = b"( ) ] } t \x85 \x86 \x87 R \x81 b s u e a Q q\0 q\1 h\0 h\1 r\0\0\0\x80".split(b" ")
OPCODES += b"\x93 i o \x82\1 \x8b \x8e".split(b" ")
VALUES = [
    b"N",
    b"\x88",
    b"K\0",
    b"K\3",
    b"J\xff\xff\xff\xff",
    b"\x8a\x09" + b"\7" * 9,
    b"G?" + bytes(7),
    ARRAY,
]
VALUES += [b")", b"K\3\x85", b"K\2K\3\x86", b"]", b"}", b"X\1\0\0\0x", b"X\6\0\0\0latin1", b"X\2\0\0\0f8"]
VALUES += [b"(" + STORAGE + b"tQ", b"(" + STORAGE + b"NtQ", b"ctorch\nuint16\n", b"cargparse\nNamespace\n"]
VALUES += [b"c_codecs\nencode\n(X\1\0\0\0xX\6\0\0\0latin1tR", b"X\xff\xff\xff\xff", b"cposix\nsystem\n"]
FUNCTIONS = [b"c__builtin__\ngetattr\n", b"c_codecs\nencode\n", b"cnumpy\ndtype\n", b"ctorch\nSize\n", b"N"]
FUNCTIONS += [b"cnumpy.core.multiarray\nscalar\n", b"ccollections\nOrderedDict\n", b"ccollections\nCounter\n"]
FUNCTIONS += [b"ctorch._utils\n" + name + b"\n" for name in (b"_rebuild_parameter", b"_rebuild_tensor_v3")]
FUNCTIONS += [REBUILD[:-2], b"cargparse\nNamespace\n", b"c__builtin__\nbytes\n"]


def mutate(data, chance):
    """Returns a damaged copy: flipped, deleted, moved, doubled or foreign bytes in one to four places."""
    data = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        start = chance.randrange(len(data) + 1)
        end = min(len(data), start + chance.randrange(20))
        match chance.randrange(6):
            case 0:
                data[start:end] = bytes(byte ^ 1 << chance.randrange(8) for byte in data[start:end])
            case 1:
                data[start:end] = b""
            case 2:
                data[start:start] = data[end : end + chance.randrange(60)]
            case 3:
                data[start:end] = chance.randbytes(end - start)
            case 4:
                data[start:start] = chance.choice(OPCODES + VALUES + FUNCTIONS)
            case 5 if chance.random() < 0.2:
                del data[start:]
    return bytes(data)


def make_random_file(chance):
    """Returns a damaged file, or an intact one around a damaged or random pickle."""
    make, ending = chance.choice([(make_zip, b"tQ"), (make_legacy, b"NtQ")])
    match chance.randrange(4):
        case 0:
            return mutate(make(), chance)
        case 1:
            return make(mutate(make_program(ending), chance))
        case 2:
            return make(
                b"".join(chance.choices(OPCODES + VALUES + FUNCTIONS, k=chance.randint(1, 12))) + b"."
            )
    arguments = b"".join(chance.choices(VALUES + 4 * [ARRAY], k=chance.randrange(4)))
    return make(chance.choice(FUNCTIONS) + b"(" + arguments + b"tR.")


@pytest.mark.slow
def test_random_files_give_values_or_checkpoint_errors():
    chance, messages, loaded = random.Random(0), set(), 0
    tracemalloc.start()
    try:
        for _ in range(20_000):
            data = make_random_file(chance)
            try:
                value = load(data)
                loaded += 1
                for array in value.values() if isinstance(value, dict) else ():
                    if isinstance(array, np.ndarray) and array.size < 1000:
                        array.tolist()  # reads every element
            except CheckpointError as error:
                messages.add(str(error)[:30])
        assert tracemalloc.get_traced_memory()[1] < 10e6
    finally:
        tracemalloc.stop()
    # Otherwise the files would be too broken, or too intact, to test much.
    assert loaded > 500
    assert len(messages) > 40
