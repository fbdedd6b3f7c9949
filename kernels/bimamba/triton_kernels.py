"""Triton kernels of the mixer's convolution, both directions at once. README.md has the mathematics.

Tiles are those of the scan (triton_tiles.py): a lane has 8 consecutive positions, here besides the 8 before and the 8
after them as far as taps reach there, read from memory once more. The last tap of a weight reads the own position.
"""
# ruff: noqa: RUF005 - Triton compiles no starred tuples

from __future__ import annotations

import triton
import triton.language as tl

from seq2exp.kernels.selective_scan.triton_tiles import (
    LANES,
    LOG2E,
    TILE,
    K,
    bounds,
    channels,
    load_tile,
    row,
    same,
    sigmoid,
    store_tile,
)

INTEGERS = [
    *(f"s_{x}{i}" for x in ("x", "grad_fwd", "grad_rev") for i in range(2)),
    *("L", "dim", "n_sequences", "n_tiles", "n_parts", "per_part", "n_blocks"),
]


# --- what a program has -----------------------------------------------------------------------------------------------


@triton.jit
def part(n_blocks, n_parts, per_part, n_tiles):
    """Block of channels, batch row, number of the part, range of the tiles of a program."""
    i_part = tl.program_id(0) // n_blocks
    i = i_part % n_parts * per_part
    return tl.program_id(0) % n_blocks, i_part // n_parts, i_part, i, tl.minimum(i + per_part, n_tiles)


@triton.jit
def tile(cu_seqlens, i, n_sequences, L):
    """The i-th tile of a row, begin and end of the sequence: the i-th pair of a sequence and a tile.

    Sequence s has the pairs from begin // TILE + s on; where one ends with a tile, a pair without positions follows.
    """
    if cu_seqlens is None:
        return i, 0, L
    else:
        i_seq = i * 0
        i_stop = i_seq + n_sequences
        while i_stop - i_seq > 1:
            i_mid = (i_seq + i_stop) // 2
            is_at_or_after = tl.load(cu_seqlens + i_mid) // TILE + i_mid <= i
            i_seq = tl.where(is_at_or_after, i_mid, i_seq)
            i_stop = tl.where(is_at_or_after, i_stop, i_mid)
        begin = tl.load(cu_seqlens + i_seq).to(tl.int32)
        return i - i_seq, begin, tl.load(cu_seqlens + i_seq + 1).to(tl.int32)


@triton.jit
def place(i_tile, begin, end, L, i: tl.constexpr):
    """As `lanes` of the scan, of the positions of a lane (i = 0), those before (-1) or after them (1)."""
    o_t = i_tile * TILE + (tl.arange(0, LANES)[:, None] + i) * K
    o_t, n_before, n_inside, n_row = bounds(o_t, begin, end, L)
    return o_t, n_before, n_inside, tl.where(o_t < 0, 0, n_row)


@triton.jit
def load_window(p, m, i_tile, begin, end, L, QUADS: tl.constexpr, VARLEN: tl.constexpr):
    """Positions -K to 2K - 1 counted from the lane's first; what nobody uses is not loaded. 0 outside the sequence."""
    b = ()
    for i in tl.static_range(-1, 2):
        b = b + load_tile(p, m, place(i_tile, begin, end, L, i), False, QUADS, VARLEN)
    return b


@triton.jit
def load_taps(weight, bias, o_d, m, WIDTH: tl.constexpr):
    """The bias, then the taps from the own position outwards."""
    b = (tl.load(bias + o_d, mask=m, other=0.0),)
    for j in tl.static_range(WIDTH):
        b = b + (tl.load(weight + o_d * WIDTH + (WIDTH - 1 - j), mask=m, other=0.0),)
    return b


@triton.jit
def store_sums(weight, bias, b_sums, o_d, m, WIDTH: tl.constexpr):
    """The sums over lanes, in the order of `load_taps`."""
    m_first = m & (tl.arange(0, LANES)[:, None] == 0)
    tl.store(bias + o_d, tl.sum(b_sums[0], 0, keep_dims=True), mask=m_first)
    for j in tl.static_range(WIDTH):
        p = weight + o_d * WIDTH + (WIDTH - 1 - j)
        tl.store(p, tl.sum(b_sums[1 + j], 0, keep_dims=True), mask=m_first)


# --- one direction ----------------------------------------------------------------------------------------------------


@triton.jit
def before_silu(b_x, b_taps, i: tl.constexpr, REVERSE: tl.constexpr, WIDTH: tl.constexpr):
    """The convolution of the window b_x at its i-th position."""
    b = b_taps[0]
    for j in tl.static_range(WIDTH):
        b += b_taps[1 + j] * b_x[i + j if REVERSE else i - j]
    return b


@triton.jit
def convolution(b_x, b_taps, REVERSE: tl.constexpr, WIDTH: tl.constexpr):
    """silu of the convolution at the lane's own positions."""
    b = ()
    for k in tl.static_range(K):
        b_pre = before_silu(b_x, b_taps, K + k, REVERSE, WIDTH)
        b = b + (b_pre / (1 + tl.exp2(b_pre * -LOG2E)),)
    return b


@triton.jit
def convolution_gradients(b_dx, b_sums, b_x, b_grad, b_taps, REVERSE: tl.constexpr, WIDTH: tl.constexpr):
    """Adds to the gradients of the lane's own positions and to those of bias and taps. b_x, b_grad: windows."""
    OWN: tl.constexpr = WIDTH - 1 if REVERSE else 0  # the first own position in b_g
    b_g = ()
    for k in tl.static_range(K + WIDTH - 1):
        b_pre = before_silu(b_x, b_taps, K - OWN + k, REVERSE, WIDTH)
        b_gate = sigmoid(b_pre)
        b_g = b_g + (b_grad[K - OWN + k] * b_gate * (1 + b_pre * (1 - b_gate)),)
    b_dx_all = ()
    for k in tl.static_range(K):
        b = b_dx[k]
        for j in tl.static_range(WIDTH):
            b += b_taps[1 + j] * b_g[OWN + k - j if REVERSE else OWN + k + j]
        b_dx_all = b_dx_all + (b,)
    b = b_sums[0]
    for k in tl.static_range(K):
        b += b_g[OWN + k]
    b_sums_all = (b,)
    for j in tl.static_range(WIDTH):
        b = b_sums[1 + j]
        for k in tl.static_range(K):
            b += b_g[OWN + k] * b_x[K + k + j if REVERSE else K + k - j]
        b_sums_all = b_sums_all + (b,)
    return b_dx_all, b_sums_all


# --- kernels ----------------------------------------------------------------------------------------------------------


@triton.jit(do_not_specialize=INTEGERS)
def bimamba_conv_fwd_kernel(
    x, weight_fwd, bias_fwd, weight_rev, bias_rev, cu_seqlens, out_fwd, out_rev, s_x0: tl.int64, s_x1: tl.int64,
    L, dim, n_sequences, n_tiles, n_parts, per_part, n_blocks,
    WIDTH_FWD: tl.constexpr, WIDTH_REV: tl.constexpr, QUADS: tl.constexpr, W: tl.constexpr,
):  # fmt: skip
    """out_fwd, out_rev (batch, dim, L), one program W channels of per_part tiles. An absent direction is None."""
    VARLEN: tl.constexpr = cu_seqlens is not None
    s_L = (L // 4 if QUADS else L).to(tl.int64)
    i_block, i_b, _, i_begin, i_end = part(n_blocks, n_parts, per_part, n_tiles)
    _, o_d, m_d = channels(i_block, n_blocks, 1, dim, W)
    p_x = x + row(i_b, o_d, (s_x0, s_x1), QUADS)
    o_out = row(i_b, o_d, (dim * s_L, s_L), QUADS)
    if weight_fwd is not None:
        b_taps_fwd = load_taps(weight_fwd, bias_fwd, o_d, m_d, WIDTH_FWD)
    if weight_rev is not None:
        b_taps_rev = load_taps(weight_rev, bias_rev, o_d, m_d, WIDTH_REV)

    for i in range(i_begin, i_end):
        i_tile, begin, end = tile(cu_seqlens, i, n_sequences, L)
        at = place(i_tile, begin, end, L, 0)
        b_x = load_window(p_x, m_d, i_tile, begin, end, L, QUADS, VARLEN)
        if weight_fwd is not None:
            b_out = convolution(b_x, b_taps_fwd, False, WIDTH_FWD)
            store_tile(out_fwd + o_out, b_out, m_d, at, False, QUADS, VARLEN)
        if weight_rev is not None:
            b_out = convolution(b_x, b_taps_rev, True, WIDTH_REV)
            store_tile(out_rev + o_out, b_out, m_d, at, False, QUADS, VARLEN)


@triton.jit(do_not_specialize=INTEGERS)
def bimamba_conv_bwd_kernel(
    x, grad_fwd, grad_rev, weight_fwd, bias_fwd, weight_rev, bias_rev, cu_seqlens,
    dx, dweight_fwd, dbias_fwd, dweight_rev, dbias_rev,
    s_x0: tl.int64, s_x1: tl.int64, s_grad_fwd0: tl.int64, s_grad_fwd1: tl.int64, s_grad_rev0: tl.int64,
    s_grad_rev1: tl.int64, L, dim, n_sequences, n_tiles, n_parts, per_part, n_blocks,
    WIDTH_FWD: tl.constexpr, WIDTH_REV: tl.constexpr, QUADS: tl.constexpr, W: tl.constexpr,
):  # fmt: skip
    """dx (batch, dim, L) and a part of the gradients of weights (parts, dim, width) and biases (parts, dim)."""
    VARLEN: tl.constexpr = cu_seqlens is not None
    s_L = (L // 4 if QUADS else L).to(tl.int64)
    i_block, i_b, i_part, i_begin, i_end = part(n_blocks, n_parts, per_part, n_tiles)
    _, o_d, m_d = channels(i_block, n_blocks, 1, dim, W)
    p_x = x + row(i_b, o_d, (s_x0, s_x1), QUADS)
    p_dx = dx + row(i_b, o_d, (dim * s_L, s_L), QUADS)
    b_zero = tl.zeros((LANES, W), tl.float32)
    if weight_fwd is not None:
        b_taps_fwd = load_taps(weight_fwd, bias_fwd, o_d, m_d, WIDTH_FWD)
        b_sums_fwd = (b_zero, b_zero, b_zero, b_zero, b_zero)[: WIDTH_FWD + 1]
        p_grad_fwd = grad_fwd + row(i_b, o_d, (s_grad_fwd0, s_grad_fwd1), QUADS)
    if weight_rev is not None:
        b_taps_rev = load_taps(weight_rev, bias_rev, o_d, m_d, WIDTH_REV)
        b_sums_rev = (b_zero, b_zero, b_zero, b_zero, b_zero)[: WIDTH_REV + 1]
        p_grad_rev = grad_rev + row(i_b, o_d, (s_grad_rev0, s_grad_rev1), QUADS)

    for i in range(i_begin, i_end):
        i_tile, begin, end = tile(cu_seqlens, i, n_sequences, L)
        at = place(i_tile, begin, end, L, 0)
        b_x = load_window(p_x, m_d, i_tile, begin, end, L, QUADS, VARLEN)
        b_dx = same(b_zero)
        if weight_fwd is not None:
            b_grad = load_window(p_grad_fwd, m_d, i_tile, begin, end, L, QUADS, VARLEN)
            b_dx, b_sums_fwd = convolution_gradients(b_dx, b_sums_fwd, b_x, b_grad, b_taps_fwd, False, WIDTH_FWD)
        if weight_rev is not None:
            b_grad = load_window(p_grad_rev, m_d, i_tile, begin, end, L, QUADS, VARLEN)
            b_dx, b_sums_rev = convolution_gradients(b_dx, b_sums_rev, b_x, b_grad, b_taps_rev, True, WIDTH_REV)
        store_tile(p_dx, b_dx, m_d, at, False, QUADS, VARLEN)

    o_part = i_part.to(tl.int64) * dim
    if weight_fwd is not None:
        p_dweight = dweight_fwd + o_part * WIDTH_FWD
        store_sums(p_dweight, dbias_fwd + o_part, b_sums_fwd, o_d, m_d, WIDTH_FWD)
    if weight_rev is not None:
        p_dweight = dweight_rev + o_part * WIDTH_REV
        store_sums(p_dweight, dbias_rev + o_part, b_sums_rev, o_d, m_d, WIDTH_REV)
