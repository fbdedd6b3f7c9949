"""Triton kernels of add_norm. A program takes ROWS rows at a time, whole: a tile is (ROWS, BD), BD channels or more."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def tile(i_first, n_rows, stride, d: tl.constexpr, ROWS: tl.constexpr, BD: tl.constexpr):
    """Offsets of ROWS rows from i_first on, in elements, and which of them exist."""
    i_row = i_first.to(tl.int64) + tl.arange(0, ROWS)
    i_channel = tl.arange(0, BD)
    inside = (i_row < n_rows)[:, None] & (i_channel < d)[None, :]
    return i_row[:, None] * stride + i_channel[None, :], inside


@triton.jit
def of_rows(p_rows, i_first, n_rows, ROWS: tl.constexpr):
    """One value a row."""
    i_row = i_first.to(tl.int64) + tl.arange(0, ROWS)
    return tl.load(p_rows + i_row, i_row < n_rows, 0.0)


@triton.jit
def of_channels(p_channels, d: tl.constexpr, BD: tl.constexpr):
    i_channel = tl.arange(0, BD)
    return tl.load(p_channels + i_channel, i_channel < d, 0.0)


@triton.jit
def scale(b_r, epsilon, d: tl.constexpr):
    """1 / rms of every row."""
    return 1 / tl.sqrt(tl.sum(b_r * b_r, 1) / d + epsilon)


@triton.jit(do_not_specialize=["n_rows"])
def add_norm_fwd_kernel(
    x, residual, weight, gate, total, h,
    s_x, s_residual, n_rows, epsilon,
    d: tl.constexpr, ROWS: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    i_first = tl.program_id(0) * ROWS
    at, inside = tile(i_first, n_rows, s_x, d, ROWS, BD)
    out, _ = tile(i_first, n_rows, d, d, ROWS, BD)
    b_r = tl.load(x + at, inside, 0.0).to(tl.float32)
    if residual is not None:
        at, _ = tile(i_first, n_rows, s_residual, d, ROWS, BD)
        b_r += tl.load(residual + at, inside, 0.0).to(tl.float32)
        b_total = b_r.to(total.dtype.element_ty)
        tl.store(total + out, b_total, inside)
        b_r = b_total.to(tl.float32)
    b_s = scale(b_r, epsilon, d)
    if gate is not None:
        b_s *= of_rows(gate, i_first, n_rows, ROWS)
    b_h = b_r * b_s[:, None] * of_channels(weight, d, BD)[None, :]
    tl.store(h + out, b_h.to(h.dtype.element_ty), inside)


@triton.jit(do_not_specialize=["n_rows"])
def add_norm_bwd_kernel(
    grad, grad_residual, r, weight, gate, dr, dweight, dgate,
    s_grad, s_grad_residual, s_r, n_rows, epsilon,
    d: tl.constexpr, ROWS: tl.constexpr, BD: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    """dweight (programs, d): the sums over the rows of each program."""
    i_part = tl.program_id(0)
    b_weight = of_channels(weight, d, BD)[None, :]
    b_dweight = tl.zeros((ROWS, BD), tl.float32)
    for i_tile in range(TILES):
        i_first = (i_part.to(tl.int64) * TILES + i_tile) * ROWS
        at, inside = tile(i_first, n_rows, s_r, d, ROWS, BD)
        b_r = tl.load(r + at, inside, 0.0).to(tl.float32)
        at, _ = tile(i_first, n_rows, s_grad, d, ROWS, BD)
        b_dh = tl.load(grad + at, inside, 0.0).to(tl.float32)
        b_s = scale(b_r, epsilon, d)
        b_product = tl.sum(b_dh * b_weight * b_r, 1)
        b_sg = b_s
        if gate is not None:
            b_sg = b_s * of_rows(gate, i_first, n_rows, ROWS)
            i_row = i_first + tl.arange(0, ROWS)
            tl.store(dgate + i_row, b_s * b_product, i_row < n_rows)
        b_dh *= b_sg[:, None]
        b_dr = b_dh * b_weight - b_r * (b_sg * b_s * b_s * (b_product / d))[:, None]
        if grad_residual is not None:
            at, _ = tile(i_first, n_rows, s_grad_residual, d, ROWS, BD)
            b_dr += tl.load(grad_residual + at, inside, 0.0).to(tl.float32)
        at, _ = tile(i_first, n_rows, d, d, ROWS, BD)
        tl.store(dr + at, b_dr.to(dr.dtype.element_ty), inside)
        b_dweight += b_dh * b_r
    i_channel = tl.arange(0, BD)
    tl.store(dweight + i_part.to(tl.int64) * d + i_channel, tl.sum(b_dweight, 0), i_channel < d)
