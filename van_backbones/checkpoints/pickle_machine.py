"""A stack machine for the pickles in PyTorch checkpoints: arrays and plain values come out, nothing is run.

A pickle is a program. Python's own unpickler imports and calls whatever the program names; this machine knows
the opcodes of pickle protocol 2, which `torch.save` writes, and `_call` lists everything it does beyond them.
The source of Python's `pickletools` explains the opcodes, `torch/_utils.py` what PyTorch writes with them.
"""

import math
import pickle  # for the names of the opcodes only
import pickletools
import struct
from dataclasses import dataclass

import numpy as np


class CheckpointError(ValueError):
    """A file that is not a PyTorch checkpoint, is damaged, or asks for more than tensors and plain values."""


@dataclass(frozen=True, slots=True)
class Placeholder:
    """Stands for an object that is neither a tensor nor a plain value: a name without any content."""

    name: str


@dataclass(frozen=True, slots=True)
class Storage:
    """The bytes (uint8) that tensors view, and the type of their elements."""

    buffer: np.ndarray
    dtype: np.dtype


@dataclass(frozen=True, slots=True)
class _Function:
    """The name of a function that `_call` knows."""

    name: str


class PickleMachine:
    """Runs one pickle on plain values.

    Every step reads at least one byte, takes no longer than what it reads or a budget allows, and never
    recurses: no file can make this slow or use much memory.

    Args:
        file: a binary file object at the start of a pickle. After `run` it is at its end.
        file_size: the length of the whole checkpoint file, which the budgets follow. Unit: bytes.
        read_storage: gives the bytes of a storage as a uint8 array, from its key and its length in bytes.
            None: the pickle must have no tensors.
        has_parts: whether a storage may be a part of another one, as in the legacy format.

    Attributes:
        storages: key -> `Storage`, all that the pickle has named so far.
    """

    def __init__(self, file, file_size, read_storage=None, has_parts=False):
        self.storages = {}
        self._file, self._file_size = file, file_size
        self._read_storage, self._has_parts = read_storage, has_parts
        self._stack, self._outer_stacks, self._memo = [], [], {}
        self._storage_budget = self._copy_budget = file_size
        self._tensor_budget = 8 * file_size + 2**28

    def run(self):
        """Returns the pickled value.

        Raises:
            CheckpointError: for anything that a checkpoint of tensors does not need.
        """
        for _ in range(_MAX_STEPS):
            code = self._take(1)
            if code == pickle.STOP:
                if self._outer_stacks or len(self._stack) != 1:
                    raise CheckpointError("the pickle ends with an unfinished value")
                _check_value(self._stack[0])
                return self._stack[0]
            self._step(code)
        raise CheckpointError(f"the pickle has more than {_MAX_STEPS} steps")

    def _step(self, code):
        """Runs one opcode."""
        match code:
            case pickle.BINPUT | pickle.LONG_BINPUT:
                self._memo[self._take_number(code)] = self._get_top()
            case pickle.BINGET | pickle.LONG_BINGET:
                index = self._take_number(code)
                if index not in self._memo:
                    raise CheckpointError(f"the pickle recalls value {index}, which it has not kept")
                self._stack.append(self._memo[index])
            case pickle.BININT1 | pickle.BININT2 | pickle.BININT | pickle.BINFLOAT:
                self._stack.append(self._take_number(code))
            case pickle.BINUNICODE:
                self._stack.append(self._take_text(code))
            case pickle.LONG1:
                length = self._take_number(code)
                self._stack.append(int.from_bytes(self._take(length), "little", signed=True))
            case pickle.NONE | pickle.NEWTRUE | pickle.NEWFALSE:
                self._stack.append(_CONSTANTS[code])
            case pickle.EMPTY_TUPLE | pickle.EMPTY_LIST | pickle.EMPTY_DICT:
                self._stack.append(_CONTAINERS[code]())
            case pickle.MARK:
                self._outer_stacks.append(self._stack)
                self._stack = []
            case pickle.TUPLE:
                items = self._pop_to_mark()  # first, for it changes the stack
                self._stack.append(tuple(items))
            case pickle.TUPLE1 | pickle.TUPLE2 | pickle.TUPLE3:
                self._stack.append(tuple(self._pop(_TUPLE_SIZES[code])))
            case pickle.APPEND | pickle.APPENDS:
                self._extend(self._pop(1) if code == pickle.APPEND else self._pop_to_mark())
            case pickle.SETITEM | pickle.SETITEMS:
                self._set_items(self._pop(2) if code == pickle.SETITEM else self._pop_to_mark())
            case pickle.GLOBAL:
                self._stack.append(_find_global(f"{self._take_line()}.{self._take_line()}"))
            case pickle.REDUCE | pickle.NEWOBJ:
                self._stack.append(self._call(*self._pop(2)))
            case pickle.BUILD:
                self._set_state(*self._pop(1))
            case pickle.BINPERSID:
                self._stack.append(self._find_storage(*self._pop(1)))
            case pickle.PROTO:
                if self._take_number(code) != 2:
                    raise CheckpointError(
                        "the pickle protocol must be 2, which `torch.save` writes by default"
                    )
            case _:
                known = pickletools.code2op.get(code.decode("latin-1"))
                raise CheckpointError(f"the pickle has opcode {known.name if known else code}: not supported")

    def _take(self, count):
        # Python allocates as much as is asked for: do not ask for more than the file can have.
        data = self._file.read(count) if 0 <= count <= self._file_size else b""
        if len(data) != count:
            raise CheckpointError("the pickle is damaged or cut off")
        return data

    def _take_number(self, code):
        form = _NUMBERS[code]
        return struct.unpack(form, self._take(struct.calcsize(form)))[0]

    def _take_text(self, code):
        data = self._take(self._take_number(code))
        try:
            return data.decode()
        except UnicodeDecodeError as error:
            raise CheckpointError("the pickle has a text that is not UTF-8") from error

    def _take_line(self):
        line = self._file.readline(256)
        if not line.endswith(b"\n") or not line.isascii():
            raise CheckpointError("the pickle names a global that is cut off, too long or not ASCII")
        return line[:-1].decode("ascii")

    def _get_top(self):
        if not self._stack:
            raise CheckpointError("the pickle takes a value that it has not made")
        return self._stack[-1]

    def _pop(self, count):
        if len(self._stack) < count:
            raise CheckpointError("the pickle takes a value that it has not made")
        items = self._stack[-count:]
        del self._stack[-count:]
        return items

    def _pop_to_mark(self):
        if not self._outer_stacks:
            raise CheckpointError("the pickle ends a list that it has not begun")
        items, self._stack = self._stack, self._outer_stacks.pop()
        return items

    def _extend(self, items):
        target = self._get_top()
        if isinstance(target, list):
            target.extend(items)
        elif not isinstance(target, Placeholder):
            raise CheckpointError(f"the pickle appends to {describe(target)}")

    def _set_items(self, items):
        target = self._get_top()
        if isinstance(target, dict) and len(items) % 2 == 0:
            for key, value in zip(items[::2], items[1::2], strict=True):
                # hash() of deep tuples could overflow the C stack, and large integers can share one hash.
                if not (key is None or isinstance(key, str) or (isinstance(key, int) and abs(key) < 2**60)):
                    raise CheckpointError(f"keys must be strings or integers, not {describe(key)}")
                target[key] = value
        elif not isinstance(target, Placeholder):
            raise CheckpointError(f"the pickle sets {len(items)} keys and values of {describe(target)}")

    def _set_state(self, state):
        """Drops what an object's `__setstate__` would get, after checking the byte order of a NumPy dtype."""
        target = self._get_top()
        if isinstance(target, np.dtype):
            order = state[1] if isinstance(state, tuple) and len(state) > 1 else None
            if not isinstance(order, str) or order not in ("<", "|"):
                raise CheckpointError("the byte order of a NumPy dtype must be little")
        elif not isinstance(target, dict | Placeholder):
            raise CheckpointError(f"the pickle sets the state of {describe(target)}")

    def _call(self, function, arguments):
        """Returns the result of a known function: all that a pickle can do besides filling containers."""
        if not isinstance(function, _Function | Placeholder) or not isinstance(arguments, tuple):
            raise CheckpointError(f"the pickle calls {describe(function)}")
        if isinstance(function, Placeholder):
            return function
        # Only types are compared here: `array == "latin1"` would have no truth value.
        match function.name, arguments:
            case "torch._utils._rebuild_tensor", (Storage() as storage, _, tuple(), tuple()):
                return self._view(storage, *arguments[1:])
            case "torch._utils._rebuild_tensor_v2", (Storage() as storage, _, tuple(), tuple(), _, _):
                return self._view(storage, *arguments[1:4])
            case "torch._utils._rebuild_tensor_v3", (
                Storage(),
                _,
                tuple(),
                tuple(),
                _,
                _,
                np.dtype() as dtype,
            ):
                return self._view(Storage(arguments[0].buffer, dtype), *arguments[1:4])
            case "torch._utils._rebuild_parameter", (np.ndarray() as array, _, _):
                return array
            case "torch._utils._rebuild_parameter_with_state", (np.ndarray() as array, _, _, _):
                return array
            case "torch.Size", (tuple() as shape,):
                return shape
            case "collections.OrderedDict" | "collections.Counter", ():
                return {}
            case "collections.defaultdict", (_,):
                return {}
            case "collections.Counter", (dict() as counts,):
                return counts
            case "numpy.dtype", (str() as kind, _, _) if kind in _NUMPY_KINDS:
                return np.dtype(f"<{kind}")
            case "numpy.core.multiarray.scalar", (np.dtype() as dtype, bytes() as data):
                if len(data) == dtype.itemsize:
                    return np.frombuffer(data, dtype)[0]
            case "_codecs.encode", (str() as text, str() as encoding) if encoding == "latin1":
                return self._encode(text)
            case "builtins.bytes", ():
                return b""
            case "builtins.getattr", (Placeholder() as owner, str()):
                return owner
        raise CheckpointError(f"the pickle calls {function.name} with arguments that no checkpoint needs")

    def _encode(self, text):
        """Returns the bytes of a text: protocol 2's way to save bytes."""
        self._copy_budget -= len(text)
        if self._copy_budget < 0 or max(text, default="") > "\xff":
            raise CheckpointError("the pickle calls _codecs.encode too often, or not for bytes")
        return text.encode("latin-1")

    def _find_storage(self, identifier):
        """Returns the storage that a persistent id names: ("storage", type, key, device, elements)."""
        part = None
        if self._has_parts and isinstance(identifier, tuple) and len(identifier) == 6:
            identifier, part = identifier[:5], identifier[5]
        match identifier:
            case (str() as kind, np.dtype() as dtype, str() as key, str(), int() as count) if (
                kind == "storage" and isinstance(identifier, tuple) and len(key) <= 64 and count >= 0
            ):
                byte_count = count * dtype.itemsize
            case _:
                raise CheckpointError("the pickle has a persistent id that names no storage")
        if key not in self.storages:
            self._storage_budget -= byte_count
            if self._storage_budget < 0 or self._read_storage is None:
                raise CheckpointError("the pickle names storages that are longer than the file")
            self.storages[key] = Storage(self._read_storage(key, byte_count), dtype)
        buffer = self.storages[key].buffer
        if buffer.nbytes != byte_count:
            raise CheckpointError(f"the pickle names storage {describe(key)} with two lengths")
        return Storage(_cut(buffer, dtype, part), dtype)

    def _view(self, storage, offset, shape, strides):
        """Returns a tensor.

        Args:
            storage: what it views.
            offset: where its first element is. Unit: elements.
            shape: one size for each axis.
            strides: one step for each axis. Unit: elements.
        """
        numbers = (offset, *shape, *strides) if len(shape) == len(strides) <= 32 else (None,)
        if not all(type(number) is int and number >= 0 for number in numbers):
            raise CheckpointError("a tensor has an impossible offset, shape or strides")
        size, is_empty = storage.dtype.itemsize, 0 in shape
        last = offset + sum((count - 1) * step for count, step in zip(shape, strides, strict=True))
        if not is_empty and last >= storage.buffer.nbytes // size:
            raise CheckpointError("a tensor reaches past the end of its storage")
        # A stride of zero repeats elements without end. The view is free, but a copy could fill the memory.
        self._tensor_budget -= size * math.prod(max(count, 1) for count in shape)
        if self._tensor_budget < 0:
            raise CheckpointError("the tensors repeat the elements of their storages too often")
        # PyTorch allows any stride on an axis of length 1, NumPy does not.
        steps = [0 if is_empty or n == 1 else step * size for n, step in zip(shape, strides, strict=True)]
        array = np.ndarray(shape, storage.dtype, storage.buffer, 0 if is_empty else offset * size, steps)
        array.flags.writeable = False
        return array


def _find_global(name):
    """Returns what stands for a global: a dtype (also for a type of storage), a function or a placeholder."""
    # Protocol 2 keeps Python 2's names, and NumPy 2 has moved its core.
    known = name.replace("__builtin__.", "builtins.").replace("numpy._core.", "numpy.core.")
    if known in _DTYPES and _DTYPES[known] == "bfloat16":
        import ml_dtypes  # comes with every backend of Keras, and few files need it

        return np.dtype(ml_dtypes.bfloat16)
    if known in _DTYPES:
        return np.dtype(_DTYPES[known])
    if known in _FUNCTIONS:
        return _Function(known)
    if known in _PLACEHOLDERS:
        return Placeholder(known)
    raise CheckpointError(
        f"the pickle names {name}, which tensors do not need; if you trust the file, load it with PyTorch "
        "and save only its state dict"
    )


def _cut(buffer, dtype, part):
    """Returns a part of a storage: None for all, or (its own key, offset in elements, length in elements)."""
    match part:
        case None:
            return buffer
        case (str(), int() as offset, int() as count) if offset >= 0 and count >= 0:
            if (offset + count) * dtype.itemsize <= buffer.nbytes:
                return buffer[offset * dtype.itemsize : (offset + count) * dtype.itemsize]
    raise CheckpointError("the pickle has a persistent id that names an impossible part of a storage")


def _check_value(value):
    """Refuses a value that is too deep or too large, holds itself, or has a storage or a function in it.

    A pickle may use a container twice, so a few bytes can describe a tree that takes forever to walk.
    """
    count, todo = 0, [(value, 0)]
    while todo:
        value, depth = todo.pop()
        if isinstance(value, dict | list | tuple):
            count += len(value)
            if depth > _MAX_DEPTH or count > _MAX_STEPS:
                raise CheckpointError(f"the value contains itself, is over {_MAX_DEPTH} deep or is too large")
            items = value.values() if isinstance(value, dict) else value
            todo.extend((item, depth + 1) for item in items)
        elif isinstance(value, Storage | _Function):
            raise CheckpointError(f"the pickle has {describe(value)} where a value belongs")


def describe(value):
    """Returns a short text for messages, whatever the value's size or depth."""
    if isinstance(value, str):
        return repr(value[:64])
    return value.name if isinstance(value, _Function | Placeholder) else f"a {type(value).__name__}"


# An honest checkpoint of a thousand layers with its optimizer's state takes about 300,000 steps.
_MAX_STEPS = 2_000_000
_MAX_DEPTH = 64

# How `struct` reads the argument of an opcode, or the length of its argument.
_NUMBERS = {pickle.BININT1: "<B", pickle.BININT2: "<H", pickle.BININT: "<i", pickle.BINFLOAT: ">d"}
_NUMBERS |= {pickle.BINPUT: "<B", pickle.LONG_BINPUT: "<I", pickle.BINGET: "<B", pickle.LONG_BINGET: "<I"}
_NUMBERS |= {pickle.BINUNICODE: "<I", pickle.LONG1: "<B", pickle.PROTO: "<B"}
_CONSTANTS = {pickle.NONE: None, pickle.NEWTRUE: True, pickle.NEWFALSE: False}
_CONTAINERS = {pickle.EMPTY_TUPLE: tuple, pickle.EMPTY_LIST: list, pickle.EMPTY_DICT: dict}
_TUPLE_SIZES = {pickle.TUPLE1: 1, pickle.TUPLE2: 2, pickle.TUPLE3: 3}

_NUMPY_KINDS = frozenset("f8 f4 f2 i8 i4 i2 i1 u8 u4 u2 u1 b1".split())
_STORAGES = {"Double": "<f8", "Float": "<f4", "Half": "<f2", "Long": "<i8", "Int": "<i4", "Short": "<i2"}
_STORAGES |= {"Char": "i1", "Byte": "u1", "Bool": "?", "Untyped": "u1", "BFloat16": "bfloat16"}
_MODULES = ("torch", "torch.cuda", "torch.storage")
_DTYPES = {f"{module}.{name}Storage": dtype for module in _MODULES for name, dtype in _STORAGES.items()}
_DTYPES |= {f"torch.float{8 * n}": f"<f{n}" for n in (2, 4, 8)}
_DTYPES |= {f"torch.{s}int{8 * n}": f"<{s or 'i'}{n}" for s in ("", "u") for n in (1, 2, 4, 8)}
_DTYPES |= {"torch.bool": "?", "torch.bfloat16": "bfloat16"}
# Besides tensors: schedulers contain counters and getattr (a method of a class), metrics NumPy scalars.
_FUNCTIONS = frozenset(
    """
    torch._utils._rebuild_tensor torch._utils._rebuild_tensor_v2 torch._utils._rebuild_tensor_v3
    torch._utils._rebuild_parameter torch._utils._rebuild_parameter_with_state torch.Size
    collections.OrderedDict collections.Counter collections.defaultdict builtins.getattr
    numpy.dtype numpy.core.multiarray.scalar _codecs.encode builtins.bytes
    """.split()
)
# What timm, mmcv and mmengine keep beside the weights.
_PLACEHOLDERS = frozenset(
    """
    argparse.Namespace types.SimpleNamespace mmcv.utils.config.ConfigDict mmengine.config.config.ConfigDict
    mmengine.logging.history_buffer.HistoryBuffer numpy.ndarray numpy.core.multiarray._reconstruct
    pathlib.PosixPath pathlib.WindowsPath pathlib._local.PosixPath pathlib._local.WindowsPath
    collections.deque builtins.set builtins.dict builtins.list builtins.int builtins.float torch.device
    """.split()
)
