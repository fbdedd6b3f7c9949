"""The CUDA add_norm on the CPU, under the emulator: kernels/add_norm/cuda.py for CPU tensors.

Every output starts as NaN, between guard bytes that are checked after each call.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from ctypes import POINTER, c_bool, c_float, c_int, c_int64, c_void_p

import torch
from emulated_cuda import EMULATOR, SOURCES, entry, library
from emulated_op import pointer, run
from emulated_scan import SCALARS, Outputs
from torch import Tensor

from seq2exp.kernels.add_norm.rows import rows

ITEMS = 8  # kItems of csrc/add_norm/cuda/norm.h


class Rows(ctypes.Structure):
    """GpuNormRows of csrc/add_norm/cuda/norm.h."""

    _fields_ = [("data", c_void_p), ("stride", c_int64)]

    @classmethod
    def of(cls, x: Tensor | None) -> Rows:
        return cls() if x is None else cls(x.data_ptr(), x.stride(0))


class Norm(ctypes.Structure):
    """GpuNorm of csrc/add_norm/cuda/norm.h."""

    _fields_ = (
        [("rows", c_int64), ("dim", c_int), ("epsilon", c_float), ("vectors", c_bool)]
        + [("weight", c_void_p), ("gate", c_void_p)]
        + [(name, Rows) for name in ("r", "x", "residual", "h", "grad", "grad_residual", "dr")]
        + [("dgate", c_void_p), ("dweight", c_void_p)]
    )


class EmulatedNorm:
    """`forward` and `backward` of kernels/add_norm/cuda.py, for one dtype of x.

    checked: every access of a kernel is watched, see tests/emulator/memory_checks.h; slower.
    """

    def __init__(self, dtype: torch.dtype, checked: bool = False) -> None:
        self._dtype, self._checked = dtype, checked
        self._library = library(
            EMULATOR / "add_norm.cpp",
            SOURCES / "add_norm" / "cuda" / f"norm_{str(dtype).removeprefix('torch.')}.cu",
            defines=(f"SCALAR={SCALARS[dtype]}",),
            checked=checked,
        )
        self._forward = entry(self._library, "norm_forward", POINTER(Norm), c_int)
        self._backward = entry(self._library, "norm_backward", POINTER(Norm), c_int)
        self._library.norm_parts.argtypes, self._library.norm_parts.restype = (c_int64, c_int), c_int64
        self._library.norm_layout.restype = POINTER(c_int64)
        offsets = [getattr(Norm, name).offset for name, _ in Norm._fields_] + [ctypes.sizeof(Norm)]
        assert offsets == self._library.norm_layout()[: len(offsets)], "Norm is not laid out as GpuNorm"

    def set_order(self, order: int) -> None:
        """0: blocks, warps and lanes run forward; 1: in reverse; above: in random orders from this seed."""
        self._library.emulator_set_order(order)

    def forward(
        self, x: Tensor, residual: Tensor | None, weight: Tensor, gate: Tensor | None, epsilon: float
    ) -> tuple[Tensor, Tensor]:
        outputs, shape = Outputs(), x.shape
        x, residual = rows(x), None if residual is None else rows(residual)
        h = outputs.empty(x.shape, x.dtype)
        total = x.new_empty(0) if residual is None else outputs.empty(x.shape, residual.dtype)
        r = x if residual is None else total
        norm = self._norm(r, weight, gate, epsilon, x=x, residual=residual, h=h)
        used = dict(x=x, residual=residual, h=h, total=total)
        self._run(self._forward, norm, r, weight, gate, outputs, used)
        return h.view(shape), total if residual is None else total.view(shape)

    def backward(
        self, grad: Tensor, grad_residual: Tensor | None, residual_out: Tensor, weight: Tensor, gate: Tensor | None,
        epsilon: float,
    ) -> tuple[Tensor, Tensor, Tensor | None]:  # fmt: skip
        outputs, shape, r = Outputs(), residual_out.shape, rows(residual_out)
        grad, stream = rows(grad), None if grad_residual is None else rows(grad_residual)
        dr = outputs.empty(r.shape, r.dtype)
        dweight = outputs.empty((self._library.norm_parts(*r.shape), r.shape[1]))
        dgate = None if gate is None else outputs.empty(gate.shape)
        norm = self._norm(r, weight, gate, epsilon, grad=grad, grad_residual=stream, dr=dr)
        norm.dweight, norm.dgate = pointer(dweight), pointer(dgate)
        used = dict(grad=grad, stream=stream, r=r, dr=dr, dweight=dweight, dgate=dgate)
        self._run(self._backward, norm, r, weight, gate, outputs, used)
        return dr.view(shape), dweight.sum(0, dtype=torch.float64).float(), dgate

    def _norm(self, r: Tensor, weight: Tensor, gate: Tensor | None, epsilon: float, **signals: Tensor | None) -> Norm:
        vectors = r.shape[1] % ITEMS == 0 and weight.data_ptr() % 16 == 0
        for x in (r, *signals.values()):
            vectors &= x is None or (x.data_ptr() % 16 == 0 and x.stride(0) * x.itemsize % 16 == 0)
        return Norm(
            rows=r.shape[0], dim=r.shape[1], epsilon=epsilon, vectors=vectors, weight=pointer(weight),
            gate=None if gate is None else gate.data_ptr(), r=Rows.of(r),
            **{name: Rows.of(x) for name, x in signals.items()},
        )  # fmt: skip

    def _run(
        self, function: Callable[..., None], norm: Norm, r: Tensor, weight: Tensor, gate: Tensor | None,
        outputs: Outputs, used: dict[str, Tensor | None],
    ) -> None:  # fmt: skip
        used = used | {"weight": weight, "gate": gate}
        run(self._library, self._checked, function, (norm, list(SCALARS).index(r.dtype)), outputs, used)
