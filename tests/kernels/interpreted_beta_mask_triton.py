"""The mask's Triton kernels in Triton's interpreter, against the float64 oracle. Needs TRITON_INTERPRET=1 from the
start: test_beta_mask_triton.py does that.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import triton
import triton.language as tl
from mask_problems import (
    OPTIONS,
    check,
    kolmogorov_smirnov,
    of_concentrations,
    precise_gradients,
    problem,
    results,
    sample_gradients,
)
from triton_interpreter import backwards, races

from seq2exp.kernels import beta_mask, set_backend
from seq2exp.kernels.beta_mask import philox, reference
from seq2exp.kernels.beta_mask import triton as module


@pytest.fixture(autouse=True)
def poisoned() -> Iterator[None]:
    """Memory that torch hands out uninitialised holds NaN."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@triton.jit
def words_kernel(p_words, seed, row_low, row_high, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    zero = (i * 0).to(tl.uint32)
    w0, w1, w2, w3 = tl.philox(
        seed, i.to(tl.uint32), row_low.to(tl.uint32) + zero, row_high.to(tl.uint32) + zero, 5 + zero
    )
    tl.store(p_words + i, w0.to(tl.int64))
    tl.store(p_words + BLOCK + i, w1.to(tl.int64))
    tl.store(p_words + 2 * BLOCK + i, w2.to(tl.int64))
    tl.store(p_words + 3 * BLOCK + i, w3.to(tl.int64))


def test_random_numbers_are_bit_equal():
    seed, row, n = 0x123456789ABCDEF, 2**33 + 7, 256
    words = torch.empty(4, n, dtype=torch.long)
    words_kernel[(1,)](words, seed, row & 0xFFFFFFFF, row >> 32, BLOCK=n)
    counter = (torch.arange(n), *(torch.tensor(x) for x in (row & 0xFFFFFFFF, row >> 32, 5)))
    expected = philox.philox(counter, (seed & 0xFFFFFFFF, seed >> 32))
    assert torch.equal(words, torch.stack(expected))


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_options(options):
    check(module, problem(length=100, regions="top_fraction" not in options, **options))


@pytest.mark.parametrize("length", [1, 255, 257, 600])
def test_lengths(length):
    check(module, problem(batch=1, length=length, seed=length))


def test_storage():
    """Not bfloat16 gradients: the interpreter truncates where a GPU rounds."""
    check(module, problem(dtype=torch.float16), limit=5e-4)
    check(module, problem(dtype=torch.bfloat16), limit=8e-3)


def test_strides_and_other_numbers_of_tracks():
    p = problem(length=70)
    p.inputs["signals"] = torch.cat([p.inputs["signals"]] * 2, -1)[..., :5].half()
    p.inputs |= dict(weights=torch.rand(5), betas=torch.rand(5))
    for name in ("seq_logits", "signals"):
        p.inputs[name] = p.inputs[name].permute(2, 0, 1).contiguous().permute(1, 2, 0)
    check(module, p, limit=5e-4)


def test_gradients_against_high_precision():
    p = precise_gradients()
    ours = sample_gradients(module, *(x.float() for x in (p.alpha, p.beta, p.logit)))
    for got, expected in zip(ours, (p.by_alpha, p.by_beta), strict=True):
        assert float((got.double() / expected - 1).abs().max()) < 1e-4


@pytest.mark.parametrize("alpha,beta", [(1e-3, 0.05), (0.6, 3.0), (1e4, 30.0)])
def test_draws_are_those_of_the_reference(monkeypatch, alpha, beta):
    """And so have its distribution: 8,192 draws."""
    monkeypatch.setattr(module, "BLOCK", 8_192)  # one program: what interpreting costs
    ours, theirs = (of_concentrations(m, alpha, beta, 8_192)[1].logit[0] for m in (module, reference))
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=2e-5)
    assert kolmogorov_smirnov(ours, alpha, beta) < 1.95


def test_same_bits_in_every_order_and_no_races():
    p = problem(length=300)
    with races() as found:
        out, grads = results(module, p)
    assert not found
    with backwards():
        again = results(module, p)
    assert all(torch.equal(a, b) for a, b in zip((*out, *grads), (*again[0], *again[1]), strict=True))


def test_a_diverged_row_does_not_hang_the_sampler():
    p = problem(length=20)
    p.inputs["seq_logits"][0, 7] = torch.nan
    out, _, _ = module.forward(**p.inputs, s=p.settings)
    assert torch.isnan(out.soft_mask[0, 7]) and int(torch.isnan(out.soft_mask).sum()) == 1


def test_op():
    p = problem(length=40, regions=False)

    def run(name):
        logits = p.inputs["seq_logits"].clone().requires_grad_()
        with set_backend(name):
            out = beta_mask(
                logits, p.inputs["signals"], signal_weights=p.inputs["weights"], signal_betas=p.inputs["betas"],
                beta_min=0.2, signal_scale=1.0, prior_mean=0.1, prior_scale=1.0, sample=True, hard=True, seed=3,
            )  # fmt: skip
            return out.mask, torch.autograd.grad((out.mask.square().sum(), out.kl), logits)[0]

    for a, b in zip(run("triton"), run("reference"), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    with set_backend("triton"), pytest.raises(ValueError, match="NaN or inf"):
        beta_mask(
            p.inputs["seq_logits"], p.inputs["signals"] * torch.nan, signal_weights=[1.0] * 3, signal_betas=[1.0] * 3,
            beta_min=0.2, signal_scale=1.0, prior_mean=0.1, prior_scale=1.0, sample=False,
        )  # fmt: skip
