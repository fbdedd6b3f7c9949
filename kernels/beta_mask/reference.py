"""The mask, forward and backward, in plain PyTorch: the oracle of the fused kernels.

    alpha_seq = softplus(l1) + beta_min + 1e-8                 beta_seq = softplus(l0) + beta_min + 1e-8
    alpha_i   = (s_i + beta_min) * signal_scale + 1e-8         beta_i   = (b_i + beta_min) * signal_scale
    sum:        alpha = z_scale (alpha_seq + sum_i w_i alpha_i)              beta likewise       (published code)
    product:    alpha = z_scale (alpha_seq + sum_i w_i (alpha_i - 1))        beta likewise       (paper, Prop. 2)
    m ~ Beta(alpha, beta), or its mean alpha / (alpha + beta)
    then threshold or top fraction (straight-through), exclude -> 0, include -> 1, centre -> 1
    kl = mean KL(Beta(alpha, beta) || Beta(scale, scale (1 - r) / r))
    continuity = mean_b sum_j |m_j - m_(j-1)| / (L + 1)

Source: Seq2Exp (ICLR 2025), sections 3 and 4. Concentrations are float32 (float64 for float64 inputs); KL, its gradient
and the sampling run in float64, because differences of digammas cancel in float32 at large concentrations.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from seq2exp.kernels.beta_mask.sampling import beta_logit_sample, beta_sample_gradient

EPSILON = 1e-8


class BetaMask(NamedTuple):
    """mask: final, (batch, L). soft_mask: before threshold and regions. alpha, beta: concentrations, (batch, L).
    kl: mean over batch and bases, scalar. continuity: of the final mask, mean over the batch, scalar."""

    mask: Tensor
    soft_mask: Tensor
    alpha: Tensor
    beta: Tensor
    kl: Tensor
    continuity: Tensor


class Settings(NamedTuple):
    """The scalars of `beta_mask`, by its names."""

    beta_min: float
    signal_scale: float
    z_scale: float
    prior_mean: float
    prior_scale: float
    sample: bool
    hard: bool
    threshold: float
    top_fraction: float | None
    center: int
    rule: str
    seed: int

    @property
    def prior(self) -> tuple[float, float]:
        """Concentrations of the prior."""
        return self.prior_scale, self.prior_scale * (1 - self.prior_mean) / self.prior_mean


class MaskGrads(NamedTuple):
    """Gradients in the shapes of the inputs."""

    seq_logits: Tensor
    signals: Tensor
    signal_weights: Tensor
    signal_betas: Tensor


def wide_dtype(x: Tensor) -> torch.dtype:
    """float32, or float64 for float64 inputs."""
    return torch.promote_types(x.dtype, torch.float32)


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


def selected_top(mean: Tensor, fraction: float) -> Tensor:
    """bool (batch, L): the floor(fraction * L) largest of each row, the earlier position first among equals."""
    k = math.floor(fraction * mean.shape[1])
    order = torch.sort(mean, dim=1, descending=True, stable=True).indices[:, :k]
    return torch.zeros_like(mean, dtype=torch.bool).scatter_(1, order, True)


def centre_slice(length: int, center: int) -> slice:
    """The centre `center` bases of a window."""
    start = (length - center) // 2
    return slice(start, start + center)


def _regions(
    length: int, center: int, exclude: Tensor | None, include: Tensor | None, like: Tensor
) -> tuple[Tensor, Tensor]:
    """bool (batch, L): forced to 0, forced to 1. Include wins over exclude, the centre over both."""
    one = torch.zeros_like(like, dtype=torch.bool) if include is None else include.clone()
    one[:, centre_slice(length, center)] = True
    zero = torch.zeros_like(one) if exclude is None else exclude & ~one
    return zero, one


def mask_forward(
    seq_logits: Tensor, signals: Tensor, weights: Tensor, betas: Tensor, exclude: Tensor | None, include: Tensor | None,
    rows: Tensor, s: Settings,
) -> BetaMask:  # fmt: skip
    """seq_logits (batch, L, 2), signals (batch, L, tracks), weights and betas (tracks,), exclude and include bool
    (batch, L), rows int64 (batch,)."""
    wide = wide_dtype(seq_logits)
    alpha, beta = concentrations(seq_logits.to(wide), signals.to(wide), weights.to(wide), betas.to(wide), s)
    mean = alpha / (alpha + beta)
    soft = torch.sigmoid(beta_logit_sample(alpha, beta, s.seed, rows)).to(wide) if s.sample else mean
    if s.top_fraction is not None:
        top = selected_top(mean, s.top_fraction).to(wide)
        selected = top if s.hard else soft * top
    else:
        selected = (soft >= s.threshold).to(wide) if s.hard else soft
    zero, one = _regions(soft.shape[1], s.center, exclude, include, soft)
    mask = selected.masked_fill(zero, 0).masked_fill(one, 1)
    continuity = mask.diff(dim=1).abs().sum(1).mean() / (mask.shape[1] + 1)
    return BetaMask(mask, soft, alpha, beta, beta_kl(alpha, beta, s).mean().to(wide), continuity)


def mask_backward(
    grads: BetaMask, forward: BetaMask, seq_logits: Tensor, signals: Tensor, weights: Tensor, betas: Tensor,
    exclude: Tensor | None, include: Tensor | None, s: Settings,
) -> MaskGrads:  # fmt: skip
    """Gradients given those of every output. Threshold and top selection pass gradients straight through:
    mask = hard + m - stop(m). With hard=False the top fraction is m itself, so the bases left out get none."""
    wide = wide_dtype(seq_logits)
    alpha, beta, length = forward.alpha, forward.beta, forward.mask.shape[1]

    step = forward.mask.diff(dim=1).sign() * (grads.continuity / (forward.mask.shape[0] * (length + 1)))
    grad_mask = grads.mask.to(wide) + F.pad(step, (1, 0)) - F.pad(step, (0, 1))
    zero, one = _regions(length, s.center, exclude, include, forward.mask)
    grad_mask = grad_mask.masked_fill(zero | one, 0)
    if s.top_fraction is not None and not s.hard:
        grad_mask = grad_mask * selected_top(alpha / (alpha + beta), s.top_fraction)
    grad_m = (grads.soft_mask + grad_mask).double()

    if s.sample:
        dm_da, dm_db = beta_sample_gradient(forward.soft_mask, alpha, beta)
    else:
        total = (alpha + beta).double()
        dm_da, dm_db = beta / total**2, -alpha / total**2
    kl_a, kl_b = beta_kl_gradient(alpha, beta, s)
    kl_scale = grads.kl.double() / alpha.numel()
    grad_a = (grads.alpha + grad_m * dm_da + kl_scale * kl_a).to(wide) * s.z_scale
    grad_b = (grads.beta + grad_m * dm_db + kl_scale * kl_b).to(wide) * s.z_scale

    alpha_i, beta_i = _signal_parts(signals.to(wide), betas.to(wide), s)
    grad_logits = torch.stack([grad_b, grad_a], -1) * torch.sigmoid(seq_logits.to(wide))
    return MaskGrads(
        seq_logits=grad_logits.to(seq_logits.dtype),
        signals=(grad_a[..., None] * weights.to(wide) * s.signal_scale).to(signals.dtype),
        signal_weights=(torch.einsum("bl,blt->t", grad_a, alpha_i) + grad_b.sum() * beta_i).to(weights.dtype),
        signal_betas=(grad_b.sum() * weights.to(wide) * s.signal_scale).to(betas.dtype),
    )
