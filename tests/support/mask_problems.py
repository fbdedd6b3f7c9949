"""Problems for the mask, and what every implementation is held against."""

from __future__ import annotations

import csv
import functools
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from seq2exp.kernels.beta_mask import reference
from seq2exp.kernels.beta_mask.settings import BetaMask, Saved, Settings

DEFAULTS: dict[str, Any] = dict(
    beta_min=0.2, signal_scale=1.5, z_scale=0.8, prior_mean=0.1, prior_scale=2.0, sample=True, hard=False,
    threshold=0.5, top_fraction=None, smooth=1, center=4, rule="sum", seed=11,
)  # fmt: skip
WEIGHTS, BETAS = (0.4, 0.4, 0.2), (1.5, 0.2, 1.0)
INPUTS = ("seq_logits", "signals", "weights", "betas")  # those with gradients
OPTIONS = {
    "sample": {},
    "mean": dict(sample=False),
    "hard": dict(hard=True),
    "hard mean": dict(hard=True, sample=False, threshold=0.6),
    "top": dict(top_fraction=0.3),
    "hard top": dict(top_fraction=0.3, hard=True, sample=False),
    "smooth": dict(hard=True, smooth=5),
    "smooth top": dict(top_fraction=0.2, smooth=9),
    "product": dict(rule="product", beta_min=1.5),
}
GRADIENTS = Path(__file__).parents[1] / "kernels" / "beta_gradients.csv"


def settings(**changed: Any) -> Settings:
    return Settings(**{**DEFAULTS, **changed})


def problem(batch=2, length=130, dtype=torch.float32, regions=True, seed=0, **changed: Any) -> SimpleNamespace:
    """Inputs of `forward` by name, the gradients of the outputs, and the settings."""
    g = torch.Generator().manual_seed(seed)
    exclude, include = (torch.rand(batch, length, generator=g) < 0.2 for _ in range(2))
    s = settings(center=min(4, length), **changed)
    return SimpleNamespace(
        inputs=dict(
            seq_logits=(2 * torch.randn(batch, length, 2, generator=g)).to(dtype),
            signals=torch.randn(batch, length, 3, generator=g).exp().to(dtype),
            weights=torch.tensor(WEIGHTS), betas=torch.tensor(BETAS),
            exclude=exclude if regions else None, include=include if regions else None,
            rows=torch.arange(batch) + 2**33,
        ),
        grads=BetaMask(
            *(torch.randn(batch, length, generator=g) for _ in range(4)), torch.tensor(0.7 * batch * length),
            torch.tensor(0.3 * batch * length),
        ),
        settings=s,
    )  # fmt: skip


def results(module: ModuleType, p: SimpleNamespace, dtype: torch.dtype | None = None) -> tuple[BetaMask, list[Tensor]]:
    """Outputs and gradients of an implementation, in another dtype if one is given."""

    def moved(x: Tensor | None) -> Tensor | None:
        return x.to(dtype) if dtype is not None and x is not None and x.is_floating_point() else x

    inputs = {name: moved(x) for name, x in p.inputs.items()}
    out, saved, _ = module.forward(**inputs, s=p.settings)
    grads = BetaMask(*(moved(g) for g in p.grads))
    given = [inputs[name] for name in INPUTS]
    return out, module.backward(grads, *given, saved, p.settings, True, True)


def check(module: ModuleType, p: SimpleNamespace, limit=1e-5) -> None:
    """Outputs equal to 1e-5, gradients to `limit` of their norm; but for draws whose rejection test is within rounding,
    under 1e-4 of the bases."""
    out, grads = results(module, p)
    exact, exact_grads = results(reference, p, torch.float64)
    same = (out.soft_mask - exact.soft_mask).abs() < 1e-5
    assert float((~same).double().mean()) < 1e-4
    for name, ours, theirs in zip(out._fields, out, exact, strict=True):
        assert ours.dtype == torch.float32
        ours, theirs = (x[same] if x.dim() else x for x in (ours.double(), theirs))
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5, msg=name)
    for name, ours, theirs in zip(INPUTS, grads, exact_grads, strict=True):
        x = p.inputs[name]
        assert ours.dtype == x.dtype and ours.shape == x.shape and ours.is_contiguous()
        if x.dim() == 3:
            ours, theirs = ours[same], theirs[same]
        elif not bool(same.all()):
            continue
        assert float((ours.double() - theirs).norm() / theirs.norm()) < limit, name


def of_concentrations(
    module: ModuleType, alpha: float, beta: float, n: int, dtype=torch.float32, **changed: Any
) -> tuple[BetaMask, Saved]:
    """The forward at n bases, (1, n), of these concentrations (to 1e-8)."""
    out, saved, _ = module.forward(
        torch.full((1, n, 2), -200.0, dtype=dtype), torch.full((1, n, 1), alpha, dtype=dtype),
        torch.ones(1, dtype=dtype), torch.tensor([beta], dtype=dtype), None, None, torch.zeros(1, dtype=torch.long),
        settings(**dict(beta_min=0.0, signal_scale=1.0, z_scale=1.0, center=0) | changed),
    )  # fmt: skip
    return out, saved


def by_concentrations(module: ModuleType, grads: BetaMask, saved: Saved, **changed: Any) -> tuple[Tensor, Tensor]:
    """Gradients by alpha and beta, (1, n): those by the logits, large ones, where softplus has slope 1."""
    dtype = saved.alpha.dtype
    track, logits = torch.zeros(1, dtype=dtype), torch.full((*saved.alpha.shape, 2), 50.0, dtype=dtype)
    s = settings(**dict(z_scale=1.0) | changed)
    by_logits, *_ = module.backward(grads, logits, None, track, track, saved, s, False, False)
    return by_logits[..., 1], by_logits[..., 0]


def only(**grads: Tensor) -> BetaMask:
    """Gradients of some outputs."""
    return BetaMask(*(grads.get(name) for name in BetaMask._fields))


def sample_gradients(module: ModuleType, alpha: Tensor, beta: Tensor, logit: Tensor) -> tuple[Tensor, Tensor]:
    """dm/dalpha and dm/dbeta of draws, (n,)."""
    saved = Saved(alpha[None], beta[None], logit[None], torch.ones(1, len(logit), dtype=torch.uint8))
    by_alpha, by_beta = by_concentrations(module, only(soft_mask=torch.ones_like(logit[None])), saved)
    return by_alpha[0], by_beta[0]


def precise_gradients() -> SimpleNamespace:
    """alpha, beta, logit, by_alpha, by_beta of tests/kernels/beta_gradients.csv; the last two of m. float64, (200,)."""
    with GRADIENTS.open() as file:
        rows = [[float(x) for x in row.values()] for row in csv.DictReader(file)]
    alpha, beta, logit, by_alpha, by_beta = torch.tensor(rows, dtype=torch.float64).T
    slope = torch.sigmoid(logit) * torch.sigmoid(-logit)
    return SimpleNamespace(alpha=alpha, beta=beta, logit=logit, by_alpha=by_alpha * slope, by_beta=by_beta * slope)


@functools.cache
def logit_cdf(alpha: float, beta: float) -> tuple[Tensor, Tensor]:
    """Points and the CDF of logit(m), m ~ Beta(alpha, beta), at them, float64: the trapezium rule on a grid that is
    fine where the density has its features (mean, zero) and reaches far into its exponential tails."""
    a, b = (torch.tensor(x, dtype=torch.float64) for x in (alpha, beta))
    mean = torch.digamma(a) - torch.digamma(b)
    deviation = torch.sqrt(torch.polygamma(1, a) + torch.polygamma(1, b))
    unit = torch.linspace(-1, 1, 40_001, dtype=torch.float64)
    around = torch.cat([unit * 12 * deviation, unit**5 * 40 * deviation]) + mean
    grid = torch.cat([around, unit * 40, unit**3 * 40 * deviation]).unique()
    log_density = -a * torch.nn.functional.softplus(-grid) - b * torch.nn.functional.softplus(grid)
    density = torch.exp(log_density - log_density.max())
    mass = torch.cat([torch.zeros(1, dtype=torch.float64), torch.cumulative_trapezoid(density, grid)])
    return grid, mass / mass[-1]


def kolmogorov_smirnov(logit: Tensor, alpha: float, beta: float) -> float:
    """sqrt(n) times the largest distance between the empirical and the true CDF: above 1.95 in 0.1 % of samples."""
    z = logit.double().sort().values
    n = len(z)
    grid, mass = logit_cdf(alpha, beta)
    cdf, steps = torch.from_numpy(np.interp(z, grid, mass)), torch.arange(n + 1, dtype=torch.float64) / n
    return float(max((steps[1:] - cdf).max(), (cdf - steps[:-1]).max())) * n**0.5
