"""Packing the selected bases and putting them back, forward and backward, in plain PyTorch."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Packed(NamedTuple):
    """The selected bases of a batch, one row after the other.

    values: (total, d), x * mask at the selected bases, in order. indices: int64 (total,) into batch * L.
    cu_seqlens: int64 (batch + 1,), the offsets of the rows in values.
    """

    values: Tensor
    indices: Tensor
    cu_seqlens: Tensor


def pack_forward(x: Tensor, mask: Tensor) -> Packed:
    """x (batch, L, d), mask (batch, L); keeps mask != 0."""
    counts = (mask != 0).sum(1)
    cu_seqlens = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    indices = mask.flatten().nonzero().squeeze(1)
    values = x.flatten(0, 1)[indices] * mask.flatten()[indices, None].to(x.dtype)
    return Packed(values, indices, cu_seqlens)


def pack_backward(grad_values: Tensor, x: Tensor, mask: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of x (batch, L, d) and mask (batch, L): zero at the bases that were not selected."""
    picked_x, picked_mask = x.flatten(0, 1)[indices], mask.flatten()[indices]
    grad_x = torch.zeros_like(x).flatten(0, 1).index_copy(0, indices, grad_values * picked_mask[:, None].to(x.dtype))
    grad_mask = torch.zeros_like(mask).flatten().index_copy(0, indices, (grad_values * picked_x).sum(1).to(mask.dtype))
    return grad_x.view_as(x), grad_mask.view_as(mask)


def unpack_forward(values: Tensor, indices: Tensor, shape: tuple[int, int]) -> Tensor:
    """values (total, d) at their places in (batch, L, d), zero elsewhere."""
    out = values.new_zeros(shape[0] * shape[1], values.shape[1]).index_copy(0, indices, values)
    return out.view(*shape, values.shape[1])


def unpack_backward(grad_out: Tensor, indices: Tensor) -> Tensor:
    """Gradient of values (total, d)."""
    return grad_out.flatten(0, 1)[indices]
