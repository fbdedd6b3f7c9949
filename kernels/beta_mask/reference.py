"""The mask, forward and backward, in plain PyTorch: the oracle of the fused kernels.

    alpha_seq = softplus(l1) + beta_min + 1e-8                 beta_seq = softplus(l0) + beta_min + 1e-8
    alpha_i   = (s_i + beta_min) * signal_scale + 1e-8         beta_i   = (b_i + beta_min) * signal_scale
    sum:        alpha = z_scale (alpha_seq + sum_i w_i alpha_i)            beta likewise       (published code)
    product:    alpha = z_scale (alpha_seq + sum_i w_i (alpha_i - 1))      beta likewise       (paper, Prop. 2)
    m ~ Beta(alpha, beta), or its mean alpha / (alpha + beta)
    then threshold or top fraction (straight-through), exclude -> 0, include -> 1, centre -> 1
    kl = mean KL(Beta(alpha, beta) || Beta(scale, scale (1 - r) / r))
    continuity = mean_b sum_j |m_j - m_(j-1)| / (L + 1)

Source: Seq2Exp (ICLR 2025), sections 3 and 4. Concentrations are float32 (float64 for float64 inputs); KL, its gradient
and the sampling run in float64, because differences of digammas cancel in float32 at large concentrations.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from seq2exp.kernels.beta_mask.sampling import beta_logit_gradient, beta_logit_sample
from seq2exp.kernels.beta_mask.settings import (
    EPSILON,
    MARK_FLAT,
    MARK_OPEN,
    BetaMask,
    Saved,
    Settings,
    centre_slice,
    wide_dtype,
)


def _signal_parts(signals: Tensor, betas: Tensor, s: Settings) -> tuple[Tensor, Tensor]:
    """What each track adds to alpha (batch, L, tracks) and to beta (tracks,), before its weight."""
    one = 1.0 if s.rule == "product" else 0.0
    alpha = (signals + s.beta_min) * s.signal_scale + EPSILON - one
    return alpha, (betas + s.beta_min) * s.signal_scale - one


def concentrations(
    seq_logits: Tensor, signals: Tensor, weights: Tensor, betas: Tensor, s: Settings
) -> tuple[Tensor, Tensor]:
    """alpha, beta: (batch, L)."""
    seq = F.softplus(seq_logits) + s.beta_min + EPSILON
    alpha_i, beta_i = _signal_parts(signals, betas, s)
    return s.z_scale * (seq[..., 1] + alpha_i @ weights), s.z_scale * (seq[..., 0] + beta_i @ weights)


def beta_kl(alpha: Tensor, beta: Tensor, s: Settings) -> Tensor:
    """KL(Beta(alpha, beta) || prior) of each base, float64."""
    a, b = alpha.double(), beta.double()
    p, q = s.prior
    log_beta_prior = math.lgamma(p) + math.lgamma(q) - math.lgamma(p + q)
    log_beta = torch.lgamma(a) + torch.lgamma(b) - torch.lgamma(a + b)
    return (
        log_beta_prior - log_beta
        + (a - p) * torch.digamma(a) + (b - q) * torch.digamma(b) + (p + q - a - b) * torch.digamma(a + b)
    )  # fmt: skip


def beta_kl_gradient(alpha: Tensor, beta: Tensor, s: Settings) -> tuple[Tensor, Tensor]:
    """d KL / d alpha and d KL / d beta of each base, float64."""
    a, b = alpha.double(), beta.double()
    p, q = s.prior
    shared = (p + q - a - b) * torch.polygamma(1, a + b)
    return (a - p) * torch.polygamma(1, a) + shared, (b - q) * torch.polygamma(1, b) + shared


def top_mask(scores: Tensor, k: int) -> Tensor:
    """bool (batch, L): the k largest of each row, the earlier position first among equals."""
    order = torch.sort(scores, dim=1, descending=True, stable=True).indices[:, :k]
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(1, order, True)


def select(mean: Tensor, soft: Tensor, s: Settings) -> Tensor:
    """bool (batch, L): what threshold or top fraction keep; everything where neither applies."""
    if s.top_fraction is None and not s.hard:
        return torch.ones_like(soft, dtype=torch.bool)
    scores = soft if s.top_fraction is None else mean
    scores = F.max_pool1d(scores[:, None], s.smooth, stride=1, padding=s.smooth // 2)[:, 0]
    return scores >= s.threshold if s.top_fraction is None else top_mask(scores, s.n_top(scores.shape[1]))


def _regions(
    length: int, center: int, exclude: Tensor | None, include: Tensor | None, like: Tensor
) -> tuple[Tensor, Tensor]:
    """bool (batch, L): forced to 0, forced to 1. Include wins over exclude, the centre over both."""
    one = torch.zeros_like(like, dtype=torch.bool) if include is None else include.clone()
    one[:, centre_slice(length, center)] = True
    zero = torch.zeros_like(one) if exclude is None else exclude & ~one
    return zero, one


def forward(
    seq_logits: Tensor, signals: Tensor, weights: Tensor, betas: Tensor, exclude: Tensor | None, include: Tensor | None,
    rows: Tensor, s: Settings,
) -> tuple[BetaMask, Saved, Tensor]:  # fmt: skip
    """The outputs, what the backward needs, and the smallest signal (NaN if one is not finite), alpha and beta, (3,).

    seq_logits (batch, L, 2), signals (batch, L, tracks), weights and betas (tracks,), exclude and include bool
    (batch, L), rows int64 (batch,).
    """
    wide = wide_dtype(seq_logits)
    alpha, beta = concentrations(seq_logits.to(wide), signals.to(wide), weights.to(wide), betas.to(wide), s)
    mean = alpha / (alpha + beta)
    logit = beta_logit_sample(alpha, beta, s.seed, rows) if s.sample else alpha.new_empty(0)
    soft = torch.sigmoid(logit).to(wide) if s.sample else mean
    selected = select(mean, soft, s)
    zero, one = _regions(soft.shape[1], s.center, exclude, include, soft)
    value = selected.to(wide) if s.hard else soft * selected
    mask = value.masked_fill(zero, 0).masked_fill(one, 1)
    steps = mask.diff(dim=1)
    continuity = steps.abs().sum(1).mean() / (mask.shape[1] + 1)
    passes = ~(zero | one) if s.hard else selected & ~(zero | one)
    marks = MARK_OPEN * passes + MARK_FLAT * (1 + F.pad(steps.sign(), (1, 0)).nan_to_num())
    low = torch.where(torch.isfinite(signals).all(), signals.min().to(wide), math.nan)
    out = BetaMask(mask, soft, alpha, beta, beta_kl(alpha, beta, s).mean().to(wide), continuity)
    return (
        out,
        Saved(alpha, beta, logit.to(wide), marks.to(torch.uint8)),
        torch.stack([low, alpha.min(), beta.min()]),
    )


def backward(
    grads: BetaMask, seq_logits: Tensor, signals: Tensor | None, weights: Tensor, betas: Tensor, saved: Saved,
    s: Settings, for_signals: bool, for_tracks: bool,
) -> list[Tensor]:  # fmt: skip
    """Gradients of seq_logits; if asked for, of signals; if asked for, of signal_weights (zero without `signals`) and
    signal_betas.

    grads: of the outputs, None for those that have none. Threshold and top selection pass gradients straight through:
    mask = hard + m - stop(m). With hard=False the top fraction is m itself, so the bases left out get none.
    """
    wide = wide_dtype(seq_logits)
    alpha, beta = saved.alpha.double(), saved.beta.double()
    batch, length = alpha.shape

    grad_m = torch.zeros_like(alpha) if grads.mask is None else grads.mask.double()
    if grads.continuity is not None:
        step = ((saved.marks >> 1).double() - 1) * (grads.continuity / (batch * (length + 1)))
        grad_m = grad_m + step - F.pad(step[:, 1:], (0, 1))
    grad_m = grad_m * (saved.marks & MARK_OPEN)
    if grads.soft_mask is not None:
        grad_m = grad_m + grads.soft_mask

    if s.sample:
        logit = saved.logit.double()
        slope = torch.sigmoid(logit) * torch.sigmoid(-logit)
        dm_da, dm_db = (slope * d for d in beta_logit_gradient(logit, alpha, beta))
    else:
        dm_da, dm_db = beta / (alpha + beta) ** 2, -alpha / (alpha + beta) ** 2
    grad_a, grad_b = grad_m * dm_da, grad_m * dm_db
    if grads.kl is not None:
        scale = grads.kl.double() / alpha.numel()
        kl_a, kl_b = beta_kl_gradient(alpha, beta, s)
        grad_a, grad_b = grad_a + scale * kl_a, grad_b + scale * kl_b
    grad_a = (grad_a if grads.alpha is None else grad_a + grads.alpha).to(wide) * s.z_scale
    grad_b = (grad_b if grads.beta is None else grad_b + grads.beta).to(wide) * s.z_scale

    grad_logits = torch.stack([grad_b, grad_a], -1) * torch.sigmoid(seq_logits.to(wide))
    results = [grad_logits.to(seq_logits.dtype)]
    if for_signals and signals is not None:
        results.append((grad_a[..., None] * weights.to(wide) * s.signal_scale).to(signals.dtype))
    if not for_tracks:
        return results
    grad_weights = torch.zeros_like(weights)
    if signals is not None:
        alpha_i, beta_i = _signal_parts(signals.to(wide), betas.to(wide), s)
        grad_weights = (torch.einsum("bl,blt->t", grad_a, alpha_i) + grad_b.sum() * beta_i).to(weights.dtype)
    grad_betas = (grad_b.sum() * weights.to(wide) * s.signal_scale).to(betas.dtype)
    return [*results, grad_weights, grad_betas]
