"""The mask against torch.distributions, autograd and statistics."""

import itertools
import math

import pytest
import torch
from torch.distributions import Beta, kl_divergence
from torch.nn import functional as F

from seq2exp.kernels import beta_mask
from seq2exp.kernels.beta_mask import philox as px
from seq2exp.kernels.beta_mask.sampling import beta_sample_gradient

SETTINGS = dict(beta_min=0.2, signal_scale=1.5, z_scale=0.8, prior_mean=0.1, prior_scale=2.0, center=4)
TRACKS = dict(signal_weights=[0.4, 0.4, 0.2], signal_betas=[1.5, 0.2, 1.0])


def inputs(batch=2, length=40, dtype=torch.float64, seed=0):
    g = torch.Generator().manual_seed(seed)
    logits = torch.randn(batch, length, 2, generator=g, dtype=torch.float64).to(dtype).requires_grad_()
    signals = torch.rand(batch, length, 3, generator=g, dtype=torch.float64).to(dtype).requires_grad_()
    return logits, signals


def composed(logits, signals, weights, betas, rule="sum", exclude=None, include=None):
    """Mean mask, KL and continuity by torch.distributions and autograd."""
    s = SETTINGS
    seq = F.softplus(logits) + s["beta_min"] + 1e-8
    one = 1.0 if rule == "product" else 0.0
    a = seq[..., 1] + (((signals + s["beta_min"]) * s["signal_scale"] + 1e-8 - one) * weights).sum(-1)
    b = seq[..., 0] + (((betas + s["beta_min"]) * s["signal_scale"] - one) * weights).sum()
    posterior = Beta(a * s["z_scale"], b * s["z_scale"])
    m = posterior.mean
    prior = Beta(torch.tensor(s["prior_scale"]).to(a), torch.tensor(s["prior_scale"] * 9.0).to(a))
    keep = torch.ones_like(m)
    if exclude is not None:
        keep = keep * ~exclude
    out = m * keep
    if include is not None:
        out = torch.where(include, torch.ones_like(out), out)
    c = slice((m.shape[1] - 4) // 2, (m.shape[1] - 4) // 2 + 4)
    centre = torch.zeros_like(m, dtype=torch.bool)
    centre[:, c] = True
    out = torch.where(centre, torch.ones_like(out), out)
    return out, m, kl_divergence(posterior, prior).mean(), out.diff(dim=1).abs().sum(1).mean() / (m.shape[1] + 1)


@pytest.mark.parametrize("rule,regions", list(itertools.product(["sum", "product"], [False, True])))
def test_mean_equals_torch_distributions_with_gradients(rule, regions):
    logits, signals = inputs()
    weights = torch.tensor(TRACKS["signal_weights"], dtype=torch.float64, requires_grad=True)
    betas = torch.tensor(TRACKS["signal_betas"], dtype=torch.float64, requires_grad=True)
    exclude = include = None
    if regions:
        exclude = torch.zeros(2, 40, dtype=torch.bool)
        include = exclude.clone()
        exclude[:, 3:25], include[:, 22:30] = True, True
    if rule == "product":
        signals = (signals.detach() + 1).requires_grad_()
        betas = (betas.detach() + 1).requires_grad_()
    out = beta_mask(
        logits, signals, signal_weights=weights, signal_betas=betas, sample=False, rule=rule, exclude=exclude,
        include=include, **SETTINGS,
    )  # fmt: skip
    expected = composed(logits, signals, weights, betas, rule, exclude, include)
    leaves = (logits, signals, weights, betas)
    g = torch.Generator().manual_seed(1)
    for ours, theirs in zip((out.mask, out.soft_mask, out.kl, out.continuity), expected, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-10, atol=1e-12)
        v = torch.randn(ours.shape, generator=g, dtype=torch.float64)
        for i, (a, b) in enumerate(
            zip(
                torch.autograd.grad(ours, leaves, v, retain_graph=True),
                torch.autograd.grad(theirs, leaves, v, retain_graph=True, allow_unused=True),
                strict=True,
            )
        ):
            assert torch.allclose(a, torch.zeros_like(a) if b is None else b, rtol=1e-8, atol=1e-10), i


def test_gradcheck():
    logits, signals = inputs(batch=1, length=9)

    def f(logits, signals):
        out = beta_mask(logits, signals, sample=False, hard=False, **TRACKS, **SETTINGS)
        return out.mask, out.soft_mask, out.alpha, out.beta, out.kl, out.continuity

    assert torch.autograd.gradcheck(f, (logits, signals))


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


def samples(alpha, beta, n=100_000, seed=3):
    """logit(m) of n draws, through the public op: betas carry alpha and beta."""
    out = beta_mask(
        torch.full((1, n, 2), -200.0, dtype=torch.float64), torch.full((1, n, 1), alpha, dtype=torch.float64),
        signal_weights=[1.0], signal_betas=[beta], beta_min=0.0, signal_scale=1.0, prior_mean=0.1, prior_scale=1.0,
        sample=True, seed=seed,
    )  # fmt: skip
    return out.soft_mask[0]


@pytest.mark.parametrize("alpha,beta", [(0.05, 0.08), (0.3, 2.0), (1.0, 1.0), (3.0, 0.7), (40.0, 400.0)])
def test_moments(alpha, beta):
    m = samples(alpha, beta)
    mean, var = alpha / (alpha + beta), alpha * beta / ((alpha + beta) ** 2 * (alpha + beta + 1))
    assert abs(float(m.mean()) - mean) < 4 * math.sqrt(var / len(m))
    assert abs(float(m.var()) / var - 1) < 0.05
    # E log m = psi(alpha) - psi(alpha + beta) sees the small values
    log_m = torch.log(m.clamp_min(1e-300))
    expected = torch.digamma(torch.tensor(alpha)) - torch.digamma(torch.tensor(alpha + beta))
    assert abs(float(log_m.mean() - expected)) < 5 * float(log_m.std()) / math.sqrt(len(m))


def test_small_concentrations_have_no_spurious_half():
    m = samples(0.01, 0.01)
    assert float((m == 0.5).double().mean()) == 0
    assert torch.isfinite(m).all()
    assert abs(float(m.mean()) - 0.5) < 0.01


def test_a_diverged_row_does_not_hang_the_sampler_or_leak():
    logits, signals = inputs()
    clean = beta_mask(logits, signals, sample=True, seed=4, **TRACKS, **SETTINGS).soft_mask
    broken = logits.detach().clone()
    broken[0, 7] = math.nan
    soft = beta_mask(broken, signals, sample=True, seed=4, **TRACKS, **SETTINGS).soft_mask
    assert torch.isnan(soft[0, 7])
    keep = torch.ones(2, 40, dtype=torch.bool)
    keep[0, 7] = False
    assert torch.equal(soft[keep], clean[keep])


def test_a_sample_depends_on_seed_row_and_position_only():
    logits, signals = inputs(batch=4, dtype=torch.float32)
    options = dict(sample=True, **TRACKS, **SETTINGS)
    rows = torch.tensor([7, 2**40, 3, 0])
    whole = beta_mask(logits, signals, seed=11, rows=rows, **options).mask
    order = torch.tensor([2, 0, 3, 1])
    shuffled = beta_mask(logits[order], signals[order], seed=11, rows=rows[order], **options).mask
    assert torch.equal(whole[order], shuffled)
    assert not torch.equal(whole, beta_mask(logits, signals, seed=12, rows=rows, **options).mask)
    again = beta_mask(logits[1:2], signals[1:2], seed=11, rows=rows[1:2] + 1, **options).mask
    assert not torch.equal(whole[1:2], again)


@pytest.mark.parametrize("alpha,beta", [(0.3, 0.9), (2.0, 5.0), (30.0, 3.0)])
def test_pathwise_gradient_in_expectation(alpha, beta):
    """Mean of dm/dalpha and dm/dbeta over samples against the derivative of alpha / (alpha + beta)."""
    m = samples(alpha, beta)
    da, db = beta_sample_gradient(m, torch.full_like(m, alpha), torch.full_like(m, beta))
    total = (alpha + beta) ** 2
    for ours, expected in ((da, beta / total), (db, -alpha / total)):
        assert abs(float(ours.mean()) - expected) < 4 * float(ours.std()) / math.sqrt(len(m))


def test_sampling_gradient_reaches_the_logits():
    logits, signals = inputs()
    out = beta_mask(logits, signals, sample=True, seed=5, **TRACKS, **SETTINGS)
    (grad,) = torch.autograd.grad(out.mask.sum(), logits)
    assert (grad[:, :18, 1] > 0).all() and (grad[:, :18, 0] < 0).all()
    assert (grad[:, 18:22] == 0).all()  # the centre is 1 whatever the logits say


@pytest.mark.parametrize("fraction", [None, 0.25])
def test_hard_is_binary_and_straight_through(fraction):
    logits, signals = inputs()
    options = dict(sample=False, top_fraction=fraction, **TRACKS, **SETTINGS)
    hard = beta_mask(logits, signals, hard=True, threshold=0.45, **options)
    assert set(hard.mask.unique().tolist()) == {0.0, 1.0}
    v = torch.randn(2, 40, dtype=torch.float64)
    v[:, 18:22] = 0
    ours = torch.autograd.grad(hard.mask, logits, v, retain_graph=True)[0]
    straight = torch.autograd.grad(hard.soft_mask, logits, v)[0]
    assert torch.allclose(ours, straight)
    if fraction:
        outside = [j for j in range(40) if not 18 <= j < 22]
        order = hard.soft_mask.argsort(1, descending=True)[:, :10]
        for b in range(2):
            kept = {j for j in outside if hard.mask[b, j] == 1}
            assert kept == set(order[b].tolist()) & set(outside)


def test_top_fraction_count_and_ties():
    flat = torch.zeros(1, 1001, 2)
    out = beta_mask(
        flat, torch.zeros(1, 1001, 1), signal_weights=[1.0], signal_betas=[1.0], beta_min=0.1, signal_scale=1.0,
        prior_mean=0.1, prior_scale=1.0, sample=False, hard=True, top_fraction=0.1,
    )  # fmt: skip
    assert out.mask[0].nonzero().flatten().tolist() == list(range(100))


def test_opcheck_and_compile():
    logits, signals = inputs(dtype=torch.float32)

    def f(logits, signals):
        out = beta_mask(logits, signals, sample=True, seed=3, hard=True, **TRACKS, **SETTINGS)
        return out.mask.square().sum() + out.kl

    eager = torch.autograd.grad(f(logits, signals), (logits, signals))
    compiled = torch.autograd.grad(
        torch.compile(f, fullgraph=True, backend="aot_eager")(logits, signals), (logits, signals)
    )
    for a, b in zip(eager, compiled, strict=True):
        assert torch.equal(a, b)
    weights, betas = (torch.tensor(v) for v in TRACKS.values())
    scalars = (0.2, 1.5, 0.8, 0.1, 2.0, True, False, 0.5, None, 4, "sum", 3)
    torch.library.opcheck(
        torch.ops.seq2exp.beta_mask_fwd.default,
        (logits, signals, weights, betas, None, None, torch.arange(2), *scalars),
    )


@pytest.mark.parametrize(
    "change,error,words",
    [
        (dict(signals=-torch.ones(2, 40, 3)), ValueError, "signals must be >= 0, the smallest is -1"),
        (dict(signals=torch.full((2, 40, 3), math.nan)), ValueError, "NaN or inf"),
        (dict(signal_weights=[1.0, 1.0]), ValueError, "signals have 3 tracks, signal_weights has shape"),
        (dict(prior_mean=1.0), ValueError, r"prior_mean 1.0 is outside \(0, 1\)"),
        (dict(threshold=1.5), ValueError, r"threshold 1.5 is outside \[0, 1\]"),
        (dict(rule="product", signal_betas=[0.0, 0.0, 0.0]), ValueError, "raise beta_min or signal_scale"),
        (dict(rule="mean"), ValueError, "none of sum, product"),
        (dict(center=41), ValueError, "center 41"),
        (dict(top_fraction=2.0), ValueError, "top_fraction"),
        (dict(rows=torch.zeros(3, dtype=torch.long)), ValueError, "rows must be int64"),
        (dict(exclude=torch.zeros(2, 40)), ValueError, "exclude must be bool"),
    ],
)
def test_bad_input(change, error, words):
    logits, signals = inputs(dtype=torch.float32)
    options = {**SETTINGS, **TRACKS, "signals": signals.detach(), "sample": False, **change}
    with pytest.raises(error, match=words):
        beta_mask(logits, **options)
