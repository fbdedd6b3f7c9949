"""A mixer's CUDA convolutions on the CPU, under the emulator: those of kernels/bimamba/cuda.py for CPU tensors.

Every output and workspace starts as NaN, between guard bytes that are checked after each call.
"""

from __future__ import annotations

import ctypes
from ctypes import POINTER, c_int, c_int64, c_void_p
from pathlib import Path

import torch
from emulated_cuda import EMULATOR, SOURCES, entry, library
from emulated_op import pointer, run
from emulated_scan import SCALARS, Outputs, Strided
from torch import Tensor

from seq2exp.kernels.bimamba.direction import ConvolutionGrads, Taps


class Way(ctypes.Structure):
    """GpuConvWay of csrc/bimamba/cuda/conv.h."""

    _fields_ = [
        ("weight", c_void_p), ("bias", c_void_p), ("c", Strided), ("dweight", c_void_p), ("dbias", c_void_p)
    ]  # fmt: skip


class Conv(ctypes.Structure):
    """GpuConv of csrc/bimamba/cuda/conv.h."""

    _fields_ = [
        *((name, c_int64) for name in ("batch", "dim", "length")), ("width", c_int), ("cu_seqlens", c_void_p),
        ("sequences", c_int64), ("x", Strided), ("dx", Strided), ("fwd", Way), ("rev", Way), ("sums", c_void_p),
    ]  # fmt: skip


class EmulatedConvolution:
    """`convolve` and `convolve_backward` of kernels/bimamba/cuda.py, for one dtype.

    checked: every access of a kernel is watched, see tests/emulator/memory_checks.h; slower. sources: csrc or a copy.
    """

    def __init__(self, dtype: torch.dtype, checked: bool = False, sources: Path = SOURCES) -> None:
        self._dtype, self._checked = dtype, checked
        self._library = library(
            EMULATOR / "bimamba_conv.cpp",
            sources / "bimamba" / "cuda" / f"conv_{str(dtype).removeprefix('torch.')}.cu",
            sources=sources,
            defines=(f"SCALAR={SCALARS[dtype]}",),
            checked=checked,
        )
        self._forward = entry(self._library, "conv_forward", POINTER(Conv))
        self._backward = entry(self._library, "conv_backward", POINTER(Conv))
        self._library.conv_workspace.restype = c_int64
        self._library.conv_layout.restype = POINTER(c_int64)
        offsets = [getattr(Conv, name).offset for name, *_ in Conv._fields_] + [ctypes.sizeof(Conv)]
        assert offsets == self._library.conv_layout()[: len(offsets)], "Conv is not laid out as GpuConv"

    def set_order(self, order: int) -> None:
        """0: blocks, warps and lanes run forward; 1: in reverse; above: in random orders from this seed."""
        self._library.emulator_set_order(order)

    def convolve(
        self, x: Tensor, fwd: Taps | None, rev: Taps | None, cu_seqlens: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None]:
        outputs = Outputs()
        conv = self._conv(x, fwd, rev, cu_seqlens)
        outs = [None if taps is None else outputs.like(x) for taps in (fwd, rev)]
        conv.fwd.c, conv.rev.c = map(Strided.of, outs)
        used = self._used(x, fwd, rev, cu_seqlens) | {"c_fwd": outs[0], "c_rev": outs[1]}
        run(self._library, self._checked, self._forward, (conv,), outputs, used)
        return tuple(outs)

    def convolve_backward(
        self, x: Tensor, grad_fwd: Tensor | None, grad_rev: Tensor | None, fwd: Taps | None, rev: Taps | None,
        cu_seqlens: Tensor | None,
    ) -> ConvolutionGrads:  # fmt: skip
        outputs = Outputs()
        conv = self._conv(x, fwd, rev, cu_seqlens)
        dx, sums = outputs.like(x), outputs.empty((self._library.conv_workspace(ctypes.byref(conv)),))
        conv.dx, conv.sums = Strided.of(dx), sums.data_ptr()
        used = self._used(x, fwd, rev, cu_seqlens) | {"g_fwd": grad_fwd, "g_rev": grad_rev, "dx": dx, "sums": sums}
        grads: list[Taps | None] = []
        for way, grad, taps in ((conv.fwd, grad_fwd, fwd), (conv.rev, grad_rev, rev)):
            way.c = Strided.of(grad)
            grads.append(None if taps is None else Taps(*(outputs.empty(t.shape) for t in taps)))
            if grads[-1] is not None:
                way.dweight, way.dbias = map(pointer, grads[-1])
                used |= {f"dweight{len(grads)}": grads[-1].weight, f"dbias{len(grads)}": grads[-1].bias}
        run(self._library, self._checked, self._backward, (conv,), outputs, used)
        return ConvolutionGrads(dx, *grads)

    def _conv(self, x: Tensor, fwd: Taps | None, rev: Taps | None, cu_seqlens: Tensor | None) -> Conv:
        """The inputs' part; it holds pointers only, so the tensors must stay alive."""
        assert x.dtype == self._dtype
        conv = Conv(
            *x.shape, width=(fwd or rev).weight.shape[1], cu_seqlens=pointer(cu_seqlens),
            sequences=0 if cu_seqlens is None else cu_seqlens.numel() - 1, x=Strided.of(x),
        )  # fmt: skip
        for way, taps in ((conv.fwd, fwd), (conv.rev, rev)):
            if taps is not None:
                way.weight, way.bias = map(pointer, taps)
        return conv

    @staticmethod
    def _used(x: Tensor, fwd: Taps | None, rev: Taps | None, cu_seqlens: Tensor | None) -> dict[str, Tensor | None]:
        taps = {f"{name}_{field}": t for name, way in (("fwd", fwd), ("rev", rev)) if way for field, t in zip(
            Taps._fields, way, strict=True)}  # fmt: skip
        return {"x": x, "cu_seqlens": cu_seqlens} | taps
