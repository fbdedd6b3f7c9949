"""add_norm: the oracle, the C++ kernels against it for every instruction set of this CPU, and the op."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from norm_problems import BFLOAT, CHANNELS, DTYPES, FLOAT, HALF, check, check_rounding, problem, results, strided
from torch import Tensor
from torch.nn import functional as F

from seq2exp.kernels import _extension, add_norm, set_backend
from seq2exp.kernels.add_norm import native, reference

NO_EXTENSION = _extension.load()
SETS = [] if NO_EXTENSION else torch.ops.seq2exp_native.cpu_instruction_sets()


@pytest.fixture(params=["reference", *SETS])
def module(request) -> Iterator[object]:
    """The plain PyTorch form, and the C++ kernels with each instruction set."""
    if request.param == "reference":
        yield reference
        return
    before = torch.ops.seq2exp_native.cpu_instruction_set()
    torch.ops.seq2exp_native.set_cpu_instruction_set(request.param)
    yield native
    torch.ops.seq2exp_native.set_cpu_instruction_set(before)


def composed(x: Tensor, residual: Tensor | None, weight: Tensor, gate: Tensor | None) -> tuple[Tensor, Tensor]:
    total = x if residual is None else residual + x
    h = F.rms_norm(total, total.shape[-1:], weight, 1e-5)
    return h if gate is None else h * gate[..., None], total


@pytest.mark.parametrize("gate", [False, True])
@pytest.mark.parametrize("residual", [False, True])
def test_oracle(residual, gate):
    """Against torch's own operators and their autograd; and by finite differences."""
    p = problem((2, 3, 5), torch.float64, residual=residual, gate=gate)
    weight, gate = p.weight.double(), None if p.gate is None else p.gate.double()
    inputs = [p.x, p.residual, weight, gate]
    present = [x.requires_grad_() for x in inputs if x is not None]
    h, total = composed(*inputs)
    ours = add_norm(*inputs[:3], gate=gate)
    grads = (p.grad, p.grad_residual) if residual else (p.grad,)
    n = len(grads)
    for ours_x, theirs_x in zip(
        (*ours, *torch.autograd.grad(ours[:n], present, grads)),
        (h, total, *torch.autograd.grad((h, total)[:n], present, grads)),
        strict=True,
    ):
        torch.testing.assert_close(ours_x, theirs_x, rtol=1e-12, atol=1e-12)

    def function(*given: Tensor) -> tuple[Tensor, ...]:
        left = list(given)
        args = [None if x is None else left.pop(0) for x in inputs]
        return add_norm(*args[:3], gate=args[3])[:n]

    assert torch.autograd.gradcheck(function, present)


@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("dtypes", DTYPES, ids=str)
def test_dtypes_and_channels(module, dtypes, channels):
    check(module, problem((2, 5, channels), *dtypes))


@pytest.mark.parametrize("gate", [False, True])
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("dtype", [FLOAT, BFLOAT, HALF], ids=str)
def test_absent_inputs(module, dtype, residual, gate):
    p = problem(dtype=dtype, residual=residual, gate=gate)
    check(module, p)
    p.grad_residual = None
    check(module, p)


@pytest.mark.parametrize("shape", [(7,), (1, 20), (3, 2, 4, 20), (1, 1, 20), (2, 2_500, 20)], ids=str)
def test_shapes(module, shape):
    check(module, problem(shape))


@pytest.mark.parametrize("dtypes", DTYPES, ids=str)
def test_strides(module, dtypes):
    check(module, strided(problem((3, 11, 20), *dtypes)))
    check(module, strided(problem((3, 11, 128), *dtypes, gate=False)))


@pytest.mark.parametrize("dtypes", [(FLOAT, FLOAT), (BFLOAT, BFLOAT), (HALF, HALF), (BFLOAT, FLOAT)], ids=str)
def test_rounded_once_and_recomputed_bit_for_bit(module, dtypes):
    check_rounding(module, problem((2, 300, 77), *dtypes))


def test_extreme_values(module):
    p = problem((6, 20))
    p.x[0], p.residual[0] = 0, 0  # epsilon alone
    p.x[1], p.residual[1] = 1e-20, 1e-20
    p.x[2] *= 1e15
    p.residual[3] *= 1e18
    p.gate[4] = 0
    check(module, p)
    p.x[5, 3] = torch.nan
    found = results(module, p)
    for name in ("h", "residual_out", "dr", "dgate"):
        assert found[name][:5].isfinite().all(), name
    assert found["h"][5].isnan().all()


@pytest.mark.skipif(NO_EXTENSION is not None, reason=f"compiled extension: {NO_EXTENSION}")
@pytest.mark.parametrize("shape", [(2, 3_000, 24), (1, 100, 1000), (70_000, 3)], ids=str)
def test_same_bits_for_any_number_of_threads(shape):
    p = problem(shape, BFLOAT, FLOAT)
    before, runs = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            runs.append(results(native, p))
    finally:
        torch.set_num_threads(before)
    for run in runs[1:]:
        assert all(torch.equal(run[name], x) for name, x in runs[0].items())


@pytest.fixture(params=["reference", *(["cpu"] if not NO_EXTENSION else [])])
def backend(request) -> Iterator[str]:
    with set_backend(request.param):
        yield request.param


def leaves(p) -> list[Tensor | None]:
    return [None if x is None else x.requires_grad_() for x in (p.x, p.residual, p.weight, p.gate)]


@pytest.mark.parametrize(("residual", "gate"), [(False, False), (True, False), (False, True), (True, True)])
def test_opcheck(backend, residual, gate):
    x, kept, weight, g = leaves(problem((2, 5, 12), BFLOAT, FLOAT, residual=residual, gate=gate))
    torch.library.opcheck(torch.ops.seq2exp.add_norm_fwd, (x, kept, weight, g, 1e-5, backend))
    p = problem((2, 5, 12), residual=residual, gate=gate)
    arguments = (p.grad, p.grad_residual, p.x if p.residual is None else p.residual, p.weight, p.gate, 1e-5, backend)
    torch.library.opcheck(torch.ops.seq2exp.add_norm_bwd, arguments)


@pytest.mark.parametrize("residual", [False, True])
def test_compile(backend, residual):
    p = problem((2, 5, 12), BFLOAT, FLOAT, residual=residual)

    def loss(x: Tensor, residual: Tensor | None, weight: Tensor, gate: Tensor) -> Tensor:
        h, total = add_norm(x, residual, weight, gate=gate)
        return (h * p.grad).sum() + (total * 2).sum()

    inputs = leaves(p)
    present = [x for x in inputs if x is not None]
    eager = torch.autograd.grad(loss(*inputs), present)
    compiled = torch.autograd.grad(torch.compile(loss, fullgraph=True, backend="aot_eager")(*inputs), present)
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(eager, compiled, strict=True))


def test_gradients_where_an_output_is_not_used(backend):
    p = problem((2, 5, 12))
    inputs = leaves(p)
    only_stream = torch.autograd.grad(add_norm(*inputs[:3], gate=p.gate)[1], inputs, p.grad, allow_unused=True)
    assert torch.equal(only_stream[0], p.grad) and torch.equal(only_stream[1], p.grad)
    only_h = torch.autograd.grad(add_norm(*inputs[:3], gate=p.gate)[0], inputs, p.grad)
    exact = reference.backward(p.grad, None, p.residual + p.x, p.weight, p.gate, 1e-5)
    for got, want in zip(only_h, (exact[0], *exact), strict=True):
        torch.testing.assert_close(got, want)


def test_gradients_have_the_dtypes_of_their_inputs(backend):
    p = problem((2, 5, 12), BFLOAT, FLOAT)
    p.weight, p.gate = p.weight.to(HALF), p.gate.to(BFLOAT)
    x, residual, weight, gate = leaves(p)
    h, total = add_norm(x, residual, weight, gate=gate)
    (h.float().sum() + total.sum()).backward()
    assert [t.grad.dtype for t in (x, residual, weight, gate)] == [BFLOAT, FLOAT, HALF, BFLOAT]


def test_without_a_residual_x_comes_back(backend):
    p = problem((2, 5, 12), residual=False)
    assert add_norm(p.x, None, p.weight)[1] is p.x


def test_only_what_is_needed_is_saved(backend):
    p = problem((2, 50, 12), BFLOAT, FLOAT)
    inputs = leaves(p)
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x):
        _, total = add_norm(*inputs[:3], gate=inputs[3])
    assert sum(x.nbytes for x in saved) == total.nbytes + p.weight.nbytes + p.gate.nbytes


def test_autocast_changes_nothing(backend):
    p = problem((2, 5, 12), FLOAT, BFLOAT)
    plain = add_norm(p.x, p.residual, p.weight, gate=p.gate)
    with torch.autocast("cpu", torch.bfloat16):
        under = add_norm(p.x, p.residual, p.weight, gate=p.gate)
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(plain, under, strict=True))


@pytest.mark.parametrize("shape", [(0, 4), (2, 0, 4)], ids=str)
def test_no_rows(backend, shape):
    p = problem(shape)
    inputs = leaves(p)
    h, total = add_norm(*inputs[:3], gate=inputs[3])
    (h.sum() + total.sum()).backward()
    assert h.shape == total.shape == p.x.grad.shape == shape and not p.weight.grad.any()


def refused(error: type[Exception], message: str, **changes: object) -> None:
    p = problem((2, 5, 12))
    given = {"x": p.x, "residual": p.residual, "weight": p.weight, "gate": p.gate} | changes
    with pytest.raises(error, match=message):
        add_norm(given["x"], given["residual"], given["weight"], gate=given["gate"])


def test_refused_input():
    zeros = torch.zeros
    refused(TypeError, "x must be a tensor, not list", x=[1.0])
    refused(TypeError, "x is torch.int64; a floating point dtype", x=zeros(2, 5, 12, dtype=torch.int64))
    refused(TypeError, "x is torch.float8_e4m3fn; use float32", x=zeros(2, 5, 12).to(torch.float8_e4m3fn))
    refused(TypeError, "residual is torch.float64; float64 goes with", residual=zeros(2, 5, 12).double())
    refused(ValueError, r"x must be \(..., d\) with d at least 1, got \(\)", x=zeros(()))
    refused(ValueError, r"d at least 1, got \(3, 0\)", x=zeros(3, 0))
    refused(ValueError, r"residual has shape \(2, 5, 11\), x has", residual=zeros(2, 5, 11))
    refused(ValueError, r"weight must be \(d,\) = \(12,\), got \(11,\)", weight=zeros(11))
    refused(ValueError, r"gate must have shape \(2, 5\), one a row, got \(2, 5, 1\)", gate=zeros(2, 5, 1))
    refused(ValueError, "weight is on meta, x on cpu", weight=zeros(12, device="meta"))
