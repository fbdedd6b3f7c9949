"""The C++ implementation for the CPU (csrc/gather/cpu), loaded by seq2exp.kernels._extension."""

from __future__ import annotations

import torch
from torch import Tensor


def select(mask: Tensor, capacity: int | None) -> tuple[Tensor, Tensor]:
    """As `reference.select`. mask: (batch, L) in float32, bfloat16 or float16, any strides, not empty."""
    native = torch.ops.seq2exp_native
    offsets = native.select_offsets(mask)  # of the tiles that the kernels work on
    size = int(offsets[-1]) if capacity is None else capacity
    return native.select_places(mask, offsets, size, capacity is not None)


def pack_forward(x: Tensor, mask: Tensor, indices: Tensor) -> Tensor:
    """As `reference.pack_forward`. x and mask in float32, bfloat16 or float16 each, any strides."""
    return torch.ops.seq2exp_native.pack_rows(x, mask, indices)


def pack_backward(grad: Tensor, x: Tensor, mask: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
    """As `reference.pack_backward`. The same bits in every run, for any number of threads."""
    grad_x, grad_mask = torch.ops.seq2exp_native.unpack_rows(grad, indices, x, mask, *mask.shape)
    return grad_x, grad_mask


def unpack_forward(values: Tensor, indices: Tensor, shape: tuple[int, int]) -> Tensor:
    """As `reference.unpack_forward`."""
    return torch.ops.seq2exp_native.unpack_rows(values, indices, None, None, *shape)[0]


def unpack_backward(grad: Tensor, indices: Tensor) -> Tensor:
    """As `reference.unpack_backward`."""
    return torch.ops.seq2exp_native.pack_rows(grad, None, indices)
