"""Residual add, RMSNorm and gate in plain PyTorch, forward and backward; the oracle, in float64 too."""

from __future__ import annotations

import torch
from torch import Tensor


def forward(
    x: Tensor, residual: Tensor | None, weight: Tensor, gate: Tensor | None, epsilon: float
) -> tuple[Tensor, Tensor]:
    """h (..., d) in x's dtype, residual + x in the residual's; the latter empty without a residual.

    x, residual: (..., d). weight: (d,), gate: (...), float32 (float64 with float64 signals).
    """
    total = x if residual is None else (_wide(residual) + _wide(x)).to(residual.dtype).contiguous()
    r = _wide(total)
    h = r * _scale(r, epsilon) * weight
    if gate is not None:
        h = h * gate[..., None]
    return h.to(x.dtype).contiguous(), x.new_empty(0) if residual is None else total


def backward(
    grad: Tensor, grad_residual: Tensor | None, residual_out: Tensor, weight: Tensor, gate: Tensor | None,
    epsilon: float,
) -> tuple[Tensor, Tensor, Tensor | None]:  # fmt: skip
    """dr (..., d) in the dtype of residual_out: the gradient of x and of residual; dweight (d,), dgate (...).

    grad: of h. grad_residual: of residual_out from elsewhere. residual_out: what was normalised, x itself where there
    was no residual.
    """
    r, dh = _wide(residual_out), _wide(grad)
    s = _scale(r, epsilon)
    dn = dh * weight
    dgate = None if gate is None else (dn * r * s).sum(-1)
    if gate is not None:
        dn, dh = dn * gate[..., None], dh * gate[..., None]
    dr = s * (dn - r * s * s * (dn * r).mean(-1, keepdim=True))
    if grad_residual is not None:
        dr = dr + _wide(grad_residual)
    dweight = (dh * r * s).reshape(-1, r.shape[-1]).sum(0)
    return dr.to(residual_out.dtype).contiguous(), dweight, dgate


def _scale(r: Tensor, epsilon: float) -> Tensor:
    """1 / rms, (..., 1)."""
    return (r.square().mean(-1, keepdim=True) + epsilon).rsqrt()


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
