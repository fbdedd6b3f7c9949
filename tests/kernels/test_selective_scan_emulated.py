"""The CUDA scan, executed on the CPU, against the float64 oracle: every kernel of forward and backward."""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace

import emulated_scan
import pytest
import torch
from emulated_scan import EmulatedScan
from scan_problems import arguments, check_implementation, extreme, far_apart, problem, rms_error
from torch import Tensor

from seq2exp.kernels.selective_scan import chunked, reference

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SIGNALS = ("u", "delta", "z", "B", "C")


@cache
def emulated(dtype: torch.dtype, checked: bool = False) -> EmulatedScan:
    return EmulatedScan(dtype, checked)


def check(p: SimpleNamespace, checked: bool = False) -> None:
    oracle = chunked if p.u.shape[2] > 200 else reference
    check_implementation(emulated(p.u.dtype, checked), p, oracle)


def run(p: SimpleNamespace, grad: Tensor | None = None) -> list[Tensor | None]:
    """out, last state, saved states, then the gradients."""
    scan = emulated(p.u.dtype)
    out, last, states = scan.forward(*arguments(p))
    grad = torch.ones_like(p.u) if grad is None else grad
    return [out, last, states, *scan.backward(grad, *arguments(p), states)]


def same_bits(a: Tensor | None, b: Tensor | None) -> bool:
    return a is b or torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("length", [1, 31, 63, 130, 255, 256, 257, 511, 512, 513])
def test_dtypes_and_lengths(dtype, length):
    check(problem(dim=3, length=length, dtype=dtype, reverse=length % 2 == 0))


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("length", [2047, 2048, 2049])
def test_long(length, reverse):
    check(problem(batch=1, dim=5, length=length, reverse=reverse))


@pytest.mark.parametrize("dim", [1, 2, 7, 8, 9, 24])
def test_channels_that_do_not_fill_a_block(dim):
    check(problem(dim=dim, length=300, state=3))


@pytest.mark.parametrize("reverse", [False, True])
def test_one_segment(reverse):
    p = problem(batch=1100, dim=2, state=2, length=530, reverse=reverse)
    assert emulated(torch.float32).segments(*arguments(p)) == (1, 1)
    check(p)


@pytest.mark.parametrize("reverse", [False, True])
def test_segments_of_several_tiles(reverse):
    p = problem(batch=300, dim=2, state=2, length=1300, reverse=reverse)
    assert all(1 < n < 5 for n in emulated(torch.float32).segments(*arguments(p)))
    check(p)


@pytest.mark.parametrize("state", [1, 5, 16, 17, 40, 256])
def test_state_sizes(state):
    check(problem(state=state, length=270, dim=10, batch=1))


@pytest.mark.parametrize("softplus", [False, True])
@pytest.mark.parametrize(
    "options", [{"gate": False}, {"skip": False}, {"bias": False}, {"gate": False, "skip": False, "bias": False}]
)
def test_absent_inputs(options, softplus):
    check(problem(length=75, dim=9, softplus=softplus, **options))
    check(problem(length=512, dim=2, softplus=softplus, **options))


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(
    "cu_seqlens",
    [[0, 150], [0, 1, 2, 3, 150], [0, 0, 64, 64, 128, 149, 150, 150], [0, 20, 70, 130, 150], [0, 255, 255, 513, 1200]],
    ids=str,
)
def test_packed_sequences(cu_seqlens, reverse):
    p = problem(batch=1, dim=9, length=cu_seqlens[-1], cu_seqlens=cu_seqlens, reverse=reverse)
    check(p)
    _, last, _ = emulated(torch.float32).forward(*arguments(p))
    assert not last[p.cu_seqlens.diff() == 0].any() and last[p.cu_seqlens.diff() > 0].any()


def test_many_packed_sequences():
    """So many that each has one segment, of one tile or of several."""
    lengths = torch.arange(600) % 3
    lengths[::50] = 600
    offsets = [0, *lengths.cumsum(0).tolist()]
    check(problem(batch=1, dim=4, state=2, length=offsets[-1], cu_seqlens=offsets))


@pytest.mark.parametrize("groups", [2, 4, 20])
def test_groups(groups):
    check(problem(groups=groups, length=270, state=5))


@pytest.mark.parametrize(("b_groups", "c_groups"), [(2, 3), (1, 4), (6, 2)])
def test_groups_of_B_and_C_differ(b_groups, c_groups):
    p = problem(dim=24, groups=b_groups, length=70)
    p.C = problem(dim=24, groups=c_groups, length=70, seed=1).C
    per_channel = SimpleNamespace(**vars(p))
    per_channel.B, per_channel.C = (x.repeat_interleave(24 // x.shape[1], 1) for x in (p.B, p.C))
    out, last, _, *grads = run(p)
    wide = arguments(per_channel, torch.float64)
    exact = reference.selective_scan_backward(torch.ones_like(wide[0]), *wide)
    exact_out, exact_last = reference.selective_scan_forward(*wide)
    assert rms_error(out, exact_out) <= 1e-5 and rms_error(last, exact_last) <= 1e-5
    for name, got, want in zip(exact._fields, grads, exact, strict=True):
        if name in ("B", "C"):
            want = want.unflatten(1, (getattr(p, name).shape[1], -1)).sum(2)
        assert rms_error(got, want) <= 1e-4, name


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_channels_last(dtype, reverse):
    p = problem(dim=12, length=520, transposed=True, reverse=reverse, dtype=dtype, groups=2, state=6)
    check(p)
    out, _, _, du, ddelta, *_ = run(p)
    assert out.stride() == p.u.stride() and du.stride() == p.u.stride() and ddelta.stride() == p.delta.stride()


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("offset", "pitch"), [(0, 1040), (8, 1040), (1, 1040), (0, 1033), (7, 1041)])
def test_alignment_of_rows(dtype, offset, pitch, reverse):
    """Whole tiles, whose rows begin at 16-byte words or not; every other row where the pitch is odd."""
    p = problem(batch=1, dim=3, length=1024, dtype=dtype, state=4, reverse=reverse)
    for name in SIGNALS:
        x = getattr(p, name)
        spread = torch.full((*x.shape[:-1], pitch), torch.nan, dtype=dtype)
        spread[..., offset : offset + 1024] = x
        setattr(p, name, spread[..., offset : offset + 1024])
    check(p)


def test_any_strides():
    p = problem(dim=9, length=300)
    for name in SIGNALS:
        x = getattr(p, name)
        spread = torch.full((*x.shape[:-1], 2 * x.shape[-1] + 1), torch.nan)
        spread[..., 1::2] = x
        setattr(p, name, spread[..., 1::2])
    check(p)


def test_dense_forms_that_are_no_layout_of_ours():
    p = problem(batch=3, dim=9, length=300)
    p.u = p.u.permute(2, 0, 1).contiguous().permute(1, 2, 0)  # (L, batch, dim) in memory
    p.z = p.z.permute(1, 2, 0).contiguous().permute(2, 0, 1)  # (dim, L, batch)
    check(p)


def test_strides_of_zero():
    p = problem(batch=3, dim=9, length=300)
    p.B = p.B[..., :1].expand(-1, -1, -1, 300)
    p.C = p.C[:1].expand(3, -1, -1, -1)
    p.delta = p.delta[:, :1].expand(-1, 9, -1)
    p.u = p.u[..., :1].expand(-1, -1, 300)
    check(p)


def test_extreme_values():
    p = extreme(problem(length=80))
    check(p)


def test_nan_stays_in_its_row():
    p = problem(length=700, dim=9)
    clean = run(p)
    p.u[0, 3, 550] = torch.nan
    p.delta[1, 7, 20] = torch.inf
    dirty = run(p)
    touched = torch.zeros(p.u.shape, dtype=torch.bool)
    touched[0, 3, 550:] = touched[1, 7, 20:] = True
    assert torch.equal(dirty[0][~touched], clean[0][~touched]) and dirty[0][0, 3, 550:].isnan().all()
    rows = torch.ones(p.u.shape[:2], dtype=torch.bool)
    rows[0, 3] = rows[1, 7] = False
    assert torch.equal(dirty[1][rows], clean[1][rows]) and dirty[1][0, 3].isnan().all()
    for i in (3, 4, 9):  # du, ddelta, dz
        assert torch.equal(dirty[i][rows], clean[i][rows])
    channels = torch.ones(9, dtype=torch.bool)
    channels[[3, 7]] = False
    for i in (5, 8, 10):  # dA, dD, dbias
        assert torch.equal(dirty[i][channels], clean[i][channels])


def test_states_are_saved_only_when_asked_for():
    p = problem(length=600, dim=3)
    scan = emulated(torch.float32)
    out, last, states = scan.forward(*arguments(p))
    bare_out, bare_last, none = scan.forward(*arguments(p), save_states=False)
    assert torch.equal(out, bare_out) and torch.equal(last, bare_last)
    assert none.numel() == 0 and states.shape[0] == 2 * -(-600 // scan.chunk_length(600))


MIXED = [
    dict(batch=2, dim=20, length=600, groups=2, state=17),
    dict(batch=1, dim=11, length=700, cu_seqlens=[0, 0, 256, 300, 700], reverse=True),
    dict(batch=1, dim=9, length=512, transposed=True, gate=False),
]


@pytest.mark.parametrize("shape", MIXED, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_same_bits_in_every_order(dtype, shape):
    """Blocks, warps and lanes forward (twice), reversed, and in two random orders."""
    p = problem(dtype=dtype, **shape)
    scan = emulated(dtype)
    runs = []
    try:
        for order in (0, 0, 1, 2, 3):
            scan.set_order(order)
            runs.append(run(p))
    finally:
        scan.set_order(0)
    for other in runs[1:]:
        assert all(map(same_bits, runs[0], other))


@pytest.mark.parametrize(
    "shape",
    [
        *MIXED,
        dict(batch=1, dim=3, length=513, state=40, softplus=False),
        dict(batch=1, dim=2, length=1, skip=False, bias=False),
        dict(batch=1, dim=2, length=1024, reverse=True),
    ],
    ids=str,
)
def test_memory_is_used_within_bounds_and_without_races(shape):
    check(problem(dtype=torch.bfloat16, **shape), checked=True)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("dim", [0, 1, -1])
def test_offsets_past_two_to_the_31(dim, reverse, monkeypatch):
    p = problem(batch=2, dim=2, state=2, length=304, dtype=torch.bfloat16, reverse=reverse)
    for name in SIGNALS:
        x = getattr(p, name)
        setattr(p, name, far_apart(x, 2 if dim == 1 and x.dim() == 4 else dim))
    monkeypatch.setattr(emulated_scan.Outputs, "like", lambda self, x: far_apart(torch.full_like(x, torch.nan), dim))
    check(p, checked=True)  # a wrong address is reported, not followed
