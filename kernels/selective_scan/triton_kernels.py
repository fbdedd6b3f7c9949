"""Triton kernels of the selective scan. README.md has the mathematics, triton.py the launches.

`delta` is (batch, dim, L), or with dt_proj (dim, rank) its low-rank factor (batch, rank, L).
"""
# ruff: noqa: RUF005 - Triton compiles no starred tuples

from __future__ import annotations

import triton
import triton.language as tl

from seq2exp.kernels.selective_scan.triton_tiles import (
    LANES,
    LN2,
    K,
    add_channels,
    add_lanes,
    chain,
    channels,
    flip_lanes,
    gate,
    lanes,
    load_delta,
    load_projection,
    load_tile,
    multiply,
    multiply_add,
    plus,
    row,
    same,
    scan_lanes,
    scan_state,
    segment,
    sequence,
    sigmoid,
    softplus_slope,
    step_sizes,
    store_tile,
)

# No integer argument makes the compiler build another variant.
STRIDES = [f"s_{x}{i}" for x in ("grad", "u", "delta", "z", "add", "value", "B", "C", "P") for i in range(3)]
SIZES = ["L", "dim", "rank", "N", "n_segments", "n_groups", "n_blocks", "n_joint"]
INTEGERS = [*STRIDES, *SIZES, "channels_B", "channels_C", "channels_P"]


# --- forward ----------------------------------------------------------------------------------------------------------


@triton.jit(do_not_specialize=INTEGERS)
def selective_scan_fwd_kernel(
    u, delta, dt_proj, A2, B, C, D, z, add, bias, cu_seqlens, out, states, carry,
    s_u0: tl.int64, s_u1: tl.int64, s_delta0: tl.int64, s_delta1: tl.int64, s_z0: tl.int64, s_z1: tl.int64,
    s_add0: tl.int64, s_add1: tl.int64,
    s_B0: tl.int64, s_B1: tl.int64, s_B2: tl.int64, s_C0: tl.int64, s_C1: tl.int64, s_C2: tl.int64,
    L: tl.int64, dim, rank, N, n_segments, n_blocks, n_joint, channels_B, channels_C,
    SOFTPLUS: tl.constexpr, REVERSE: tl.constexpr, QUADS: tl.constexpr, CONSTANT_B: tl.constexpr,
    CONSTANT_C: tl.constexpr, W: tl.constexpr,
):  # fmt: skip
    """out (batch, dim, L) and states (tiles, dim, N), one program a (sequence, segment, block of channels).

    With add (batch, dim, L) it is added to y before the gate. states: None where no backward follows.
    carry (sequences, segments, dim, N): the state that enters the segment, afterwards the one that leaves it.
    """
    VARLEN: tl.constexpr = cu_seqlens is not None
    s_u, s_delta, s_z, s_add = (s_u0, s_u1), (s_delta0, s_delta1), (s_z0, s_z1), (s_add0, s_add1)
    s_B, s_C = (s_B0, s_B1, s_B2), (s_C0, s_C1, s_C2)
    s_L = L // 4 if QUADS else L
    s_out = (dim * s_L, s_L)
    i_block = tl.program_id(0) % n_blocks
    i_part = (tl.program_id(0) // n_blocks).to(tl.int64)
    i_b, begin, end, i_tile0, n_tiles, i_state0 = sequence(cu_seqlens, i_part // n_segments, L)
    j_begin, j_end = segment(i_part, n_segments, n_tiles)
    i_d, o_d, m_d = channels(i_block, n_blocks, n_joint, dim, W)
    o_lane = tl.arange(0, LANES)[:, None]
    p_u = u + row(i_b, o_d, s_u, QUADS)
    p_B = B + row(i_b, i_d // channels_B, s_B, QUADS and not CONSTANT_B)
    p_C = C + row(i_b, i_d // channels_C, s_C, QUADS and not CONSTANT_C)
    p_carry = carry + (i_part * dim + o_d) * N
    b_bias = 0.0
    if bias is not None:
        b_bias = tl.load(bias + o_d, mask=m_d, other=0.0)

    for j in range(j_begin, j_end):
        i_tile = n_tiles - 1 - j if REVERSE else j
        at = lanes(i_tile0 + i_tile, begin, end, L, REVERSE)
        b_delta = load_delta(delta, dt_proj, i_b, o_d, m_d, rank, s_delta, at, REVERSE, QUADS, VARLEN)
        b_dt, b_sum = step_sizes(b_delta, b_bias, at, SOFTPLUS, REVERSE, VARLEN)
        b_x = multiply(b_dt, load_tile(p_u, m_d, at, REVERSE, QUADS, VARLEN))
        b_y = same(tl.zeros((LANES, W), tl.float32))
        if states is not None:
            p_state = states + ((i_state0 + i_tile) * dim + o_d) * N
        for n in range(N):
            p_Bn = p_B + row(0, n, s_B[1:], QUADS and not CONSTANT_B)
            p_Cn = p_C + row(0, n, s_C[1:], QUADS and not CONSTANT_C)
            b_B = load_projection(p_Bn, at, CONSTANT_B, REVERSE, QUADS, VARLEN, W)
            b_C = load_projection(p_Cn, at, CONSTANT_C, REVERSE, QUADS, VARLEN, W)
            b_A2 = tl.load(A2 + o_d * N + n, mask=m_d, other=0.0)
            b_h = tl.load(p_carry + n, mask=m_d, other=0.0)
            if states is not None:
                tl.store(p_state + n, b_h, mask=m_d & (o_lane == 0))
            _, b_states, _, _, b_leaves = scan_state(b_dt, b_sum, b_x, b_B, b_A2, b_h)
            tl.store(p_carry + n, b_leaves, mask=m_d & (o_lane == LANES - 1))
            b_y = multiply_add(b_states, b_C, b_y)
        if D is not None:
            b_D = tl.load(D + o_d, mask=m_d, other=0.0)
            b_u = load_tile(p_u, m_d, at, REVERSE, QUADS, VARLEN)
            b_y = multiply_add(same(b_D), b_u, b_y)
        if add is not None:
            b_y = plus(b_y, load_tile(add + row(i_b, o_d, s_add, QUADS), m_d, at, REVERSE, QUADS, VARLEN))
        if z is not None:
            b_y = gate(b_y, load_tile(z + row(i_b, o_d, s_z, QUADS), m_d, at, REVERSE, QUADS, VARLEN))
        store_tile(out + row(i_b, o_d, s_out, QUADS), b_y, m_d, at, REVERSE, QUADS, VARLEN)
        tl.debug_barrier()  # the last lane has stored the carry that all lanes load


# --- segments ---------------------------------------------------------------------------------------------------------


@triton.jit(do_not_specialize=INTEGERS)
def selective_scan_segment_kernel(
    value, z, delta, dt_proj, A2, P, bias, cu_seqlens, ends, sums,
    s_value0: tl.int64, s_value1: tl.int64, s_z0: tl.int64, s_z1: tl.int64, s_delta0: tl.int64, s_delta1: tl.int64,
    s_P0: tl.int64, s_P1: tl.int64, s_P2: tl.int64, L: tl.int64, dim, rank, N, n_segments, n_blocks, n_joint,
    channels_P,
    SOFTPLUS: tl.constexpr, REVERSE: tl.constexpr, QUADS: tl.constexpr, CONSTANT: tl.constexpr, W: tl.constexpr,
    BACKWARD: tl.constexpr,
):  # fmt: skip
    """What a segment by itself hands on: ends (sequences, segments, dim, N), and the sum of its step sizes.

    Forward it is the state after the last position (value u, P = B), backward the adjoint before the first (value the
    gradient of out, P = C). A position counts there with exp2(A2 s), s the step sizes in between, so the walk goes away
    from there and no scan is needed.
    """
    VARLEN: tl.constexpr = cu_seqlens is not None
    DOWN: tl.constexpr = REVERSE if BACKWARD else not REVERSE
    s_value, s_z, s_delta, s_P = (s_value0, s_value1), (s_z0, s_z1), (s_delta0, s_delta1), (s_P0, s_P1, s_P2)
    i_block = tl.program_id(0) % n_blocks
    i_part = (tl.program_id(0) // n_blocks).to(tl.int64)
    i_b, begin, end, i_tile0, n_tiles, _ = sequence(cu_seqlens, i_part // n_segments, L)
    j_begin, j_end = segment(i_part, n_segments, n_tiles)
    if i_part % n_segments == (0 if BACKWARD else n_segments - 1):
        j_end = j_begin  # nobody is there to take it
    i_d, o_d, m_d = channels(i_block, n_blocks, n_joint, dim, W)
    p_P = P + row(i_b, i_d // channels_P, s_P, QUADS and not CONSTANT)
    p_end = ends + (i_part * dim + o_d) * N
    b_bias = 0.0
    if bias is not None:
        b_bias = tl.load(bias + o_d, mask=m_d, other=0.0)

    b_total = tl.zeros((LANES, W), tl.float32)
    for j in range(0, j_end - j_begin):
        i_tile = j_begin + j if BACKWARD else j_end - 1 - j
        i_tile = n_tiles - 1 - i_tile if REVERSE else i_tile
        at = lanes(i_tile0 + i_tile, begin, end, L, DOWN)
        b_delta = load_delta(delta, dt_proj, i_b, o_d, m_d, rank, s_delta, at, DOWN, QUADS, VARLEN)
        b_dt, b_sum = step_sizes(b_delta, b_bias, at, SOFTPLUS, DOWN, VARLEN)
        b_value = load_tile(value + row(i_b, o_d, s_value, QUADS), m_d, at, DOWN, QUADS, VARLEN)
        if not BACKWARD:
            b_value = multiply(b_value, b_dt)
        if z is not None:
            b_value = gate(b_value, load_tile(z + row(i_b, o_d, s_z, QUADS), m_d, at, DOWN, QUADS, VARLEN))
        b_s = b_total + (tl.cumsum(b_sum, 0) - b_sum)
        b_between = ()
        for k in tl.static_range(K):
            if BACKWARD:
                b_s += b_dt[k]
            b_between = b_between + (b_s,)
            if not BACKWARD:
                b_s += b_dt[k]
        b_total += tl.sum(b_sum, 0, keep_dims=True)
        for n in range(N):
            p_Pn = p_P + row(0, n, s_P[1:], QUADS and not CONSTANT)
            b_P = load_projection(p_Pn, at, CONSTANT, DOWN, QUADS, VARLEN, W)
            b_A2 = tl.load(A2 + o_d * N + n, mask=m_d, other=0.0)
            b_end = tl.zeros((LANES, W), tl.float32)
            for k in tl.static_range(K):
                b_end += tl.exp2(b_between[k] * b_A2) * (b_value[k] * b_P[k])
            add_lanes(p_end + n, b_end, m_d)
        tl.debug_barrier()  # the first lane has stored the sum that all lanes load
    tl.store(sums + i_part * dim + o_d, b_total, mask=m_d & (tl.arange(0, LANES)[:, None] == 0))


@triton.jit(do_not_specialize=INTEGERS)
def selective_scan_carry_kernel(
    A2, ends, sums, carry, dim, N, n_segments, n_blocks, BS: tl.constexpr, BE: tl.constexpr, BACKWARD: tl.constexpr,
):  # fmt: skip
    """carry (sequences, segments, dim, N): what enters each segment from the ones before it, backward after it.

    A program has BE elements of (dim, N) and takes BS segments at a time. The first segment's carry is left as it is.
    """
    i_seq = (tl.program_id(0) // n_blocks).to(tl.int64)
    o_e = (tl.program_id(0) % n_blocks).to(tl.int64) * BE + tl.arange(0, BE)[None, :]
    size = dim.to(tl.int64) * N
    b_A2 = tl.load(A2 + o_e, mask=o_e < size, other=0.0)
    b_h = tl.zeros((1, BE), tl.float32)
    for i in range(0, n_segments, BS):
        o_s = i + tl.arange(0, BS)[:, None]
        i_part = i_seq * n_segments + (n_segments - 1 - o_s if BACKWARD else o_s)
        m = (o_e < size) & (o_s < n_segments)
        b_p = tl.exp2(b_A2 * tl.load(sums + i_part * dim + o_e // N, mask=m, other=0.0))
        b_e = tl.load(ends + i_part * size + o_e, mask=m, other=0.0)
        b_p, b_e = tl.associative_scan((b_p, b_e), 0, chain)
        b_leaves = b_p * b_h + b_e
        i_next = i_part + (-1 if BACKWARD else 1)
        tl.store(carry + i_next * size + o_e, b_leaves, mask=m & (o_s + 1 < n_segments))
        b_h = tl.sum(tl.where(o_s == i + BS - 1, b_leaves, 0.0), 0, keep_dims=True)


# --- backward ---------------------------------------------------------------------------------------------------------


@triton.jit(do_not_specialize=INTEGERS)
def selective_scan_bwd_kernel(
    grad, u, delta, dt_proj, A2, B, C, D, z, add, bias, cu_seqlens, states, carry,
    du, ddelta, dA, dB, dC, dD, dz, dbias, y,
    s_grad0: tl.int64, s_grad1: tl.int64, s_u0: tl.int64, s_u1: tl.int64, s_delta0: tl.int64, s_delta1: tl.int64,
    s_z0: tl.int64, s_z1: tl.int64, s_add0: tl.int64, s_add1: tl.int64,
    s_B0: tl.int64, s_B1: tl.int64, s_B2: tl.int64, s_C0: tl.int64, s_C1: tl.int64, s_C2: tl.int64,
    L: tl.int64, dim, rank, N, n_segments, n_groups, n_blocks, n_joint, channels_B, channels_C,
    SOFTPLUS: tl.constexpr, REVERSE: tl.constexpr, QUADS: tl.constexpr, CONSTANT_B: tl.constexpr,
    CONSTANT_C: tl.constexpr, W: tl.constexpr,
):  # fmt: skip
    """Gradients, one program a (sequence, segment, group of channels that shares no B and C with others).

    The program alone adds to its rows of dB and dC, so their sums over channels have a fixed order. du, ddelta, dz
    (batch, dim, L); dA (sequences, segments, dim, N), dD, dbias (sequences, segments, dim): 0 before, parts afterwards.
    carry (sequences, segments, dim, N): the adjoint that enters the segment from behind. Where y (batch, dim, L) is
    wanted, it is the output of this scan before add and gate if dz is None, otherwise the one after both.
    """
    VARLEN: tl.constexpr = cu_seqlens is not None
    s_grad, s_u, s_delta = (s_grad0, s_grad1), (s_u0, s_u1), (s_delta0, s_delta1)
    s_z, s_add = (s_z0, s_z1), (s_add0, s_add1)
    s_B, s_C = (s_B0, s_B1, s_B2), (s_C0, s_C1, s_C2)
    s_L = L // 4 if QUADS else L
    s_out = (dim * s_L, s_L)
    s_dB = (dim // channels_B * N * s_L, N * s_L, s_L)
    s_dC = (dim // channels_C * N * s_L, N * s_L, s_L)
    i_group = tl.program_id(0) % n_groups
    i_part = (tl.program_id(0) // n_groups).to(tl.int64)
    i_b, begin, end, i_tile0, n_tiles, i_state0 = sequence(cu_seqlens, i_part // n_segments, L)
    j_begin, j_end = segment(i_part, n_segments, n_tiles)
    per_group = n_blocks // n_groups
    o_lane = tl.arange(0, LANES)[:, None]

    for j in range(0, j_end - j_begin):
        i_tile = j_end - 1 - j
        i_tile = n_tiles - 1 - i_tile if REVERSE else i_tile
        at = lanes(i_tile0 + i_tile, begin, end, L, REVERSE)
        for i_block in range(i_group * per_group, (i_group + 1) * per_group):
            i_d, o_d, m_d = channels(i_block, n_blocks, n_joint, dim, W)
            p_B = B + row(i_b, i_d // channels_B, s_B, QUADS and not CONSTANT_B)
            p_C = C + row(i_b, i_d // channels_C, s_C, QUADS and not CONSTANT_C)
            p_dB = dB + row(i_b, i_d // channels_B, s_dB, QUADS)
            p_dC = dC + row(i_b, i_d // channels_C, s_dC, QUADS)
            p_grad = grad + row(i_b, o_d, s_grad, QUADS)
            p_u = u + row(i_b, o_d, s_u, QUADS)
            o_out = row(i_b, o_d, s_out, QUADS)
            o_part = i_part * dim + o_d
            b_bias = 0.0
            if bias is not None:
                b_bias = tl.load(bias + o_d, mask=m_d, other=0.0)
            b_D = 0.0
            if D is not None:
                b_D = tl.load(D + o_d, mask=m_d, other=0.0)
            b_delta = load_delta(delta, dt_proj, i_b, o_d, m_d, rank, s_delta, at, REVERSE, QUADS, VARLEN)
            b_dt, b_sum = step_sizes(b_delta, b_bias, at, SOFTPLUS, REVERSE, VARLEN)
            b_x = multiply(b_dt, load_tile(p_u, m_d, at, REVERSE, QUADS, VARLEN))
            b_dy = load_tile(p_grad, m_d, at, REVERSE, QUADS, VARLEN)
            if z is not None:
                b_dy = gate(b_dy, load_tile(z + row(i_b, o_d, s_z, QUADS), m_d, at, REVERSE, QUADS, VARLEN))
            b_y = same(tl.zeros((LANES, W), tl.float32))
            b_dx = same(tl.zeros((LANES, W), tl.float32))
            b_ddt = same(tl.zeros((LANES, W), tl.float32))

            for n in range(N):
                p_Bn = p_B + row(0, n, s_B[1:], QUADS and not CONSTANT_B)
                p_Cn = p_C + row(0, n, s_C[1:], QUADS and not CONSTANT_C)
                b_B = load_projection(p_Bn, at, CONSTANT_B, REVERSE, QUADS, VARLEN, W)
                b_C = load_projection(p_Cn, at, CONSTANT_C, REVERSE, QUADS, VARLEN, W)
                b_A2 = tl.load(A2 + o_d * N + n, mask=m_d, other=0.0)
                b_h = tl.load(states + ((i_state0 + i_tile) * dim + o_d) * N + n, mask=m_d, other=0.0)
                b_a, b_states, b_p, b_enters, _ = scan_state(b_dt, b_sum, b_x, b_B, b_A2, b_h)
                if z is not None:
                    b_y = multiply_add(b_states, b_C, b_y)

                # q: the adjoint of the state before a position. Lanes take it from the right.
                b_q = tl.zeros((LANES, W), tl.float32)
                for k in tl.static_range(K - 1, -1, -1):
                    b_q = b_a[k] * (b_q + b_dy[k] * b_C[k])
                b_carry = tl.load(carry + o_part * N + n, mask=m_d, other=0.0)
                b_q, b_leaves = scan_lanes(flip_lanes(b_p), flip_lanes(b_q), b_carry)
                tl.store(carry + o_part * N + n, b_leaves, mask=m_d & (o_lane == LANES - 1))
                b_q = flip_lanes(b_q)

                b_dA = tl.zeros((LANES, W), tl.float32)
                b_dB = ()
                b_dC = ()
                b_dx_n = ()
                b_ddt_n = ()
                for k in tl.static_range(K - 1, -1, -1):
                    b_g = b_q + b_dy[k] * b_C[k]
                    b_q = b_a[k] * b_g
                    if k > 0:
                        b_w = b_q * b_states[k - 1]
                    else:
                        b_w = b_q * b_enters
                    b_dA += b_w * b_dt[k]
                    b_dB = (b_g * b_x[k],) + b_dB
                    b_dC = (b_dy[k] * b_states[k],) + b_dC
                    b_dx_n = (b_g * b_B[k] + b_dx[k],) + b_dx_n
                    b_ddt_n = (b_w * b_A2 + b_ddt[k],) + b_ddt_n
                b_dx = b_dx_n
                b_ddt = b_ddt_n
                add_lanes(dA + o_part * N + n, b_dA, m_d)
                p_dBn = p_dB + row(0, n, s_dB[1:], QUADS)
                p_dCn = p_dC + row(0, n, s_dC[1:], QUADS)
                add_channels(p_dBn, b_dB, i_d % channels_B == 0, at, REVERSE, VARLEN, W)
                add_channels(p_dCn, b_dC, i_d % channels_C == 0, at, REVERSE, VARLEN, W)

            b_u = load_tile(p_u, m_d, at, REVERSE, QUADS, VARLEN)
            if dt_proj is None:
                b_delta = load_tile(delta + row(i_b, o_d, s_delta, QUADS), m_d, at, REVERSE, QUADS, VARLEN)
            b_dD = tl.zeros((LANES, W), tl.float32)
            b_dbias = tl.zeros((LANES, W), tl.float32)
            b_du = ()
            b_ddelta = ()
            for k in tl.static_range(K):
                b_du = b_du + (b_dt[k] * b_dx[k] + b_D * b_dy[k],)
                b_k = LN2 * b_ddt[k] + b_u[k] * b_dx[k]
                if SOFTPLUS and dt_proj is None:
                    b_k = b_k * sigmoid(b_delta[k] + b_bias)
                elif SOFTPLUS:  # delta would have to be formed once more
                    b_k = b_k * softplus_slope(b_dt[k])
                b_ddelta = b_ddelta + (b_k,)
                b_dbias += b_k
                b_dD += b_dy[k] * b_u[k]
            store_tile(du + o_out, b_du, m_d, at, REVERSE, QUADS, VARLEN)
            store_tile(ddelta + o_out, b_ddelta, m_d, at, REVERSE, QUADS, VARLEN)
            if D is not None:
                add_lanes(dD + o_part, b_dD, m_d)
            if bias is not None:
                add_lanes(dbias + o_part, b_dbias, m_d)
            if z is not None:
                b_y = multiply_add(same(b_D), b_u, b_y)
            if add is not None:
                b_y = plus(b_y, load_tile(add + row(i_b, o_d, s_add, QUADS), m_d, at, REVERSE, QUADS, VARLEN))
            if dz is not None:
                b_z = load_tile(z + row(i_b, o_d, s_z, QUADS), m_d, at, REVERSE, QUADS, VARLEN)
                b_grad = load_tile(p_grad, m_d, at, REVERSE, QUADS, VARLEN)
                b_dz = ()
                for k in tl.static_range(K):
                    b_k = sigmoid(b_z[k])
                    b_dz = b_dz + (b_grad[k] * b_y[k] * b_k * (1 + b_z[k] * (1 - b_k)),)
                store_tile(dz + o_out, b_dz, m_d, at, REVERSE, QUADS, VARLEN)
                b_y = gate(b_y, b_z)
            if y is not None:
                store_tile(y + o_out, b_y, m_d, at, REVERSE, QUADS, VARLEN)
            tl.debug_barrier()  # the next block of channels adds to the dB and dC stored here, the next tile to dA
