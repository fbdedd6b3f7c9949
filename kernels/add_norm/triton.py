"""The Triton implementation: launches of the kernels in triton_kernels.py."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from triton import cdiv, next_power_of_2

from seq2exp.kernels.add_norm import triton_kernels as kernels
from seq2exp.kernels.add_norm.rows import check_channels, rows

ELEMENTS = 2048  # of a tile; one row may have more
TILES = 16  # a program of the backward takes


def forward(
    x: Tensor, residual: Tensor | None, weight: Tensor, gate: Tensor | None, epsilon: float
) -> tuple[Tensor, Tensor]:
    """See native.py; on CUDA tensors, or on the CPU in the interpreter."""
    d = check_channels(x, "triton")
    given = rows(x)
    kept = None if residual is None else rows(residual)
    h = x.new_empty(x.shape)
    total = x.new_empty(0) if residual is None else residual.new_empty(x.shape)
    with _device_of(x):
        kernels.add_norm_fwd_kernel[(cdiv(given.shape[0], _rows(d)),)](
            given, kept, weight.contiguous(), None if gate is None else gate.contiguous(), total, h,
            given.stride(0), 0 if kept is None else kept.stride(0), given.shape[0], epsilon, d=d, **_shape(d),
        )  # fmt: skip
    return h, total


def backward(
    grad: Tensor, grad_residual: Tensor | None, residual_out: Tensor, weight: Tensor, gate: Tensor | None,
    epsilon: float,
) -> tuple[Tensor, Tensor, Tensor | None]:  # fmt: skip
    """See native.py. The same bits in every run."""
    d = check_channels(residual_out, "triton")
    dh, r = rows(grad), rows(residual_out)
    stream = None if grad_residual is None else rows(grad_residual)
    parts = cdiv(r.shape[0], _rows(d) * TILES)
    dr, dweight = residual_out.new_empty(residual_out.shape), weight.new_empty(parts, d)
    dgate = None if gate is None else gate.new_empty(gate.shape)
    with _device_of(r):
        kernels.add_norm_bwd_kernel[(parts,)](
            dh, stream, r, weight.contiguous(), None if gate is None else gate.contiguous(), dr, dweight, dgate,
            dh.stride(0), 0 if stream is None else stream.stride(0), r.stride(0), r.shape[0], epsilon,
            d=d, TILES=TILES, **_shape(d),
        )  # fmt: skip
    return dr, dweight.sum(0, dtype=torch.float64).float(), dgate


def _rows(d: int) -> int:
    """Rows of a tile."""
    return max(1, ELEMENTS // next_power_of_2(d))


def _shape(d: int) -> dict[str, int]:
    return {"ROWS": _rows(d), "BD": next_power_of_2(d), "num_warps": 4 if d <= ELEMENTS else 8}


def _device_of(x: Tensor) -> AbstractContextManager:
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()
