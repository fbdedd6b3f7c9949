"""The input of a model from codes and signals in plain PyTorch, forward and backward; the oracle, in float64 too."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from seq2exp.kernels.embed.bases import CODES, Bases, Grads, Wanted


def forward(x: Bases, dtype: torch.dtype) -> Tensor:
    """(batch, L, d) or (total, d) in `dtype`. Rows of indices beyond the bases are 0, of negative ones NaN."""
    place, inside = places(x)
    with torch.autocast(x.codes.device.type, enabled=False):
        out = values(x, place)
    if x.mask is not None:
        out = out * x.mask.flatten()[place, None]
    if x.indices is not None:
        out = torch.where(inside[:, None], out, torch.where(x.indices < 0, torch.nan, 0.0).to(out.dtype)[:, None])
    return out.to(dtype).view(x.out_shape)


def backward(grad: Tensor, x: Bases, wanted: Wanted) -> Grads:
    """grad: (batch, L, d) or (total, d)."""
    place, inside = places(x)
    g = torch.where(inside[:, None], grad.reshape(-1, grad.shape[-1]).to(x.table.dtype), 0)
    gm = g if x.mask is None else g * x.mask.flatten()[place, None]
    of_code = F.one_hot(codes(x, place), CODES).to(gm.dtype)
    batch, length = x.codes.shape
    dmask = dpositions = dsignals = None
    if wanted.mask:
        dmask = scattered((g * values(x, place)).sum(1), place, inside, x).view(batch, length)
    if wanted.positions:
        dpositions = scattered(gm, place, inside, x).view(batch, length, gm.shape[1]).sum(0)
    if wanted.signals and x.signals is not None and x.signal_weight is not None:
        dsignals = scattered(gm @ x.signal_weight, place, inside, x).view(x.signals.shape)
    dweight = None if x.signals is None else gm.t() @ signals(x, place)
    return Grads(of_code.t() @ gm, dweight, dpositions, dmask, dsignals)


def places(x: Bases) -> tuple[Tensor, Tensor]:
    """Where in batch * L each row lies, int64 (total,), and whether it does; 0 where it does not."""
    n = x.codes.numel()
    if x.indices is None:
        place = torch.arange(n, device=x.codes.device)
        return place, torch.ones_like(place, dtype=torch.bool)
    inside = (x.indices >= 0) & (x.indices < n)
    return torch.where(inside, x.indices, 0), inside


def values(x: Bases, place: Tensor) -> Tensor:
    """The unmasked rows, (total, d)."""
    v = x.table[codes(x, place)]
    if x.positions is not None:
        v = v + x.positions[place % x.codes.shape[1]]
    if x.signal_weight is not None:
        v = v + signals(x, place) @ x.signal_weight.t()
    return v


def codes(x: Bases, place: Tensor) -> Tensor:
    c = x.codes.flatten()[place].long().clamp_max(CODES - 1)
    return torch.where(c < 4, 3 - c, c) if x.complement else c


def signals(x: Bases, place: Tensor) -> Tensor:
    """(total, tracks)."""
    assert x.signals is not None
    length = x.codes.shape[1]
    return x.signals[place // length, place % length].to(x.table.dtype)


def scattered(rows: Tensor, place: Tensor, inside: Tensor, x: Bases) -> Tensor:
    """Each row at its place among batch * L, zero elsewhere."""
    n = x.codes.numel()
    return rows.new_zeros(n + 1, *rows.shape[1:]).index_copy_(0, torch.where(inside, place, n), rows)[:n]
