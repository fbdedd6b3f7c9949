"""embed_bases' CUDA kernels, executed on the CPU, against the float64 oracle. test_cuda_compiles.py compiles them."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from embed_problems import ALL, BFLOAT, DTYPES, FLOAT, HALF, check, problem, results, strided
from emulated_embed import EmulatedEmbed

from seq2exp.kernels.embed.bases import Wanted


@cache
def emulated(dtype: torch.dtype, checked: bool = False) -> EmulatedEmbed:
    return EmulatedEmbed(dtype, checked)


@pytest.mark.parametrize("kept", [None, 0.4])
@pytest.mark.parametrize("channels", [1, 3, 8, 40, 127, 128, 256, 264, 300])
def test_channels(channels, kept):
    check(emulated(FLOAT), problem((2, 21), channels, kept=kept, padding=3 if kept else 0))


@pytest.mark.parametrize("dtypes", [x for x in DTYPES if x[0] != HALF], ids=str)
@pytest.mark.parametrize("channels", [24, 77])
def test_dtypes(dtypes, channels):
    check(emulated(dtypes[0]), problem((2, 21), channels, *dtypes))


@pytest.mark.parametrize("tracks", [0, 1, 4, 11, 12])
def test_tracks(tracks):
    """Beyond 3 of them the features of a base take several chunks."""
    check(emulated(FLOAT), problem(d=16, tracks=tracks))


@pytest.mark.parametrize("kept", [None, 0.4])
@pytest.mark.parametrize("asked", [Wanted(False, False, False), Wanted(False, True, True), Wanted(True, False, False)])
def test_gradients_asked_for(asked, kept):
    check(emulated(FLOAT), problem((3, 29), 16, kept=kept, complement=True), asked=asked)


@pytest.mark.parametrize(
    "options", [dict(positions=False), dict(mask=False), dict(positions=False, mask=False)], ids=str
)
def test_absent_inputs(options):
    check(emulated(FLOAT), problem((3, 29), 16, **options))


@pytest.mark.parametrize("shape", [(1, 1), (1, 700), (70, 3), (2, 600)], ids=str)
@pytest.mark.parametrize("positions", [True, False])
def test_rows_that_do_not_fill_a_block(shape, positions):
    check(emulated(BFLOAT), problem(shape, 64, BFLOAT, HALF, positions=positions))


def test_several_turns():
    """Of a group in the backward: more than 1024 blocks' worth of rows, of few channels."""
    check(emulated(FLOAT), problem((1, 70_000), 2, tracks=1, positions=False, mask=False), asked=Wanted(*3 * [False]))


@pytest.mark.parametrize("channels", [32, 41])
def test_strides(channels):
    check(emulated(FLOAT), strided(problem((3, 11), channels, kept=0.5)))
    check(emulated(FLOAT), strided(problem((3, 11), channels)))


def test_places_that_are_no_bases():
    p = problem((2, 30), 16, kept=0.5)
    x = p.bases._replace(indices=torch.cat([p.bases.indices, torch.tensor([60, -1, 2**62, -(2**62)])]))
    grad = torch.cat([p.grad, torch.full((4, 16), torch.nan)])
    out, alone = emulated(FLOAT).forward(x, FLOAT), results(emulated(FLOAT), p)
    assert torch.equal(out[:-4], alone["out"])
    assert not out[[-4, -2]].any() and out[[-3, -1]].isnan().all()
    for got, want in zip(emulated(FLOAT).backward(grad, x, ALL), list(alone.values())[1:], strict=True):
        torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)


def test_codes_above_4_are_read_as_n():
    x = problem((2, 30), 16, complement=True).bases
    wild = x._replace(codes=torch.where(x.codes == 4, 200, x.codes).to(torch.uint8))
    assert torch.equal(emulated(FLOAT).forward(x, FLOAT), emulated(FLOAT).forward(wild, FLOAT))


def test_division():
    """The kernels divide by multiplying."""
    by = [1, 2, 3, 7, 200_000, 2**31 - 1, 2**31, 10**12 + 39]
    for d in by:
        for n in {
            0,
            1,
            d - 1,
            d,
            d + 1,
            12_345 * d - 1,
            12_345 * d,
            2**40 + 17,
            2**62,
            2**62 // d * d,
            2**62 // d * d - 1,
        }:
            assert emulated(FLOAT).quotient(n, d) == n // d, (n, d)


@pytest.mark.parametrize(
    "options", [dict(shape=(2, 150), d=40, kept=0.5), dict(shape=(2, 20), d=77), dict(shape=(1, 20), d=600)], ids=str
)
def test_same_bits_in_every_order(options):
    """Blocks, warps and lanes forward (twice), reversed, and in two random orders."""
    p, runs = problem(dtype=BFLOAT, **options), []
    try:
        for order in (0, 0, 1, 2, 3):
            emulated(BFLOAT).set_order(order)
            runs.append(results(emulated(BFLOAT), p))
    finally:
        emulated(BFLOAT).set_order(0)
    for other in runs[1:]:
        assert all(x is None or torch.equal(x, other[name]) for name, x in runs[0].items())


@pytest.mark.parametrize(
    "options",
    [dict(shape=(2, 150), d=40, kept=0.5, padding=3), dict(shape=(2, 20), d=77, tracks=5), dict(shape=(1, 300), d=16)],
    ids=str,
)
def test_memory_is_used_within_bounds_and_without_races(options):
    check(emulated(BFLOAT, True), problem(dtype=BFLOAT, **options))
