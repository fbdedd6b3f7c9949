"""The bidirectional Mamba mixer as published, forward and backward: two Mamba modules and two flips.

    Mamba(h):  x, z = split(W_in h);  c = silu(causal_conv(x));  (r, B, C) = split(W_x c);  delta = W_dt r
               out  = W_out scan(c, delta, -exp(A_log), B, C, D, z, dt_bias, softplus)
    add:          Mamba_f(h) + flip(Mamba_r(flip(h)))        ew_multiply:  Mamba_f(h) * flip(Mamba_r(flip(h)))

Source: Mamba (Gu and Dao 2023), Caduceus (Schiff et al. 2024), section 3. Runs in the dtype of its inputs.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from seq2exp.kernels.selective_scan.reference import selective_scan_backward, selective_scan_forward


class ScanWeights(NamedTuple):
    """What one direction owns.

    conv_weight: (d_inner, 1, d_conv). conv_bias: (d_inner,). x_proj: (dt_rank + 2 state, d_inner).
    dt_proj: (d_inner, dt_rank). dt_bias: (d_inner,). A_log: (d_inner, state), A = -exp(A_log). D: (d_inner,).
    """

    conv_weight: Tensor
    conv_bias: Tensor
    x_proj: Tensor
    dt_proj: Tensor
    dt_bias: Tensor
    A_log: Tensor
    D: Tensor


class BimambaGrads(NamedTuple):
    """Gradients in the shapes of the inputs; rev_proj is None for tied projections, whose gradients are summed."""

    h: Tensor
    in_proj: Tensor
    out_proj: Tensor
    fwd: ScanWeights
    rev: ScanWeights
    rev_proj: tuple[Tensor, Tensor] | None


class _Intermediates(NamedTuple):
    x: Tensor  # (batch, d_inner, L)
    z: Tensor
    pre: Tensor  # convolution before silu
    c: Tensor
    low_rank: Tensor  # (batch, L, dt_rank)
    delta: Tensor
    B: Tensor  # (batch, 1, state, L)
    C: Tensor
    y: Tensor


def _mamba_parts(h: Tensor, in_proj: Tensor, w: ScanWeights) -> _Intermediates:
    x, z = (h @ in_proj.t()).transpose(1, 2).chunk(2, dim=1)
    d_inner, _, width = w.conv_weight.shape
    pre = F.conv1d(F.pad(x, (width - 1, 0)), w.conv_weight, w.conv_bias, groups=d_inner)
    c = F.silu(pre)
    dt_rank, state = w.dt_proj.shape[1], w.A_log.shape[1]
    low_rank, B, C = (c.transpose(1, 2) @ w.x_proj.t()).split([dt_rank, state, state], dim=-1)
    delta = (low_rank @ w.dt_proj.t()).transpose(1, 2)
    B, C = (v.transpose(1, 2)[:, None] for v in (B, C))
    y, _ = selective_scan_forward(c, delta, -torch.exp(w.A_log), B, C, w.D, z, w.dt_bias, True)
    return _Intermediates(x, z, pre, c, low_rank, delta, B, C, y)


def mamba_forward(h: Tensor, in_proj: Tensor, out_proj: Tensor, w: ScanWeights) -> Tensor:
    """One direction: h (batch, L, d) -> (batch, L, d). in_proj (2 d_inner, d), out_proj (d, d_inner)."""
    return _mamba_parts(h, in_proj, w).y.transpose(1, 2) @ out_proj.t()


def mamba_backward(
    grad_out: Tensor, h: Tensor, in_proj: Tensor, out_proj: Tensor, w: ScanWeights
) -> tuple[Tensor, Tensor, Tensor, ScanWeights]:
    """Gradients of h, in_proj, out_proj and the direction's weights."""
    p = _mamba_parts(h, in_proj, w)
    A = -torch.exp(w.A_log)
    grad_y = (grad_out @ out_proj).transpose(1, 2)
    s = selective_scan_backward(grad_y, p.c, p.delta, A, p.B, p.C, w.D, p.z, w.dt_bias, True)

    grad_low_rank = s.delta.transpose(1, 2) @ w.dt_proj
    grad_proj = torch.cat([grad_low_rank, s.B[:, 0].transpose(1, 2), s.C[:, 0].transpose(1, 2)], -1)
    grad_c = s.u + (grad_proj @ w.x_proj).transpose(1, 2)
    gate = torch.sigmoid(p.pre)
    grad_pre = grad_c * gate * (1 + p.pre * (1 - gate))

    width = w.conv_weight.shape[2]
    length = h.shape[1]
    padded = F.pad(p.x, (width - 1, 0))
    grad_conv = torch.stack([(grad_pre * padded[..., k : k + length]).sum((0, 2)) for k in range(width)], -1)
    spread = F.pad(grad_pre, (0, width - 1))
    grad_x = sum(spread[..., width - 1 - k : width - 1 - k + length] * w.conv_weight[:, :, k] for k in range(width))

    grad_xz = torch.cat([grad_x, s.z], 1).transpose(1, 2)
    weights = ScanWeights(
        conv_weight=grad_conv[:, None],
        conv_bias=grad_pre.sum((0, 2)),
        x_proj=torch.einsum("blo,bdl->od", grad_proj, p.c),
        dt_proj=torch.einsum("bdl,blr->dr", s.delta, p.low_rank),
        dt_bias=s.delta_bias,
        A_log=s.A * A,
        D=s.D,
    )
    return (
        grad_xz @ in_proj,
        torch.einsum("blo,bld->od", grad_xz, h),
        torch.einsum("blo,bdl->od", grad_out, p.y),
        weights,
    )


def _spans(length: int, cu_seqlens: Tensor | None) -> list[slice]:
    bounds = [0, length] if cu_seqlens is None else cu_seqlens.tolist()
    return [slice(a, b) for a, b in pairwise(bounds) if b > a]


def bimamba_forward(
    h: Tensor,
    in_proj: Tensor,
    out_proj: Tensor,
    fwd: ScanWeights,
    rev: ScanWeights,
    rev_proj: tuple[Tensor, Tensor] | None = None,
    strategy: str = "add",
    cu_seqlens: Tensor | None = None,
) -> Tensor:
    """h (batch, L, d) -> (batch, L, d); with cu_seqlens each sequence on its own."""
    rev_in, rev_out = rev_proj or (in_proj, out_proj)
    parts = []
    for span in _spans(h.shape[1], cu_seqlens):
        a = mamba_forward(h[:, span], in_proj, out_proj, fwd)
        b = mamba_forward(h[:, span].flip(1), rev_in, rev_out, rev).flip(1)
        parts.append(a + b if strategy == "add" else a * b)
    return torch.cat(parts, 1)


def bimamba_backward(
    grad_out: Tensor,
    h: Tensor,
    in_proj: Tensor,
    out_proj: Tensor,
    fwd: ScanWeights,
    rev: ScanWeights,
    rev_proj: tuple[Tensor, Tensor] | None = None,
    strategy: str = "add",
    cu_seqlens: Tensor | None = None,
) -> BimambaGrads:
    """Gradients of sum(out * grad_out)."""
    rev_in, rev_out = rev_proj or (in_proj, out_proj)
    grad_h = torch.zeros_like(h)
    forward_total, reverse_total = None, None
    for span in _spans(h.shape[1], cu_seqlens):
        part, flipped, g = h[:, span], h[:, span].flip(1), grad_out[:, span]
        grad_a, grad_b = g, g
        if strategy == "ew_multiply":
            grad_a = g * mamba_forward(flipped, rev_in, rev_out, rev).flip(1)
            grad_b = g * mamba_forward(part, in_proj, out_proj, fwd)
        a = mamba_backward(grad_a, part, in_proj, out_proj, fwd)
        b = mamba_backward(grad_b.flip(1), flipped, rev_in, rev_out, rev)
        grad_h[:, span] = a[0] + b[0].flip(1)
        forward_total, reverse_total = _added(forward_total, a[1:]), _added(reverse_total, b[1:])
    grad_in, grad_out_proj, grad_fwd = forward_total
    grad_rev_in, grad_rev_out, grad_rev = reverse_total
    if rev_proj is None:
        return BimambaGrads(grad_h, grad_in + grad_rev_in, grad_out_proj + grad_rev_out, grad_fwd, grad_rev, None)
    return BimambaGrads(grad_h, grad_in, grad_out_proj, grad_fwd, grad_rev, (grad_rev_in, grad_rev_out))


def _added(total, part):
    if total is None:
        return part
    weights = ScanWeights(*(x + y for x, y in zip(total[2], part[2], strict=True)))
    return total[0] + part[0], total[1] + part[1], weights
