"""The mask's CUDA kernels, executed on the CPU, against the float64 oracle. test_cuda_compiles.py compiles them."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from emulated_mask import EmulatedMask
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

from seq2exp.kernels.beta_mask import reference


@cache
def emulated(checked: bool = False) -> EmulatedMask:
    return EmulatedMask(checked)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("regions", [False, True])
def test_options(options, regions):
    check(emulated(), problem(length=300, regions=regions, **options))


@pytest.mark.parametrize("length", [1, 2, 254, 255, 256, 257, 2049])
def test_lengths(length):
    check(emulated(), problem(length=length, seed=length))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_storage(dtype):
    check(emulated(), problem(dtype=dtype), limit=4e-3 if dtype == torch.bfloat16 else 5e-4)


def test_strides_and_other_numbers_of_tracks():
    p = problem(length=70)
    p.inputs["signals"] = torch.cat([p.inputs["signals"]] * 2, -1)[..., :5].half()
    p.inputs |= dict(weights=torch.rand(5), betas=torch.rand(5))
    for name in ("seq_logits", "signals"):
        p.inputs[name] = p.inputs[name].permute(2, 0, 1).contiguous().permute(1, 2, 0)
    check_p = results(emulated(), p)
    p.inputs |= {name: p.inputs[name].contiguous() for name in ("seq_logits", "signals")}
    for a, b in zip((*check_p[0], *check_p[1]), (*results(emulated(), p)[0], *results(emulated(), p)[1]), strict=True):
        assert torch.equal(a, b)


def test_gradients_against_high_precision():
    p = precise_gradients()
    ours = sample_gradients(emulated(), *(x.float() for x in (p.alpha, p.beta, p.logit)))
    for got, expected in zip(ours, (p.by_alpha, p.by_beta), strict=True):
        assert float((got.double() / expected - 1).abs().max()) < 1e-4


@pytest.mark.parametrize("alpha,beta", [(1e-3, 0.05), (0.6, 3.0), (1.0, 1.0), (1e4, 30.0)])
def test_draws_are_those_of_the_reference(alpha, beta):
    """And so have its distribution: 5,000 draws."""
    ours, theirs = (of_concentrations(m, alpha, beta, 5_000)[1].logit[0] for m in (emulated(), reference))
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-5)
    assert kolmogorov_smirnov(ours, alpha, beta) < 1.95


def test_same_bits_in_every_order():
    """Blocks, warps and lanes forward (twice), reversed, and in two random orders."""
    p, runs = problem(length=600), []
    try:
        for order in (0, 0, 1, 2, 3):
            emulated().set_order(order)
            out, grads = results(emulated(), p)
            runs.append((*out, *grads))
    finally:
        emulated().set_order(0)
    for other in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], other, strict=True))


def test_any_split_of_the_batch():
    p = problem(batch=3, length=300)
    whole = results(emulated(), p)[0]
    one = {name: x if name in ("weights", "betas") else x[1:2].contiguous() for name, x in p.inputs.items()}
    alone, _, _ = emulated().forward(**one, s=p.settings)
    assert torch.equal(alone.mask[0], whole.mask[1]) and torch.equal(alone.soft_mask[0], whole.soft_mask[1])


def test_memory_is_used_within_bounds_and_without_races():
    check(emulated(True), problem(batch=1, length=260))
    check(emulated(True), problem(length=40, regions=False, sample=False, top_fraction=0.2))
