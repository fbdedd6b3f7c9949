"""What follows the GPU kernels, CUDA and Triton: selection over whole rows, and sums over tiles in a fixed order."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from seq2exp.kernels.beta_mask.reference import select
from seq2exp.kernels.beta_mask.settings import EPSILON, BetaMask, Saved, Settings


def forward(run: Callable[[Tensor | None], list[Tensor]], s: Settings) -> tuple[BetaMask, Saved, Tensor]:
    """run(selected) launches the forward kernel; `selected`, bool (batch, L), takes the place of the threshold.

    Where a base depends on others (top fraction, smooth) the kernel runs twice, the first time for the scores.
    """
    out = run(None)
    if s.top_fraction is not None or s.smooth > 1:
        _, soft, alpha, beta, *_ = out
        out = run(select(alpha / (alpha + beta), soft, s))
    mask, soft, alpha, beta, logit, marks, sums, lowest = out
    batch, length = mask.shape
    divergence, steps, bad = sums.sum(0, dtype=torch.float64).unbind(0)
    signal, *others = lowest.amin(0).unbind(0)
    lowest = torch.stack([torch.where(bad > 0, math.nan, signal), *others])
    kl, continuity = (divergence / mask.numel()).float(), (steps / (batch * (length + 1))).float()
    return BetaMask(mask, soft, alpha, beta, kl, continuity), Saved(alpha, beta, logit, marks), lowest


def backward(
    results: list[Tensor], signals: Tensor | None, weights: Tensor, betas: Tensor, s: Settings, for_tracks: bool
) -> list[Tensor]:
    """results: gradients of seq_logits and maybe of signals; then, for_tracks, sums of blocks (blocks, tracks + 2)."""
    if not for_tracks:
        return results
    *grads, parts = results
    sums = parts.sum(0, dtype=torch.float64)
    by_signal, by_alpha, by_beta = sums[:-2], sums[-2], sums[-1]
    one = 1.0 if s.rule == "product" else 0.0
    by_weight = torch.zeros_like(by_signal)
    if signals is not None:
        beta_i = (betas.double() + s.beta_min) * s.signal_scale - one
        shift = s.beta_min * s.signal_scale + EPSILON - one
        by_weight = s.signal_scale * by_signal + shift * by_alpha + beta_i * by_beta
    return [*grads, by_weight.float(), (by_beta * weights * s.signal_scale).float()]
