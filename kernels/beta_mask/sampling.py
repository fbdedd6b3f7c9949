"""Beta samples through log-Gammas, and their implicit reparameterisation gradient."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from seq2exp.kernels.beta_mask.philox import philox, uniform


def log_gamma_sample(concentration: Tensor, seed: int, rows: Tensor, stream: int) -> Tensor:
    """log G with G ~ Gamma(concentration, 1): (batch, L) float64.

    Marsaglia and Tsang 2000, in log space, with the boost G(a) = G(a + 1) U^(1/a) for a < 1, so that small
    concentrations do not underflow. Counter words: position, low and high word of rows[b], 2 * attempt + stream. Of the
    four words of an attempt two make the normal (Box and Muller), one the rejection uniform, one the boost uniform
    (attempt 0).
    """
    a = concentration.double()
    boosted = torch.where(a < 1, a + 1, a)
    d = boosted - 1 / 3
    c = torch.rsqrt(9 * d)
    position = torch.arange(a.shape[1], device=a.device).expand_as(a)
    row = rows[:, None].expand_as(a)
    key = (seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF)

    result = torch.full_like(a, math.nan).flatten()
    pending = torch.isfinite(a).flatten().nonzero().flatten()  # NaN stays NaN: no draw would ever be accepted
    boost = torch.zeros_like(result)
    d, c, position, row = (x.flatten() for x in (d, c, position, row))
    attempt = 0
    while pending.numel():
        r = row[pending]
        word = philox(
            (position[pending], r & 0xFFFFFFFF, (r >> 32) & 0xFFFFFFFF, torch.full_like(r, 2 * attempt + stream)), key
        )
        x = torch.sqrt(-2 * torch.log(uniform(word[0]))) * torch.cos(2 * math.pi * uniform(word[1]))
        v = (1 + c[pending] * x) ** 3
        dp = d[pending]
        log_v = torch.log(v.clamp_min(1e-300))
        accept = (v > 0) & (torch.log(uniform(word[2])) < 0.5 * x * x + dp - dp * v + dp * log_v)
        if attempt == 0:
            boost[pending] = torch.log(uniform(word[3]))
        result[pending[accept]] = (torch.log(dp) + log_v)[accept]
        pending = pending[~accept]
        attempt += 1
    return torch.where(a < 1, result.view_as(a) + boost.view_as(a) / a, result.view_as(a))


def beta_logit_sample(alpha: Tensor, beta: Tensor, seed: int, rows: Tensor) -> Tensor:
    """logit(m) = log G1 - log G0 of m ~ Beta(alpha, beta): (batch, L) float64."""
    return log_gamma_sample(alpha, seed, rows, 0) - log_gamma_sample(beta, seed, rows, 1)


def beta_sample_gradient(m: Tensor, alpha: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
    """dm/dalpha and dm/dbeta of a sample m, float64: -(dF(m)/dalpha) / p(m), F the CDF, p the density of the Beta.

    Figurnov et al. 2018, implicit reparameterisation; evaluated by torch's Dirichlet gradient. Zero where m is 0 or 1.
    """
    m, a, b = m.double(), alpha.double(), beta.double()
    inside = (m > 0) & (m < 1)
    safe = torch.where(inside, m, 0.5)
    total = a + b
    da = torch._dirichlet_grad(safe, a, total) * (1 - safe)
    db = -torch._dirichlet_grad(1 - safe, b, total) * safe
    return torch.where(inside, da, 0.0), torch.where(inside, db, 0.0)
