"""The CUDA C++ implementation (csrc/beta_mask/cuda), loaded by seq2exp.kernels._extension."""

from __future__ import annotations

import torch
from torch import Tensor

from seq2exp.kernels.beta_mask import tiles
from seq2exp.kernels.beta_mask.settings import BetaMask, Saved, Settings


def forward(
    seq_logits: Tensor, signals: Tensor, weights: Tensor, betas: Tensor, exclude: Tensor | None, include: Tensor | None,
    rows: Tensor, s: Settings,
) -> tuple[BetaMask, Saved, Tensor]:  # fmt: skip
    """As `reference.forward`. seq_logits and signals in float32, bfloat16 or float16, any strides; the rest float32.

    The same bits in every run and for any split of the batch.
    """

    def run(selected: Tensor | None) -> list[Tensor]:
        return torch.ops.seq2exp_native.beta_mask_cuda_fwd(
            seq_logits, signals, weights, betas, exclude, include, selected, rows, s.beta_min, s.signal_scale,
            s.z_scale, *s.prior, s.sample, s.hard, s.threshold, s.center, s.rule == "product", s.seed,
        )  # fmt: skip

    return tiles.forward(run, s)


def backward(
    grads: BetaMask, seq_logits: Tensor, signals: Tensor | None, weights: Tensor, betas: Tensor, saved: Saved,
    s: Settings, for_signals: bool, for_tracks: bool,
) -> list[Tensor]:  # fmt: skip
    """As `reference.backward`."""
    results = torch.ops.seq2exp_native.beta_mask_cuda_bwd(
        *grads, seq_logits, signals, weights, betas, *saved, s.beta_min, s.signal_scale, s.z_scale, *s.prior, s.sample,
        s.rule == "product", for_signals, for_tracks,
    )  # fmt: skip
    return tiles.backward(results, signals, weights, betas, s, for_tracks)
