"""The Triton kernels of the mask. A program takes BLOCK bases of all rows laid end to end; see README.md."""

from __future__ import annotations

import triton
import triton.language as tl

from seq2exp.kernels.beta_mask.triton_math import (
    beta_divergence,
    beta_divergence_gradient,
    log,
    log_gamma_draw,
    sample_gradient,
    sigmoid,
    softplus,
)


@triton.jit
def beta_mask_fwd_kernel(
    p_logits, p_signals, p_weights, p_betas, p_rows, p_soft, p_alpha, p_beta, p_logit, p_parts,
    s_logits_b, s_logits_l, s_logits_c, s_signals_b, s_signals_l, s_signals_c, bases, length, tracks, seed,
    minimum, signal_scale, z_scale, alpha_shift, beta_shift, p, q, log_r, log_1r, constant,
    SAMPLE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Concentrations, sample or mean. p_parts (programs, 5): divergence, bad signals; least signal, alpha, beta."""
    i_base = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = i_base < bases
    i_row, i_position = i_base // length, i_base % length
    by_tracks = tl.zeros([BLOCK], tl.float32)
    beta_tracks = 0.0
    bad = tl.zeros([BLOCK], tl.float32)
    low = tl.full([BLOCK], float("inf"), tl.float32)
    for i in range(tracks):
        at = i_row * s_signals_b + i_position * s_signals_l + i * s_signals_c
        b_signal = tl.load(p_signals + at, mask=inside, other=0.0).to(tl.float32)
        finite = (b_signal - b_signal) == 0.0
        bad += tl.where(finite, 0.0, 1.0)
        low = tl.where(inside & finite, tl.minimum(low, b_signal), low)
        weight = tl.load(p_weights + i)
        by_tracks += (b_signal * signal_scale + alpha_shift) * weight
        beta_tracks += (tl.load(p_betas + i) * signal_scale + beta_shift) * weight
    at = i_row * s_logits_b + i_position * s_logits_l
    b_reject = tl.load(p_logits + at, mask=inside, other=0.0).to(tl.float32)
    b_select = tl.load(p_logits + at + s_logits_c, mask=inside, other=0.0).to(tl.float32)
    alpha = tl.where(inside, (softplus(b_select) + minimum + by_tracks) * z_scale, 1.0)
    beta = tl.where(inside, (softplus(b_reject) + minimum + beta_tracks) * z_scale, 1.0)
    if SAMPLE:
        row = tl.load(p_rows + i_row, mask=inside, other=0)
        row_low, row_high = (row & 0xFFFFFFFF).to(tl.uint32), ((row >> 32) & 0xFFFFFFFF).to(tl.uint32)
        draw_alpha = log_gamma_draw(alpha, i_position.to(tl.uint32), row_low, row_high, seed, 0)
        draw_beta = log_gamma_draw(beta, i_position.to(tl.uint32), row_low, row_high, seed, 1)
        d_alpha = tl.where(alpha < 1.0, alpha + 1.0, alpha) - 1.0 / 3
        d_beta = tl.where(beta < 1.0, beta + 1.0, beta) - 1.0 / 3
        z = log(d_alpha / d_beta) + (draw_alpha - draw_beta)
        tl.store(p_logit + i_base, z, mask=inside)
        soft = sigmoid(z)
    else:
        soft = alpha / (alpha + beta)
    tl.store(p_soft + i_base, soft, mask=inside)
    tl.store(p_alpha + i_base, alpha, mask=inside)
    tl.store(p_beta + i_base, beta, mask=inside)
    divergence = tl.where(inside, beta_divergence(alpha, beta, p, q, log_r, log_1r, constant), 0.0)
    infinite = float("inf")
    p_parts += tl.program_id(0).to(tl.int64) * 5
    tl.store(p_parts, tl.sum(divergence, 0))
    tl.store(p_parts + 1, tl.sum(bad, 0))
    tl.store(p_parts + 2, tl.min(low, 0))
    tl.store(p_parts + 3, tl.min(tl.where(inside, alpha, infinite), 0))
    tl.store(p_parts + 4, tl.min(tl.where(inside, beta, infinite), 0))


@triton.jit
def _final(
    p_soft, p_exclude, p_include, p_selected, i_base, i_position, inside, threshold, centre_begin, centre_end,
    HARD: tl.constexpr,
):  # fmt: skip
    """The mask, and whether its gradient reaches m."""
    soft = tl.load(p_soft + i_base, mask=inside, other=0.0)
    one = (i_position >= centre_begin) & (i_position < centre_end)
    if p_include is not None:
        one = one | (tl.load(p_include + i_base, mask=inside, other=0) != 0)
    zero = one & (one == 0)
    if p_exclude is not None:
        zero = (tl.load(p_exclude + i_base, mask=inside, other=0) != 0) & (one == 0)
    if p_selected is not None:
        kept = tl.load(p_selected + i_base, mask=inside, other=0) != 0
    elif HARD:
        kept = soft >= threshold
    else:
        kept = one | (one == 0)
    value = tl.where(one, 1.0, tl.where(zero | (kept == 0), 0.0, 1.0 if HARD else soft))
    open = (one == 0) & (zero == 0)
    if not HARD:
        open = open & kept
    return value, open


@triton.jit
def beta_mask_finish_kernel(
    p_soft, p_exclude, p_include, p_selected, p_mask, p_marks, p_steps, bases, length, threshold, centre_begin,
    centre_end, HARD: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Selection and regions; marks as in `settings`; p_steps (programs,): sums of |mask[j] - mask[j - 1]|."""
    i_base = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = i_base < bases
    i_position = i_base % length
    value, open = _final(
        p_soft, p_exclude, p_include, p_selected, i_base, i_position, inside, threshold, centre_begin, centre_end, HARD
    )
    second = inside & (i_position > 0)
    before, _ = _final(
        p_soft, p_exclude, p_include, p_selected, i_base - 1, i_position - 1, second, threshold, centre_begin,
        centre_end, HARD,
    )  # fmt: skip
    step = tl.where(second, value - before, 0.0)
    sign = (step > 0.0).to(tl.int32) - (step < 0.0).to(tl.int32)
    tl.store(p_mask + i_base, value, mask=inside)
    tl.store(p_marks + i_base, (open.to(tl.int32) + 2 * (1 + sign)).to(tl.uint8), mask=inside)
    tl.store(p_steps + tl.program_id(0), tl.sum(tl.abs(step), 0))


@triton.jit
def beta_mask_bwd_kernel(
    p_grad_mask, p_grad_soft, p_grad_alpha, p_grad_beta, p_grad_kl, p_grad_continuity, p_logits, p_signals, p_weights,
    p_alpha, p_beta, p_logit, p_marks, p_nodes, p_grad_logits, p_grad_signals, p_sums,
    s_logits_b, s_logits_l, s_logits_c, s_signals_b, s_signals_l, s_signals_c, bases, length, tracks,
    signal_scale, z_scale, p, q, of_bases, of_steps, SAMPLE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """p_sums (programs, tracks + 2) or None: sums of grad_alpha times signal (0 without), grad_alpha, grad_beta."""
    i_base = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = i_base < bases
    i_row, i_position = i_base // length, i_base % length
    alpha = tl.load(p_alpha + i_base, mask=inside, other=1.0)
    beta = tl.load(p_beta + i_base, mask=inside, other=1.0)
    mark = tl.load(p_marks + i_base, mask=inside, other=2).to(tl.int32)
    grad = tl.zeros([BLOCK], tl.float32)
    if p_grad_mask is not None:
        grad += tl.load(p_grad_mask + i_base, mask=inside, other=0.0)
    if p_grad_continuity is not None:
        behind = tl.load(p_marks + i_base + 1, mask=inside & (i_position + 1 < length), other=2).to(tl.int32)
        step = ((mark >> 1) - (behind >> 1)).to(tl.float32)
        grad += tl.load(p_grad_continuity) * of_steps * step
    grad = tl.where((mark & 1) == 1, grad, 0.0)
    if p_grad_soft is not None:
        grad += tl.load(p_grad_soft + i_base, mask=inside, other=0.0)
    if SAMPLE:
        z = tl.load(p_logit + i_base, mask=inside, other=0.0)
        by_alpha, by_beta = sample_gradient(alpha, beta, z, p_nodes)
    else:
        inverse = 1.0 / (alpha + beta)
        by_alpha, by_beta = beta * inverse * inverse, -alpha * inverse * inverse
    by_alpha *= grad
    by_beta *= grad
    if p_grad_kl is not None:
        scale = tl.load(p_grad_kl) * of_bases
        kl_alpha, kl_beta = beta_divergence_gradient(alpha, beta, p, q)
        by_alpha += kl_alpha * scale
        by_beta += kl_beta * scale
    if p_grad_alpha is not None:
        by_alpha += tl.load(p_grad_alpha + i_base, mask=inside, other=0.0)
    if p_grad_beta is not None:
        by_beta += tl.load(p_grad_beta + i_base, mask=inside, other=0.0)
    by_alpha = tl.where(inside, by_alpha * z_scale, 0.0)
    by_beta = tl.where(inside, by_beta * z_scale, 0.0)

    at = i_row * s_logits_b + i_position * s_logits_l
    b_reject = tl.load(p_logits + at, mask=inside, other=0.0).to(tl.float32)
    b_select = tl.load(p_logits + at + s_logits_c, mask=inside, other=0.0).to(tl.float32)
    dtype = p_grad_logits.dtype.element_ty
    tl.store(p_grad_logits + 2 * i_base, (by_beta * sigmoid(b_reject)).to(dtype), mask=inside)
    tl.store(p_grad_logits + 2 * i_base + 1, (by_alpha * sigmoid(b_select)).to(dtype), mask=inside)
    p_part = p_weights  # a pointer of some kind where there are no sums
    if p_sums is not None:
        p_part = p_sums + tl.program_id(0).to(tl.int64) * (tracks + 2)
        tl.store(p_part + tracks, tl.sum(by_alpha, 0))
        tl.store(p_part + tracks + 1, tl.sum(by_beta, 0))
    for i in range(tracks):
        if p_grad_signals is not None:
            factor = tl.load(p_weights + i) * signal_scale
            out = (by_alpha * factor).to(p_grad_signals.dtype.element_ty)
            tl.store(p_grad_signals + i_base * tracks + i, out, mask=inside)
        if p_sums is not None:
            product = tl.zeros([BLOCK], tl.float32)
            if p_signals is not None:
                at = i_row * s_signals_b + i_position * s_signals_l + i * s_signals_c
                product = by_alpha * tl.load(p_signals + at, mask=inside, other=0.0).to(tl.float32)
            tl.store(p_part + i, tl.sum(product, 0))
