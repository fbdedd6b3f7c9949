"""Selecting, packing and unpacking in plain PyTorch, forward and backward; the oracle, in float64 too.

`indices` point into the flattened (batch * L) positions and ascend. One that is batch * L is padding, -1 stands in all
places after a selection that did not fit its capacity.
"""

from __future__ import annotations

import torch
from torch import Tensor


def select(mask: Tensor, capacity: int | None) -> tuple[Tensor, Tensor]:
    """indices and cu_seqlens of mask != 0, int64; without a host synchronisation where there is a capacity."""
    selected, n = (mask != 0).flatten(), mask.numel()
    ends = (mask != 0).sum(1).cumsum(0)
    cu_seqlens = torch.cat([ends.new_zeros(1), ends])
    if capacity is None:
        return selected.nonzero().squeeze(1), cu_seqlens
    slots = torch.where(selected, selected.cumsum(0) - 1, capacity).clamp(max=capacity)  # the last is cut off
    indices = slots.new_full((capacity + 1,), n).scatter(0, slots, torch.arange(n, device=mask.device))[:capacity]
    indices = torch.where(cu_seqlens[-1] > capacity, -1, indices)
    return indices, torch.cat([cu_seqlens.clamp(max=capacity), cu_seqlens.new_full((1,), capacity)])


def pack_forward(x: Tensor, mask: Tensor, indices: Tensor) -> Tensor:
    """x * mask at the indices, (total, d) in x's dtype: 0 at padding, NaN at -1. x: (batch, L, d), mask: (batch, L)."""
    values = _take(_wide(x), indices) * _take(_wide(mask)[..., None], indices)
    return values.masked_fill((indices == -1)[:, None], torch.nan).to(x.dtype)


def pack_backward(grad: Tensor, x: Tensor, mask: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of x and mask, in their dtypes: zero at the bases that were not selected. grad: (total, d)."""
    grad_x = _wide(grad) * _take(_wide(mask)[..., None], indices)
    grad_mask = (_wide(grad) * _take(_wide(x), indices)).sum(1, keepdim=True)
    return (
        unpack_forward(grad_x, indices, mask.shape).to(x.dtype),
        unpack_forward(grad_mask, indices, mask.shape).squeeze(2).to(mask.dtype),
    )


def unpack_forward(values: Tensor, indices: Tensor, shape: tuple[int, int]) -> Tensor:
    """values (total, d) at their places in (batch, L, d), zero elsewhere."""
    n = shape[0] * shape[1]
    places = torch.where(_inside(indices, n), indices, n)  # the last is cut off
    out = values.new_zeros(n + 1, values.shape[1]).index_copy(0, places, values)
    return out[:n].view(*shape, values.shape[1])


def unpack_backward(grad: Tensor, indices: Tensor) -> Tensor:
    """Gradient of values (total, d): zero for those without a place. grad: (batch, L, d)."""
    return _take(grad, indices)


def _take(x: Tensor, indices: Tensor) -> Tensor:
    """x (batch, L, d) at the indices, (total, d); zero where an index is none of a base."""
    flat = torch.cat([x.flatten(0, 1), x.new_zeros(1, x.shape[2])])
    n = flat.shape[0] - 1
    return flat[torch.where(_inside(indices, n), indices, n)]


def _inside(indices: Tensor, n: int) -> Tensor:
    return (indices >= 0) & (indices < n)


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
