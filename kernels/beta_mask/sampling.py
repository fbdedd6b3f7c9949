"""Beta samples through log-Gammas, and their implicit reparameterisation gradient."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

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
    position = torch.arange(a.shape[1], device=a.device).expand_as(a)
    row = rows[:, None].expand_as(a)
    key = (seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF)

    result = torch.full_like(a, math.nan).flatten()
    drawable = torch.isfinite(a) & (a > 0)  # of others no draw would ever be accepted: they stay NaN
    pending = drawable.flatten().nonzero().flatten()
    boost = torch.zeros_like(result)
    d, position, row = (x.flatten() for x in (d, position, row))
    attempt = 0
    while pending.numel():
        r = row[pending]
        word = philox(
            (position[pending], r & 0xFFFFFFFF, (r >> 32) & 0xFFFFFFFF, torch.full_like(r, 2 * attempt + stream)), key
        )
        dp = d[pending]
        log_v, accept = gamma_attempt(dp, word)
        if attempt == 0:
            boost[pending] = torch.log(uniform(word[3]))
        result[pending[accept]] = (torch.log(dp) + log_v)[accept]
        pending = pending[~accept]
        attempt += 1
    return torch.where(a < 1, result.view_as(a) + boost.view_as(a) / a, result.view_as(a))


def gamma_attempt(d: Tensor, word: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """log(G / d) of an attempt at a draw of concentration d + 1/3 >= 1, and whether it is accepted."""
    x = torch.sqrt(-2 * torch.log(uniform(word[0]))) * torch.cos(2 * math.pi * uniform(word[1]))
    v = (1 + torch.rsqrt(9 * d) * x) ** 3
    log_v = torch.log(v.clamp_min(1e-300))
    return log_v, (v > 0) & (torch.log(uniform(word[2])) < 0.5 * x * x + d - d * v + d * log_v)


def beta_logit_sample(alpha: Tensor, beta: Tensor, seed: int, rows: Tensor) -> Tensor:
    """logit(m) = log G1 - log G0 of m ~ Beta(alpha, beta): (batch, L) float64."""
    return log_gamma_sample(alpha, seed, rows, 0) - log_gamma_sample(beta, seed, rows, 1)


def beta_logit_gradient(logit: Tensor, alpha: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
    """dz/dalpha and dz/dbeta of a draw m ~ Beta(alpha, beta) with logit z, float64: -(dF/dalpha) / (p(m) dm/dz).

    F is the CDF, p the density of the Beta (Figurnov et al. 2018, implicit reparameterisation). Both are integrals over
    the tail in which z lies; by symmetry the lower one. See README.md, section "Gradient of a sample".
    """
    z, alpha, beta = logit.double(), alpha.double(), beta.double()
    offset = (1 / beta - 1 / alpha).clamp(-5, 5)
    left = z <= torch.log((alpha + 0.5) / (beta + 0.5)) + offset
    by_a, by_b = _from_the_left(
        torch.where(left, z, -z), torch.where(left, alpha, beta), torch.where(left, beta, alpha)
    )
    return torch.where(left, by_a, -by_b), torch.where(left, by_b, -by_a)


_STEPS = 2  # of the recurrence in a, so that the integrand decays
_DECAY = 24.0  # the integral ends where its weight is about exp(-_DECAY)
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(24)


def _from_the_left(z: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    m, q = torch.sigmoid(z), torch.sigmoid(-z)
    log_m, log_q = F.logsigmoid(z), F.logsigmoid(-z)

    def lost(t: Tensor) -> tuple[Tensor, Tensor]:
        """By how much log m and log(1 - m) are smaller at z - t."""
        low = torch.log1p(m * torch.expm1(-t))
        high = torch.log1p(q * torch.expm1(t))
        return torch.where(z < 0, t + low, high), torch.where(z < 0, low, high - t)

    a_up = a + _STEPS
    slope, curvature = a_up * q - b * m, (a_up + b) * m * q
    gaussian = 2 * _DECAY / (slope + torch.sqrt(slope.square() + 2 * _DECAY * curvature))
    k = ((_DECAY + b * torch.minimum(-log_q, gaussian)) / a_up).clamp(max=60)
    length = torch.minimum(gaussian, torch.log1p(torch.expm1(k) / q))
    sums = [torch.zeros_like(z) for _ in range(3)]
    for node, weight in zip((_NODES + 1) / 2, _WEIGHTS / 2, strict=True):
        k, l = lost(length * node)
        density = torch.exp(-(a_up * k + b * l)) * (length * weight)
        for total, factor in zip(sums, (1.0, k, l), strict=True):
            total += density * factor
    mass, mass_k, mass_l = sums
    digamma_b = torch.digamma(b)
    mean_a, mean_b = (x - torch.digamma(a_up + b) for x in (torch.digamma(a_up), digamma_b))  # of log m, log(1 - m)
    by_a = mass_k + (mean_a - log_m) * mass
    by_b = mass_l + (mean_b - log_q) * mass
    for step in reversed(range(_STEPS)):
        a_now = a + step
        n = a_now + b
        by_a = (m * n * by_a + torch.digamma(a_now + 1) - torch.digamma(n) - log_m) / a_now
        by_b = (m * n * by_b + digamma_b - torch.digamma(n) - log_q) / a_now
    return by_a, by_b
