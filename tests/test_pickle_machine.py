"""The machine for pickles: honest ones give their values, hostile ones an error and nothing else."""

import io
import pickle
import re
import struct
import tracemalloc

import numpy as np
import pytest

from van_backbones.checkpoints import pickle_machine
from van_backbones.checkpoints.pickle_machine import CheckpointError, PickleMachine, Placeholder

ELEMENTS = np.arange(6, dtype="<f4")


def run(program, file_size=10_000, **options):
    """Runs a program; the machine returns ELEMENTS for each storage of 24 bytes."""
    read_storage = {24: ELEMENTS.view(np.uint8), 0: np.empty(0, np.uint8)}
    return PickleMachine(
        io.BytesIO(program), file_size, lambda key, byte_count: read_storage[byte_count], **options
    ).run()


def text(value):
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def number(value):
    return pickle.dumps(value, 2)[2:-1]


def numbers(values):
    return b"(" + b"".join(number(value) for value in values) + b"t"


def call(name, *arguments):
    module, _, attribute = name.rpartition(".")
    return f"c{module}\n{attribute}\n(".encode() + b"".join(arguments) + b"tR"


def storage(kind="torch.FloatStorage", key="0", count=6, more=b""):
    module, _, name = kind.rpartition(".")
    middle = f"c{module}\n{name}\n".encode()
    return b"(" + text("storage") + middle + text(key) + text("cpu") + number(count) + more + b"tQ"


def tensor(source=None, offset=0, shape=(2, 3), strides=(3, 1), more=b""):
    source = storage() if source is None else source
    view = number(offset) + numbers(shape) + numbers(strides)
    return call("torch._utils._rebuild_tensor_v2", source, view, b"\x89", b"N", more)


ARRAY, HOOKS = tensor(), call("collections.OrderedDict")
NAMESPACE = b"cargparse\nNamespace\n"


def test_plain_values_come_back():
    values = [
        None,
        True,
        False,
        0,
        255,
        256,
        -1,
        2**40,
        -(2**70),
        0.5,
        "",
        "ä\0",
        (),
        (1,),
        (1, 2),
        (1, 2, 3),
    ]
    values += [(1, 2, 3, 4), [], [[1], "x"], {}, {"a": {1: [2]}, None: 3, True: 4}]
    for value in [*values, values]:
        result = run(pickle.dumps(value, 2))
        assert result == value
        assert type(result) is type(value)


def test_tensors_view_their_storage():
    matrix = ELEMENTS.reshape(2, 3)
    for offset, shape, strides, expected in [
        (0, (2, 3), (3, 1), matrix),
        (0, (3, 2), (1, 3), matrix.T),
        (1, (2, 2), (3, 1), matrix[:, 1:]),
        (5, (), (), np.float32(5)),
        (2, (4, 1), (0, 10**9), np.full((4, 1), 2)),
        (6, (0, 3), (3, 1), np.empty((0, 3))),
    ]:
        array = run(tensor(None, offset, shape, strides) + b".")
        np.testing.assert_array_equal(array, expected)
        assert array.shape == shape
        assert array.dtype == np.float32
        assert not array.flags.writeable
        assert array.size == 0 or np.shares_memory(array, ELEMENTS)


def test_parts_of_storages_are_for_the_legacy_format():
    part = storage(more=b"(" + text("1") + number(2) + number(3) + b"t")
    array = run(tensor(part, 1, (2,), (1,)) + b".", has_parts=True)
    np.testing.assert_array_equal(array, [3, 4])
    with pytest.raises(CheckpointError, match="past the end"):
        run(tensor(part, 1, (3,), (1,)) + b".", has_parts=True)
    for offset, count in ((-1, 3), (4, 3), (0, -1), (2**70, 1)):
        part = storage(more=b"(" + text("1") + number(offset) + number(count) + b"t")
        with pytest.raises(CheckpointError, match="impossible part"):
            run(tensor(part, 0, (0,), (1,)) + b".", has_parts=True)


def test_placeholders_hold_nothing_and_do_nothing():
    program = NAMESPACE + b")\x81}" + text("model") + text("van_b0") + b"s" + b"b" + b"."
    assert run(program) == Placeholder("argparse.Namespace")
    method = call("__builtin__.getattr", NAMESPACE, text("__init__"))
    for program in (method + b".", method + b"(" + text("x") + b"tR.", NAMESPACE + b"(K\x01K\x02u."):
        assert run(program) == Placeholder("argparse.Namespace")
    assert run(call("collections.deque", b"](K\x01K\x02e", number(9)) + b"(K\x03e.") == Placeholder(
        "collections.deque"
    )


def test_numpy_scalars_and_bytes_come_back():
    for value in (np.float64(0.5), np.float32(2), np.int64(-7), np.bool_(True), np.uint8(200)):
        result = run(pickle.dumps(value, 2))
        assert result == value
        assert type(result) is type(value)
    assert run(pickle.dumps([b"\0\xffabc", b""], 2)) == [b"\0\xffabc", b""]


NESTED = {"lists": b"]" * 100_000 + b"a" * 99_999, "tuples": b")" + b"\x85" * 100_000}
HOSTILE = [  # a part of the message, the program
    ("posix.system", call("posix.system", text("touch hostile"))),
    ("os.system", call("os.system", text("touch hostile"))),
    ("builtins.eval", call("builtins.eval", text("1"))),
    ("__builtin__.exec", call("__builtin__.exec", text("1"))),
    ("subprocess.Popen", b"csubprocess\nPopen\n)\x81"),
    ("numpy.load", call("numpy.load", text("x"))),
    ("torch.load", call("torch.load", text("x"))),
    ("torch.nn.modules.linear.Linear", b"ctorch.nn.modules.linear\nLinear\n)\x81"),
    ("torch.ComplexFloatStorage", tensor(storage("torch.ComplexFloatStorage"))),
    ("names argparse.Namespace.x,", b"cargparse.Namespace\nx\n"),
    (
        "calls builtins.getattr with",
        call("builtins.getattr", b"ccollections\nOrderedDict\n", text("__init__")),
    ),
    ("calls 'os.system'", text("os.system") + b")R"),
    ("calls a ndarray", ARRAY + b")R"),
    ("calls a Float32DType", b"ctorch\nFloatStorage\n)R"),
    ("calls collections.OrderedDict", call("collections.OrderedDict", call("argparse.Namespace"))),
    ("posix.system", call("collections.OrderedDict", call("posix.system", text("touch hostile")))),
    ("calls argparse.Namespace", NAMESPACE + b"NR"),
    ("calls torch.Size", call("torch.Size", b"]")),
    ("opcode STACK_GLOBAL", b"q\0".join((text("posix"), text("system"))) + b"\x93"),
    ("opcode MEMOIZE", text("posix") + b"\x94"),
    ("opcode INST", b"(" + text("touch hostile") + b"iposix\nsystem\n"),
    ("opcode OBJ", b"(" + NAMESPACE + b"o"),
    ("opcode EXT1", b"\x82\1"),
    ("opcode EXT2", b"\x83\1\0"),
    ("opcode EXT4", b"\x84\1\0\0\0"),
    ("opcode LONG4", b"\x8b" + struct.pack("<i", 2**31 - 1)),
    ("opcode BINBYTES8", b"\x8e" + struct.pack("<Q", 2**62)),
    ("opcode PERSID", b"P0\n"),
    ("opcode b'\\xff'", b"\xff"),
    ("protocol must be 2", b"\x80\x04N"),
    ("cut off", b"X" + struct.pack("<I", 2**32 - 1)),
    ("not UTF-8", b"X\1\0\0\0\xff"),
    ("not ASCII", b"c\xff\nx\n"),
    ("too long", b"c" + b"x" * 10_000),
    ("recalls value 7", b"Nq\1h\7"),
    ("recalls value 2147483647", b"j\xff\xff\xff\x7f"),
    ("value that it has not made", b"q\0"),
    ("has not made", b"N\x86"),
    ("has not begun", b"Nt"),
    ("unfinished value", b"NN"),
    ("unfinished value", b"(" * 100_000 + b"N"),
    ("appends to a dict", b"}Na"),
    ("sets 3 keys", b"}(NNNu"),
    ("keys and values of a ndarray", ARRAY + b"NNs"),
    ("keys must be strings or integers, not a tuple", b"}" + NESTED["tuples"] + b"Ns"),
    ("keys must be strings or integers, not a int", b"}" + number(2**61) + b"Ns"),
    ("sets the state of a ndarray", ARRAY + b"}b"),
    ("sets the state of _codecs.encode", b"c_codecs\nencode\n}b"),
    ("over 64 deep", NESTED["lists"]),
    ("over 64 deep", NESTED["tuples"]),
    ("contains itself", b"]q\0h\0a"),
    ("too large", b")" + b"q\0h\0\x86" * 60),
    ("has a Storage where", storage()),
    ("has _codecs.encode where", b"]c_codecs\nencode\na"),
    ("names no storage", b"NQ"),
    ("names no storage", text("storage") + b"Q"),
    ("names no storage", b"]" + storage()[:-2] + b"eQ"),
    ("names no storage", storage(count=-6)),
    ("names no storage", storage(count=6.0)),
    ("names no storage", storage(more=b"N")),
    ("names no storage", storage(key="0" * 100)),
    ("names no storage", storage("argparse.Namespace")),
    ("longer than the file", storage(count=10_000)),
    ("longer than the file", storage(count=2**600)),
    ("with two lengths", b"]" + storage() + b"a" + storage("torch.HalfStorage") + b"a"),
    ("past the end", tensor(None, 1)),
    ("past the end", tensor(None, 0, (2, 3), (4, 1))),
    ("impossible offset", tensor(None, -1, (1,), (1,))),
    ("impossible offset", tensor(None, 5, (2,), (-1,))),
    ("impossible offset", tensor(None, 0, (-2, -3), (3, 1))),
    ("impossible offset", tensor(None, 0, (1, 1), (1,))),
    ("impossible offset", tensor(None, 0, (1,) * 33, (1,) * 33)),
    ("impossible offset", tensor(None, 0.0, (1,), (1,))),
    ("impossible offset", tensor(None, 0, (True,), (1,))),
    ("repeat the elements", tensor(None, 0, (2**30,), (0,))),
    ("repeat the elements", tensor(None, 0, (0, 2**62, 2**62, 2**62), (0, 0, 0, 0))),
    ("calls torch._utils._rebuild_tensor_v2", tensor(more=b"}" + text("conj") + b"\x88s")),
    ("calls torch._utils._rebuild_parameter", call("torch._utils._rebuild_parameter", b"]", b"\x88", HOOKS)),
    ("calls numpy.dtype", call("numpy.dtype", text("O8"), b"\x89", b"\x88")),
    (
        "byte order of a NumPy dtype",
        call("numpy.dtype", text("f8"), b"\x89", b"\x88") + b"(K\3" + text(">") + b"tb",
    ),
    ("calls numpy.core.multiarray.scalar", call("numpy.core.multiarray.scalar", b"ctorch\nint64\n", ARRAY)),
    ("calls _codecs.encode", call("_codecs.encode", text("x"), text("rot13"))),
    ("calls _codecs.encode", call("_codecs.encode", text("x"), ARRAY)),
    ("not for bytes", call("_codecs.encode", text("\u0100"), text("latin1"))),
]


@pytest.mark.parametrize(
    ("message", "program"), HOSTILE, ids=lambda value: value if isinstance(value, str) else ""
)
def test_hostile_pickles_are_refused(message, program, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match=re.escape(message)) as caught:
        run(b"\x80\x02" + program + b".", file_size=max(10_000, len(program)))
    assert len(str(caught.value)) < 600
    assert not list(tmp_path.iterdir())


def test_every_cut_of_a_pickle_is_refused():
    program = b"\x80\x02}(" + text("weight") + ARRAY + text("epoch") + number(300) + b"u."
    assert run(program)["epoch"] == 300
    for length in range(len(program)):
        with pytest.raises(CheckpointError):
            run(program[:length])


def test_small_pickles_stay_small():
    # Text of one megabyte, encoded once: fine. A hundred times: a bomb.
    megabyte = text("x" * 2**20) + b"q\0"
    encode = b"c_codecs\nencode\n(h\0" + text("latin1") + b"tR"
    program = b"](" + megabyte + encode + b"e."
    assert run(program, len(program))[1] == b"x" * 2**20
    bombs = {
        "too often": b"](" + megabyte + encode * 100 + b"e.",
        "longer than the file": b"](" + b"".join(storage(key=str(i)) for i in range(10)) + b"e.",
        "repeat": b"](" + tensor(None, 0, (2**26,), (0,)) * 2 + b"e.",
    }
    tracemalloc.start()
    try:
        for message, program in bombs.items():
            with pytest.raises(CheckpointError, match=message):
                run(program, len(program) if message == "too often" else 200)
        # Python's own unpickler makes room for two thousand million values here.
        assert run(b"Nr\xff\xff\xff\x7fj\xff\xff\xff\x7f\x86.") == (None, None)
        assert tracemalloc.get_traced_memory()[1] < 20e6
    finally:
        tracemalloc.stop()


def test_long_pickles_are_refused(monkeypatch):
    monkeypatch.setattr(pickle_machine, "_MAX_STEPS", 1000)
    assert len(run(b"(" + b"N" * 900 + b"t.")) == 900
    with pytest.raises(CheckpointError, match="more than 1000 steps"):
        run(b"(" + b"N" * 1000 + b"t.")


def test_a_pickle_without_storages_has_no_tensors():
    with pytest.raises(CheckpointError, match="storages"):
        PickleMachine(io.BytesIO(ARRAY + b"."), 10_000).run()
