"""The CUDA C++ implementation (csrc/add_norm/cuda), loaded by seq2exp.kernels._extension."""

from __future__ import annotations

import torch
from torch import Tensor

from seq2exp.kernels.add_norm import native
from seq2exp.kernels.add_norm.rows import check_channels


def forward(
    x: Tensor, residual: Tensor | None, weight: Tensor, gate: Tensor | None, epsilon: float
) -> tuple[Tensor, Tensor]:
    """See native.py."""
    check_channels(x, "cuda")
    return native.forward(x, residual, weight, gate, epsilon)


def backward(
    grad: Tensor, grad_residual: Tensor | None, residual_out: Tensor, weight: Tensor, gate: Tensor | None,
    epsilon: float,
) -> tuple[Tensor, Tensor, Tensor | None]:  # fmt: skip
    """See native.py. The same bits in every run: parts of dweight are added in a fixed order."""
    check_channels(residual_out, "cuda")
    dr, parts, dgate = native.backward(grad, grad_residual, residual_out, weight, gate, epsilon)
    return dr, parts.sum(0, dtype=torch.float64).float(), dgate
