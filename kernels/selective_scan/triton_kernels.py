"""Triton kernels of the selective scan. The mathematics is in README.md, the launches in triton.py.

A tile is 256 positions of a sequence: 32 lanes with 8 consecutive positions each. A warp has a channel, a program W warps.
So what a program holds of a tile is a tuple of 8 tensors (32, W), the k-th of them with the k-th position of every lane;
tuples are in the order of the scan, whatever the direction in memory. Positions are summed and scanned inside a lane
by plain arithmetic, and only one value a lane goes through the scan over lanes.

Tiles start at multiples of 256 in memory, so that rows are read four values at a time (QUADS) wherever the sequence starts.
Positions outside the sequence have step size 0: there the state stays what it is.
"""

from __future__ import annotations

import triton
import triton.language as tl

LANES = tl.constexpr(32)
K = tl.constexpr(8)  # positions of a lane
TILE = tl.constexpr(256)  # LANES * K
LN2 = tl.constexpr(0.69314718056)
LOG2E = tl.constexpr(1.44269504089)


@triton.jit
def chain(a1, b1, a2, b2):
    """h -> a1 h + b1, then h -> a2 h + b2."""
    return a1 * a2, a2 * b1 + b2


@triton.jit
def sigmoid(x):
    return 1 / (1 + tl.exp2(-LOG2E * x))


@triton.jit
def softplus(x):
    """max(x, 0) + log1p(e), e = exp(-|x|), log1p(e) = e P(e) with relative error 2e-7."""
    e = tl.exp2(-LOG2E * tl.abs(x))
    p = e * 0.0052326913 - 0.0295052268
    p = p * e + 0.078225933
    p = p * e - 0.136632442
    p = p * e + 0.191060066
    p = p * e - 0.24842982
    p = p * e + 0.333190978
    p = p * e - 0.499994934
    p = p * e + 0.99999994
    return tl.where(x > 0, x, 0.0) + p * e


# --- where a program is -----------------------------------------------------------------------------------------------


@triton.jit
def sequence(cu_seqlens, i_seq, L):
    """Batch row, first position and end of a sequence, its first tile in memory, number of tiles, first saved state."""
    if cu_seqlens is None:
        n_tiles = tl.cdiv(L, TILE)
        return i_seq, i_seq * 0, i_seq * 0 + L, i_seq * 0, n_tiles, i_seq * n_tiles
    else:
        begin = tl.load(cu_seqlens + i_seq)
        end = tl.load(cu_seqlens + i_seq + 1)
        i_tile = begin // TILE
        return i_seq * 0, begin, end, i_tile, tl.cdiv(end, TILE) - i_tile, i_tile + i_seq


@triton.jit
def lanes_of(i_tile, begin, end, L, REVERSE: tl.constexpr):
    """Where the lanes of a tile are, all (LANES, 1): first position in memory, and how many of their positions come before
    the sequence begins, before it ends, and before the row ends."""
    o_lane = tl.arange(0, LANES)[:, None]
    if REVERSE:
        o_lane = -o_lane + (LANES - 1)
    o_t = i_tile * TILE + o_lane * K
    first = tl.minimum(tl.maximum(begin - o_t, 0), K).to(tl.int32)
    last = tl.minimum(tl.maximum(end - o_t, 0), K).to(tl.int32)
    limit = tl.minimum(tl.maximum(L - o_t, 0), K).to(tl.int32)
    return o_t, first, last, limit


@triton.jit
def inside(at, i, VARLEN: tl.constexpr):
    """Does the i-th position in memory of a lane belong to the sequence?"""
    if VARLEN:
        return (at[1] <= i) & (at[2] > i)
    else:
        return at[3] > i


@triton.jit
def row(i_b, i_d, s, QUADS: tl.constexpr):
    """Offset of a row; with QUADS strides count quads, so that the compiler sees where rows start."""
    return (i_b * s[0] + i_d * s[1]) * (4 if QUADS else 1)


# --- tiles in memory --------------------------------------------------------------------------------------------------


@triton.jit
def load_tile(p, m, at, REVERSE: tl.constexpr, QUADS: tl.constexpr, VARLEN: tl.constexpr):
    """K tensors (LANES, W) float32 of the rows p (LANES, W); 0 outside the sequence."""
    b = ()
    if QUADS:
        o_quad = tl.arange(0, 4)[None, None, :]
        for q in tl.static_range(0, K, 4):
            b_quad = tl.load((p + at[0] + q)[:, :, None] + o_quad, mask=((at[3] > q) & m)[:, :, None], other=0.0)
            b_even, b_odd = tl.split(tl.reshape(b_quad.to(tl.float32), (LANES, p.shape[1], 2, 2)))
            b_0, b_2 = tl.split(b_even)
            b_1, b_3 = tl.split(b_odd)
            b = b + (b_0, b_1, b_2, b_3)
    else:
        for k in tl.static_range(K):
            b = b + (tl.load(p + at[0] + k, mask=(at[3] > k) & m, other=0.0).to(tl.float32),)
    b_tile = ()
    for k in tl.static_range(K):
        if VARLEN:
            b_k = b[K - 1 - k if REVERSE else k]
            b_tile = b_tile + (tl.where(inside(at, K - 1 - k if REVERSE else k, VARLEN), b_k, 0.0),)
        else:
            b_tile = b_tile + (b[K - 1 - k if REVERSE else k],)
    return b_tile


@triton.jit
def store_tile(p, b_tile, m, at, REVERSE: tl.constexpr, QUADS: tl.constexpr, VARLEN: tl.constexpr):
    """The reverse of load_tile, in the type of p; nothing is written outside the sequence."""
    b = ()
    for k in tl.static_range(K):
        b = b + (b_tile[K - 1 - k if REVERSE else k].to(p.dtype.element_ty),)
    if QUADS:
        o_quad = tl.arange(0, 4)[None, None, :]
        for q in tl.static_range(0, K, 4):
            b_quad = tl.join(tl.join(b[q], b[q + 2]), tl.join(b[q + 1], b[q + 3]))
            p_quad = (p + at[0] + q)[:, :, None] + o_quad
            if VARLEN:
                m_quad = m[:, :, None] & (q + o_quad >= at[1][:, :, None]) & (q + o_quad < at[2][:, :, None])
            else:
                m_quad = (m & inside(at, q, VARLEN))[:, :, None]
            tl.store(p_quad, tl.reshape(b_quad, (LANES, p.shape[1], 4)), mask=m_quad)
    else:
        for k in tl.static_range(K):
            tl.store(p + at[0] + k, b[k], mask=m & inside(at, k, VARLEN))


@triton.jit
def load_projection(p, at, W: tl.constexpr, CONSTANT: tl.constexpr, REVERSE: tl.constexpr, QUADS: tl.constexpr,
                    VARLEN: tl.constexpr):  # fmt: skip
    """B or C of one state, p a scalar pointer: the same for every warp."""
    p_rows = p + tl.zeros((LANES, W), tl.int64)
    if CONSTANT:
        b = tl.load(p_rows).to(tl.float32)
        return b, b, b, b, b, b, b, b
    else:
        return load_tile(p_rows, True, at, REVERSE, QUADS, VARLEN)


# --- one state of one channel over a tile -----------------------------------------------------------------------------


@triton.jit
def scan_lanes(p, e, h):
    """The state that enters every lane, and (in the last lane) the one that leaves the tile.

    p, e: what a lane's positions make of the state that enters it, s -> p s + e. h: the state that enters the tile.
    """
    o_lane = tl.arange(0, LANES)[:, None]
    e = tl.where(o_lane == 0, p * h + e, e)
    _, b_after = tl.associative_scan((p, e), 0, chain)
    b_before = tl.gather(b_after, tl.broadcast_to(tl.maximum(o_lane - 1, 0), e.shape), 0)
    return tl.where(o_lane == 0, h, b_before), b_after


@triton.jit
def flip_lanes(x):
    o_lane = tl.arange(0, LANES)[:, None]
    return tl.gather(x, tl.broadcast_to(-o_lane + (LANES - 1), x.shape), 0)


@triton.jit
def scan_state(b_dt, b_x, b_sum_dt, b_B, b_A2, b_h):
    """Decays and states of the tile's positions, the decay over a lane, the states entering and leaving lanes."""
    b_a = ()
    b_e = tl.zeros_like(b_sum_dt)
    for k in tl.static_range(K):
        b_a = b_a + (tl.exp2(b_dt[k] * b_A2),)
        b_e = b_a[k] * b_e + b_x[k] * b_B[k]
    b_p = tl.exp2(b_sum_dt * b_A2)
    b_before, b_after = scan_lanes(b_p, b_e, b_h)
    b_states = ()
    b_s = b_before
    for k in tl.static_range(K):
        b_s = b_a[k] * b_s + b_x[k] * b_B[k]
        b_states = b_states + (b_s,)
    return b_a, b_states, b_p, b_before, b_after


@triton.jit
def step_sizes(b_delta, b_bias, at, SOFTPLUS: tl.constexpr, REVERSE: tl.constexpr, VARLEN: tl.constexpr):
    """K step sizes, 0 outside the sequence, and their sum over a lane."""
    b_dt = ()
    b_sum = tl.zeros_like(b_delta[0])
    for k in tl.static_range(K):
        b_s = b_delta[k] + b_bias
        if SOFTPLUS:
            b_s = softplus(b_s)
        b_s = tl.where(inside(at, K - 1 - k if REVERSE else k, VARLEN), b_s, 0.0)
        b_dt = b_dt + (b_s,)
        b_sum += b_s
    return b_dt, b_sum


@triton.jit
def zeros_tile(W: tl.constexpr):
    b = ()
    for _ in tl.static_range(K):
        b = b + (tl.zeros((LANES, W), tl.float32),)
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
        b = b + (b_z[k] + b_x[k] * b_y[k],)
    return b


@triton.jit
def gate(b_y, b_z):
    b = ()
    for k in tl.static_range(K):
        b = b + (b_y[k] * b_z[k] * sigmoid(b_z[k]),)
    return b


@triton.jit
def add_lanes(p, b, m):
    """Adds the sum over lanes to what p (LANES, W) holds for the warp's channel."""
    b_sum = tl.load(p, mask=m, other=0.0) + tl.sum(b, 0, keep_dims=True)
    tl.store(p, b_sum, mask=m & (tl.arange(0, LANES)[:, None] == 0))


@triton.jit
def add_channels(p, b, old, at, W: tl.constexpr, REVERSE: tl.constexpr, VARLEN: tl.constexpr):
    """Adds the sum of a tile over the warps to the row p (scalar pointer), or sets it where it holds nothing old."""
    b_pairs = ()
    for i in tl.static_range(4):
        b_pairs = b_pairs + (tl.join(b[7 - i if REVERSE else i], b[3 - i if REVERSE else i + 4]),)
    b_all = tl.join(tl.join(b_pairs[0], b_pairs[2]), tl.join(b_pairs[1], b_pairs[3]))
    b_all = tl.permute(tl.reshape(b_all, (LANES, W, K)), (0, 2, 1))
    for _ in tl.static_range(W.bit_length() - 1):
        b_even, b_odd = tl.split(tl.reshape(b_all, (LANES, K, b_all.shape[2] // 2, 2)))
        b_all = b_even + b_odd
    b_sum = tl.reshape(b_all, (LANES, K))
    o_k = tl.arange(0, K)[None, :]
    p_k = p + (at[0] + o_k)
    if VARLEN:
        m = (o_k >= at[1]) & (o_k < at[2])
    else:
        m = o_k < at[3]
    tl.store(p_k, tl.load(p_k, mask=m & old, other=0.0) + b_sum, mask=m)


@triton.jit
def channels_of(i_block, n_blocks, n_joint, dim, W: tl.constexpr):
    """First channel of a block, its channels (LANES, W), and which of those exist. A block stays within one of the n_joint
    runs of channels that share B and C."""
    per_joint = n_blocks // n_joint
    i_joint = i_block // per_joint
    i_d = i_joint * (dim // n_joint) + i_block % per_joint * W
    o_d = i_d + tl.arange(0, W)[None, :] + tl.zeros((LANES, 1), tl.int64)
    return i_d, o_d, o_d < (i_joint + 1) * (dim // n_joint)


@triton.jit
def program(cu_seqlens, L, n_segments, n_blocks, REVERSE: tl.constexpr):
    """What a program works on: channel block, segment number of all, batch row, begin and end of its sequence, first tile
    and saved state of that sequence, its number of tiles, and the range of those that the segment takes in scan order."""
    i_block = tl.program_id(0) % n_blocks
    i_part = (tl.program_id(0) // n_blocks).to(tl.int64)
    i_b, begin, end, i_tile, n_tiles, i_state = sequence(cu_seqlens, i_part // n_segments, L)
    per_segment = tl.cdiv(n_tiles, n_segments)
    j_begin = tl.minimum(i_part % n_segments * per_segment, n_tiles)
    return i_block, i_part, i_b, begin, end, i_tile, i_state, n_tiles, j_begin, tl.minimum(j_begin + per_segment, n_tiles)


@triton.jit
def selective_scan_segment_kernel(
    value, z, delta, A2, P, delta_bias, cu_seqlens, ends, sums,
    s_value, s_z, s_delta, s_P, L, dim, N, n_segments, n_blocks, n_joint, channels_P,
    SOFTPLUS: tl.constexpr, REVERSE: tl.constexpr, QUADS: tl.constexpr, CONSTANT: tl.constexpr, W: tl.constexpr,
    BACKWARD: tl.constexpr,
):  # fmt: skip
    """The state at the end of every segment that starts from 0 (value u, P = B), or with BACKWARD the adjoint before its
    first position that comes from the segment itself (value the gradient of out, P = C); and the sum of step sizes.

    A position counts with the decay to that place, exp2(A2 s), s the step sizes in between: so walk away from there.
    """
    VARLEN: tl.constexpr = cu_seqlens is not None
    DOWN: tl.constexpr = REVERSE if BACKWARD else not REVERSE
    i_block, i_part, i_b, begin, end, i_tile0, _, n_tiles, j_begin, j_end = program(
        cu_seqlens, L, n_segments, n_blocks, REVERSE
    )
    i_d, o_d, m_d = channels_of(i_block, n_blocks, n_joint, dim, W)
    p_P = P + row(i_b, i_d // channels_P, s_P, QUADS)
    p_end = ends + (i_part * dim + o_d) * N
    b_bias = 0.0
    if delta_bias is not None:
        b_bias = tl.load(delta_bias + o_d, mask=m_d, other=0.0)
    if i_part % n_segments == (0 if BACKWARD else n_segments - 1):
        j_end = j_begin  # nothing comes after
    b_behind = tl.zeros((LANES, W), tl.float32)
    for i in range(0, j_end - j_begin):
        j = j_begin + i if BACKWARD else j_end - 1 - i
        i_tile = i_tile0 + (n_tiles - 1 - j if REVERSE else j)
        at = lanes_of(i_tile, begin, end, L, DOWN)
        b_delta = load_tile(delta + row(i_b, o_d, s_delta, QUADS), m_d, at, DOWN, QUADS, VARLEN)
        b_dt, b_sum_dt = step_sizes(b_delta, b_bias, at, SOFTPLUS, DOWN, VARLEN)
        b_value = load_tile(value + row(i_b, o_d, s_value, QUADS), m_d, at, DOWN, QUADS, VARLEN)
        if not BACKWARD:
            b_value = multiply(b_value, b_dt)
        if z is not None:
            b_value = gate(b_value, load_tile(z + row(i_b, o_d, s_z, QUADS), m_d, at, DOWN, QUADS, VARLEN))
        b_s = b_behind + (tl.cumsum(b_sum_dt, 0) - b_sum_dt)
        b_between = ()
        for k in tl.static_range(K):
            if BACKWARD:
                b_s += b_dt[k]
            b_between = b_between + (b_s,)
            if not BACKWARD:
                b_s += b_dt[k]
        b_behind += tl.sum(b_sum_dt, 0, keep_dims=True)
        for n in range(N):
            b_P = load_projection(p_P + row(0, n, s_P[1:], QUADS), at, W, CONSTANT, DOWN, QUADS, VARLEN)
            b_A2 = tl.load(A2 + o_d * N + n, mask=m_d, other=0.0)
            b_end = tl.zeros((LANES, W), tl.float32)
            for k in tl.static_range(K):
                b_end += tl.exp2(b_between[k] * b_A2) * (b_value[k] * b_P[k])
            add_lanes(p_end + n, b_end, m_d)
        tl.debug_barrier()
    tl.store(sums + i_part * dim + o_d, b_behind, mask=m_d & (tl.arange(0, LANES)[:, None] == 0))


@triton.jit
def selective_scan_carry_kernel(
    A2, ends, sums, starts, dim, N, n_segments, n_elements, BLOCK_S: tl.constexpr, BLOCK_E: tl.constexpr,
    BACKWARD: tl.constexpr,
):  # fmt: skip
    """starts (sequences, segments, dim, N): what enters each segment from those before it, BACKWARD from those after it.
    starts of the first is left as it is."""
    i_seq = (tl.program_id(0) // n_elements).to(tl.int64)
    o_e = (tl.program_id(0) % n_elements).to(tl.int64) * BLOCK_E + tl.arange(0, BLOCK_E)[None, :]
    m_e = o_e < dim.to(tl.int64) * N
    b_A2 = tl.load(A2 + o_e, mask=m_e, other=0.0)
    b_h = tl.zeros((1, BLOCK_E), tl.float32)
    for i in range(0, n_segments, BLOCK_S):
        o_s = i + tl.arange(0, BLOCK_S)[:, None]
        m_s = m_e & (o_s < n_segments)
        i_s = i_seq * n_segments + (n_segments - 1 - o_s if BACKWARD else o_s)
        b_p = tl.exp2(b_A2 * tl.load(sums + i_s * dim + o_e // N, mask=m_s, other=0.0))
        b_e = tl.load(ends + i_s * dim * N + o_e, mask=m_s, other=0.0)
        b_p, b_e = tl.associative_scan((b_p, b_e), 0, chain)
        b_after = b_p * b_h + b_e
        p_next = starts + (i_s + (-1 if BACKWARD else 1)) * dim * N + o_e
        tl.store(p_next, b_after, mask=m_s & (o_s + 1 < n_segments))
        b_h = tl.sum(tl.where(o_s == i + BLOCK_S - 1, b_after, 0.0), 0, keep_dims=True)


@triton.jit
def selective_scan_fwd_kernel(
    u, delta, A2, B, C, D, z, delta_bias, cu_seqlens, out, states, carry,
    s_u, s_delta, s_z, s_out, s_B, s_C, L, dim, N, n_segments, n_blocks, n_joint, channels_B, channels_C,
    SOFTPLUS: tl.constexpr, REVERSE: tl.constexpr, QUADS: tl.constexpr, CONSTANT_B: tl.constexpr,
    CONSTANT_C: tl.constexpr, W: tl.constexpr,
):  # fmt: skip
    VARLEN: tl.constexpr = cu_seqlens is not None
    i_block, i_part, i_b, begin, end, i_tile0, i_state, n_tiles, j_begin, j_end = program(
        cu_seqlens, L, n_segments, n_blocks, REVERSE
    )
    i_d, o_d, m_d = channels_of(i_block, n_blocks, n_joint, dim, W)
    o_lane = tl.arange(0, LANES)[:, None]
    p_u = u + row(i_b, o_d, s_u, QUADS)
    p_B = B + row(i_b, i_d // channels_B, s_B, QUADS)
    p_C = C + row(i_b, i_d // channels_C, s_C, QUADS)
    p_carry = carry + (i_part * dim + o_d) * N
    b_bias = 0.0
    if delta_bias is not None:
        b_bias = tl.load(delta_bias + o_d, mask=m_d, other=0.0)
    if D is not None:
        b_D = tl.load(D + o_d, mask=m_d, other=0.0)
    for j in range(j_begin, j_end):
        i_tile = i_tile0 + (n_tiles - 1 - j if REVERSE else j)
        at = lanes_of(i_tile, begin, end, L, REVERSE)
        b_delta = load_tile(delta + row(i_b, o_d, s_delta, QUADS), m_d, at, REVERSE, QUADS, VARLEN)
        b_dt, b_sum_dt = step_sizes(b_delta, b_bias, at, SOFTPLUS, REVERSE, VARLEN)
        b_u = load_tile(p_u, m_d, at, REVERSE, QUADS, VARLEN)
        b_x = multiply(b_dt, b_u)
        b_y = zeros_tile(W)
        p_state = states + ((i_state + i_tile - i_tile0) * dim + o_d) * N
        for n in range(N):
            b_B = load_projection(p_B + row(0, n, s_B[1:], QUADS), at, W, CONSTANT_B, REVERSE, QUADS, VARLEN)
            b_C = load_projection(p_C + row(0, n, s_C[1:], QUADS), at, W, CONSTANT_C, REVERSE, QUADS, VARLEN)
            b_A2 = tl.load(A2 + o_d * N + n, mask=m_d, other=0.0)
            b_h = tl.load(p_carry + n, mask=m_d, other=0.0)
            tl.store(p_state + n, b_h, mask=m_d & (o_lane == 0))
            _, b_states, _, _, b_after = scan_state(b_dt, b_x, b_sum_dt, b_B, b_A2, b_h)
            tl.store(p_carry + n, b_after, mask=m_d & (o_lane == LANES - 1))
            b_y = multiply_add(b_states, b_C, b_y)
        if D is not None:
            b_u = load_tile(p_u, m_d, at, REVERSE, QUADS, VARLEN)
            b_sum = ()
            for k in tl.static_range(K):
                b_sum = b_sum + (b_y[k] + b_D * b_u[k],)
            b_y = b_sum
        if z is not None:
            b_z = load_tile(z + row(i_b, o_d, s_z, QUADS), m_d, at, REVERSE, QUADS, VARLEN)
            b_gated = ()
            for k in tl.static_range(K):
                b_gated = b_gated + (b_y[k] * b_z[k] * sigmoid(b_z[k]),)
            b_y = b_gated
        store_tile(out + row(i_b, o_d, s_out, QUADS), b_y, m_d, at, REVERSE, QUADS, VARLEN)
        tl.debug_barrier()  # the carry stored by one lane is loaded by all


@triton.jit
def selective_scan_bwd_kernel(
    grad, u, delta, A2, B, C, D, z, delta_bias, cu_seqlens, states, carry, du, ddelta, dA, dB, dC, dD, dz, dbias,
    s_grad, s_u, s_delta, s_z, s_out, s_B, s_C, s_dB, s_dC,
    L, dim, N, n_segments, n_closed, n_blocks, n_joint, channels_B, channels_C,
    SOFTPLUS: tl.constexpr, REVERSE: tl.constexpr, QUADS: tl.constexpr, CONSTANT_B: tl.constexpr,
    CONSTANT_C: tl.constexpr, W: tl.constexpr,
):  # fmt: skip
    VARLEN: tl.constexpr = cu_seqlens is not None
    i_closed, i_part, i_b, begin, end, i_tile0, i_state, n_tiles, j_begin, j_end = program(
        cu_seqlens, L, n_segments, n_closed, REVERSE
    )
    o_lane = tl.arange(0, LANES)[:, None]
    per_closed = n_blocks // n_closed
    for j in range(0, j_end - j_begin):
        i_tile = j_end - 1 - j
        i_tile = i_tile0 + (n_tiles - 1 - i_tile if REVERSE else i_tile)
        at = lanes_of(i_tile, begin, end, L, REVERSE)
        for i_block in range(i_closed * per_closed, (i_closed + 1) * per_closed):
            i_d, o_d, m_d = channels_of(i_block, n_blocks, n_joint, dim, W)
            p_B = B + row(i_b, i_d // channels_B, s_B, QUADS)
            p_C = C + row(i_b, i_d // channels_C, s_C, QUADS)
            p_dB = dB + row(i_b, i_d // channels_B, s_dB, QUADS)
            p_dC = dC + row(i_b, i_d // channels_C, s_dC, QUADS)
            p_u = u + row(i_b, o_d, s_u, QUADS)
            p_delta = delta + row(i_b, o_d, s_delta, QUADS)
            p_grad = grad + row(i_b, o_d, s_grad, QUADS)
            o_part = i_part * dim + o_d
            b_bias = 0.0
            if delta_bias is not None:
                b_bias = tl.load(delta_bias + o_d, mask=m_d, other=0.0)
            b_D = 0.0
            if D is not None:
                b_D = tl.load(D + o_d, mask=m_d, other=0.0)
            b_delta = load_tile(p_delta, m_d, at, REVERSE, QUADS, VARLEN)
            b_dt, b_sum_dt = step_sizes(b_delta, b_bias, at, SOFTPLUS, REVERSE, VARLEN)
            b_u = load_tile(p_u, m_d, at, REVERSE, QUADS, VARLEN)
            b_x = multiply(b_dt, b_u)
            b_dy = load_tile(p_grad, m_d, at, REVERSE, QUADS, VARLEN)
            if z is not None:
                p_z = z + row(i_b, o_d, s_z, QUADS)
                b_dy = gate(b_dy, load_tile(p_z, m_d, at, REVERSE, QUADS, VARLEN))
            b_y = zeros_tile(W)
            b_dx = zeros_tile(W)
            b_ddt = zeros_tile(W)
            for n in range(N):
                b_B = load_projection(p_B + row(0, n, s_B[1:], QUADS), at, W, CONSTANT_B, REVERSE, QUADS, VARLEN)
                b_C = load_projection(p_C + row(0, n, s_C[1:], QUADS), at, W, CONSTANT_C, REVERSE, QUADS, VARLEN)
                b_A2 = tl.load(A2 + o_d * N + n, mask=m_d, other=0.0)
                b_h = tl.load(states + ((i_state + i_tile - i_tile0) * dim + o_d) * N + n, mask=m_d, other=0.0)
                b_g = tl.load(carry + o_part * N + n, mask=m_d, other=0.0)
                b_a, b_states, b_p, b_before, _ = scan_state(b_dt, b_x, b_sum_dt, b_B, b_A2, b_h)

                b_own = tl.zeros((LANES, W), tl.float32)
                for k in tl.static_range(K - 1, -1, -1):
                    b_own = b_a[k] * (b_own + b_dy[k] * b_C[k])
                b_own, b_leaves = scan_lanes(flip_lanes(b_p), flip_lanes(b_own), b_g)
                tl.store(carry + o_part * N + n, b_leaves, mask=m_d & (o_lane == LANES - 1))
                b_q = flip_lanes(b_own)

                b_dA = tl.zeros((LANES, W), tl.float32)
                b_dx_n = ()
                b_ddt_n = ()
                b_dB = ()
                b_dC = ()
                for k in tl.static_range(K - 1, -1, -1):
                    b_k = b_q + b_dy[k] * b_C[k]
                    b_q = b_a[k] * b_k
                    if k > 0:
                        b_w = b_q * b_states[k - 1]
                    else:
                        b_w = b_q * b_before
                    b_dA += b_w * b_dt[k]
                    b_ddt_n = (b_ddt[k] + b_w * b_A2,) + b_ddt_n
                    b_dx_n = (b_dx[k] + b_k * b_B[k],) + b_dx_n
                    b_dB = (b_k * b_x[k],) + b_dB
                    b_dC = (b_dy[k] * b_states[k],) + b_dC
                b_ddt = b_ddt_n
                b_dx = b_dx_n
                if z is not None:
                    b_y = multiply_add(b_states, b_C, b_y)
                add_channels(p_dB + row(0, n, s_dB[1:], QUADS), b_dB, i_d % channels_B > 0, at, W, REVERSE, VARLEN)
                add_channels(p_dC + row(0, n, s_dC[1:], QUADS), b_dC, i_d % channels_C > 0, at, W, REVERSE, VARLEN)
                add_lanes(dA + o_part * N + n, b_dA, m_d)

            b_u = load_tile(p_u, m_d, at, REVERSE, QUADS, VARLEN)
            b_delta = load_tile(p_delta, m_d, at, REVERSE, QUADS, VARLEN)
            b_du = ()
            b_ddelta = ()
            b_dbias = tl.zeros((LANES, W), tl.float32)
            for k in tl.static_range(K):
                b_du = b_du + (b_dt[k] * b_dx[k] + b_D * b_dy[k],)
                b_s = LN2 * b_ddt[k] + b_u[k] * b_dx[k]
                if SOFTPLUS:
                    b_s *= sigmoid(b_delta[k] + b_bias)
                b_ddelta = b_ddelta + (b_s,)
                b_dbias += b_s
            store_tile(du + row(i_b, o_d, s_out, QUADS), b_du, m_d, at, REVERSE, QUADS, VARLEN)
            store_tile(ddelta + row(i_b, o_d, s_out, QUADS), b_ddelta, m_d, at, REVERSE, QUADS, VARLEN)
            if delta_bias is not None:
                add_lanes(dbias + o_part, b_dbias, m_d)
            if D is not None:
                b_dD = tl.zeros((LANES, W), tl.float32)
                for k in tl.static_range(K):
                    b_dD += b_dy[k] * b_u[k]
                add_lanes(dD + o_part, b_dD, m_d)
            if z is not None:
                b_z = load_tile(p_z, m_d, at, REVERSE, QUADS, VARLEN)
                b_grad = load_tile(p_grad, m_d, at, REVERSE, QUADS, VARLEN)
                b_dz = ()
                for k in tl.static_range(K):
                    b_s = sigmoid(b_z[k])
                    b_dz = b_dz + (b_grad[k] * (b_y[k] + b_D * b_u[k]) * b_s * (1 + b_z[k] * (1 - b_s)),)
                store_tile(dz + row(i_b, o_d, s_out, QUADS), b_dz, m_d, at, REVERSE, QUADS, VARLEN)
            tl.debug_barrier()
