"""The CUDA scans on the CPU, under the emulator: kernels/selective_scan/cuda.py and the scan of kernels/bimamba/cuda.py
for CPU tensors.

Every output and workspace starts as NaN, between guard bytes that are checked after each call.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable
from ctypes import POINTER, c_bool, c_int64, c_void_p
from pathlib import Path

import torch
from emulated_cuda import EMULATOR, SOURCES, add_buffer, entry, library
from torch import Tensor

from seq2exp.kernels.bimamba.direction import Direction, DirectionGrads
from seq2exp.kernels.selective_scan import cuda

GUARD = 4096  # bytes on either side of an output
POISON = 0xFF  # as bytes of any float: NaN
SCALARS = {torch.float32: "float", torch.bfloat16: "bfloat16", torch.float16: "float16"}


class Strided(ctypes.Structure):
    """GpuStrided of csrc/selective_scan/cuda/scan.h."""

    _fields_ = [("data", c_void_p)] + [(name, c_int64) for name in ("batch", "group", "row", "time")]

    @classmethod
    def of(cls, x: Tensor | None) -> Strided:
        """x: (batch, rows, L) or (batch, groups, rows, L)."""
        if x is None:
            return cls()
        batch, *group, row, time = x.stride()
        return cls(x.data_ptr(), batch, group[0] if group else 0, row, time)


class Scan(ctypes.Structure):
    """GpuScan of csrc/selective_scan/cuda/scan.h."""

    _fields_ = (
        [(name, c_int64) for name in ("batch", "dim", "state", "length", "groups", "groups_b", "groups_c")]
        + [("softplus", c_bool), ("reverse", c_bool), ("cu_seqlens", c_void_p), ("sequences", c_int64)]
        + [(name, Strided) for name in ("delta", "u", "z", "out", "grad", "ddelta", "du", "dz", "B", "C")]
        + [(name, c_void_p) for name in ("A", "D", "bias", "last_state", "states", "workspace", "dB", "dC", "sums")]
        + [("low", Strided), ("dt_proj", c_void_p), ("rank", c_int64)]
    )


class Outputs:
    """Memory for the results of one call."""

    def __init__(self) -> None:
        self._blocks: list[Tensor] = []

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
        n = math.prod(shape) * dtype.itemsize
        block = torch.full((2 * GUARD + n + -n % 16,), POISON, dtype=torch.uint8)
        self._blocks.append(block)
        block.guarded = n
        return block[GUARD : GUARD + n].view(dtype).view(shape)

    def like(self, x: Tensor) -> Tensor:
        """As torch.empty_like: dense, in the order of x's strides."""
        strides = torch.empty_like(x, device="meta").stride()
        return self.empty((x.numel(),), x.dtype).as_strided(x.shape, strides)

    def check(self) -> None:
        for block in self._blocks:
            around = torch.cat([block[:GUARD], block[GUARD + block.guarded :]])
            assert bool((around == POISON).all()), f"bytes around an output of {block.guarded} bytes were overwritten"


def _pointer(x: Tensor | None) -> int | None:
    assert x is None or x.is_contiguous()
    return None if x is None else x.data_ptr()


class _Library:
    """The kernels of one op and dtype. Its pointers are no owners: tensors of a call must stay alive until it ends.

    checked: every access of a kernel is watched, see tests/emulator/memory_checks.h; slower. sources: csrc or a copy.
    """

    _kernels: str  # folder of sources
    _functions: tuple[str, str]

    def __init__(self, dtype: torch.dtype, checked: bool = False, sources: Path = SOURCES) -> None:
        self._dtype, self._checked = dtype, checked
        forward, backward = self._functions
        self._library = library(
            EMULATOR / "selective_scan.cpp",
            sources / "selective_scan" / "cuda" / "segments.cpp",
            sources / self._kernels / f"scan_{str(dtype).removeprefix('torch.')}.cu",
            sources=sources,
            defines=(f"SCALAR={SCALARS[dtype]}", f"FORWARD={forward}", f"BACKWARD={backward}"),
            checked=checked,
        )
        self._forward = entry(self._library, "scan_forward", POINTER(Scan))
        self._backward = entry(self._library, "scan_backward", POINTER(Scan))
        self._library.scan_layout.restype = POINTER(c_int64)
        offsets = [getattr(Scan, name).offset for name, _ in Scan._fields_] + [ctypes.sizeof(Scan)]
        assert offsets == self._library.scan_layout()[: len(offsets)], "Scan is not laid out as GpuScan"
        assert self._count("chunk") == cuda.CHUNK

    def set_order(self, order: int) -> None:
        """0: blocks, warps and lanes run forward; 1: in reverse; above: in random orders from this seed."""
        self._library.emulator_set_order(order)

    def segments(self, *arguments: object) -> tuple[int, int]:
        """Parts of L that the forward and the backward run side by side."""
        scan = self._scan(*arguments)
        return self._count("forward_segments", scan), self._count("backward_segments", scan)

    def _run(self, function: Callable[..., None], scan: Scan, outputs: Outputs, **used: Tensor | None) -> None:
        assert used["u"].dtype == self._dtype
        if self._checked:
            for name, x in used.items():
                if x is not None and x.numel():
                    extent = 1 + sum((n - 1) * stride for n, stride in zip(x.shape, x.stride(), strict=True))
                    add_buffer(self._library, name, x.data_ptr(), extent * x.itemsize)
        try:
            function(scan)
        finally:
            if self._checked:
                self._library.checks_forget_buffers()
        outputs.check()

    def _count(self, what: str, scan: Scan | None = None) -> int:
        function = getattr(self._library, f"scan_{what}")
        function.restype = c_int64
        return function() if scan is None else function(ctypes.byref(scan))


class EmulatedScan(_Library):
    """`forward`, `backward`, `states_shape` and `chunk_length` of kernels/selective_scan/cuda.py."""

    states_shape = staticmethod(cuda.states_shape)
    chunk_length = staticmethod(cuda.chunk_length)
    _kernels, _functions = "selective_scan/cuda", ("gpu_forward", "gpu_backward")

    def forward(
        self, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None,
        delta_bias: Tensor | None, softplus: bool, reverse: bool, cu_seqlens: Tensor | None, save_states: bool = True,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        scan = self._scan(u, delta, A, B, C, D, z, delta_bias, softplus, reverse, cu_seqlens)
        outputs = Outputs()
        out, last = outputs.like(u), outputs.empty((scan.sequences, scan.dim, scan.state))
        states = outputs.empty((self._count("chunks", scan) if save_states else 0, scan.dim, scan.state))
        workspace = outputs.empty((self._count("forward_workspace", scan),))
        scan.out, scan.last_state, scan.workspace = Strided.of(out), last.data_ptr(), workspace.data_ptr()
        scan.states = states.data_ptr() if save_states else None
        self._run(
            self._forward, scan, outputs, u=u, delta=delta, A=A, B=B, C=C, D=D, z=z, bias=delta_bias,
            cu_seqlens=cu_seqlens, out=out, last_state=last, states=states, workspace=workspace,
        )  # fmt: skip
        return out, last, states

    def backward(
        self, grad_out: Tensor, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None,
        z: Tensor | None, delta_bias: Tensor | None, softplus: bool, reverse: bool, cu_seqlens: Tensor | None,
        states: Tensor,
    ) -> tuple[Tensor | None, ...]:  # fmt: skip
        scan = self._scan(u, delta, A, B, C, D, z, delta_bias, softplus, reverse, cu_seqlens)
        outputs = Outputs()
        du, ddelta, dz = outputs.like(u), outputs.like(delta), None if z is None else outputs.like(z)
        dB, dC = (outputs.empty((scan.batch, scan.groups, scan.state, scan.length)) for _ in "BC")
        sums = outputs.empty((scan.sequences, self._count("backward_segments", scan), scan.dim, scan.state + 2))
        workspace = outputs.empty((self._count("backward_workspace", scan),))
        scan.grad, scan.du, scan.ddelta, scan.dz = map(Strided.of, (grad_out, du, ddelta, dz))
        scan.dB, scan.dC, scan.sums, scan.workspace = (x.data_ptr() for x in (dB, dC, sums, workspace))
        scan.states = states.data_ptr()
        self._run(
            self._backward, scan, outputs, u=u, delta=delta, A=A, B=B, C=C, D=D, z=z, bias=delta_bias,
            cu_seqlens=cu_seqlens, grad=grad_out, states=states, du=du, ddelta=ddelta, dz=dz, dB=dB, dC=dC, sums=sums,
            workspace=workspace,
        )  # fmt: skip
        dA, dD, dbias = cuda.parameter_gradients(sums)
        return (
            du, ddelta, dA, cuda.per_group(dB, B), cuda.per_group(dC, C), None if D is None else dD, dz,
            None if delta_bias is None else dbias,
        )  # fmt: skip

    def _scan(
        self, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None,
        delta_bias: Tensor | None, softplus: bool, reverse: bool, cu_seqlens: Tensor | None,
    ) -> Scan:  # fmt: skip
        """The inputs' part."""
        batch, dim, length = u.shape
        return Scan(
            batch=batch, dim=dim, state=A.shape[1], length=length,
            groups=math.lcm(B.shape[1], C.shape[1]), groups_b=B.shape[1], groups_c=C.shape[1],
            softplus=softplus, reverse=reverse,
            cu_seqlens=_pointer(cu_seqlens), sequences=batch if cu_seqlens is None else cu_seqlens.numel() - 1,
            u=Strided.of(u), delta=Strided.of(delta), z=Strided.of(z), B=Strided.of(B), C=Strided.of(C),
            A=_pointer(A), D=_pointer(D), bias=_pointer(delta_bias),
        )  # fmt: skip


class EmulatedMixer(_Library):
    """`scan`, `scan_backward` and `states_shape` of kernels/bimamba/cuda.py."""

    states_shape = staticmethod(cuda.states_shape)
    _kernels, _functions = "bimamba/cuda", ("gpu_mixer_forward", "gpu_mixer_backward")

    def scan(self, d: Direction, save_states: bool = True) -> tuple[Tensor, Tensor]:
        scan, outputs = self._scan(d), Outputs()
        out = outputs.like(d.u)
        states = outputs.empty((self._count("chunks", scan) if save_states else 0, scan.dim, scan.state))
        workspace = outputs.empty((self._count("forward_workspace", scan),))
        scan.out, scan.workspace = Strided.of(out), workspace.data_ptr()
        scan.states = states.data_ptr() if save_states else None
        self._run(self._forward, scan, outputs, **_tensors(d), out=out, states=states, workspace=workspace)
        return out, states

    def scan_backward(self, grad: Tensor, d: Direction, states: Tensor, closing: bool) -> DirectionGrads:
        scan, outputs = self._scan(d), Outputs()
        ddelta = outputs.like(d.u)
        du, dz = (grad, d.z) if closing else (outputs.like(d.u), None)
        y = d.add if closing and d.add is not None else outputs.like(d.u)
        dB, dC = (outputs.empty((scan.batch, scan.state, scan.length)) for _ in "BC")
        sums = outputs.empty((scan.sequences, self._count("backward_segments", scan), scan.dim, scan.state + 2))
        workspace = outputs.empty((self._count("backward_workspace", scan),))
        scan.grad, scan.du, scan.ddelta, scan.out, scan.dz = map(Strided.of, (grad, du, ddelta, y, dz))
        scan.dB, scan.dC, scan.sums, scan.workspace = (x.data_ptr() for x in (dB, dC, sums, workspace))
        scan.states = states.data_ptr()
        self._run(
            self._backward, scan, outputs, **_tensors(d), grad=grad, states=states, du=du, ddelta=ddelta, y=y, dz=dz,
            dB=dB, dC=dC, sums=sums, workspace=workspace,
        )  # fmt: skip
        dA, dD, dbias = cuda.parameter_gradients(sums)
        return DirectionGrads(du, ddelta, dA, dB.to(self._dtype), dC.to(self._dtype), dD, dbias, y, dz)

    def _scan(self, d: Direction) -> Scan:
        batch, dim, length = d.u.shape
        return Scan(
            batch=batch, dim=dim, state=d.A.shape[1], length=length, groups=1, groups_b=1, groups_c=1,
            softplus=True, reverse=d.reverse,
            cu_seqlens=_pointer(d.cu_seqlens), sequences=batch if d.cu_seqlens is None else d.cu_seqlens.numel() - 1,
            u=Strided.of(d.u), delta=Strided.of(d.add), z=Strided.of(d.z), B=Strided.of(d.B), C=Strided.of(d.C),
            A=_pointer(d.A), D=_pointer(d.D), bias=_pointer(d.dt_bias),
            low=Strided.of(d.low), dt_proj=_pointer(d.dt_proj), rank=d.low.shape[1],
        )  # fmt: skip


def _tensors(d: Direction) -> dict[str, Tensor | None]:
    return {name: x for name, x in d._asdict().items() if name != "reverse"}
