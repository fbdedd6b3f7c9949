"""Draws from the Beta, their gradients and the divergence: against exact distributions and high-precision values."""

from __future__ import annotations

import math
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch
from mask_problems import (
    by_concentrations,
    kolmogorov_smirnov,
    of_concentrations,
    only,
    precise_gradients,
    sample_gradients,
    settings,
)
from torch.distributions import Beta, kl_divergence

from seq2exp.kernels import _extension
from seq2exp.kernels.beta_mask import native, reference
from seq2exp.kernels.beta_mask import philox as px

SETS = [] if _extension.load() else torch.ops.seq2exp_native.cpu_instruction_sets()[-2:]  # the widest


@pytest.fixture(params=["reference", *SETS])
def module(request) -> Iterator[object]:
    """The plain PyTorch form, and the C++ kernels with each instruction set."""
    if request.param == "reference":
        yield reference
        return
    before = torch.ops.seq2exp_native.cpu_instruction_set()
    torch.ops.seq2exp_native.set_cpu_instruction_set(request.param)
    yield native
    torch.ops.seq2exp_native.set_cpu_instruction_set(before)


def test_philox_known_answers():
    """Random123's kat_vectors for philox4x32, 10 rounds."""
    cases = [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ]
    for counter, key, expected in cases:
        words = px.philox(tuple(torch.tensor([c]) for c in counter), key)
        assert tuple(int(w) for w in words) == expected


CONCENTRATIONS = (1e-3, 0.05, 0.6, 1.0, 3.0, 1e2, 1e4)
PAIRS = [(x, y) for i, x in enumerate(CONCENTRATIONS) for y in CONCENTRATIONS[i % 2 :: 2]]


@pytest.mark.parametrize("alpha", CONCENTRATIONS)
def test_distribution(module, alpha):
    for beta in (beta for x, beta in PAIRS if x == alpha):
        _, saved = of_concentrations(module, alpha, beta, 100_000)
        assert kolmogorov_smirnov(saved.logit[0], alpha, beta) < 1.95, beta


def test_the_test_of_the_distribution_sees_a_shift():
    for alpha, beta in ((1e-3, 3.0), (1e4, 1e4), (0.6, 100.0)):
        _, saved = of_concentrations(reference, alpha, beta, 100_000)
        assert kolmogorov_smirnov(saved.logit[0], alpha * 1.03, beta) > 1.95


@pytest.mark.parametrize("alpha,beta", [(0.05, 0.08), (0.3, 2.0), (1.0, 1.0), (3.0, 0.7), (40.0, 400.0)])
def test_moments(module, alpha, beta):
    out, saved = of_concentrations(module, alpha, beta, 100_000)
    m = out.soft_mask[0].double()
    mean, var = alpha / (alpha + beta), alpha * beta / ((alpha + beta) ** 2 * (alpha + beta + 1))
    assert abs(float(m.mean()) - mean) < 4 * math.sqrt(var / len(m))
    assert abs(float(m.var()) / var - 1) < 0.05
    # E log m = psi(alpha) - psi(alpha + beta) sees the small values
    log_m = torch.nn.functional.logsigmoid(saved.logit[0].double())
    expected = torch.digamma(torch.tensor(alpha)) - torch.digamma(torch.tensor(alpha + beta))
    assert abs(float(log_m.mean() - expected)) < 5 * float(log_m.std()) / math.sqrt(len(m))


def test_gradients_against_high_precision(module):
    p = precise_gradients()
    dtype = torch.float64 if module is reference else torch.float32
    ours = sample_gradients(module, *(x.to(dtype) for x in (p.alpha, p.beta, p.logit)))
    for got, expected in zip(ours, (p.by_alpha, p.by_beta), strict=True):
        error = (got.double() / expected - 1).abs()
        assert float(error.max()) < (1e-6 if module is reference else 1e-4)
        assert float(error.median()) < (1e-9 if module is reference else 3e-6)


def random_draws(n: int, low: float, high: float, seed: int) -> SimpleNamespace:
    """Concentrations log-uniform over 10^low..10^high, exact in float32, and draws by torch's Gamma in float64."""
    g = torch.Generator().manual_seed(seed)
    alpha, beta = (10 ** (low + (high - low) * torch.rand(n, generator=g)) for _ in range(2))

    def log_gamma(a):
        boost = torch.rand(n, generator=g, dtype=torch.float64).log() / a.double()
        return torch.log(torch._standard_gamma(a.double() + 1, g)) + boost

    return SimpleNamespace(alpha=alpha, beta=beta, logit=(log_gamma(alpha) - log_gamma(beta)).float())


def test_gradients_over_ten_orders_of_magnitude():
    """The high-precision values confirm the reference; it confirms the float32 kernels at many more points."""
    if not SETS:
        pytest.skip(_extension.load())
    p = random_draws(100_000, -4, 6, seed=0)
    ours = sample_gradients(native, p.alpha, p.beta, p.logit)
    exact = sample_gradients(reference, p.alpha.double(), p.beta.double(), p.logit.double())
    inside = p.logit.abs() < 80  # beyond, m rounds to 0 or 1 and its gradients to 0
    for got, expected in zip(ours, exact, strict=True):
        assert torch.isfinite(got).all()
        error = (got.double() / expected - 1).abs()[inside]
        assert float(error.max()) < 5e-4 and float(error.median()) < 5e-6


@pytest.mark.parametrize("alpha,beta", [(0.01, 0.02), (0.3, 0.9), (2.0, 5.0), (30.0, 3.0), (800.0, 1200.0)])
def test_pathwise_gradient_in_expectation(module, alpha, beta):
    """Of m and of m^2, whose expectations are rational in the concentrations."""
    out, saved = of_concentrations(module, alpha, beta, 100_000)
    m = out.soft_mask.double()
    a = torch.tensor([alpha, beta], dtype=torch.float64, requires_grad=True)
    total = a.sum()
    for power, expectation in ((1, a[0] / total), (2, a[0] * (a[0] + 1) / (total * (total + 1)))):
        expected = torch.autograd.grad(expectation, a, retain_graph=True)[0]
        grads = only(soft_mask=(power * m ** (power - 1)).to(out.soft_mask.dtype))
        for ours, exact in zip(by_concentrations(module, grads, saved), expected, strict=True):
            ours = ours.double()
            assert abs(float(ours.mean() - exact)) < 4 * float(ours.std()) / math.sqrt(ours.numel())


PRIORS = [(0.1, 10.0), (0.45, 0.1), (0.1, 1.0)]


@pytest.mark.parametrize("mean,scale", PRIORS)
def test_divergence_and_its_gradients(module, mean, scale):
    """1e-5 of what torch.distributions and autograd say in float64."""
    prior = dict(prior_mean=mean, prior_scale=scale)
    p, q = (torch.tensor(x, dtype=torch.float64) for x in settings(**prior).prior)
    for alpha in (1e-4, 0.01, 0.4, 1.0, 3.9, 4.1, 50.0, 1e4, 1e6):
        for beta in (1e-3, 0.3, 2.0, 30.0, 1e4, 1e6):
            out, saved = of_concentrations(module, alpha, beta, 1, sample=False, **prior)
            a, b = (x.double().squeeze().requires_grad_() for x in saved[:2])
            kl = kl_divergence(Beta(a, b), Beta(p, q))
            exact = (kl.detach(), *torch.autograd.grad(kl, (a, b)))
            grads = only(kl=torch.ones(()))
            ours = (out.kl, *by_concentrations(module, grads, saved, sample=False, **prior))
            for got, expected in zip(ours, exact, strict=True):
                assert float(abs(got.double() / expected - 1)) < 1e-5, (alpha, beta)


def test_small_concentrations_have_no_spurious_half(module):
    for c in (1e-4, 0.01):
        out, saved = of_concentrations(module, c, c, 100_000)
        m = out.soft_mask
        assert int((m == 0.5).sum()) == 0 and torch.isfinite(saved.logit).all()
        assert abs(float(m.double().mean()) - 0.5) < 0.01


@pytest.mark.parametrize("alpha", [1e-4, 1.0, 1e6])
def test_no_concentration_loses_numbers_or_gradients(module, alpha):
    for beta in (1e-4, 1e-2, 1.0, 1e3, 1e6):
        out, saved = of_concentrations(module, alpha, beta, 2_000)
        ones = torch.ones_like(out.mask)
        grads = only(mask=ones, kl=torch.ones(()), alpha=0 * ones)
        of_kl = by_concentrations(module, only(kl=torch.ones(())), saved)
        of_mask = by_concentrations(module, only(mask=ones), saved)
        for x in (*out, *saved, *by_concentrations(module, grads, saved), *of_kl, *of_mask):
            assert torch.isfinite(x).all()
        inside = saved.logit.abs() < 60
        assert (of_mask[0][inside] > 0).all() and (of_mask[1][inside] < 0).all()
        assert all((x != 0).all() for x in of_kl)


def test_backends_draw_the_same():
    """To 1e-5 but where a rejection test falls inside rounding: under 1e-4 of the draws."""
    if not SETS:
        pytest.skip(_extension.load())
    flips = total = 0
    for alpha, beta in ((0.05, 0.2), (0.7, 1.0), (1.5, 0.9), (12.0, 20.0), (1e3, 20.0), (1e6, 1e6)):
        ours, theirs = (of_concentrations(m, alpha, beta, 100_000)[0].soft_mask for m in (native, reference))
        flips += int(((ours - theirs).abs() > 1e-5).sum())
        total += ours.numel()
    assert flips < 1e-4 * total, flips
