"""The Triton implementation: launches of the kernels in triton_kernels.py."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from triton import cdiv, next_power_of_2

from seq2exp.kernels.gather import triton_kernels as kernels

TILE = 2048  # bases of a program of the selection
SCAN = 1024  # tiles whose counts are summed at once
ELEMENTS, ROWS, CHANNELS = 2048, 128, 1024  # of a block at most


def select(mask: Tensor, capacity: int | None) -> tuple[Tensor, Tensor]:
    """See native.py; on CUDA tensors, or on the CPU in the interpreter."""
    batch, length = mask.shape
    n_tiles = cdiv(length, TILE)
    programs = batch * n_tiles
    shape = (*mask.stride(), length, n_tiles)
    offsets = mask.new_empty(programs + 1, dtype=torch.int64)
    with _device_of(mask):
        kernels.select_count_kernel[(programs,)](mask, offsets, *shape, TILE=TILE)
        kernels.select_scan_kernel[(1,)](offsets, programs, BLOCK=SCAN)
        size = int(offsets[-1]) if capacity is None else capacity
        indices = offsets.new_empty(size)
        cu_seqlens = offsets.new_empty(batch + 1 + (capacity is not None))
        kernels.select_place_kernel[(programs,)](
            mask, offsets, indices, cu_seqlens, *shape, batch, size, PADDED=capacity is not None, TILE=TILE
        )
    return indices, cu_seqlens


def pack_forward(x: Tensor, mask: Tensor, indices: Tensor) -> Tensor:
    """See native.py."""
    return _pack(x, mask.reshape(-1), indices)


def pack_backward(grad: Tensor, x: Tensor, mask: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
    """See native.py. The same bits in every run."""
    grad_mask = mask.new_empty(mask.shape)
    out = _unpack(grad, indices, tuple(mask.shape), x.reshape(-1, x.shape[2]), mask.reshape(-1), grad_mask)
    return out, grad_mask


def unpack_forward(values: Tensor, indices: Tensor, shape: tuple[int, int]) -> Tensor:
    """See native.py."""
    return _unpack(values, indices, shape)


def unpack_backward(grad: Tensor, indices: Tensor) -> Tensor:
    """See native.py."""
    return _pack(grad, None, indices)


# The kernels see (batch * L, d): a view, but a copy where rows of the batch do not follow one another in memory.


def _pack(x: Tensor, mask: Tensor | None, indices: Tensor) -> Tensor:
    x, total = x.reshape(-1, x.shape[2]), len(indices)
    bases, d = x.shape
    values, block = x.new_empty(total, d), _block(d)
    if total:
        with _device_of(x):
            kernels.pack_fwd_kernel[(cdiv(total, block["ROWS"]),)](
                x, mask, indices, values, *x.stride(), 0 if mask is None else mask.stride(0), total, bases, d=d, **block
            )
    return values


def _unpack(
    values: Tensor, indices: Tensor, shape: tuple[int, int], x: Tensor | None = None, mask: Tensor | None = None,
    grad_mask: Tensor | None = None,
) -> Tensor:  # fmt: skip
    (total, d), bases = values.shape, shape[0] * shape[1]
    out, block = values.new_empty(*shape, d), _block(d)
    with _device_of(values):
        kernels.unpack_fwd_kernel[(cdiv(bases, block["ROWS"]),)](
            values, indices, x, mask, out, grad_mask, *values.stride(), *((0, 0) if x is None else x.stride()),
            0 if mask is None else mask.stride(0), total, total.bit_length(), bases, d=d, **block,
        )  # fmt: skip
    return out


def _block(d: int) -> dict[str, int]:
    channels = min(next_power_of_2(d), CHANNELS)
    return {"ROWS": min(ROWS, ELEMENTS // channels), "BD": channels, "num_warps": 4}


def _device_of(x: Tensor) -> AbstractContextManager:
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()
