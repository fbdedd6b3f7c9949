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
from torch import Tensor

from seq2exp.kernels import _extension
from seq2exp.kernels.selective_scan import chunked, native, reference

pytestmark = pytest.mark.skipif(_extension.load() is not None, reason=f"compiled extension: {_extension.load()}")

SETS = [] if _extension.load() else torch.ops.seq2exp_native.cpu_instruction_sets()
GRADS = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")
FORWARD_LIMIT = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 1e-2}
GRAD_LIMIT = {torch.float32: 1e-4, torch.bfloat16: 1e-2, torch.float16: 1e-2}


@pytest.fixture(params=SETS)
def isa(request) -> Iterator[str]:
    before = torch.ops.seq2exp_native.cpu_instruction_set()
    torch.ops.seq2exp_native.set_cpu_instruction_set(request.param)
    yield request.param
    torch.ops.seq2exp_native.set_cpu_instruction_set(before)


def problem(
    batch=2, dim=20, state=16, length=130, groups=1, dtype=torch.float32, gate=True, skip=True, bias=True,
    softplus=True, reverse=False, cu_seqlens=None, transposed=False, seed=0,
) -> SimpleNamespace:  # fmt: skip
    """Inputs as Mamba has them: step sizes 1e-3..1e-1, A = -(1..state)."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g)

    def signal() -> Tensor:
        x = normal(batch, length, dim).transpose(1, 2) if transposed else normal(batch, dim, length)
        return x.to(dtype)

    def projection() -> Tensor:
        if transposed:  # as split from one projection: (batch, L, columns)
            columns = normal(batch, length, groups * state + 5).to(dtype)[:, :, 3 : 3 + groups * state]
            return columns.unflatten(2, (groups, state)).permute(0, 2, 3, 1)
        return normal(batch, groups, state, length).to(dtype)

    step = torch.exp(torch.rand(dim, generator=g) * 4.6 - 6.9)
    delta = 0.5 * signal()
    if not bias:
        delta = delta + step.log()[:, None].to(dtype)
    if not softplus:
        delta = delta.exp() * (step[:, None].to(dtype) if bias else 1)
    A = -torch.arange(1.0, state + 1).repeat(dim, 1) * (1 + 0.1 * torch.rand(dim, 1, generator=g))
    return SimpleNamespace(
        u=signal(), delta=delta, A=A, B=projection(), C=projection(),
        D=normal(dim) if skip else None, z=signal() if gate else None,
        delta_bias=(step.log() if softplus else 1e-3 * torch.rand(dim, generator=g)) if bias else None,
        softplus=softplus, reverse=reverse, cu_seqlens=None if cu_seqlens is None else torch.tensor(cu_seqlens),
    )  # fmt: skip


def arguments(p: SimpleNamespace, dtype: torch.dtype | None = None) -> tuple:
    tensors = [getattr(p, name) for name in GRADS]
    if dtype is not None:
        tensors = [None if x is None else x.to(dtype) for x in tensors]
    return *tensors, p.softplus, p.reverse, p.cu_seqlens


def rms_error(x: Tensor, exact: Tensor) -> float:
    assert x.shape == exact.shape
    scale = exact.double().square().mean().sqrt().clamp_min(1e-30)
    return float((x.double() - exact.double()).square().mean().sqrt() / scale)


def check(p: SimpleNamespace, oracle=reference) -> None:
    dtype = p.u.dtype
    grad = torch.randn(p.u.shape, generator=torch.Generator().manual_seed(7)).to(dtype)
    out, last, states = native.forward(*arguments(p))
    grads = native.backward(grad, *arguments(p), states)
    wide = arguments(p, torch.float64)
    if oracle is reference:
        exact_out, exact_last = reference.selective_scan_forward(*wide)
        exact = reference.selective_scan_backward(grad.double(), *wide)
    else:
        exact_out, exact_last, exact_states = chunked.forward(*wide)
        exact = chunked.backward(grad.double(), *wide, exact_states)
    assert out.dtype == dtype and last.dtype == torch.float32
    assert list(states.shape) == native.states_shape(*p.u.shape[:2], p.A.shape[1], p.u.shape[2], None)
    assert rms_error(out, exact_out) <= FORWARD_LIMIT[dtype]
    assert rms_error(last, exact_last) <= 1e-5
    for name, got, want in zip(GRADS, grads, exact, strict=True):
        if getattr(p, name) is None:
            assert got is None
        else:
            # a gradient that is stored in 16 bits carries its rounding; sums over L and batch are float32 throughout
            assert rms_error(got, want) <= GRAD_LIMIT[dtype], name
            assert got.dtype == (dtype if name in ("u", "delta", "z", "B", "C") else torch.float32), name


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
    """Decays that underflow, growth that does not overflow, huge gates and steps: finite and exact."""
    p = problem(length=80)
    p.A[0] *= 1e4
    p.A[1] = 0.05  # grows
    p.A[2] = 0
    p.delta[0, 3, :40] = -60
    p.delta[0, 4, 5] = 300
    p.z[0, 5] = 1e4
    p.z[0, 6] = -1e4
    p.z[0, 7] = -80
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
