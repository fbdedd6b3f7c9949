"""The mixer's CUDA scan, executed on the CPU, against plain PyTorch in float64: every kernel."""

from __future__ import annotations

from functools import cache

import emulated_scan
import pytest
import torch
from emulated_scan import EmulatedMixer
from mixer_problems import SIGNALS, check_scan, direction, scan_backward
from scan_problems import far_apart
from torch import Tensor

from seq2exp.kernels.bimamba.direction import Direction

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@cache
def emulated(dtype: torch.dtype) -> EmulatedMixer:
    """With bfloat16 every memory access is watched: bounds and races."""
    return EmulatedMixer(dtype, checked=dtype == torch.bfloat16)


def check(d: Direction) -> None:
    check_scan(emulated(d.u.dtype), d)


def run(d: Direction) -> list[Tensor]:
    """out, saved states, then the gradients of both forms of the backward."""
    scan = emulated(d.u.dtype)
    out, states = scan.scan(d)
    grads = [scan_backward(scan, torch.ones_like(d.u), d, states, closing) for closing in (False, True)]
    return [out, states, *(x for g in grads for x in g if x is not None)]


def same_bits(a: Tensor, b: Tensor) -> bool:
    return torch.equal(*(x.contiguous().view(torch.uint8) for x in (a, b)))  # of unused chunks the states are NaN


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("length", [1, 63, 256, 257, 512, 1023])
def test_dtypes_and_lengths(dtype, length):
    check(direction(dim=3, length=length, dtype=dtype, reverse=length % 2 == 0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("rank", [1, 2, 4, 5, 8, 11])
def test_ranks(rank, dtype):
    """Two whole tiles and a ragged one; the rows of `low` are read four at a time."""
    check(direction(batch=1, dim=2, state=3, length=1040, rank=rank, dtype=dtype, reverse=rank % 2 == 0))


@pytest.mark.parametrize("gate", [False, True])
@pytest.mark.parametrize("add", [False, True])
def test_absent_inputs(add, gate):
    check(direction(length=512, dim=2, add=add, gate=gate))
    check(direction(length=75, dim=9, add=add, gate=gate, reverse=True))


@pytest.mark.parametrize(("dim", "state"), [(1, 1), (9, 17), (24, 3), (3, 40)])
def test_sizes_that_do_not_fill_a_block(dim, state):
    check(direction(batch=1, dim=dim, state=state, length=300))


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(("batch", "several"), [(1100, False), (300, True)])
def test_segments_of_one_and_of_several_tiles(batch, several, reverse):
    d = direction(batch=batch, dim=2, state=2, length=1300 if several else 300, reverse=reverse)
    assert all((n > 1) == several for n in emulated(torch.float32).segments(d))
    check(d)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(
    "cu_seqlens", [[0, 0, 1, 64, 64, 128, 149, 150, 150], [0, 255, 255, 513, 1200]], ids=["short", "long"]
)
def test_packed_sequences(cu_seqlens, reverse):
    check(direction(batch=1, dim=9, length=cu_seqlens[-1], cu_seqlens=cu_seqlens, reverse=reverse))


@pytest.mark.parametrize("reverse", [False, True])
def test_channels_last(reverse):
    check(direction(dim=12, length=520, channels_last=True, reverse=reverse, dtype=torch.bfloat16))


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(("offset", "pitch"), [(0, 1040), (1, 1040), (7, 1041)])
def test_alignment_of_rows(offset, pitch, reverse):
    """Whole tiles, whose rows begin at 16-byte words or not; every other row where the pitch is odd."""
    d = direction(batch=1, dim=2, length=1024, dtype=torch.bfloat16, state=3, reverse=reverse, rank=4)
    for name in SIGNALS:
        x = getattr(d, name)
        spread = torch.full((*x.shape[:-1], pitch), torch.nan, dtype=x.dtype)
        spread[..., offset : offset + 1024] = x
        d = d._replace(**{name: spread[..., offset : offset + 1024]})
    check(d)


def test_any_strides():
    d = direction(dim=9, length=300)
    for name in SIGNALS:
        x = getattr(d, name)
        spread = torch.full((*x.shape[:-1], 2 * x.shape[-1] + 1), torch.nan)
        spread[..., 1::2] = x
        d = d._replace(**{name: spread[..., 1::2]})
    check(d)


def test_step_sizes_from_none_to_huge():
    """Where the slope of softplus is its value, where it is 1, and on both sides of the seam between its two forms."""
    d = direction(batch=1, dim=8, length=300, state=4)
    d.dt_proj.zero_()[:, 0] = 1
    d.low[:, 0] = torch.linspace(-2, 2, 300)
    d.dt_bias.copy_(torch.tensor([-60.0, -20, -8, -1.26, -1, 1, 8, 60]))
    d.A[-2:] *= 1e-2
    check(d)


def test_nan_stays_in_its_row():
    d = direction(length=700, dim=9)
    clean = run(d)
    d.u[0, 3, 550] = torch.nan
    dirty = run(d)
    rows = torch.ones(d.u.shape[:2], dtype=torch.bool)
    rows[0, 3] = False
    for a, b in zip(clean, dirty, strict=True):
        if a.shape == d.u.shape:
            assert torch.equal(a[rows], b[rows])
    assert dirty[0][0, 3, 550:].isnan().all() and torch.equal(dirty[0][0, 3, :550], clean[0][0, 3, :550])


MIXED = [
    dict(batch=2, dim=10, length=600, state=17),
    dict(batch=1, dim=11, length=700, cu_seqlens=[0, 0, 256, 300, 700], reverse=True),
    dict(batch=1, dim=9, length=512, rank=8),
]


@pytest.mark.parametrize("shape", MIXED, ids=str)
def test_same_bits_in_every_order(shape):
    """Blocks, warps and lanes forward (twice), reversed, and in two random orders."""
    d = direction(dtype=torch.bfloat16, **shape)
    scan, runs = emulated(torch.bfloat16), []
    try:
        for order in (0, 0, 1, 2, 3):
            scan.set_order(order)
            runs.append(run(d))
    finally:
        scan.set_order(0)
    for other in runs[1:]:
        assert all(map(same_bits, runs[0], other))


@pytest.mark.parametrize(
    "shape",
    [
        *MIXED,
        dict(batch=1, dim=2, state=40, length=513, add=False, rank=5),
        dict(batch=1, dim=2, length=1024, reverse=True, rank=4),
    ],
    ids=str,
)
def test_memory_is_used_within_bounds_and_without_races(shape):
    check(direction(dtype=torch.bfloat16, **shape))


@pytest.mark.parametrize(("dim", "reverse"), [(0, False), (1, True), (-1, False)])
def test_offsets_past_two_to_the_31(dim, reverse, monkeypatch):
    d = direction(batch=2, dim=2, state=2, rank=2, length=304, dtype=torch.bfloat16, reverse=reverse)
    d = d._replace(**{name: far_apart(getattr(d, name).contiguous(), dim) for name in SIGNALS})
    monkeypatch.setattr(emulated_scan.Outputs, "like", lambda self, x: far_apart(torch.full_like(x, torch.nan), dim))
    check(d)  # a wrong address is reported, not followed
