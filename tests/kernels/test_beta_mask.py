"""The op: against torch.distributions and autograd, selection, seeds, torch.compile, refused input."""

import itertools
import math
from collections.abc import Iterator

import pytest
import torch
from torch.distributions import Beta, kl_divergence
from torch.nn import functional as F

from seq2exp.kernels import _extension, beta_mask, set_backend

SETTINGS = dict(beta_min=0.2, signal_scale=1.5, z_scale=0.8, prior_mean=0.1, prior_scale=2.0, center=4)
TRACKS = dict(signal_weights=[0.4, 0.4, 0.2], signal_betas=[1.5, 0.2, 1.0])


BACKENDS = ["reference"] if _extension.load() else ["reference", "cpu"]


@pytest.fixture(params=BACKENDS)
def backend(request) -> Iterator[str]:
    """In force; tests that use it take float32."""
    with set_backend(request.param):
        yield request.param


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


def test_a_diverged_row_does_not_hang_the_sampler_or_leak(backend):
    logits, signals = inputs(dtype=torch.float32)
    clean = beta_mask(logits, signals, sample=True, seed=4, **TRACKS, **SETTINGS).soft_mask
    broken = logits.detach().clone()
    broken[0, 7] = math.nan
    soft = beta_mask(broken, signals, sample=True, seed=4, **TRACKS, **SETTINGS).soft_mask
    assert torch.isnan(soft[0, 7])
    keep = torch.ones(2, 40, dtype=torch.bool)
    keep[0, 7] = False
    assert torch.equal(soft[keep], clean[keep])


def test_a_sample_depends_on_seed_row_and_position_only(backend):
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


def test_sampling_gradient_reaches_the_logits(backend):
    logits, signals = inputs(dtype=torch.float32)
    out = beta_mask(logits, signals, sample=True, seed=5, **TRACKS, **SETTINGS)
    (grad,) = torch.autograd.grad(out.mask.sum(), logits)
    assert (grad[:, :18, 1] > 0).all() and (grad[:, :18, 0] < 0).all()
    assert (grad[:, 18:22] == 0).all()  # the centre is 1 whatever the logits say


@pytest.mark.parametrize("fraction", [None, 0.25])
def test_hard_is_binary_and_straight_through(backend, fraction):
    logits, signals = inputs(dtype=torch.float32)
    options = dict(sample=False, top_fraction=fraction, **TRACKS, **SETTINGS)
    hard = beta_mask(logits, signals, hard=True, threshold=0.45, **options)
    assert set(hard.mask.unique().tolist()) == {0.0, 1.0}
    v = torch.randn(2, 40)
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


def test_top_fraction_count_and_ties(backend):
    flat = torch.zeros(1, 1001, 2)
    out = beta_mask(
        flat, torch.zeros(1, 1001, 1), signal_weights=[1.0], signal_betas=[1.0], beta_min=0.1, signal_scale=1.0,
        prior_mean=0.1, prior_scale=1.0, sample=False, hard=True, top_fraction=0.1,
    )  # fmt: skip
    assert out.mask[0].nonzero().flatten().tolist() == list(range(100))


def test_smooth_selects_stretches(backend):
    """By hand: one high base selects its neighbours; ties still go to the first."""
    logits = torch.zeros(1, 20, 2)
    logits[0, 5, 1] = logits[0, 14, 1] = 5.0
    options = dict(
        signal_weights=[1.0], signal_betas=[1.0], beta_min=0.1, signal_scale=1.0, prior_mean=0.1, prior_scale=1.0,
        sample=False, hard=True, smooth=5,
    )  # fmt: skip
    signals = torch.zeros(1, 20, 1)

    def selected(**more):
        return beta_mask(logits, signals, **options | more).mask[0].nonzero().flatten().tolist()

    assert selected() == [*range(3, 8), *range(12, 17)]
    assert selected(top_fraction=0.35) == [*range(3, 8), 12, 13]
    logits[0, 0, 1] = 9.0
    assert selected(top_fraction=0.15) == [0, 1, 2]
    out = beta_mask(logits.requires_grad_(), signals, **options)
    assert out.soft_mask[0, 3].item() < 0.5 and out.mask[0, 3].item() == 1
    out.mask.sum().backward()
    assert (logits.grad[..., 1] > 0).all()  # straight-through, at every base


def test_a_base_both_included_and_excluded(backend):
    """Included wins; the centre wins over both."""
    logits, signals = inputs(dtype=torch.float32)
    everywhere = torch.ones(2, 40, dtype=torch.bool)
    out = beta_mask(logits, signals, sample=False, exclude=everywhere, include=everywhere, **TRACKS, **SETTINGS)
    assert (out.mask == 1).all()
    out = beta_mask(logits, signals, sample=False, exclude=everywhere, **TRACKS, **SETTINGS)
    assert out.mask[0].nonzero().flatten().tolist() == [18, 19, 20, 21]


@pytest.mark.parametrize("backend", BACKENDS[-1:], indirect=True)
def test_opcheck_and_compile(backend):
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
    weights, betas = (torch.tensor(v, requires_grad=True) for v in TRACKS.values())
    for sample in (True, False):
        scalars = (0.2, 1.5, 0.8, 0.1, 2.0, sample, False, 0.5, None, 1, 4, "sum", 3, backend)
        torch.library.opcheck(
            torch.ops.seq2exp.beta_mask_fwd.default,
            (logits, signals, weights, betas, None, None, torch.arange(2), *scalars),
        )


@pytest.mark.parametrize(
    "change,error,words",
    [
        (dict(signals=-9 * torch.ones(2, 40, 3)), ValueError, "signals must be >= 0, the smallest is -9"),
        (dict(signals=torch.full((2, 40, 3), math.nan)), ValueError, "NaN or inf"),
        (dict(signal_weights=[1.0, 1.0]), ValueError, "signals have 3 tracks, signal_weights has shape"),
        (dict(prior_mean=1.0), ValueError, r"prior_mean 1.0 is outside \(0, 1\)"),
        (dict(threshold=1.5), ValueError, r"threshold 1.5 is outside \[0, 1\]"),
        (dict(rule="product", signal_betas=[0.0, 0.0, 0.0]), ValueError, "raise beta_min or signal_scale"),
        (dict(rule="mean"), ValueError, "none of sum, product"),
        (dict(center=41), ValueError, "center 41"),
        (dict(top_fraction=2.0), ValueError, "top_fraction"),
        (dict(smooth=4, hard=True), ValueError, "smooth 4 must be odd"),
        (dict(smooth=5), ValueError, "needs hard=True or top_fraction"),
        (dict(prior_scale=0.0), ValueError, "prior_scale 0.0 must be positive"),
        (dict(signals=torch.full((2, 40, 3), math.inf)), ValueError, "NaN or inf"),
        (dict(signal_betas=[1.0]), ValueError, "signals have 3 tracks, signal_betas has shape"),
        (dict(signals=torch.zeros(2, 39, 3)), ValueError, "signals must be .batch, L, tracks."),
        (dict(signals=torch.zeros(2, 40, 3, dtype=torch.long)), TypeError, "signals is torch.int64"),
        (dict(rows=torch.zeros(3, dtype=torch.long)), ValueError, "rows must be int64"),
        (dict(exclude=torch.zeros(2, 40)), ValueError, "exclude must be bool"),
    ],
)
@pytest.mark.parametrize("sample", [False, True])  # no draw of a concentration below 0 is ever accepted
def test_bad_input(backend, sample, change, error, words):
    logits, signals = inputs(dtype=torch.float32)
    options = {**SETTINGS, **TRACKS, "signals": signals.detach(), "sample": sample, **change}
    with pytest.raises(error, match=words):
        beta_mask(logits, **options)
