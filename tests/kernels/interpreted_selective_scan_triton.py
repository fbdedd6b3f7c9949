"""The Triton scan in Triton's interpreter, against the float64 oracle. Needs TRITON_INTERPRET=1 from the start:
`TRITON_INTERPRET=1 pytest tests/kernels/interpreted_selective_scan_triton.py`; test_selective_scan_triton.py does that.

What costs time is the number of programs, tiles and states, not the size of a tile.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scan_problems import arguments, check_implementation, extreme, problem, rms_error
from triton_interpreter import backwards, races

from seq2exp.kernels.selective_scan import chunked, reference
from seq2exp.kernels.selective_scan import triton as scan

PACKED = [0, 0, 1, 4, 260, 260, 520, 520]


@pytest.fixture(autouse=True)
def poisoned() -> Iterator[None]:
    """Memory that torch hands out uninitialised holds NaN."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def small(**options: object) -> SimpleNamespace:
    return problem(**({"dim": 3, "state": 2, "batch": 1} | options))


def run(p: SimpleNamespace) -> list[torch.Tensor]:
    out, last, states = scan.forward(*arguments(p))
    return [out, last, states, *scan.backward(torch.ones_like(p.u), *arguments(p), states)]


def check_different_groups(p: SimpleNamespace) -> None:
    """The oracle has one number of groups: it is given every joint group, and its gradients are summed."""
    joint = np.lcm(p.B.shape[1], p.C.shape[1])
    wide = SimpleNamespace(**vars(p))
    wide.B, wide.C = (x.repeat_interleave(joint // x.shape[1], 1) for x in (p.B, p.C))
    grad = torch.ones_like(p.u)
    out, _, states = scan.forward(*arguments(p))
    got = scan.backward(grad, *arguments(p), states)
    exact = reference.selective_scan_backward(grad.double(), *arguments(wide, torch.float64))
    assert rms_error(out, reference.selective_scan_forward(*arguments(wide, torch.float64))[0]) <= 1e-5
    assert rms_error(got[3], exact.B.unflatten(1, (p.B.shape[1], -1)).sum(2)) <= 1e-4
    assert rms_error(got[4], exact.C.unflatten(1, (p.C.shape[1], -1)).sum(2)) <= 1e-4
    assert rms_error(got[2], exact.A) <= 1e-4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("length", [1, 131, 256])
def test_dtypes_and_lengths(dtype, length):
    check_implementation(scan, small(length=length, dtype=dtype))


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("length", [255, 257, 516])
def test_directions(length, reverse):
    check_implementation(scan, small(length=length, reverse=reverse))


@pytest.mark.parametrize("softplus", [False, True])
@pytest.mark.parametrize(
    "options", [{"gate": False}, {"skip": False}, {"bias": False}, {"gate": False, "skip": False, "bias": False}]
)
def test_absent_inputs(options, softplus):
    check_implementation(scan, small(length=75, softplus=softplus, **options))


@pytest.mark.parametrize("shape", [{"batch": 3, "dim": 1, "state": 1}, {"state": 17}, {"batch": 2, "dim": 8}])
def test_shapes(shape):
    check_implementation(scan, small(length=40, **shape))


@pytest.mark.slow
@pytest.mark.parametrize("shape", [{"state": 256, "length": 5}, {"length": 2049}, {"dim": 70, "batch": 2}])
def test_large_shapes(shape):
    check_implementation(scan, small(**shape), chunked)


@pytest.mark.parametrize("warps", scan.TUNING)
def test_numbers_of_warps(warps):
    scan.tune(warps)
    try:
        check_implementation(scan, small(dim=9, length=60))
    finally:
        scan.tune(None)


@pytest.mark.parametrize("programs", [1, 3, 100])
@pytest.mark.parametrize(
    "options", [{"reverse": True, "length": 771}, {"length": 700, "cu_seqlens": [0, 300, 300, 700]}], ids=str
)
def test_segments(monkeypatch, programs, options):
    """L in one part, in parts of several tiles, and tile by tile."""
    monkeypatch.setattr(scan, "FORWARD_PROGRAMS", programs)
    monkeypatch.setattr(scan, "BACKWARD_PROGRAMS", programs)
    check_implementation(scan, small(**({"dim": 2, "state": 1} | options)), chunked)


@pytest.mark.parametrize("length, reverse", [(520, False), (521, True)])
def test_packed_sequences(length, reverse):
    offsets = [*PACKED[:-1], length]
    p = small(state=1, length=length, cu_seqlens=offsets, reverse=reverse)
    check_implementation(scan, p)
    last = scan.forward(*arguments(p))[1]
    empty = [a == b for a, b in pairwise(offsets)]
    assert not last[empty].any() and last[[not e for e in empty]].all()


def test_packed_equals_one_by_one():
    p = small(state=1, length=520, cu_seqlens=PACKED)
    packed, last, _ = scan.forward(*arguments(p))
    for i, (a, b) in enumerate(pairwise(PACKED)):
        if a == b:
            continue
        one = SimpleNamespace(**vars(p))
        for name in ("u", "delta", "z", "B", "C"):
            setattr(one, name, getattr(p, name)[..., a:b])
        one.cu_seqlens = None
        out, state, _ = scan.forward(*arguments(one))
        assert rms_error(packed[..., a:b], out) <= 1e-6 and rms_error(last[i : i + 1], state) <= 1e-6


@pytest.mark.parametrize("groups", [2, 6])
def test_groups(groups):
    check_implementation(scan, small(dim=6, groups=groups, length=40))


@pytest.mark.parametrize("groups_B, groups_C", [(1, 2), (2, 3), (6, 1)])
def test_groups_of_B_and_C_differ(groups_B, groups_C):
    p = small(dim=6, groups=groups_B, length=40)
    p.C = small(dim=6, groups=groups_C, length=40, seed=1).C
    check_different_groups(p)


@pytest.mark.parametrize("length", [64, 65])
def test_any_strides(length):
    p = small(batch=2, length=length)
    for name in ("u", "delta", "z", "B", "C"):
        x = getattr(p, name)
        spread = torch.full((*x.shape[:-1], 2 * x.shape[-1] + 1), torch.nan)
        spread[..., 1::2] = x
        setattr(p, name, spread[..., 1::2])
    check_implementation(scan, p)


def test_memory_layouts():
    p = small(batch=2, dim=4, length=64, transposed=True, dtype=torch.bfloat16)
    p.z = p.z.permute(1, 2, 0).contiguous().permute(2, 0, 1)  # (dim, L, batch) in memory
    check_implementation(scan, p)
    out, _, states = scan.forward(*arguments(p))
    grads = scan.backward(torch.ones_like(p.u), *arguments(p), states)
    assert out.stride() == p.u.stride() and grads[0].stride() == p.u.stride()
    assert grads[1].stride() == p.delta.stride() and grads[6].stride() == p.z.stride()


def test_rows_that_start_anywhere():
    """Slices whose rows do not start at multiples of four elements, beside others that do."""
    p = small(length=64)
    for name, start in (("u", 1), ("B", 2), ("delta", 4)):
        x = getattr(p, name)
        wide = torch.full((*x.shape[:-1], 80), torch.nan)
        wide[..., start : start + 64] = x
        setattr(p, name, wide[..., start : start + 64])
    check_implementation(scan, p)


@pytest.mark.parametrize("length", [64, 65])
def test_constant_projections(length):
    """B and C given per channel: the same along L and over the batch, with stride 0."""
    p = small(batch=2, dim=2, groups=2, length=length)
    p.B = p.B[:1, :, :, :1].expand(2, -1, -1, length)
    p.C = p.C[:1, :, :, :1].expand(2, -1, -1, length)
    check_implementation(scan, p)


def test_one_row_for_the_whole_batch():
    p = small(batch=1, length=64)
    for name in ("u", "delta", "z", "B", "C"):
        x = getattr(p, name)
        setattr(p, name, x.expand(2, *x.shape[1:]))
    check_implementation(scan, p)


def test_float32_projections_beside_bfloat16():
    p = small(length=70, dtype=torch.bfloat16)
    p.B, p.C = p.B.float(), p.C.float()
    out, _, states = scan.forward(*arguments(p))
    assert rms_error(out, reference.selective_scan_forward(*arguments(p, torch.float64))[0]) <= 1e-2
    grads = scan.backward(torch.ones_like(p.u), *arguments(p), states)
    assert grads[3].dtype == grads[4].dtype == torch.float32 and grads[0].dtype == torch.bfloat16


def test_past_2_31_elements():
    """Rows further apart than 32 bits can count, in memory that is never touched in between."""
    p = small(batch=2, dim=2, length=64, dtype=torch.float16)
    step = 2**31 + 64
    pages = torch.from_numpy(np.zeros(2 * step, dtype=np.float16))
    for name, size in (("u", (step, 64, 1)), ("B", (64, 64, step, 1)), ("z", (64, step, 1))):
        x = getattr(p, name)
        offset = {"u": 0, "B": 256, "z": 512}[name]
        setattr(p, name, pages.as_strided(x.shape, size, offset).copy_(x))
    check_implementation(scan, p)


def test_extreme_values():
    p = extreme(small(batch=2, dim=6, state=3, length=80))
    check_implementation(scan, p)


def test_nan_stays_in_its_row():
    p = small(batch=2, dim=4, state=1, length=300)
    clean = run(p)
    p.u[0, 3, 50] = torch.nan
    p.delta[1, 2, 20] = torch.inf
    out, last, _, du, ddelta, *_ = run(p)
    touched = torch.zeros(out.shape, dtype=torch.bool)
    touched[0, 3, 50:] = touched[1, 2, 20:] = True
    assert torch.equal(out[~touched], clean[0][~touched]) and out[0, 3, 50:].isnan().all()
    assert last[0, 3].isnan().all() and torch.equal(last[0, 2], clean[1][0, 2])
    rows = ~touched.any(2)
    assert torch.equal(du[rows], clean[3][rows]) and torch.equal(ddelta[rows], clean[4][rows])
    p.delta[1, 2, 20] = 0
    dB, dC = run(p)[6:8]
    assert dB[0].isnan().any() and dB[1].isfinite().all() and dC[1].isfinite().all()


@pytest.mark.parametrize("options", [{"batch": 2, "dim": 9}, {"length": 400, "cu_seqlens": [0, 300, 400]}], ids=str)
def test_same_bits_in_any_order_of_the_programs(options):
    p = small(state=1, **options)
    forwards = run(p)
    with backwards():
        assert all(torch.equal(a, b) for a, b in zip(forwards, run(p), strict=True))


@pytest.mark.parametrize(
    "options",
    [{"length": 1030}, {"dim": 9}, {"cu_seqlens": [0, 300, 520], "reverse": True}],
    ids=("segments", "channels", "packed"),
)
def test_no_races(monkeypatch, options):
    """With several tiles in a segment, so that barriers matter."""
    monkeypatch.setattr(scan, "FORWARD_PROGRAMS", 2)
    monkeypatch.setattr(scan, "BACKWARD_PROGRAMS", 2)
    with races() as found:
        run(small(**({"state": 1, "length": 520} | options)))
    assert not found


def test_vectors_of_any_strides():
    p = small(length=20, cu_seqlens=[0, 8, 20])
    p.D, p.delta_bias = torch.tensor([0.7]).expand(3), torch.tensor([-1.0, 0, 2, 0, 3, 0])[::2]
    p.cu_seqlens = torch.tensor([[0, 8, 20], [5, 5, 5]]).T[:, 0]
    p.A = p.A.T.contiguous().T
    check_implementation(scan, p)
