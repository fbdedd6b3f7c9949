"""Torch files, read without running anything that is in them.

A pickle names functions and classes and the arguments to call them with; `pickle.load` calls them. Here the few names
that torch writes for a tensor lead to the stand-ins below, every other name to a `Placeholder`, which keeps what it is
given and does nothing. The bytes of a tensor are read when `StoredTensor.read` asks for them.
"""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from torch import Tensor

from seq2exp.errors import UserError

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # of files that torch wrote before its zip format


class Placeholder:
    """Stands for an object of an unknown class, or for the result of an unknown function.

    origin: the name that the file gives. arguments, state, items: what the file would have called it with, set as its
    state and filled it with.
    """

    origin = ""
    arguments: tuple[Any, ...]
    state: Any
    items: dict[Any, Any]

    def __new__(cls, *arguments: Any, **named: Any) -> Placeholder:
        self = super().__new__(cls)
        self.arguments, self.state, self.items = (*arguments, *named.values()), None, {}
        return self

    def __init__(self, *arguments: Any, **named: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        self.items[key] = value

    def append(self, value: Any) -> None:
        self.items[len(self.items)] = value

    add = append

    def extend(self, values: Any) -> None:
        for value in values:
            self.append(value)


class Mapping(dict[Any, Any]):
    """Stands for OrderedDict, whose attributes (torch's version numbers) are dropped."""

    def __setstate__(self, state: Any) -> None:
        pass


class Storage(NamedTuple):
    """Numbers of one dtype somewhere in the file."""

    dtype: torch.dtype
    size: int
    read: Callable[[], bytes]


class StoredTensor(NamedTuple):
    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    def read(self) -> Tensor:
        """The tensor, in memory of its own. Raises ValueError or RuntimeError where the file is damaged."""
        storage, itemsize = self.storage, self.storage.dtype.itemsize
        data = storage.read()
        if len(data) != storage.size * itemsize:
            raise ValueError(f"{len(data)} bytes where {storage.size * itemsize} are announced")
        flat = torch.frombuffer(bytearray(data), dtype=storage.dtype) if data else torch.empty(0, dtype=storage.dtype)
        return torch.as_strided(flat, self.shape, self.stride, self.offset).clone()


class StandIn:
    """A function that a file may call. A pickle can also set attributes of what it names: here it cannot."""

    __slots__ = ("_call",)
    _call: Callable[..., Any]

    def __init__(self, call: Callable[..., Any]) -> None:
        object.__setattr__(self, "_call", call)

    def __call__(self, *arguments: Any) -> Any:
        return self._call(*arguments)

    def __setattr__(self, name: str, value: Any) -> None:
        raise ValueError(f"the file sets {name} of a function")


def _tensor(storage: Storage, offset: int, shape: Any, stride: Any, *_: Any) -> StoredTensor:
    if not isinstance(storage, Storage):
        raise ValueError("a tensor without a storage")
    return StoredTensor(storage, int(offset), tuple(shape), tuple(stride))


def _first(first: Any, *_: Any) -> Any:
    return first


_STORAGES = {
    "FloatStorage": torch.float32, "DoubleStorage": torch.float64, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool,
}  # fmt: skip
_STAND_INS: dict[tuple[str, str], Any] = {
    ("torch._utils", "_rebuild_tensor"): StandIn(_tensor),
    ("torch._utils", "_rebuild_tensor_v2"): StandIn(_tensor),
    ("torch._utils", "_rebuild_parameter"): StandIn(_first),
    ("torch._utils", "_rebuild_parameter_with_state"): StandIn(_first),
    ("torch", "Size"): StandIn(tuple),
    ("collections", "OrderedDict"): Mapping,
    **{("torch", name): dtype for name, dtype in _STORAGES.items()},
}


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: BinaryIO, read_storage: Callable[[str], bytes]) -> None:
        super().__init__(file)
        self.read_storage = read_storage

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _STAND_INS:
            return _STAND_INS[module, name]
        return type("Placeholder", (Placeholder,), {"origin": f"{module}.{name}"})

    def persistent_load(self, pid: Any) -> Storage:
        kind, dtype, key, _, size = pid[:5]
        if kind != "storage" or not isinstance(dtype, torch.dtype):
            raise ValueError(f"a {kind} of unknown kind {getattr(dtype, 'origin', dtype)!r}")
        return Storage(dtype, int(size), partial(self.read_storage, str(key)))


def read_torch_file(path: Path) -> Any:
    """What `torch.save` wrote: plain containers and values, `StoredTensor`, `Placeholder`.

    Raises
    ------
    UserError: no torch file, or a damaged one.
    """
    try:
        with path.open("rb") as file:
            is_zip = file.read(4) == b"PK\x03\x04"
            file.seek(0)
            return _read_zip(path) if is_zip else _read_legacy(file)
    except OSError:
        raise
    except Exception as error:  # a damaged file can raise anything
        raise UserError(f"{path}: not a file of torch.save, or damaged or cut off ({in_words(error)})") from error


def in_words(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _read_zip(path: Path) -> Any:
    with zipfile.ZipFile(path) as archive:
        pickles = [name for name in archive.namelist() if name.endswith("data.pkl") and name.count("/") < 2]
        if len(pickles) != 1:
            raise ValueError("a zip file without one data.pkl")
        folder = pickles[0].removesuffix("data.pkl")
        if f"{folder}constants.pkl" in archive.namelist():
            raise ValueError("a TorchScript archive, whose code is not run: save a state_dict()")
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
            raise ValueError("its parts are compressed, which torch does not do")
        order = f"{folder}byteorder"
        if order in archive.namelist() and archive.read(order) != b"little":
            raise ValueError("its numbers are in the byte order of another kind of machine")
        content = archive.read(pickles[0])

    def read_storage(key: str) -> bytes:
        with zipfile.ZipFile(path) as archive:
            return archive.read(f"{folder}data/{key}")

    return _Unpickler(io.BytesIO(content), read_storage).load()


def _read_legacy(file: BinaryIO) -> Any:
    """Four pickles (magic number, protocol, machine, content), the keys of the storages, their sizes and bytes."""
    found: dict[str, bytes] = {}

    def load() -> Any:
        return _Unpickler(file, found.__getitem__).load()

    if load() != MAGIC or load() != PROTOCOL:
        raise ValueError("a pickle that torch.save did not write")
    load()
    announced: dict[str, Storage] = {}

    class Noting(_Unpickler):
        def persistent_load(self, pid: Any) -> Storage:
            storage = super().persistent_load(pid)
            announced[str(pid[2])] = storage
            return storage

    content = Noting(file, found.__getitem__).load()
    for key in load():
        (size,) = struct.unpack("<q", file.read(8))
        found[str(key)] = file.read(size * announced[str(key)].dtype.itemsize)
    return content
