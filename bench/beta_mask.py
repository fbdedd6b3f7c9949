"""Benchmarks of the mask on the CPU: the op against torch.distributions, the top fraction against torch.topk."""

from __future__ import annotations

import functools

import torch
from harness import Contest, benchmark
from torch import Tensor
from torch.distributions import Beta, kl_divergence
from torch.nn import functional as F

from seq2exp.kernels import BetaMask, _extension, beta_mask, set_backend
from seq2exp.kernels.beta_mask import native, reference

BATCH, LENGTH, CENTER = 8, 200_000, 2_000
WEIGHTS, BETAS = (0.4, 0.4, 0.2), (1.5, 0.2, 1.0)
SOFT = dict(beta_min=1.0, signal_scale=10.0, prior_mean=0.1, prior_scale=10.0)
HARD = dict(beta_min=0.0, signal_scale=1.0, prior_mean=0.45, prior_scale=0.1, hard=True)


def composed(
    logits: Tensor, signals: Tensor, weights: Tensor, betas: Tensor, *, beta_min: float, signal_scale: float,
    prior_mean: float, prior_scale: float, hard: bool = False,
) -> BetaMask:  # fmt: skip
    """The mask as torch.distributions gives it."""
    sequence = F.softplus(logits) + beta_min + 1e-8
    alpha = sequence[..., 1] + (((signals + beta_min) * signal_scale + 1e-8) * weights).sum(-1)
    beta = sequence[..., 0] + ((betas + beta_min) * signal_scale * weights).sum()
    posterior = Beta(alpha, beta)
    prior = Beta(
        torch.full_like(alpha, prior_scale), torch.full_like(alpha, prior_scale * (1 - prior_mean) / prior_mean)
    )
    soft = posterior.rsample()
    mask = (soft >= 0.5).float() + soft - soft.detach() if hard else soft.clone()
    mask[:, (LENGTH - CENTER) // 2 : (LENGTH + CENTER) // 2] = 1
    continuity = mask.diff(dim=1).abs().sum(1).mean() / (LENGTH + 1)
    return BetaMask(mask, soft, alpha, beta, kl_divergence(posterior, prior).mean(), continuity)


def fused(
    logits: Tensor, signals: Tensor, weights: Tensor, betas: Tensor, seed: int | None = None, **options: float
) -> BetaMask:
    with set_backend("cpu"):
        return beta_mask(
            logits, signals, signal_weights=weights, signal_betas=betas, sample=True, center=CENTER, seed=seed,
            **options,
        )  # fmt: skip


def contest(options: dict[str, float]) -> Contest:
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(BATCH, LENGTH, 2, generator=g).requires_grad_()
    inputs = (logits, 3 * torch.rand(BATCH, LENGTH, 3, generator=g), torch.tensor(WEIGHTS), torch.tensor(BETAS))
    grad = torch.rand(BATCH, LENGTH, generator=g)
    of_scalars = torch.tensor(0.01), torch.tensor(0.01)

    def forward_backward(function) -> Tensor:
        out = function(*inputs, **options)
        return torch.autograd.grad((out.mask, out.kl, out.continuity), logits, (grad, *of_scalars))[0]

    def check() -> None:
        """Concentrations and KL agree, the sample has the mean of the Beta, gradients are those of the reference."""
        ours, theirs = fused(*inputs, seed=1, **options), composed(*inputs, **options)
        torch.testing.assert_close(ours.alpha, theirs.alpha)
        torch.testing.assert_close(ours.kl, theirs.kl, rtol=1e-4, atol=0)
        spread = (ours.soft_mask - theirs.alpha / (theirs.alpha + theirs.beta)).mean()
        assert abs(float(spread.detach())) < 1e-3, f"the mean of the sample is off by {spread}"
        row = tuple(x[:1] for x in inputs[:2]) + inputs[2:]
        with set_backend("reference"):
            exact = beta_mask(
                *row[:2], signal_weights=row[2], signal_betas=row[3], sample=True, center=CENTER, seed=1, **options
            )
        fast = fused(*row, seed=1, **options)
        ours, theirs = (torch.autograd.grad(out.mask, logits, grad[:1])[0] for out in (fast, exact))
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)

    return Contest(lambda: forward_backward(fused), lambda: forward_backward(composed), check)


for _name, _options in (("soft", SOFT), ("hard", HARD)):
    benchmark(
        f"beta_mask_cpu_{_name}", ours="C++ mask", other="torch.distributions", goal=10, rounds=3,
        unavailable=_extension.load,
        setting=f"forward and backward, published {_name} settings, fp32, batch 8, L 200,000",
    )(functools.partial(contest, _options))  # fmt: skip


@benchmark(
    "beta_mask_cpu_top", ours="C++ top fraction", other="torch.topk", goal=1, unavailable=_extension.load,
    setting="the largest 10 % of 200,000 means; ours gives the mask, ties by position",
)  # fmt: skip
def top() -> Contest:
    g = torch.Generator().manual_seed(0)
    alpha, beta = (torch.randn(1, LENGTH, generator=g).exp() for _ in range(2))
    scores, k = alpha / (alpha + beta), LENGTH // 10

    def check() -> None:
        assert torch.equal(native.top_mask(scores, k), reference.top_mask(scores, k)), "another selection"

    return Contest(lambda: native.top_mask(scores, k), lambda: torch.topk(scores, k), check)
