"""The C++ implementation for the CPU (csrc/beta_mask/cpu), loaded by seq2exp.kernels._extension."""

from __future__ import annotations

import torch
from torch import Tensor

from seq2exp.kernels.beta_mask.settings import BetaMask, Saved, Settings


def forward(
    seq_logits: Tensor, signals: Tensor, weights: Tensor, betas: Tensor, exclude: Tensor | None, include: Tensor | None,
    rows: Tensor, s: Settings,
) -> tuple[BetaMask, Saved, Tensor]:  # fmt: skip
    """As `reference.forward`. seq_logits and signals in float32, bfloat16 or float16, any strides; the rest float32.

    The same bits for any number of threads and any split of the batch.
    """
    out = torch.ops.seq2exp_native.beta_mask_fwd(
        seq_logits, signals, weights, betas, exclude, include, rows, s.beta_min, s.signal_scale, s.z_scale, *s.prior,
        s.sample, s.hard, s.threshold, s.n_top(seq_logits.shape[1]), s.smooth, s.center, s.rule == "product", s.seed,
    )  # fmt: skip
    return BetaMask(*out[:6]), Saved(*out[2:4], *out[6:8]), out[8]


def backward(
    grads: BetaMask, seq_logits: Tensor, signals: Tensor | None, weights: Tensor, betas: Tensor, saved: Saved,
    s: Settings, for_signals: bool, for_tracks: bool,
) -> list[Tensor]:  # fmt: skip
    """As `reference.backward`."""
    return torch.ops.seq2exp_native.beta_mask_bwd(
        *grads, seq_logits, signals, weights, betas, *saved, s.beta_min, s.signal_scale, s.z_scale, *s.prior, s.sample,
        s.rule == "product", for_signals, for_tracks,
    )  # fmt: skip


def top_mask(scores: Tensor, k: int) -> Tensor:
    """bool (batch, L): the k largest of each row of scores >= 0, float32; the earlier position first among equals."""
    return torch.ops.seq2exp_native.top_mask(scores, k)
