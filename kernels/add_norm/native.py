"""The C++ implementation for the CPU (csrc/add_norm/cpu), loaded by seq2exp.kernels._extension."""

from __future__ import annotations

import torch
from torch import Tensor

from seq2exp.kernels.add_norm.rows import rows


def forward(
    x: Tensor, residual: Tensor | None, weight: Tensor, gate: Tensor | None, epsilon: float
) -> tuple[Tensor, Tensor]:
    """h (..., d) in x's dtype, residual + x in the residual's; the latter empty without a residual.

    x, residual: (..., d) in float32, bfloat16 or float16 each. weight: (d,), gate: (...), float32.
    """
    h, total = torch.ops.seq2exp_native.add_norm_fwd(
        rows(x), None if residual is None else rows(residual), weight, None if gate is None else gate.reshape(-1),
        epsilon,
    )  # fmt: skip
    return h.view(x.shape), total if residual is None else total.view(x.shape)


def backward(
    grad: Tensor, grad_residual: Tensor | None, residual_out: Tensor, weight: Tensor, gate: Tensor | None,
    epsilon: float,
) -> tuple[Tensor, Tensor, Tensor | None]:  # fmt: skip
    """dr (..., d) in the dtype of residual_out, dweight (d,) and dgate (...) or None in float32.

    grad_residual: in the dtype of residual_out, or None. The same bits for any number of threads.
    """
    dr, dweight, *dgate = torch.ops.seq2exp_native.add_norm_bwd(
        rows(grad), None if grad_residual is None else rows(grad_residual), rows(residual_out), weight,
        None if gate is None else gate.reshape(-1), epsilon,
    )  # fmt: skip
    return dr.view(residual_out.shape), dweight, None if gate is None else dgate[0].view(gate.shape)
