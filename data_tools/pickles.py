"""Pickled dictionaries of boolean arrays, read without running anything that a pickle may ask for.

A pickle names functions and classes and the arguments to call them with; ``pickle.load`` calls them. Here the few
names that numpy writes for an array lead to stand-ins that only collect bytes, and every other name is refused.
"""

import pickle
from pathlib import Path
from typing import Any

import numpy as np

from seq2exp.data_tools.tables import check_file
from seq2exp.errors import UserError


def read_masks(path: Path, what: str) -> dict[str, np.ndarray]:
    """Reads a pickled dict, chromosome -> numpy boolean array.

    Args:
        what: what the file is, for the error.

    Returns:
        chromosome -> bool (length,).

    Raises:
        UserError: the pickle is damaged, holds anything else, or asks to load anything but numpy's arrays
            (nothing of it runs).
    """
    check_file(path, what)
    try:
        with path.open("rb") as handle:
            found = _MaskUnpickler(handle).load()
    except _Refused as error:
        raise UserError(
            f"{path}: refused, {_words(error)}; {what} must be a pickled dict of numpy boolean arrays."
        ) from error
    except Exception as error:  # a damaged pickle can raise anything
        raise UserError(f"{path}: not a readable pickle, damaged or cut off ({_words(error)}).") from error
    if not isinstance(found, dict):
        raise UserError(f"{path}: holds a {type(found).__name__}; {what} must be a dict of numpy boolean arrays.")
    masks = {}
    for chrom, array in found.items():
        if not isinstance(chrom, str) or not isinstance(array, _Array) or array.values is None:
            raise UserError(f"{path}: {chrom!r} is no boolean array; {what} must be a dict of numpy boolean arrays.")
        masks[chrom] = array.values
    return masks


class _Refused(Exception):
    """The pickle asks for something that boolean arrays do not need."""


class _Dtype:
    """Stands for numpy.dtype: only bool."""

    def __init__(self, name: str, *_: Any) -> None:
        if name not in ("b1", "?", "|b1", "bool"):
            raise _Refused(f"its array has the dtype {name}, not bool")

    def __setstate__(self, state: object) -> None:
        pass  # byte order and alignment, which one byte does not have


class _Array:
    """Stands for an array and for the function that makes an empty one; its bytes come with the state."""

    values: np.ndarray | None = None

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, _, data = state
        self._fill(data, dtype, shape)

    def _fill(self, data: Any, dtype: Any, shape: Any) -> None:
        if not isinstance(dtype, _Dtype) or not isinstance(data, bytes | bytearray) or shape != (len(data),):
            raise _Refused("an array of it is not one-dimensional with one byte a value")
        self.values = np.frombuffer(data, dtype=np.uint8) != 0


class _BufferArray(_Array):
    """Stands for the function that makes an array from its bytes (pickle protocol 5)."""

    def __init__(self, data: Any, dtype: Any, shape: Any, *_: Any) -> None:
        self._fill(data, dtype, shape)


_ALLOWED: dict[tuple[str, str], type] = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    ("numpy.core.multiarray", "_reconstruct"): _Array,  # numpy < 2
    ("numpy._core.multiarray", "_reconstruct"): _Array,
    ("numpy.core.numeric", "_frombuffer"): _BufferArray,
    ("numpy._core.numeric", "_frombuffer"): _BufferArray,
}


class _MaskUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> type:
        if (module, name) not in _ALLOWED:
            raise _Refused(f"it asks to load {module}.{name}")
        return _ALLOWED[module, name]

    def persistent_load(self, pid: Any) -> Any:
        raise _Refused("it refers to objects outside the file")


def _words(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
