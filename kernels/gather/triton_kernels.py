"""Triton kernels of select, pack_selected and unpack_selected. Positions and indices are int64 throughout.

Selection works on tiles of TILE bases of one row of the mask, packing and unpacking on ROWS rows of d channels, BD at a
time.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def mask_tile(mask, s_batch, s_time, length, n_tiles, TILE: tl.constexpr):
    """Which bases of this program's tile are selected, and where they are in batch * L. n_tiles: of a row."""
    i_row = tl.program_id(0).to(tl.int64) // n_tiles
    i_base = tl.program_id(0).to(tl.int64) % n_tiles * TILE + tl.arange(0, TILE)
    b_mask = tl.load(mask + i_row * s_batch + i_base * s_time, i_base < length, 0.0)
    return b_mask.to(tl.float32) != 0, i_row * length + i_base


@triton.jit
def select_count_kernel(mask, offsets, s_batch, s_time, length, n_tiles, TILE: tl.constexpr):
    """Writes the count of tile i to offsets[i + 1]."""
    b_selected, _ = mask_tile(mask, s_batch, s_time, length, n_tiles, TILE)
    tl.store(offsets + 1 + tl.program_id(0).to(tl.int64), tl.sum(b_selected.to(tl.int64)))


@triton.jit(do_not_specialize=["n_tiles"])
def select_scan_kernel(offsets, n_tiles, BLOCK: tl.constexpr):
    """One program: counts -> how many are selected before each tile, and in all. n_tiles: all."""
    tl.store(offsets, tl.zeros((), tl.int64))
    before = tl.zeros((), tl.int64)
    for i_first in range(0, n_tiles, BLOCK):
        i_tile = i_first + tl.arange(0, BLOCK)
        b_count = tl.load(offsets + 1 + i_tile, i_tile < n_tiles, 0)
        tl.store(offsets + 1 + i_tile, before + tl.cumsum(b_count, 0), i_tile < n_tiles)
        before += tl.sum(b_count)


@triton.jit(do_not_specialize=["size"])
def select_place_kernel(
    mask, offsets, indices, cu_seqlens, s_batch, s_time, length, n_tiles, batch, size,
    PADDED: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Writes the indices of each tile; the first tile of a row, and the last of all, also cu_seqlens."""
    i_tile = tl.program_id(0).to(tl.int64)
    offset, total = tl.load(offsets + i_tile), tl.load(offsets + batch.to(tl.int64) * n_tiles)
    b_selected, b_at = mask_tile(mask, s_batch, s_time, length, n_tiles, TILE)
    b_place = offset + tl.cumsum(b_selected.to(tl.int32), 0) - 1
    tl.store(indices + b_place, b_at, b_selected & (total <= size))
    if i_tile % n_tiles == 0:
        tl.store(cu_seqlens + i_tile // n_tiles, tl.minimum(offset, size))
    if i_tile == tl.num_programs(0) - 1:
        tl.store(cu_seqlens + batch, tl.minimum(total, size))
        if PADDED:
            tl.store(cu_seqlens + batch + 1, size.to(tl.int64))
    if PADDED:
        kept = tl.where(total <= size, total, 0)
        filling = tl.where(total <= size, batch.to(tl.int64) * length, -1)
        for i_first in range(i_tile * TILE, size, tl.num_programs(0).to(tl.int64) * TILE):
            i_slot = i_first + tl.arange(0, TILE)
            tl.store(indices + i_slot, tl.zeros((TILE,), tl.int64) + filling, (i_slot >= kept) & (i_slot < size))


@triton.jit(do_not_specialize=["total"])
def pack_fwd_kernel(
    x, mask, indices, values, s_x_row, s_x_channel, s_mask, total, bases,
    d: tl.constexpr, ROWS: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """x: (bases, d). mask None: 1 everywhere, and -1 gives 0 instead of NaN."""
    i_value = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    b_at = tl.load(indices + i_value, i_value < total, bases)
    inside = (b_at >= 0) & (b_at < bases)
    b_scale = tl.zeros((ROWS,), tl.float32) + 1
    if mask is not None:
        b_mask = tl.load(mask + b_at * s_mask, inside, 0.0).to(tl.float32)
        b_scale = tl.where(b_at == -1, float("nan"), b_mask)
    for i_first in range(0, d, BD):
        i_channel = i_first + tl.arange(0, BD).to(tl.int64)
        there = (i_channel < d)[None, :]
        at = b_at[:, None] * s_x_row + i_channel[None, :] * s_x_channel
        b_values = tl.load(x + at, inside[:, None] & there, 0.0).to(tl.float32) * b_scale[:, None]
        out = i_value[:, None] * d + i_channel[None, :]
        tl.store(values + out, b_values.to(values.dtype.element_ty), (i_value < total)[:, None] & there)


@triton.jit
def places_of(indices, i_row, total, n_steps):
    """Where each of i_row is in the ascending indices, and whether it is there: a binary search."""
    b_low = i_row * 0
    b_high = b_low + total
    for _ in range(n_steps):
        b_middle = (b_low + b_high) // 2
        open_ = b_low < b_high
        below = tl.load(indices + b_middle, open_, 0) < i_row
        b_low = tl.where(open_ & below, b_middle + 1, b_low)
        b_high = tl.where(open_ & (below == 0), b_middle, b_high)
    return b_low, tl.load(indices + b_low, b_low < total, -1) == i_row


@triton.jit(do_not_specialize=["total", "n_steps"])
def unpack_fwd_kernel(
    values, indices, x, mask, out, grad_mask, s_v_row, s_v_channel, s_x_row, s_x_channel, s_mask, total, n_steps, bases,
    d: tl.constexpr, ROWS: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Rows of out (bases, d), each written once. With x and mask this is the backward of the pack."""
    i_row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    b_place, found = places_of(indices, i_row, total, n_steps)
    found &= i_row < bases
    b_scale = tl.zeros((ROWS,), tl.float32) + 1
    b_dot = tl.zeros((ROWS,), tl.float32)
    if mask is not None:
        b_scale = tl.load(mask + i_row * s_mask, found, 0.0).to(tl.float32)
    for i_first in range(0, d, BD):
        i_channel = i_first + tl.arange(0, BD).to(tl.int64)
        there = (i_channel < d)[None, :]
        at = b_place[:, None] * s_v_row + i_channel[None, :] * s_v_channel
        b_values = tl.load(values + at, found[:, None] & there, 0.0).to(tl.float32)
        b_out = (b_values * b_scale[:, None]).to(out.dtype.element_ty)
        tl.store(out + i_row[:, None] * d + i_channel[None, :], b_out, (i_row < bases)[:, None] & there)
        if mask is not None:
            at = i_row[:, None] * s_x_row + i_channel[None, :] * s_x_channel
            b_dot += tl.sum(b_values * tl.load(x + at, found[:, None] & there, 0.0).to(tl.float32), 1)
    if mask is not None:
        tl.store(grad_mask + i_row, b_dot.to(grad_mask.dtype.element_ty), i_row < bases)
