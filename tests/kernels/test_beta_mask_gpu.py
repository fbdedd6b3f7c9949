"""The mask's GPU backends on a GPU against the float64 oracle there; `make gpu` runs them.

With SEQ2EXP_REHEARSAL=1 the same tests run the C++ backend on the CPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType, SimpleNamespace

import pytest
import torch
from mask_problems import OPTIONS, check, kolmogorov_smirnov, precise_gradients, problem, results, settings
from on_gpu import BACKENDS, DEVICE, MARKS, forced, implementation

from seq2exp.kernels import beta_mask
from seq2exp.kernels.beta_mask.settings import BetaMask, Saved

pytestmark = MARKS


@pytest.fixture(params=BACKENDS)
def backend(request) -> Iterator[str]:
    with forced(request.param) as name:
        yield name


@pytest.fixture
def module(backend) -> ModuleType:
    return implementation("beta_mask", backend)


def there(p: SimpleNamespace) -> SimpleNamespace:
    """p on the device."""
    p.inputs = {name: None if x is None else x.to(DEVICE) for name, x in p.inputs.items()}
    p.grads = BetaMask(*(g.to(DEVICE) for g in p.grads))
    return p


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("regions", [False, True])
def test_options(module, options, regions):
    check(module, there(problem(length=3_000, regions=regions, **options)))


@pytest.mark.parametrize("length", [1, 63, 255, 2049, 65_537, 200_000])
def test_lengths(module, length):
    check(module, there(problem(length=length, seed=length)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_storage(module, dtype):
    check(module, there(problem(length=500, dtype=dtype)), limit=4e-3 if dtype == torch.bfloat16 else 5e-4)


def test_gradients_against_high_precision(module):
    p = precise_gradients()
    alpha, beta, logit = (x.float().to(DEVICE)[None] for x in (p.alpha, p.beta, p.logit))
    saved = Saved(alpha, beta, logit, torch.ones_like(alpha, dtype=torch.uint8))
    track, logits = torch.zeros(1, device=DEVICE), torch.full((*alpha.shape, 2), 50.0, device=DEVICE)
    grads = BetaMask(None, torch.ones_like(alpha), None, None, None, None)
    (by,) = module.backward(grads, logits, None, track, track, saved, settings(z_scale=1.0), False, False)
    for got, expected in ((by[0, :, 1], p.by_alpha), (by[0, :, 0], p.by_beta)):
        error = (got.double().cpu() / expected - 1).abs()
        assert float(error.max()) < 1e-3 and float(error.median()) < 1e-4


@pytest.mark.parametrize("alpha", [1e-3, 0.05, 1.0, 30.0, 1e4])
def test_distribution(module, alpha):
    for beta in (1e-3, 0.6, 3.0, 1e4):
        n = 100_000
        _, saved, _ = module.forward(
            torch.full((1, n, 2), -200.0, device=DEVICE), torch.full((1, n, 1), alpha, device=DEVICE),
            torch.ones(1, device=DEVICE), torch.tensor([beta], device=DEVICE), None, None,
            torch.zeros(1, dtype=torch.long, device=DEVICE),
            settings(beta_min=0.0, signal_scale=1.0, z_scale=1.0, center=0, seed=3),
        )  # fmt: skip
        assert kolmogorov_smirnov(saved.logit[0].cpu(), alpha, beta) < 1.95, beta


def test_same_bits_in_every_run_and_any_split_of_the_batch(module):
    p = there(problem(batch=4, length=50_000))
    first, second = results(module, p), results(module, p)
    assert all(torch.equal(a, b) for a, b in zip((*first[0], *first[1]), (*second[0], *second[1]), strict=True))
    half = {name: x if name in ("weights", "betas") else x[2:] for name, x in p.inputs.items()}
    out, _, _ = module.forward(**half, s=p.settings)
    assert torch.equal(out.mask, first[0].mask[2:]) and torch.equal(out.soft_mask, first[0].soft_mask[2:])


def test_op(backend):
    p = there(problem(length=40))
    scalars = (0.2, 1.5, 0.8, 0.1, 2.0, True, False, 0.5, None, 1, 4, "sum", 3, backend)
    torch.library.opcheck(
        torch.ops.seq2exp.beta_mask_fwd.default,
        (p.inputs["seq_logits"].requires_grad_(), *list(p.inputs.values())[1:], *scalars),
    )
    with pytest.raises(ValueError, match="NaN or inf"):
        beta_mask(
            p.inputs["seq_logits"], p.inputs["signals"] * torch.nan, signal_weights=[1.0] * 3, signal_betas=[1.0] * 3,
            beta_min=0.2, signal_scale=1.0, prior_mean=0.1, prior_scale=1.0, sample=True,
        )  # fmt: skip
