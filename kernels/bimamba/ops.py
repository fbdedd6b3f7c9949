"""`bimamba`: one bidirectional mixer without flips, one input projection, one gate, one output projection.

    out = W_out((y_f + y_r) * silu(z))        (tied projections, "add")

which equals W_out(y_f * silu(z)) + flip(W_out(y_r' * silu(z'))) of the published layer, because a Mamba acts base by
base except in its convolution and its scan, and both of those run from right to left by indexing.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from seq2exp.kernels.bimamba.reference import ScanWeights
from seq2exp.kernels.selective_scan import selective_scan

STRATEGIES = ("add", "ew_multiply")


def bimamba(
    h: Tensor,
    in_proj: Tensor,
    out_proj: Tensor,
    fwd: ScanWeights,
    rev: ScanWeights,
    *,
    rev_proj: tuple[Tensor, Tensor] | None = None,
    strategy: str = "add",
    cu_seqlens: Tensor | None = None,
) -> Tensor:
    """One bidirectional Mamba mixer (Caduceus, Schiff et al. 2024).

    Parameters
    ----------
    h: (batch, L, d). in_proj: (2 d_inner, d). out_proj: (d, d_inner). fwd, rev: the weights of each direction.
    rev_proj: (in_proj, out_proj) of the reverse direction where they are not tied.
    strategy: "add" or "ew_multiply", how the two directions are combined.
    cu_seqlens: offsets of sequences packed along L (batch 1); neither convolution nor scan crosses a boundary.

    Returns
    -------
    (batch, L, d).

    Raises
    ------
    ValueError: shapes, strategy or offsets that do not fit. TypeError: dtypes that do not.
    """
    _check(h, in_proj, out_proj, fwd, rev, rev_proj, strategy)
    offset = None if cu_seqlens is None else _offset_in_sequence(h.shape[1], cu_seqlens)
    x, z = F.linear(h, in_proj).chunk(2, dim=-1)
    forward = _direction(x, fwd, False, cu_seqlens, offset)
    if rev_proj is None and strategy == "add":
        return F.linear((forward + _direction(x, rev, True, cu_seqlens, offset)) * F.silu(z), out_proj)
    out_forward = F.linear(forward * F.silu(z), out_proj)
    rev_in, rev_out = rev_proj or (in_proj, out_proj)
    if rev_proj is not None:
        x, z = F.linear(h, rev_in).chunk(2, dim=-1)
    out_reverse = F.linear(_direction(x, rev, True, cu_seqlens, offset) * F.silu(z), rev_out)
    return out_forward + out_reverse if strategy == "add" else out_forward * out_reverse


def _direction(
    x: Tensor, w: ScanWeights, reverse: bool, cu_seqlens: Tensor | None, offset: tuple[Tensor, Tensor] | None
) -> Tensor:
    """Convolution, projections and scan of one direction: (batch, L, d_inner) -> the same, before the gate."""
    c = F.silu(_Convolution.apply(x, w.conv_weight, w.conv_bias, reverse, offset))
    dt_rank, state = w.dt_proj.shape[1], w.A_log.shape[1]
    low_rank, B, C = F.linear(c, w.x_proj).split([dt_rank, state, state], dim=-1)
    delta = F.linear(low_rank, w.dt_proj)
    wide = torch.promote_types(c.dtype, torch.float32)
    y = selective_scan(
        c.transpose(1, 2), delta.transpose(1, 2).to(c.dtype), -torch.exp(w.A_log.to(wide)),
        B.transpose(1, 2).to(c.dtype), C.transpose(1, 2).to(c.dtype), w.D, None, w.dt_bias, True,
        reverse=reverse, cu_seqlens=cu_seqlens,
    )  # fmt: skip
    return y.transpose(1, 2)


class _Convolution(torch.autograd.Function):
    """Depthwise causal (reverse: anti-causal) convolution of x (batch, L, d_inner), never across a boundary.

    Written by hand because autograd through the in-place sums of the taps copies the whole tensor once per tap.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, reverse: bool, offset: tuple[Tensor, Tensor] | None
    ) -> Tensor:
        taps = weight[:, 0].to(x.dtype).unbind(-1)
        out = torch.addcmul(bias.to(x.dtype), x, taps[-1])
        for shift, source, target in _shifts(x.shape[1], weight.shape[2], reverse):
            out[:, target].addcmul_(_inside(x[:, source], target, shift, reverse, offset), taps[-1 - shift])
        ctx.save_for_backward(x, weight, bias, *(offset or ()))
        ctx.reverse = reverse
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        x, weight, bias, *offset = ctx.saved_tensors
        grad = grads[0]
        taps = weight[:, 0].to(x.dtype).unbind(-1)
        grad_x = grad * taps[-1]
        grad_taps = torch.zeros_like(weight)
        product = torch.mul(grad, x)
        grad_taps[:, 0, -1] = product.sum((0, 1))
        for shift, source, target in _shifts(x.shape[1], weight.shape[2], ctx.reverse):
            part = _inside(grad[:, target], target, shift, ctx.reverse, tuple(offset) or None)
            grad_x[:, source].addcmul_(part, taps[-1 - shift])
            torch.mul(part, x[:, source], out=product[:, : x.shape[1] - shift])
            grad_taps[:, 0, -1 - shift] = product[:, : x.shape[1] - shift].sum((0, 1))
        return grad_x, grad_taps, grad.sum((0, 1)).to(bias.dtype), None, None


def _shifts(length: int, width: int, reverse: bool) -> Iterator[tuple[int, slice, slice]]:
    """(shift, positions read, positions written) of every tap but the one that reads its own position."""
    for shift in range(1, min(width, length)):
        near, far = slice(0, length - shift), slice(shift, length)
        yield (shift, far, near) if reverse else (shift, near, far)


def _inside(x: Tensor, target: slice, shift: int, reverse: bool, offset: tuple[Tensor, Tensor] | None) -> Tensor:
    """x (batch, L - shift, d_inner), zero where the tap would reach from `target` into another sequence."""
    if offset is None:
        return x
    inside = (offset[1] if reverse else offset[0])[target] >= shift
    return x * inside[:, None].to(x.dtype)


def _offset_in_sequence(length: int, cu_seqlens: Tensor) -> tuple[Tensor, Tensor]:
    """Bases to the first and to the last base of the own sequence, each (L,)."""
    position = torch.arange(length, device=cu_seqlens.device)
    sequence = torch.searchsorted(cu_seqlens[1:].contiguous(), position, right=True)
    return position - cu_seqlens[sequence], cu_seqlens[sequence + 1] - 1 - position


def _check(
    h: Tensor, in_proj: Tensor, out_proj: Tensor, fwd: ScanWeights, rev: ScanWeights,
    rev_proj: tuple[Tensor, Tensor] | None, strategy: str,
) -> None:  # fmt: skip
    if strategy not in STRATEGIES:
        raise ValueError(f"bimamba: strategy {strategy!r} is none of {', '.join(STRATEGIES)}")
    if h.dim() != 3:
        raise ValueError(f"bimamba: h must be (batch, L, d), got {tuple(h.shape)}")
    d, d_inner = h.shape[2], out_proj.shape[-1]
    for name, (a, b) in {"": (in_proj, out_proj), "rev_proj ": rev_proj or (in_proj, out_proj)}.items():
        if tuple(a.shape) != (2 * d_inner, d) or tuple(b.shape) != (d, d_inner):
            raise ValueError(
                f"bimamba: {name}in_proj must be (2 d_inner, d) and out_proj (d, d_inner) with d = {d}, "
                f"got {tuple(a.shape)} and {tuple(b.shape)}"
            )
    for name, w in (("fwd", fwd), ("rev", rev)):
        state, dt_rank = w.A_log.shape[-1], w.dt_proj.shape[-1]
        wanted = dict(
            conv_weight=(d_inner, 1, w.conv_weight.shape[-1]), conv_bias=(d_inner,),
            x_proj=(dt_rank + 2 * state, d_inner), dt_proj=(d_inner, dt_rank), dt_bias=(d_inner,),
            A_log=(d_inner, state), D=(d_inner,),
        )  # fmt: skip
        for field, shape in wanted.items():
            if tuple(getattr(w, field).shape) != shape:
                raise ValueError(f"bimamba: {name}.{field} must be {shape}, got {tuple(getattr(w, field).shape)}")
