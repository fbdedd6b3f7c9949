"""Triton kernels of embed_bases. A tile is (ROWS, BD): rows and a segment of the channels."""

from __future__ import annotations

import triton
import triton.language as tl

CODES = tl.constexpr(5)


@triton.jit
def look_up(codes, mask, b_place, n_places, length, COMPLEMENT: tl.constexpr):
    """Of each place whether it is a base, its place or 0, code, mask, and row and position in the batch."""
    b_is = (b_place >= 0) & (b_place < n_places)
    b_place = tl.where(b_is, b_place, 0)
    b_code = tl.minimum(tl.load(codes + b_place).to(tl.int32), CODES - 1)
    if COMPLEMENT:
        b_code = tl.where(b_code < 4, 3 - b_code, b_code)
    b_mask = b_is.to(tl.float32)
    if mask is not None:
        b_mask = tl.load(mask + b_place, b_is, 0.0)
    return b_is, b_place, b_code, b_mask, b_place // length, b_place % length


@triton.jit
def values(
    table, weight, positions, p_signals, s_track, s_position, b_code, b_position, i_channel, d: tl.constexpr,
    TRACKS: tl.constexpr,
):  # fmt: skip
    """The unmasked rows (ROWS, BD). p_signals: of the first track of each row."""
    inside = (i_channel < d)[None, :]
    b_x = tl.load(table + b_code[:, None] * d + i_channel[None, :], inside, 0.0)
    if positions is not None:
        b_x += tl.load(positions + b_position[:, None] * s_position + i_channel[None, :], inside, 0.0)
    if TRACKS > 0:
        for i_track in range(TRACKS):
            b_signal = tl.load(p_signals + i_track * s_track).to(tl.float32)
            b_weight = tl.load(weight + i_track * d + i_channel, i_channel < d, 0.0)
            b_x += b_signal[:, None] * b_weight[None, :]
    return b_x


@triton.jit(do_not_specialize=["n_rows", "n_places", "length"])
def embed_fwd_kernel(
    codes, table, signals, weight, positions, mask, indices, out,
    s_batch, s_time, s_track, s_position, n_rows, n_places, length,
    d: tl.constexpr, TRACKS: tl.constexpr, COMPLEMENT: tl.constexpr, SEGMENTS: tl.constexpr, ROWS: tl.constexpr,
    BD: tl.constexpr,
):  # fmt: skip
    i_row = (tl.program_id(0) // SEGMENTS).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    i_channel = tl.program_id(0) % SEGMENTS * BD + tl.arange(0, BD)
    b_given = i_row
    if indices is not None:
        b_given = tl.load(indices + i_row, i_row < n_rows, 0)
    b_is, _, b_code, b_mask, b_batch, b_position = look_up(codes, mask, b_given, n_places, length, COMPLEMENT)
    p_signals = signals
    if TRACKS > 0:
        p_signals = signals + b_batch * s_batch + b_position * s_time
    b_x = values(
        table, weight, positions, p_signals, s_track, s_position, b_code, b_position, i_channel, d, TRACKS
    )  # fmt: skip
    b_none = tl.where(b_given < 0, float("nan"), 0.0)
    b_x = tl.where(b_is[:, None], b_x * b_mask[:, None], b_none[:, None])
    inside = (i_row < n_rows)[:, None] & (i_channel < d)[None, :]
    tl.store(out + i_row[:, None] * d + i_channel[None, :], b_x.to(out.dtype.element_ty), inside)


@triton.jit(do_not_specialize=["n_units", "n_of_unit", "n_tiles", "n_places", "length"])
def embed_bwd_kernel(
    grad, codes, table, signals, weight, positions, mask, indices, row_at, sums, dpositions, dmask, dsignals,
    s_grad, s_batch, s_time, s_track, s_position, n_units, n_of_unit, n_tiles, n_places, length,
    d: tl.constexpr, TRACKS: tl.constexpr, COMPLEMENT: tl.constexpr, SEGMENTS: tl.constexpr, ROWS: tl.constexpr,
    BD: tl.constexpr, FEATURES: tl.constexpr,
):  # fmt: skip
    """sums (parts, CODES + TRACKS, d): of the masked gradient, by code and by signal. A part has n_tiles of ROWS units.

    A unit is a row; with dpositions it is a position, which has n_of_unit = batch rows.
    """
    i_part, i_segment = (tl.program_id(0) // SEGMENTS).to(tl.int64), tl.program_id(0) % SEGMENTS
    i_channel, i_feature = i_segment * BD + tl.arange(0, BD), tl.arange(0, FEATURES)
    b_sums = tl.zeros((FEATURES, BD), tl.float32)
    for i_tile in range(n_tiles):
        i_unit = (i_part * n_tiles + i_tile) * ROWS + tl.arange(0, ROWS)
        is_unit = i_unit < n_units
        b_dposition = tl.zeros((ROWS, BD), tl.float32)
        i_place = i_unit
        for _ in range(n_of_unit):
            if dpositions is not None:
                b_given = i_place
                i_row = b_given
                if row_at is not None:
                    i_row = tl.load(row_at + b_given, is_unit, -1)
                b_given = tl.where(is_unit & (i_row >= 0), b_given, -1)
            else:
                i_row = i_unit
                b_given = tl.where(is_unit, i_row, -1)
                if indices is not None:
                    b_given = tl.load(indices + i_row, is_unit, -1)
            b_is, b_place, b_code, b_mask, b_batch, b_position = look_up(
                codes, mask, b_given, n_places, length, COMPLEMENT
            )
            b_feature = (b_code[:, None] == i_feature[None, :]).to(tl.float32)
            p_signals = signals
            if TRACKS > 0:
                p_signals = signals + b_batch * s_batch + b_position * s_time
                is_track = (i_feature >= CODES) & (i_feature < CODES + TRACKS)
                b_feature += tl.load(
                    p_signals[:, None] + (i_feature - CODES)[None, :] * s_track, is_track[None, :], 0.0
                ).to(tl.float32)
            inside = b_is[:, None] & (i_channel < d)[None, :]
            b_grad = tl.load(grad + i_row[:, None] * s_grad + i_channel[None, :], inside, 0.0).to(tl.float32)
            if dmask is not None:
                b_x = values(
                    table, weight, positions, p_signals, s_track, s_position, b_code, b_position, i_channel, d, TRACKS
                )
                tl.store(dmask + i_segment * n_places + b_place, tl.sum(b_grad * b_x, 1), b_is)
            b_grad *= b_mask[:, None]
            if dsignals is not None:
                for i_track in range(TRACKS):
                    b_weight = tl.load(weight + i_track * d + i_channel, i_channel < d, 0.0)
                    p_dsignals = dsignals + (i_segment * n_places + b_place) * TRACKS + i_track
                    tl.store(p_dsignals, tl.sum(b_grad * b_weight[None, :], 1), b_is)
            b_sums += tl.dot(tl.trans(b_feature), b_grad, input_precision="ieee")
            b_dposition += b_grad
            i_place += length
        if dpositions is not None:
            inside = is_unit[:, None] & (i_channel < d)[None, :]
            tl.store(dpositions + i_unit[:, None] * d + i_channel[None, :], b_dposition, inside)
    p_sums = sums + (i_part * (CODES + TRACKS) + i_feature)[:, None] * d + i_channel[None, :]
    tl.store(p_sums, b_sums, (i_feature < CODES + TRACKS)[:, None] & (i_channel < d)[None, :])
