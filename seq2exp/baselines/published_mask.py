"""The mask as torch.distributions gives it: what `beta_mask` is measured against. The mathematics is that of
`seq2exp.kernels.beta_mask.reference` with rule="sum"."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.distributions import Beta, kl_divergence
from torch.nn import functional as F

from seq2exp.kernels import BetaMask
from seq2exp.kernels.beta_mask.settings import EPSILON, centre_slice, wide_dtype


def published_mask(
    seq_logits: Tensor, signals: Tensor, *, signal_weights: Tensor | Sequence[float],
    signal_betas: Tensor | Sequence[float], beta_min: float, signal_scale: float, prior_mean: float, prior_scale: float,
    sample: bool, z_scale: float = 1.0, hard: bool = False, threshold: float = 0.5, top_fraction: float | None = None,
    exclude: Tensor | None = None, include: Tensor | None = None, center: int = 0,
) -> BetaMask:  # fmt: skip
    """Arguments and result as of `seq2exp.kernels.beta_mask`. The sample comes from torch's generator, its gradients
    are torch's implicit ones; the top fraction is that of the evaluation, without gradients."""
    wide = wide_dtype(seq_logits)
    weights, betas = (torch.as_tensor(x, dtype=wide, device=signals.device) for x in (signal_weights, signal_betas))
    sequence = F.softplus(seq_logits.to(wide)) + beta_min + EPSILON
    by_track = (signals.to(wide) + beta_min) * signal_scale + EPSILON
    alpha = z_scale * (sequence[..., 1] + (by_track * weights).sum(-1))
    beta = z_scale * (sequence[..., 0] + ((betas + beta_min) * signal_scale * weights).sum())
    posterior = Beta(alpha, beta)
    prior = Beta(
        torch.full_like(alpha, prior_scale), torch.full_like(alpha, prior_scale * (1 - prior_mean) / prior_mean)
    )
    soft = posterior.rsample() if sample else posterior.mean
    if top_fraction is not None:
        kept = torch.topk(soft, int(top_fraction * soft.shape[1]), dim=1).indices
        mask = torch.zeros_like(soft).scatter_(1, kept, 1.0)
    else:
        mask = (soft >= threshold).to(wide) + (soft - soft.detach()) if hard else soft.clone()
    if exclude is not None:
        mask = mask.masked_fill(exclude, 0)
    if include is not None:
        mask = mask.masked_fill(include, 1)
    mask[:, centre_slice(mask.shape[1], center)] = 1
    continuity = mask.diff(dim=1).abs().sum(1).mean() / (mask.shape[1] + 1)
    return BetaMask(mask, soft, alpha, beta, kl_divergence(posterior, prior).mean(), continuity)
