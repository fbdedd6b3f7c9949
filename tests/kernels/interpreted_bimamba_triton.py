"""The parts of a mixer in Triton's interpreter, against plain PyTorch in float64. Needs TRITON_INTERPRET=1 from the
start: `TRITON_INTERPRET=1 pytest tests/kernels/interpreted_bimamba_triton.py`; test_bimamba_triton.py does that.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pytest
import torch
from mixer_problems import check_convolution, check_scan, direction, scan_backward, taps
from scan_problems import rms_error
from torch import Tensor
from triton_interpreter import backwards, races

from seq2exp.kernels import ScanWeights, bimamba, set_backend
from seq2exp.kernels.bimamba import triton as mixer
from seq2exp.kernels.bimamba.direction import Direction
from seq2exp.kernels.selective_scan import triton as scan

PACKED = [0, 0, 1, 260, 260, 516, 516]


@pytest.fixture(autouse=True)
def poisoned() -> Iterator[None]:
    """Memory that torch hands out uninitialised holds NaN."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def small(**options: object) -> Direction:
    return direction(**({"batch": 1, "dim": 3, "state": 2, "rank": 2} | options))


def signal(length: int, batch: int = 1, dim: int = 3, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(batch, dim, length, generator=torch.Generator().manual_seed(5)).to(dtype)


def run_scan(d: Direction) -> list[Tensor]:
    out, states = mixer.scan(d)
    grads = [x for closing in (False, True) for x in scan_backward(mixer, torch.ones_like(d.u), d, states, closing)]
    return [out, states, *(x for x in grads if x is not None)]


def run_convolution(x: Tensor, cu_seqlens: Tensor | None = None) -> list[Tensor]:
    fwd, rev = taps(x.shape[1], 4), taps(x.shape[1], 3, seed=1)
    outs = mixer.convolve(x, fwd, rev, cu_seqlens)
    grads = mixer.convolve_backward(x, torch.ones_like(x), torch.ones_like(x), fwd, rev, cu_seqlens)
    return [*outs, grads.x, *grads.fwd, *grads.rev]


def spread(x: Tensor) -> Tensor:
    """x with every second element of rows, NaN between."""
    wide = torch.full((*x.shape[:-1], 2 * x.shape[-1] + 1), torch.nan, dtype=x.dtype)
    wide[..., 1::2] = x
    return wide[..., 1::2]


def shifted(x: Tensor, start: int) -> Tensor:
    """x in longer rows, from their element `start` on, NaN around."""
    wide = torch.full((*x.shape[:-1], x.shape[-1] + 16), torch.nan, dtype=x.dtype)
    wide[..., start : start + x.shape[-1]] = x
    return wide[..., start : start + x.shape[-1]]


# --- the scan ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("length, reverse", [(1, False), (131, True), (256, False)])
def test_scan_dtypes_and_lengths(dtype, length, reverse):
    check_scan(mixer, small(length=length, dtype=dtype, reverse=reverse))


@pytest.mark.parametrize("rank", [1, 3, 8])
def test_scan_ranks(rank):
    check_scan(mixer, small(rank=rank, length=60, batch=2))


@pytest.mark.parametrize("gate, add", [(False, False), (False, True), (True, False)])
def test_scan_without_gate_or_summand(gate, add):
    check_scan(mixer, small(length=75, gate=gate, add=add))


@pytest.mark.parametrize("shape", [{"batch": 2, "dim": 9, "state": 1}, {"dim": 1, "state": 17}])
def test_scan_shapes(shape):
    check_scan(mixer, small(length=40, **shape))


@pytest.mark.parametrize("length, reverse", [(516, False), (517, True)])
def test_scan_packed(length, reverse):
    check_scan(mixer, small(state=1, length=length, cu_seqlens=[*PACKED[:-1], length], reverse=reverse))


@pytest.mark.parametrize("options", [{"reverse": True, "length": 771}, {"length": 700, "cu_seqlens": [0, 300, 700]}])
def test_scan_segments(monkeypatch, options):
    """L in parts of one and of several tiles."""
    for programs in (2, 100):
        monkeypatch.setattr(scan, "FORWARD_PROGRAMS", programs)
        monkeypatch.setattr(scan, "BACKWARD_PROGRAMS", programs)
        check_scan(mixer, small(dim=2, state=1, **options))


@pytest.mark.parametrize("length", [64, 65])
def test_scan_any_strides(length):
    d = small(length=length, batch=2)
    check_scan(mixer, d._replace(**{name: spread(getattr(d, name)) for name in ("u", "low", "B", "C", "z", "add")}))
    check_scan(mixer, small(length=length, batch=2, channels_last=True))


@pytest.mark.parametrize("name", ["u", "low", "add"])
def test_scan_rows_that_start_anywhere(name):
    d = small(length=64)
    check_scan(mixer, d._replace(**{name: shifted(getattr(d, name), 1)}))


def test_scan_past_2_31_elements():
    """Rows further apart than 32 bits can count, in memory that is never touched in between."""
    d = small(batch=2, dim=2, rank=2, length=64, dtype=torch.float16)
    step = 2**31 + 64
    pages = torch.from_numpy(np.zeros(2 * step, dtype=np.float16))
    low = pages.as_strided(d.low.shape, (64, step, 1), 0).copy_(d.low)
    add = pages.as_strided(d.add.shape, (step, 64, 1), 256).copy_(d.add)
    check_scan(mixer, d._replace(low=low, add=add))


def test_scan_extreme_values():
    """Step sizes that vanish or are huge, decays that underflow, states that grow."""
    d = small(dim=6, length=80)
    d.A[0] *= 1e4
    d.A[1] = 0.05
    d.dt_bias[2], d.dt_bias[3], d.dt_bias[4] = -60, 40, -15
    d.z[0, 5] = 1e4
    d.z[0, 4] = -80
    check_scan(mixer, d)


@pytest.mark.parametrize("options", [{"dim": 9}, {"length": 520, "cu_seqlens": [0, 300, 520], "reverse": True}])
def test_scan_no_races(monkeypatch, options):
    """And the same bits in any order of the programs."""
    monkeypatch.setattr(scan, "FORWARD_PROGRAMS", 2)
    monkeypatch.setattr(scan, "BACKWARD_PROGRAMS", 2)
    d = small(**({"state": 1, "length": 520} | options))
    with races() as found:
        forwards = run_scan(d)
    assert not found
    with backwards():
        assert all(torch.equal(a, b) for a, b in zip(forwards, run_scan(d), strict=True))


# --- the convolution --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("length", [1, 2, 255, 516])
def test_convolution_dtypes_and_lengths(dtype, length):
    check_convolution(mixer, signal(length, 2, dtype=dtype), taps(3, 4), taps(3, 4, seed=1), None)


@pytest.mark.parametrize("fwd, rev", [(2, 3), (3, 2), (4, None), (None, 4), (None, 2)])
def test_convolution_widths_and_directions(fwd, rev):
    weights = [None if width is None else taps(5, width, seed) for seed, width in enumerate((fwd, rev))]
    check_convolution(mixer, signal(300, dim=5), *weights, None)


@pytest.mark.parametrize(
    "offsets",
    [PACKED, [*PACKED[:-1], 517], [0, 255, 257, 258, 264], list(range(7)), [0, 0, 40]],
    ids=str,
)
def test_convolution_packed(offsets):
    check_convolution(mixer, signal(offsets[-1]), taps(3, 4), taps(3, 3, seed=1), torch.tensor(offsets))


def test_convolution_packed_equals_one_by_one():
    """To the bit."""
    x = signal(300)
    offsets = [0, 4, 260, 260, 300]
    packed = run_convolution(x, torch.tensor(offsets))[:3]
    for a, b in pairwise(offsets):
        if a < b:
            alone = run_convolution(x[..., a:b])[:3]
            assert all(torch.equal(p[..., a:b], q) for p, q in zip(packed, alone, strict=True))


@pytest.mark.parametrize("length", [64, 65])
def test_convolution_any_strides(length):
    x = signal(length, 2)
    for strided in (spread(x), shifted(x, 1), shifted(x, 4), x.transpose(1, 2).contiguous().transpose(1, 2)):
        check_convolution(mixer, strided, taps(3, 4), taps(3, 4, seed=1), None)


def test_convolution_reads_no_neighbour():
    """Beyond the ends of a row lies NaN; gradients come with strides of their own."""
    x, grad = shifted(signal(300), 8), shifted(signal(300, dim=3), 4)
    fwd, rev = taps(3, 4), taps(3, 4, seed=1)
    outs = mixer.convolve(x, fwd, rev, None)
    grads = mixer.convolve_backward(x, grad, grad, fwd, rev, None)
    assert all(t.isfinite().all() for t in (*outs, grads.x, *grads.fwd, *grads.rev))


def test_convolution_past_2_31_elements():
    x = signal(64, 2, 2, torch.float16)
    step = 2**31 + 64
    pages = torch.from_numpy(np.zeros(2 * step, dtype=np.float16))
    for strides in ((step, 64, 1), (64, step, 1)):
        far = pages.as_strided(x.shape, strides).copy_(x)
        check_convolution(mixer, far, taps(2, 4), taps(2, 4, seed=1), None)


@pytest.mark.parametrize("offsets", [None, [0, 200, 516]], ids=str)
def test_convolution_in_any_cut(monkeypatch, offsets):
    """One tile a program, and all of them."""
    x, cu_seqlens = signal(516, dim=5), None if offsets is None else torch.tensor(offsets)
    results = []
    for programs in (1, 1000):
        monkeypatch.setattr(mixer, "PROGRAMS", programs)
        results.append(run_convolution(x, cu_seqlens))
    assert all(rms_error(a, b) <= 1e-6 for a, b in zip(*results, strict=True))


def test_convolution_no_races():
    """And the same bits in any order of the programs."""
    x = signal(516, dim=5)
    with races() as found:
        forwards = run_convolution(x)
    assert not found
    with backwards():
        assert all(torch.equal(a, b) for a, b in zip(forwards, run_convolution(x), strict=True))


def test_convolution_nan_and_infinity_stay_near():
    x = signal(600)
    clean = run_convolution(x)[:3]
    x[0, 1, 300], x[0, 2, 20] = torch.nan, 1e30
    for fine, got in zip(clean, run_convolution(x)[:3], strict=True):
        same = fine == got
        same[0, 1, 294:307] = same[0, 2, 14:27] = True
        assert same.all()


# --- the op -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("untied, strategy, offsets", [(False, "add", [0, 1, 1, 30]), (True, "ew_multiply", None)])
def test_bimamba(untied, strategy, offsets):
    """The whole op, forward and backward, against plain PyTorch in float64."""
    g = torch.Generator().manual_seed(0)
    d, inner, state, rank, length = 3, 4, 2, 2, 30

    def randn(*shape: int) -> Tensor:
        return 0.4 * torch.randn(*shape, generator=g)

    def direction() -> ScanWeights:
        return ScanWeights(
            randn(inner, 1, 4), randn(inner), randn(rank + 2 * state, inner), randn(inner, rank), randn(inner),
            randn(inner, state), randn(inner),
        )  # fmt: skip

    def projections() -> tuple[Tensor, Tensor]:
        return randn(2 * inner, d), randn(d, inner)

    h = torch.randn(2 if offsets is None else 1, length, d, generator=g)
    given = [h, *projections(), *direction(), *direction(), *(projections() if untied else ())]
    cu_seqlens = None if offsets is None else torch.tensor(offsets)
    n = len(ScanWeights._fields)

    def run(backend: str, dtype: torch.dtype) -> list[Tensor]:
        t = [x.to(dtype, copy=True).requires_grad_() for x in given]
        with set_backend(backend):
            out = bimamba(
                *t[:3], ScanWeights(*t[3 : 3 + n]), ScanWeights(*t[3 + n : 3 + 2 * n]),
                rev_proj=tuple(t[3 + 2 * n :]) or None, strategy=strategy, cu_seqlens=cu_seqlens,
            )  # fmt: skip
            return [out.detach(), *torch.autograd.grad(out.square().sum(), t)]

    (out, *grads), (exact_out, *exact_grads) = run("triton", torch.float32), run("reference", torch.float64)
    assert rms_error(out, exact_out) <= 1e-5
    assert all(rms_error(a, b) <= 1e-4 for a, b in zip(grads, exact_grads, strict=True))
