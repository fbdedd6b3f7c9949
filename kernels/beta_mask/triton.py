"""The Triton implementation: launches of the kernels in triton_kernels.py."""

from __future__ import annotations

import functools
import math
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
from torch import Tensor
from triton import cdiv

from seq2exp.kernels.beta_mask import tiles
from seq2exp.kernels.beta_mask import triton_kernels as kernels
from seq2exp.kernels.beta_mask.settings import EPSILON, BetaMask, Saved, Settings
from seq2exp.kernels.beta_mask.triton_math import NODES

BLOCK = 256


def forward(
    seq_logits: Tensor, signals: Tensor, weights: Tensor, betas: Tensor, exclude: Tensor | None, include: Tensor | None,
    rows: Tensor, s: Settings,
) -> tuple[BetaMask, Saved, Tensor]:  # fmt: skip
    """See cuda.py; on CUDA tensors, or on the CPU in the interpreter."""
    batch, length = seq_logits.shape[:2]
    bases = batch * length
    grid = (cdiv(bases, BLOCK),)
    soft, alpha, beta, mask = (weights.new_empty(batch, length) for _ in range(4))
    logit = weights.new_empty((batch, length) if s.sample else (0,))
    marks = weights.new_empty(batch, length, dtype=torch.uint8)
    parts, steps = weights.new_empty(grid[0], 5), weights.new_empty(grid[0])
    exclude, include = (None if x is None else x.contiguous() for x in (exclude, include))
    one = float(s.rule == "product")
    shift = s.beta_min * s.signal_scale - one

    def run(selected: Tensor | None) -> list[Tensor]:
        with _device_of(soft):
            if selected is None:
                kernels.beta_mask_fwd_kernel[grid](
                    seq_logits, signals, weights.contiguous(), betas.contiguous(), rows.contiguous(), soft, alpha, beta,
                    logit, parts, *seq_logits.stride(), *signals.stride(), bases, length, len(weights), s.seed,
                    s.beta_min + EPSILON, s.signal_scale, s.z_scale, shift + EPSILON, shift, *_prior(s),
                    SAMPLE=s.sample, BLOCK=BLOCK,
                )  # fmt: skip
            centre = (length - s.center) // 2
            kernels.beta_mask_finish_kernel[grid](
                soft, exclude, include, None if selected is None else selected.contiguous(), mask, marks, steps, bases,
                length, s.threshold, centre, centre + s.center, HARD=s.hard, BLOCK=BLOCK,
            )  # fmt: skip
        sums = torch.stack([parts[:, 0], steps, parts[:, 1]], 1)
        return [mask, soft, alpha, beta, logit, marks, sums, parts[:, 2:]]

    return tiles.forward(run, s)


def backward(
    grads: BetaMask, seq_logits: Tensor, signals: Tensor | None, weights: Tensor, betas: Tensor, saved: Saved,
    s: Settings, for_signals: bool, for_tracks: bool,
) -> list[Tensor]:  # fmt: skip
    """See cuda.py. The same bits in every run."""
    batch, length = saved.alpha.shape
    bases, tracks = batch * length, len(weights)
    grid = (cdiv(bases, BLOCK),)
    results = [seq_logits.new_empty(seq_logits.shape)]
    if for_signals:
        results.append(signals.new_empty(signals.shape))
    sums = weights.new_empty(grid[0], tracks + 2) if for_tracks else None
    p, q = s.prior
    with _device_of(weights):
        kernels.beta_mask_bwd_kernel[grid](
            *(None if g is None else g.contiguous() for g in grads), seq_logits, signals, weights.contiguous(), *saved,
            _nodes(weights.device), results[0], results[1] if for_signals else None, sums, *seq_logits.stride(),
            *((0, 0, 0) if signals is None else signals.stride()), bases, length, tracks, s.signal_scale, s.z_scale, p,
            q, 1 / bases, 1 / (batch * (length + 1)), SAMPLE=s.sample, BLOCK=BLOCK,
        )  # fmt: skip
    return tiles.backward([*results, *([] if sums is None else [sums])], signals, weights, betas, s, for_tracks)


def _prior(s: Settings) -> tuple[float, ...]:
    """p, q, log r, log(1 - r) and the constant of csrc/common/prior.h."""
    p, q = s.prior
    log_r, log_1r = math.log(p / (p + q)), math.log(q / (p + q))
    log_beta = math.lgamma(p) + math.lgamma(q) - math.lgamma(p + q)
    return p, q, log_r, log_1r, log_beta - 0.5 * math.log(2 * math.pi) - p * log_r - q * log_1r


@functools.cache
def _nodes(device: torch.device) -> Tensor:
    """Gauss and Legendre's nodes and weights on (0, 1), (2, NODES)."""
    nodes, weights = np.polynomial.legendre.leggauss(NODES.value)
    return torch.tensor(np.stack([(nodes + 1) / 2, weights / 2]), dtype=torch.float32, device=device)


def _device_of(x: Tensor) -> AbstractContextManager:
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()
