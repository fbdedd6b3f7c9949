"""The CUDA kernels of pack_selected, executed on the CPU, against the float64 oracle.

test_cuda_compiles.py compiles them.
"""

from __future__ import annotations

from functools import cache

import pytest
import torch
from emulated_gather import EmulatedGather
from gather_problems import (
    BFLOAT,
    CHANNELS,
    DTYPES,
    FLOAT,
    LENGTHS,
    SHARES,
    check,
    check_overflow,
    problem,
    results,
    spread,
    strided,
)


@cache
def emulated(dtype: torch.dtype, checked: bool = False) -> EmulatedGather:
    return EmulatedGather(dtype, checked)


@pytest.mark.parametrize("dtypes", DTYPES, ids=str)
@pytest.mark.parametrize("channels", [24, 7])
def test_dtypes(dtypes, channels):
    check(emulated(dtypes[0]), problem(3, 65, channels, *dtypes))
    check(emulated(dtypes[0]), problem(3, 65, channels, *dtypes), capacity=150)


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("length", LENGTHS)
def test_lengths(length, share):
    p = problem(3, length, 4, share=share)
    check(emulated(FLOAT), p)
    check(emulated(FLOAT), p, capacity=3 * length)


@pytest.mark.parametrize("shape", [(1, 65_537, 1), (2_100, 1, 2), (1, 20_000, 4)], ids=str)
def test_many_tiles(shape):
    check(emulated(BFLOAT), problem(*shape, BFLOAT, share=0.1), capacity=shape[0] * shape[1] // 2)


@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("dtype", [FLOAT, BFLOAT], ids=str)
def test_channels(dtype, channels):
    check(emulated(dtype), problem(2, 33, channels, dtype))


@pytest.mark.parametrize("layout", [strided, spread])
@pytest.mark.parametrize("channels", [7, 20])
def test_strides(layout, channels):
    check(emulated(BFLOAT), layout(problem(3, 41, channels, BFLOAT)), capacity=100)


def test_overflow():
    check_overflow(emulated(FLOAT))


@pytest.mark.parametrize("capacity", [None, 5_000])
def test_same_bits_in_every_order(capacity):
    """Blocks, warps and lanes forward (twice), reversed, and in two random orders."""
    p, runs, gather = problem(2, 2_100, 5), [], emulated(FLOAT)
    try:
        for order in (0, 0, 1, 2, 3):
            gather.set_order(order)
            runs.append(results(gather, p, capacity))
    finally:
        gather.set_order(0)
    for other in runs[1:]:
        assert all(torch.equal(x, other[name]) for name, x in runs[0].items())


@pytest.mark.parametrize("channels", [3, 8])
@pytest.mark.parametrize("capacity", [None, 1_000, 5])
def test_memory_is_used_within_bounds_and_without_races(channels, capacity):
    p, gather = problem(2, 2_100, channels, BFLOAT, share=0.1), emulated(BFLOAT, True)
    if capacity == 5:
        results(gather, p, capacity)  # overflows
    else:
        check(gather, p, capacity)
