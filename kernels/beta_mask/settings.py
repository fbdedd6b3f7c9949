"""What every implementation of the mask takes and gives."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

EPSILON = 1e-8
# A mark: bit 0, the gradient of the mask reaches m; the rest, 1 + sign(mask[j] - mask[j - 1]).
MARK_OPEN, MARK_FLAT = 1, 2


class BetaMask(NamedTuple):
    """mask: final, (batch, L). soft_mask: before threshold and regions. alpha, beta: concentrations, (batch, L).
    kl: mean over batch and bases, scalar. continuity: of the final mask, mean over the batch, scalar."""

    mask: Tensor
    soft_mask: Tensor
    alpha: Tensor
    beta: Tensor
    kl: Tensor
    continuity: Tensor


class Saved(NamedTuple):
    """What the backward needs, (batch, L) each. logit: of the sample, empty for the mean; marks: uint8."""

    alpha: Tensor
    beta: Tensor
    logit: Tensor
    marks: Tensor


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
    smooth: int
    center: int
    rule: str
    seed: int

    @property
    def prior(self) -> tuple[float, float]:
        """Concentrations of the prior."""
        return self.prior_scale, self.prior_scale * (1 - self.prior_mean) / self.prior_mean

    def n_top(self, length: int) -> int:
        """How many bases of a row the top fraction keeps; -1 without one."""
        return -1 if self.top_fraction is None else math.floor(self.top_fraction * length)


def wide_dtype(x: Tensor) -> torch.dtype:
    """float32, or float64 for float64 inputs."""
    return torch.promote_types(x.dtype, torch.float32)


def centre_slice(length: int, center: int) -> slice:
    """The centre `center` bases of a window."""
    start = (length - center) // 2
    return slice(start, start + center)
