"""The CUDA kernels of pack_selected on the CPU, under the emulator: kernels/gather/cuda.py for CPU tensors.

Every output starts as NaN, between guard bytes that are checked after each call.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from ctypes import POINTER, c_bool, c_int, c_int64, c_void_p

import torch
from emulated_cuda import EMULATOR, SOURCES, entry, library
from emulated_op import pointer, run
from emulated_scan import SCALARS, Outputs
from torch import Tensor


class Marks(ctypes.Structure):
    """GpuMarks of csrc/gather/cuda/gather.h."""

    _fields_ = [("data", c_void_p), ("storage", c_int), *((name, c_int64) for name in ("length", "batch", "time"))]

    @classmethod
    def of(cls, x: Tensor) -> Marks:
        return cls(x.data_ptr(), list(SCALARS).index(x.dtype), _length(x), *x.stride())


class Rows(ctypes.Structure):
    """GpuRows of csrc/gather/cuda/gather.h."""

    _fields_ = [("data", c_void_p), *((name, c_int64) for name in ("length", "batch", "time", "channel"))]

    @classmethod
    def dense(cls, x: Tensor) -> Rows:
        return cls(x.data_ptr(), _length(x), *x.stride())

    @classmethod
    def packed(cls, x: Tensor) -> Rows:
        return cls(x.data_ptr(), x.shape[0], 0, *x.stride())

    def in_vectors(self, dim: int, itemsize: int) -> bool:
        items = 16 // itemsize
        whole = not any(n % items for n in (dim, self.batch, self.time))
        return (self.channel == 1 or dim == 1) and whole and (self.data or 0) % 16 == 0


class Select(ctypes.Structure):
    """GpuSelect of csrc/gather/cuda/gather.h."""

    _fields_ = [
        ("mask", Marks), *((name, c_int64) for name in ("batch", "length", "tiles")),
        *((name, c_void_p) for name in ("offsets", "indices", "cu_seqlens")), ("size", c_int64), ("padded", c_bool),
    ]  # fmt: skip


class Gather(ctypes.Structure):
    """GpuGather of csrc/gather/cuda/gather.h."""

    _fields_ = [
        *((name, c_int64) for name in ("total", "bases", "dim")), ("indices", c_void_p), ("vectors", c_bool),
        ("mask", Marks), ("dense", Rows), ("packed", Rows), ("out", c_void_p), ("grad_mask", c_void_p),
    ]  # fmt: skip


def _length(x: Tensor) -> int:
    """As length_of in gather.cu."""
    one = x.shape[0] == 1 or x.stride(0) == x.shape[1] * x.stride(1)
    return x.shape[0] * x.shape[1] if one else x.shape[1]


class EmulatedGather:
    """The functions of kernels/gather/cuda.py, for one dtype of x.

    checked: every access of a kernel is watched, see tests/emulator/memory_checks.h; slower.
    """

    def __init__(self, dtype: torch.dtype, checked: bool = False) -> None:
        self._checked = checked
        sources = SOURCES / "gather" / "cuda"
        self._library = library(
            EMULATOR / "gather.cpp",
            sources / "select.cu",
            sources / f"rows_{str(dtype).removeprefix('torch.')}.cu",
            defines=(f"SCALAR={SCALARS[dtype]}",),
            checked=checked,
        )
        self._count, self._place = (entry(self._library, f"select_{x}", POINTER(Select)) for x in ("count", "place"))
        self._pack, self._unpack = (entry(self._library, name, POINTER(Gather)) for name in ("pack", "unpack"))
        self._library.select_tile.restype = c_int64
        for name, kind in (("select", Select), ("gather", Gather)):
            layout = getattr(self._library, f"{name}_layout")
            layout.restype = POINTER(c_int64)
            offsets = [getattr(kind, field).offset for field, _ in kind._fields_] + [ctypes.sizeof(kind)]
            assert offsets == layout()[: len(offsets)], f"{kind.__name__} is not laid out as in gather.h"

    def set_order(self, order: int) -> None:
        """0: blocks, warps and lanes run forward; 1: in reverse; above: in random orders from this seed."""
        self._library.emulator_set_order(order)

    def select(self, mask: Tensor, capacity: int | None) -> tuple[Tensor, Tensor]:
        (batch, length), outputs = mask.shape, Outputs()
        tiles = -(-length // self._library.select_tile())
        offsets = outputs.empty((batch * tiles + 1,), torch.int64)
        problem = Select(Marks.of(mask), batch, length, tiles, pointer(offsets))
        used = dict(mask=mask, offsets=offsets)
        self._run(self._count, problem, outputs, used)
        padded = capacity is not None
        size = int(offsets[-1]) if capacity is None else capacity
        indices = outputs.empty((size,), torch.int64)
        cu_seqlens = outputs.empty((batch + 1 + padded,), torch.int64)
        problem.indices, problem.cu_seqlens, problem.size, problem.padded = (
            pointer(indices), pointer(cu_seqlens), size, padded,
        )  # fmt: skip
        self._run(self._place, problem, outputs, used | dict(indices=indices, cu_seqlens=cu_seqlens))
        return indices, cu_seqlens

    def pack_forward(self, x: Tensor, mask: Tensor | None, indices: Tensor) -> Tensor:
        outputs, d = Outputs(), x.shape[2]
        values = outputs.empty((len(indices), d), x.dtype)
        problem = self._gather(indices, x.shape[0] * x.shape[1], d, values, mask)
        problem.dense = Rows.dense(x)
        problem.vectors = problem.dense.in_vectors(d, x.itemsize)
        self._run(self._pack, problem, outputs, dict(x=x, mask=mask, indices=indices, values=values))
        return values

    def pack_backward(self, grad: Tensor, x: Tensor, mask: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
        outputs = Outputs()
        grad_mask = outputs.empty(mask.shape, mask.dtype)
        return self._unpacked(outputs, grad, indices, tuple(mask.shape), x, mask, grad_mask), grad_mask

    def unpack_forward(self, values: Tensor, indices: Tensor, shape: tuple[int, int]) -> Tensor:
        return self._unpacked(Outputs(), values, indices, shape)

    def unpack_backward(self, grad: Tensor, indices: Tensor) -> Tensor:
        return self.pack_forward(grad, None, indices)

    def _unpacked(
        self, outputs: Outputs, values: Tensor, indices: Tensor, shape: tuple[int, int], x: Tensor | None = None,
        mask: Tensor | None = None, grad_mask: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        d = values.shape[1]
        out = outputs.empty((*shape, d), values.dtype)
        problem = self._gather(indices, shape[0] * shape[1], d, out, mask)
        problem.packed = Rows.packed(values)
        problem.vectors = problem.packed.in_vectors(d, values.itemsize)
        if x is not None:
            problem.dense, problem.grad_mask = Rows.dense(x), pointer(grad_mask)
            problem.vectors &= problem.dense.in_vectors(d, values.itemsize)
        used = dict(values=values, indices=indices, x=x, mask=mask, grad_mask=grad_mask, out=out)
        self._run(self._unpack, problem, outputs, used)
        return out

    def _gather(self, indices: Tensor, bases: int, d: int, out: Tensor, mask: Tensor | None) -> Gather:
        return Gather(
            total=len(indices), bases=bases, dim=d, indices=pointer(indices), out=pointer(out),
            mask=Marks() if mask is None else Marks.of(mask),
        )  # fmt: skip

    def _run(
        self, function: Callable[..., None], problem: ctypes.Structure, outputs: Outputs, used: dict[str, Tensor | None]
    ) -> None:
        run(self._library, self._checked, function, (problem,), outputs, used)
