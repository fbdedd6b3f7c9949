"""The mixer's CUDA convolutions, executed on the CPU, against plain PyTorch in float64."""

from __future__ import annotations

from functools import cache

import emulated_conv
import pytest
import torch
from emulated_conv import EmulatedConvolution
from mixer_problems import check_convolution, taps
from scan_problems import far_apart
from torch import Tensor

FLOAT, BFLOAT, HALF = torch.float32, torch.bfloat16, torch.float16
PACKED = [[0, 150], [0, 1, 2, 3, 150], [0, 0, 64, 64, 128, 149, 150, 150], list(range(0, 151, 5)), list(range(151))]


@cache
def emulated(dtype: torch.dtype, checked: bool = False) -> EmulatedConvolution:
    return EmulatedConvolution(dtype, checked)


def signal(*shape: int, dtype: torch.dtype = FLOAT) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1)).to(dtype)


def check(x: Tensor, width: int = 4, ways: str = "both", cu_seqlens: list[int] | None = None, checked=False) -> None:
    fwd, rev = (
        taps(x.shape[1], width, seed) if ways in ("both", name) else None for seed, name in enumerate(("fwd", "rev"))
    )
    offsets = None if cu_seqlens is None else torch.tensor(cu_seqlens)
    check_convolution(emulated(x.dtype, checked), x, fwd, rev, offsets)


@pytest.mark.parametrize("dtype", [FLOAT, BFLOAT, HALF], ids=str)
@pytest.mark.parametrize("length", [1, 2, 3, 4, 7, 8, 16, 17, 63, 130, 256, 1000])
def test_dtypes_and_lengths(dtype, length):
    check(signal(2, 3, length, dtype=dtype))


@pytest.mark.parametrize("ways", ["both", "fwd", "rev"])
@pytest.mark.parametrize("width", [2, 3, 4])
def test_widths_and_directions(width, ways):
    check(signal(2, 3, 40), width, ways)
    check(signal(1, 2, 150, dtype=BFLOAT), width, ways, PACKED[2])


@pytest.mark.parametrize("dtype", [FLOAT, BFLOAT], ids=str)
@pytest.mark.parametrize("length", [8_200, 16_400])
def test_several_spans(length, dtype):
    check(signal(1, 2, length, dtype=dtype))


@pytest.mark.parametrize("dtype", [FLOAT, BFLOAT], ids=str)
@pytest.mark.parametrize("cu_seqlens", PACKED, ids=str)
def test_packed_sequences(cu_seqlens, dtype):
    check(signal(1, 3, 150, dtype=dtype), cu_seqlens=cu_seqlens)


def test_many_packed_sequences():
    lengths = torch.randint(0, 30, (300,), generator=torch.Generator().manual_seed(0))
    offsets = [0, *lengths.cumsum(0).tolist()]
    check(signal(1, 2, offsets[-1]), cu_seqlens=offsets)


@pytest.mark.parametrize("dtype", [FLOAT, BFLOAT], ids=str)
def test_strides(dtype):
    x = signal(2, 3, 300, dtype=dtype)
    check(x.transpose(1, 2).contiguous().transpose(1, 2))
    check(signal(2, 6, 304, dtype=dtype)[:, :3])  # half of a projection, rows of whole words
    for pitch, offset in ((312, 8), (312, 1), (309, 0)):
        spread = torch.full((2, 3, pitch), torch.nan, dtype=dtype)
        spread[..., offset : offset + 300] = x
        check(spread[..., offset : offset + 300])


def test_nothing_crosses_into_another_sequence():
    x, offsets = signal(1, 2, 60), torch.tensor([0, 20, 41, 60])
    fwd, rev = taps(2, 4), taps(2, 4, 1)
    conv = emulated(FLOAT)
    clean = conv.convolve(x, fwd, rev, offsets)
    clean_dx = conv.convolve_backward(x, x, x, fwd, rev, offsets).x
    x[..., 20:41] = torch.nan
    dirty = [*conv.convolve(x, fwd, rev, offsets), conv.convolve_backward(x, x, x, fwd, rev, offsets).x]
    for c, want in zip(dirty, (*clean, clean_dx), strict=True):
        assert torch.equal(c[..., :20], want[..., :20]) and torch.equal(c[..., 41:], want[..., 41:])


def results(conv: EmulatedConvolution, x: Tensor, cu_seqlens: Tensor | None) -> list[Tensor]:
    fwd, rev = taps(x.shape[1], 4), taps(x.shape[1], 4, 1)
    out = conv.convolve(x, fwd, rev, cu_seqlens)
    grads = conv.convolve_backward(x, *out, fwd, rev, cu_seqlens)
    return [*out, grads.x, *grads.fwd, *grads.rev]


@pytest.mark.parametrize(("length", "cu_seqlens"), [(9_000, None), (150, PACKED[2])])
def test_same_bits_in_every_order(length, cu_seqlens):
    """Blocks, warps and lanes forward (twice), reversed, and in two random orders."""
    x, conv, runs = signal(1, 2, length), emulated(FLOAT), []
    try:
        for order in (0, 0, 1, 2, 3):
            conv.set_order(order)
            runs.append(results(conv, x, None if cu_seqlens is None else torch.tensor(cu_seqlens)))
    finally:
        conv.set_order(0)
    for run in runs[1:]:
        assert all(map(torch.equal, runs[0], run))


@pytest.mark.parametrize(
    ("length", "width", "ways", "cu_seqlens"),
    [(1, 4, "both", None), (1_001, 4, "both", None), (1_024, 3, "fwd", None), (150, 4, "both", PACKED[2])],
)
def test_memory_is_used_within_bounds_and_without_races(length, width, ways, cu_seqlens):
    check(signal(1, 2, length, dtype=BFLOAT), width, ways, cu_seqlens, checked=True)


@pytest.mark.parametrize("dim", [0, 1, -1])
def test_offsets_past_two_to_the_31(dim, monkeypatch):
    monkeypatch.setattr(emulated_conv.Outputs, "like", lambda self, x: far_apart(torch.full_like(x, torch.nan), dim))
    check(far_apart(signal(2, 2, 304, dtype=BFLOAT), dim), checked=True)  # a wrong address is reported, not followed
