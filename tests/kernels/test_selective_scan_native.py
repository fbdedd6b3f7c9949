"""The C++ scan against the float64 oracle: dtypes, lengths, layouts, options, every instruction set of this CPU."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from scan_problems import arguments, check_implementation, extreme, far_apart, problem, rms_error

from seq2exp.kernels import _extension
from seq2exp.kernels.selective_scan import chunked, native, reference

pytestmark = pytest.mark.skipif(_extension.load() is not None, reason=f"compiled extension: {_extension.load()}")

SETS = [] if _extension.load() else torch.ops.seq2exp_native.cpu_instruction_sets()


@pytest.fixture(params=SETS)
def isa(request) -> Iterator[str]:
    before = torch.ops.seq2exp_native.cpu_instruction_set()
    torch.ops.seq2exp_native.set_cpu_instruction_set(request.param)
    yield request.param
    torch.ops.seq2exp_native.set_cpu_instruction_set(before)


def check(p: SimpleNamespace, oracle=reference) -> None:
    check_implementation(native, p, oracle)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("length", [1, 63, 130])
def test_dtypes_and_lengths(isa, dtype, length):
    check(problem(length=length, dtype=dtype))


@pytest.mark.parametrize("length", [2047, 2049])
def test_long(isa, length):
    check(problem(batch=1, dim=9, length=length), oracle=chunked)


@pytest.mark.parametrize("reverse", [False, True])
def test_very_long(reverse):
    check(problem(batch=1, dim=5, state=4, length=65_537, reverse=reverse), oracle=chunked)


@pytest.mark.parametrize("state", [1, 3, 4, 16, 17, 64, 256])
def test_state_sizes(isa, state):
    check(problem(state=state, length=67, dim=18))


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_layout_and_direction(isa, transposed, reverse, dtype):
    p = problem(dim=32, length=150, transposed=transposed, reverse=reverse, dtype=dtype)
    check(p)
    out, _, states = native.forward(*arguments(p))
    grads = native.backward(torch.ones_like(p.u), *arguments(p), states)
    assert out.stride() == p.u.stride() and grads[0].stride() == p.u.stride() and grads[1].stride() == p.delta.stride()


def test_any_strides(isa):
    p = problem(dim=20, length=140)
    for name in ("u", "delta", "z", "B", "C"):
        x = getattr(p, name)
        spread = torch.full((*x.shape[:-1], 2 * x.shape[-1] + 1), torch.nan)
        spread[..., 1::2] = x
        setattr(p, name, spread[..., 1::2])
    check(p)


def test_dense_forms_that_are_no_layout_of_ours(isa):
    p = problem(batch=3, dim=20, length=70)
    p.u = p.u.permute(2, 0, 1).contiguous().permute(1, 2, 0)  # (L, batch, dim) in memory
    p.z = p.z.permute(1, 2, 0).contiguous().permute(2, 0, 1)  # (dim, L, batch)
    p.B = p.B[..., :1].expand(-1, -1, -1, 70)  # constant along L
    check(p)


@pytest.mark.parametrize("softplus", [False, True])
@pytest.mark.parametrize(
    "options", [{"gate": False}, {"skip": False}, {"bias": False}, {"gate": False, "skip": False, "bias": False}]
)
def test_absent_inputs(isa, options, softplus):
    check(problem(length=75, softplus=softplus, **options))


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(
    "cu_seqlens", [[0, 150], [0, 1, 2, 3, 150], [0, 0, 64, 64, 128, 149, 150, 150], [0, 20, 70, 130, 150]], ids=str
)
def test_packed_sequences(isa, cu_seqlens, reverse):
    check(problem(batch=1, length=150, cu_seqlens=cu_seqlens, reverse=reverse))


def test_packed_equals_one_by_one(isa):
    offsets = [0, 37, 100, 101, 260]
    p = problem(batch=1, length=260, cu_seqlens=offsets)
    packed, last, _ = native.forward(*arguments(p))
    for i, (a, b) in enumerate(pairwise(offsets)):
        one = SimpleNamespace(**vars(p))
        for name in ("u", "delta", "z", "B", "C"):
            setattr(one, name, getattr(p, name)[..., a:b])
        one.cu_seqlens = None
        out, state, _ = native.forward(*arguments(one))
        assert torch.equal(packed[..., a:b], out) and torch.equal(last[i : i + 1], state)


@pytest.mark.parametrize("groups", [2, 4, 20])
def test_groups(isa, groups):
    check(problem(groups=groups, length=70))


def test_groups_of_B_and_C_differ(isa):
    p = problem(dim=24, groups=2, length=70)
    p.C = problem(dim=24, groups=3, length=70, seed=1).C
    wide = SimpleNamespace(**vars(p))
    wide.B, wide.C = p.B.repeat_interleave(3, 1), p.C.repeat_interleave(2, 1)
    out, _, states = native.forward(*arguments(p))
    assert rms_error(out, reference.selective_scan_forward(*arguments(wide, torch.float64))[0]) <= 1e-5
    grad = torch.ones_like(p.u)
    got = native.backward(grad, *arguments(p), states)
    exact = reference.selective_scan_backward(grad.double(), *arguments(wide, torch.float64))
    assert rms_error(got[3], exact.B.unflatten(1, (2, 3)).sum(2)) <= 1e-4
    assert rms_error(got[4], exact.C.unflatten(1, (3, 2)).sum(2)) <= 1e-4


def test_fp32_B_and_C_beside_bf16(isa):
    p = problem(dtype=torch.bfloat16, length=70)
    p.B, p.C = p.B.float(), p.C.float()
    out, _, states = native.forward(*arguments(p))
    assert rms_error(out, reference.selective_scan_forward(*arguments(p, torch.float64))[0]) <= 1e-2
    grads = native.backward(torch.ones_like(p.u), *arguments(p), states)
    assert grads[3].dtype == grads[4].dtype == torch.float32 and grads[0].dtype == torch.bfloat16


def test_extreme_values(isa):
    p = extreme(problem(length=80))
    check(p)


def test_nan_stays_in_its_row(isa):
    p = problem(length=100)
    clean, clean_last, _ = native.forward(*arguments(p))
    p.u[0, 3, 50] = torch.nan
    p.delta[1, 7, 20] = torch.inf
    out, last, states = native.forward(*arguments(p))
    touched = torch.zeros(out.shape, dtype=torch.bool)
    touched[0, 3, 50:] = True
    touched[1, 7, 20:] = True
    assert torch.equal(out[~touched], clean[~touched])
    assert out[0, 3, 50:].isnan().all()
    assert last[0, 3].isnan().all() and torch.equal(last[0, 4], clean_last[0, 4])
    du = native.backward(torch.ones_like(p.u), *arguments(p), states)[0]
    rows = torch.ones(out.shape[:2], dtype=torch.bool)
    rows[0, 3] = rows[1, 7] = False
    assert du[rows].isfinite().all()


@pytest.mark.parametrize(
    "shape", [{}, {"batch": 1, "dim": 100, "length": 700}, {"groups": 2, "transposed": True}], ids=str
)
def test_same_bits_for_any_number_of_threads(isa, shape):
    p = problem(**shape)
    before = torch.get_num_threads()
    runs = []
    try:
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            out, last, states = native.forward(*arguments(p))
            runs.append([out, last, states, *native.backward(torch.ones_like(p.u), *arguments(p), states)])
    finally:
        torch.set_num_threads(before)
    for run in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], run, strict=True))


def test_bounded_partial_sums_change_nothing():
    """Long enough that the backward takes several spans (4 MiB of partial sums each)."""
    check(problem(batch=2, dim=40, state=64, length=6_000), oracle=chunked)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("dim", [0, 1, -1])
def test_offsets_past_two_to_the_31(isa, dim, reverse):
    p = problem(batch=2, dim=3, state=2, length=130, dtype=torch.bfloat16, reverse=reverse)
    for name in ("u", "delta", "z", "B", "C"):
        x = getattr(p, name)
        setattr(p, name, far_apart(x, 2 if dim == 1 and x.dim() == 4 else dim))
    check(p)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_storage_rounding_is_that_of_torch(isa, dtype):
    """y = D u with D = 1 in float32: what is stored must be round-to-nearest-even of what was read, bit for bit."""
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int16)
    x = bits.view(dtype)
    x = x[x.isfinite()][None, None]
    n = x.shape[-1]
    D = torch.tensor([1 + 2**-7 + 2**-10 + 2**-11 + 2**-12])
    nothing = torch.zeros(1, 1, 1, n, dtype=dtype)
    A = -torch.ones(1, 1)
    out = native.forward(x, torch.zeros_like(x), A, nothing, nothing, D, None, None, False, False, None)[0]
    assert torch.equal(out, (x.float() * D).to(dtype))


def test_unknown_instruction_set_is_refused():
    with pytest.raises(RuntimeError, match="asks for instruction set 'sse9'"):
        torch.ops.seq2exp_native.set_cpu_instruction_set("sse9")


def test_environment_forces_an_instruction_set():
    program = (
        "from seq2exp.kernels import _extension; import torch; assert _extension.load() is None; "
        "print(torch.ops.seq2exp_native.cpu_instruction_set())"
    )

    def python(name: str) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {"SEQ2EXP_CPU_ISA": name}
        return subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)

    for name in SETS:
        run = python(name)
        assert run.stdout.strip() == name, run.stderr
    run = python("avx9")
    assert run.returncode != 0 and "SEQ2EXP_CPU_ISA asks for instruction set 'avx9'" in run.stderr
