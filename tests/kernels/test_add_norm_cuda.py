"""add_norm's CUDA kernels, executed on the CPU, against the float64 oracle. test_cuda_compiles.py compiles them."""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace

import pytest
import torch
from emulated_norm import EmulatedNorm
from norm_problems import BFLOAT, CHANNELS, DTYPES, FLOAT, HALF, check, check_rounding, problem, results, strided


@cache
def emulated(dtype: torch.dtype, checked: bool = False) -> EmulatedNorm:
    return EmulatedNorm(dtype, checked)


def run(p: SimpleNamespace) -> dict[str, torch.Tensor | None]:
    p.gate = None if p.gate is None else p.gate.contiguous()
    return results(emulated(p.x.dtype), p)


@pytest.mark.parametrize("channels", [*CHANNELS, 8, 2048, 4096])
@pytest.mark.parametrize("dtype", [FLOAT, BFLOAT], ids=str)
def test_channels(dtype, channels):
    check(emulated(dtype), problem((2, 3, channels), dtype))


@pytest.mark.parametrize("dtypes", DTYPES, ids=str)
@pytest.mark.parametrize("channels", [24, 77])
def test_dtypes(dtypes, channels):
    check(emulated(dtypes[0]), problem((2, 30, channels), *dtypes))


@pytest.mark.parametrize("gate", [False, True])
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("channels", [40, 300])
def test_absent_inputs(channels, residual, gate):
    p = problem((3, 7, channels), residual=residual, gate=gate)
    check(emulated(FLOAT), p)
    p.grad_residual = None
    check(emulated(FLOAT), p)


@pytest.mark.parametrize("shape", [(1, 1, 16), (1, 2_000, 16), (2, 40, 264)], ids=str)
def test_rows_that_do_not_fill_a_block(shape):
    check(emulated(BFLOAT), problem(shape, BFLOAT, FLOAT))


@pytest.mark.parametrize("channels", [32, 41])
def test_strides(channels):
    p = strided(problem((3, 11, channels)))
    p.gate = p.gate.contiguous()
    check(emulated(FLOAT), p)


@pytest.mark.parametrize("dtype", [FLOAT, BFLOAT, HALF], ids=str)
def test_rounded_once_and_recomputed_bit_for_bit(dtype):
    check_rounding(emulated(dtype), problem((2, 30, 80), dtype))


MIXED = [((2, 300, 40), BFLOAT, FLOAT), ((2, 20, 77), FLOAT, FLOAT), ((1, 20, 600), BFLOAT, BFLOAT)]


@pytest.mark.parametrize("options", MIXED, ids=str)
def test_same_bits_in_every_order(options):
    """Blocks, warps and lanes forward (twice), reversed, and in two random orders."""
    p, runs = problem(*options), []
    norm = emulated(p.x.dtype)
    try:
        for order in (0, 0, 1, 2, 3):
            norm.set_order(order)
            runs.append(run(p))
    finally:
        norm.set_order(0)
    for other in runs[1:]:
        assert all(torch.equal(x, other[name]) for name, x in runs[0].items())


@pytest.mark.parametrize("shape", [(2, 300, 40), (2, 20, 77), (1, 20, 600)], ids=str)
def test_memory_is_used_within_bounds_and_without_races(shape):
    check(emulated(BFLOAT, True), problem(shape, BFLOAT, FLOAT))
