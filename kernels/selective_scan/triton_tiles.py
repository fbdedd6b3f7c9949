"""What the Triton kernels are made of: a tile of positions, in registers and in memory, and the scan over it.

A tile is 256 positions: 32 lanes with 8 consecutive positions each. A warp has a channel, a program W warps. What a
program knows of a tile is a tuple of 8 tensors (LANES, W), the k-th with the k-th position of every lane, in the order
of the scan. So positions of a lane are scanned by plain arithmetic; one value a lane goes through a scan over lanes.

Tiles start at multiples of 256 in memory: rows are read four values at a time (QUADS) wherever a sequence starts.
Outside the sequence the step size is 0, which leaves the state as it is.
"""
# ruff: noqa: RUF005 - Triton compiles no starred tuples

from __future__ import annotations

import triton
import triton.language as tl

LANES = tl.constexpr(32)
K = tl.constexpr(8)  # positions of a lane
TILE = tl.constexpr(256)
LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def sigmoid(x):
    return 1 / (1 + tl.exp2(x * -LOG2E))


@triton.jit
def softplus(x):
    """max(x, 0) + log1p(e), e = exp(-|x|); log1p(e) / e is a polynomial, relative error 2e-7."""
    e = tl.exp2(tl.abs(x) * -LOG2E)
    p = e * 0.0052326913 - 0.0295052268
    p = p * e + 0.078225933
    p = p * e - 0.136632442
    p = p * e + 0.191060066
    p = p * e - 0.24842982
    p = p * e + 0.333190978
    p = p * e - 0.499994934
    p = p * e + 0.99999994
    return tl.where(x > 0, x, 0.0) + p * e


@triton.jit
def softplus_slope(x):
    """The derivative of softplus where its value is x, 1 - exp(-x); near 0 a series, relative error 5e-7."""
    p = x * 0.008333333 - 0.041666667
    p = p * x + 0.16666667
    p = p * x - 0.5
    p = p * x + 1
    return tl.where(x < 0.125, p * x, 1 - tl.exp2(x * -LOG2E))


@triton.jit
def chain(a1, b1, a2, b2):
    """h -> a1 h + b1, and then h -> a2 h + b2."""
    return a1 * a2, a2 * b1 + b2


@triton.jit
def plus(b_x, b_y):
    b = ()
    for k in tl.static_range(K):
        b = b + (b_x[k] + b_y[k],)
    return b


@triton.jit
def multiply(b_x, b_y):
    b = ()
    for k in tl.static_range(K):
        b = b + (b_x[k] * b_y[k],)
    return b


@triton.jit
def multiply_add(b_x, b_y, b_z):
    b = ()
    for k in tl.static_range(K):
        b = b + (b_x[k] * b_y[k] + b_z[k],)
    return b


@triton.jit
def gate(b_y, b_z):
    """y silu(z)"""
    b = ()
    for k in tl.static_range(K):
        b = b + (b_y[k] * b_z[k] * sigmoid(b_z[k]),)
    return b


@triton.jit
def same(b_k):
    """One value at all positions."""
    b = ()
    for _ in tl.static_range(K):
        b = b + (b_k,)
    return b


# --- the part of the scan that a program has --------------------------------------------------------------------------


@triton.jit
def sequence(cu_seqlens, i_seq, L):
    """Batch row, first position and end of a sequence, its first tile, number of tiles, first saved state."""
    if cu_seqlens is None:
        n_tiles = tl.cdiv(L, TILE)
        return i_seq, i_seq * 0, i_seq * 0 + L, i_seq * 0, n_tiles, i_seq * n_tiles
    else:
        begin = tl.load(cu_seqlens + i_seq)
        end = tl.load(cu_seqlens + i_seq + 1)
        i_tile = begin // TILE
        return i_seq * 0, begin, end, i_tile, tl.cdiv(end, TILE) - i_tile, i_tile + i_seq


@triton.jit
def segment(i_part, n_segments, n_tiles):
    """Range of the tiles of a segment, in the order of the scan."""
    per_segment = tl.cdiv(n_tiles, n_segments)
    j_begin = tl.minimum(i_part % n_segments * per_segment, n_tiles)
    return j_begin, tl.minimum(j_begin + per_segment, n_tiles)


@triton.jit
def channels(i_block, n_blocks, n_joint, dim, W: tl.constexpr):
    """First channel of a block, its channels and which of them exist, (LANES, W).

    A block stays within one of the n_joint runs of channels that share B and C.
    """
    per_joint = n_blocks // n_joint
    i_joint = i_block // per_joint
    i_d = i_joint * (dim // n_joint) + i_block % per_joint * W
    o_d = i_d + tl.arange(0, W)[None, :] + tl.zeros((LANES, 1), tl.int64)
    return i_d, o_d, o_d < (i_joint + 1) * (dim // n_joint)


@triton.jit
def lanes(i_tile, begin, end, L, REVERSE: tl.constexpr):
    """`bounds` of a tile, (LANES, 1)."""
    o_lane = tl.arange(0, LANES)[:, None]
    if REVERSE:
        o_lane = -o_lane + (LANES - 1)
    return bounds(i_tile * TILE + o_lane * K, begin, end, L)


@triton.jit
def bounds(o_t, begin, end, L):
    """o_t, the first position of a lane in memory, and how many of its positions come before the sequence begins,
    before it ends, before the row ends."""
    n_before = tl.minimum(tl.maximum(begin - o_t, 0), K).to(tl.int32)
    n_inside = tl.minimum(tl.maximum(end - o_t, 0), K).to(tl.int32)
    n_row = tl.minimum(tl.maximum(L - o_t, 0), K).to(tl.int32)
    return o_t, n_before, n_inside, n_row


@triton.jit
def inside(at, i, VARLEN: tl.constexpr):
    """Does the i-th position of a lane in memory belong to the sequence? `at` as `bounds` returns it."""
    if VARLEN:
        return (at[1] <= i) & (at[2] > i)
    else:
        return at[3] > i


# --- tiles in memory --------------------------------------------------------------------------------------------------


@triton.jit
def row(i_b, i_d, s, QUADS: tl.constexpr):
    """Offset of a row. With QUADS strides count quads: so the compiler knows where rows start."""
    return (i_b * s[0].to(tl.int64) + i_d * s[1].to(tl.int64)) * (4 if QUADS else 1)


@triton.jit
def load_tile(p, m, at, REVERSE: tl.constexpr, QUADS: tl.constexpr, VARLEN: tl.constexpr):
    """float32 values of the rows p (LANES, W) where m; 0 outside the sequence."""
    b = ()
    if QUADS:
        o_quad = tl.arange(0, 4)[None, None, :]
        for q in tl.static_range(0, K, 4):
            p_quad = (p + at[0] + q)[:, :, None] + o_quad
            b_quad = tl.load(p_quad, mask=((at[3] > q) & m)[:, :, None], other=0.0).to(tl.float32)
            b_even, b_odd = tl.split(tl.reshape(b_quad, (LANES, p.shape[1], 2, 2)))
            b_0, b_2 = tl.split(b_even)
            b_1, b_3 = tl.split(b_odd)
            b = b + (b_0, b_1, b_2, b_3)
    else:
        for k in tl.static_range(K):
            b = b + (tl.load(p + at[0] + k, mask=inside(at, k, VARLEN) & m, other=0.0).to(tl.float32),)
    b_tile = ()
    for k in tl.static_range(K):
        b_k = b[K - 1 - k if REVERSE else k]
        if QUADS and VARLEN:
            b_k = tl.where(inside(at, K - 1 - k if REVERSE else k, VARLEN), b_k, 0.0)
        b_tile = b_tile + (b_k,)
    return b_tile


@triton.jit
def store_tile(p, b_tile, m, at, REVERSE: tl.constexpr, QUADS: tl.constexpr, VARLEN: tl.constexpr):
    """Stores in the type of p; nothing outside the sequence."""
    b = ()
    for k in tl.static_range(K):
        b = b + (b_tile[K - 1 - k if REVERSE else k].to(p.dtype.element_ty),)
    if QUADS:
        o_quad = tl.arange(0, 4)[None, None, :]
        for q in tl.static_range(0, K, 4):
            p_quad = (p + at[0] + q)[:, :, None] + o_quad
            b_quad = tl.join(tl.join(b[q], b[q + 2]), tl.join(b[q + 1], b[q + 3]))
            if VARLEN:
                m_quad = m[:, :, None] & (at[1][:, :, None] <= q + o_quad) & (at[2][:, :, None] > q + o_quad)
            else:
                m_quad = (m & (at[3] > q))[:, :, None]
            tl.store(p_quad, tl.reshape(b_quad, (LANES, p.shape[1], 4)), mask=m_quad)
    else:
        for k in tl.static_range(K):
            tl.store(p + at[0] + k, b[k], mask=m & inside(at, k, VARLEN))


@triton.jit
def load_projection(p, at, CONSTANT: tl.constexpr, REVERSE: tl.constexpr, QUADS: tl.constexpr, VARLEN: tl.constexpr,
                    W: tl.constexpr):  # fmt: skip
    """B or C of one state (p a scalar pointer), the same for every warp. CONSTANT: one value for all positions."""
    p_rows = p + tl.zeros((LANES, W), tl.int64)
    if CONSTANT:
        return same(tl.load(p_rows).to(tl.float32))
    else:
        return load_tile(p_rows, True, at, REVERSE, QUADS, VARLEN)


@triton.jit
def load_delta(delta, dt_proj, i_b, o_d, m, rank, s, at, REVERSE: tl.constexpr, QUADS: tl.constexpr,
               VARLEN: tl.constexpr):  # fmt: skip
    """Channels o_d (LANES, W) of delta (batch, dim, L), or of dt_proj delta, delta (batch, rank, L)."""
    if dt_proj is None:
        return load_tile(delta + row(i_b, o_d, s, QUADS), m, at, REVERSE, QUADS, VARLEN)
    else:
        b = same(tl.zeros((LANES, o_d.shape[1]), tl.float32))
        for r in range(rank):
            p_low = delta + row(i_b, r, s, QUADS)
            b_low = load_projection(p_low, at, False, REVERSE, QUADS, VARLEN, o_d.shape[1])
            b = multiply_add(same(tl.load(dt_proj + o_d * rank + r, mask=m, other=0.0)), b_low, b)
        return b


@triton.jit
def add_lanes(p, b, m):
    """Adds the sum over lanes to what p (LANES, W) points to, one place a warp."""
    b_sum = tl.load(p, mask=m, other=0.0) + tl.sum(b, 0, keep_dims=True)
    tl.store(p, b_sum, mask=m & (tl.arange(0, LANES)[:, None] == 0))


@triton.jit
def add_channels(p, b, is_first, at, REVERSE: tl.constexpr, VARLEN: tl.constexpr, W: tl.constexpr):
    """Adds the sum over warps to the row p (scalar pointer), or sets it if these channels are the first.

    Halving by splits moves all values through shared memory once; tl.sum would exchange them one by one.
    """
    b_pairs = ()
    for i in tl.static_range(K // 2):
        b_pairs = b_pairs + (tl.join(b[K - 1 - i if REVERSE else i], b[K // 2 - 1 - i if REVERSE else i + K // 2]),)
    b_all = tl.join(tl.join(b_pairs[0], b_pairs[2]), tl.join(b_pairs[1], b_pairs[3]))
    b_all = tl.permute(tl.reshape(b_all, (LANES, W, K)), (0, 2, 1))
    for _ in tl.static_range(W.bit_length() - 1):
        b_even, b_odd = tl.split(tl.reshape(b_all, (LANES, K, b_all.shape[2] // 2, 2)))
        b_all = b_even + b_odd
    o_k = tl.arange(0, K)[None, :]
    m = inside(at, o_k, VARLEN)
    p_k = p + (at[0] + o_k)
    b_old = tl.load(p_k, mask=m & (not is_first), other=0.0)
    tl.store(p_k, b_old + tl.reshape(b_all, (LANES, K)), mask=m)


# --- one state of one channel over a tile -----------------------------------------------------------------------------


@triton.jit
def step_sizes(b_delta, b_bias, at, SOFTPLUS: tl.constexpr, REVERSE: tl.constexpr, VARLEN: tl.constexpr):
    """Step sizes, 0 outside the sequence, and their sum over a lane."""
    b_dt = ()
    b_sum = tl.zeros_like(b_delta[0])
    for k in tl.static_range(K):
        b_k = b_delta[k] + b_bias
        if SOFTPLUS:
            b_k = softplus(b_k)
        b_k = tl.where(inside(at, K - 1 - k if REVERSE else k, VARLEN), b_k, 0.0)
        b_dt = b_dt + (b_k,)
        b_sum += b_k
    return b_dt, b_sum


@triton.jit
def scan_lanes(b_p, b_e, b_h):
    """The state that enters every lane, and the one that leaves it. Lanes make p s + e of s; b_h enters the first."""
    o_lane = tl.arange(0, LANES)[:, None]
    b_e = tl.where(o_lane == 0, b_p * b_h + b_e, b_e)
    _, b_leaves = tl.associative_scan((b_p, b_e), 0, chain)
    b_enters = tl.gather(b_leaves, tl.broadcast_to(tl.maximum(o_lane - 1, 0), b_e.shape), 0)
    return tl.where(o_lane == 0, b_h, b_enters), b_leaves


@triton.jit
def flip_lanes(b):
    o_lane = tl.arange(0, LANES)[:, None]
    return tl.gather(b, tl.broadcast_to(-o_lane + (LANES - 1), b.shape), 0)


@triton.jit
def scan_state(b_dt, b_sum, b_x, b_B, b_A2, b_h):
    """Decays, states, decay over a lane, states that enter and leave lanes. b_h enters the tile."""
    b_a = ()
    b_e = tl.zeros_like(b_sum)
    for k in tl.static_range(K):
        b_a = b_a + (tl.exp2(b_dt[k] * b_A2),)
        b_e = b_a[k] * b_e + b_x[k] * b_B[k]
    b_p = tl.exp2(b_sum * b_A2)
    b_enters, b_leaves = scan_lanes(b_p, b_e, b_h)
    b_s = b_enters
    b_states = ()
    for k in tl.static_range(K):
        b_s = b_a[k] * b_s + b_x[k] * b_B[k]
        b_states = b_states + (b_s,)
    return b_a, b_states, b_p, b_enters, b_leaves
