"""The scan's GPU backends on a GPU against the float64 torch path there; `make gpu` runs them.

With SEQ2EXP_REHEARSAL=1 the same tests run the C++ backend on the CPU, so that they work when a GPU is at hand.
Tests with "forward" or "backward" in their names prove figures; `make gpu` prints none for what fails them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace

import pytest
import torch
from on_gpu import BACKENDS, DEVICE, MARKS, REHEARSAL, forced, implementation
from scan_problems import FORWARD_LIMIT, GRAD_LIMIT, GRADS, arguments, extreme, problem, rms_error
from torch import Tensor

from seq2exp.kernels import selective_scan, set_backend
from seq2exp.kernels.backend import resolve
from seq2exp.kernels.selective_scan import chunked

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

pytestmark = MARKS
only_cuda = pytest.mark.skipif(REHEARSAL, reason="rehearsal: needs a CUDA device")


@pytest.fixture(params=BACKENDS)
def backend(request) -> Iterator[str]:
    with forced(request.param) as name:
        yield name


@pytest.fixture
def scan(backend) -> ModuleType:
    """forward and backward of the backend."""
    return implementation("selective_scan", backend)


@contextmanager
def poisoned() -> Iterator[None]:
    """Memory that torch hands out uninitialised holds NaN."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def gradient(p: SimpleNamespace) -> Tensor:
    grad = torch.randn(p.u.shape, generator=torch.Generator().manual_seed(7)).to(p.u.dtype)
    return grad.to(DEVICE)


def results(scan: ModuleType, p: SimpleNamespace) -> tuple[tuple, tuple]:
    args = arguments(p, device=DEVICE)
    with poisoned():
        forward = scan.forward(*args)
        return forward, scan.backward(gradient(p), *args, forward[2])


def check_forward(scan: ModuleType, p: SimpleNamespace) -> None:
    with poisoned():
        out, last, states = scan.forward(*arguments(p, device=DEVICE))
    exact_out, exact_last, _ = chunked.forward(*arguments(p, torch.float64, DEVICE))
    n = None if p.cu_seqlens is None else p.cu_seqlens.numel() - 1
    assert list(states.shape) == scan.states_shape(*p.u.shape[:2], p.A.shape[1], p.u.shape[2], n)
    assert out.dtype == p.u.dtype and last.dtype == torch.float32
    assert rms_error(out, exact_out.cpu()) <= FORWARD_LIMIT[p.u.dtype]
    assert rms_error(last, exact_last.cpu()) <= 1e-5


def check_backward(scan: ModuleType, p: SimpleNamespace) -> None:
    _, grads = results(scan, p)
    wide = arguments(p, torch.float64, DEVICE)
    exact = chunked.backward(gradient(p).double(), *wide, chunked.forward(*wide)[2])
    for name, got, want in zip(GRADS, grads, exact, strict=True):
        if getattr(p, name) is None:
            assert got is None
        else:
            assert rms_error(got, want.cpu()) <= GRAD_LIMIT[p.u.dtype], name
            assert got.dtype == (p.u.dtype if name in ("u", "delta", "z", "B", "C") else torch.float32), name


PACKED = [0, 0, 1, 64, 64, 300, 557, 558, 900, 900]
CASES: dict[str, dict] = {
    **{
        f"{name}-{length}": dict(dtype=dtype, length=length)
        for name, dtype in DTYPES.items() for length in (1, 2, 31, 63, 130, 2047, 2049)
    },
    **{f"state{n}": dict(state=n, length=300) for n in (1, 3, 4, 8, 17, 32, 64, 100, 256)},
    **{f"dim{n}": dict(dim=n, length=300) for n in (1, 3, 8, 33)},
    **{f"groups{n}": dict(groups=n, length=300) for n in (2, 5, 20)},
    "batch5": dict(batch=5, length=700),
    "reverse": dict(reverse=True, length=700),
    "transposed": dict(transposed=True, length=700, dtype=torch.bfloat16),
    "transposed-reverse": dict(transposed=True, reverse=True, length=700, groups=2),
    "no-gate": dict(gate=False, length=300),
    "no-skip": dict(skip=False, length=300),
    "no-bias": dict(bias=False, length=300),
    "bare": dict(gate=False, skip=False, bias=False, softplus=False, length=300),
    "no-softplus": dict(softplus=False, length=300),
    "packed": dict(batch=1, length=900, cu_seqlens=PACKED),
    "packed-reverse": dict(batch=1, length=900, cu_seqlens=PACKED, reverse=True, dtype=torch.bfloat16),
    "packed-long": dict(batch=1, dim=8, length=50_000, cu_seqlens=[0, 17, 20_000, 20_001, 50_000]),
    "one-row": dict(batch=1, dim=24, length=20_000),
    "one-row-bf16": dict(batch=1, dim=24, length=20_000, dtype=torch.bfloat16, transposed=True),
    "65537": dict(batch=1, dim=8, length=65_537),
    "65537-reverse": dict(batch=1, dim=8, length=65_537, reverse=True),
    "200000": dict(batch=1, dim=8, length=200_000),
    "200000-bf16": dict(batch=1, dim=8, length=200_000, dtype=torch.bfloat16, reverse=True),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_forward(scan, case):
    check_forward(scan, problem(**CASES[case]))


@pytest.mark.parametrize("case", CASES)
def test_backward(scan, case):
    check_backward(scan, problem(**CASES[case]))


def spread(p: SimpleNamespace) -> SimpleNamespace:
    """Every tensor over L with strides of its own, NaN between the values."""
    for name in ("u", "delta", "z", "B", "C"):
        x = getattr(p, name)
        wide = torch.full((*x.shape[:-1], 2 * x.shape[-1] + 1), torch.nan, dtype=x.dtype)
        wide[..., 1::2] = x
        setattr(p, name, wide)
    return p


def narrowed(args: tuple) -> tuple:
    """The values of `spread`, as views: moving a view to the GPU would make it dense."""
    views = {0, 1, 3, 4, 6}
    return tuple(x[..., 1::2] if i in views else x for i, x in enumerate(args))


def test_forward_and_backward_with_strides(scan):
    dense, wide = problem(length=300), spread(problem(length=300))
    args = narrowed(arguments(wide, device=DEVICE))
    assert args[0].stride(-1) == 2
    out, last, states = scan.forward(*args)
    grads = scan.backward(gradient(dense), *args, states)
    want, want_grads = results(scan, dense)
    assert rms_error(out, want[0].cpu()) <= 1e-6 and rms_error(last, want[1].cpu()) <= 1e-6
    for name, got, exact in zip(GRADS, grads, want_grads, strict=True):
        assert rms_error(got, exact.cpu()) <= 1e-5, name


def test_forward_and_backward_with_constant_B(scan):
    """Stride 0 along L and along the batch, as B and C of shape (dim, state) come in."""
    p = problem(groups=20, length=300)
    B = p.B[:1, ..., :1].to(DEVICE)
    p.B = p.B[:1, ..., :1].expand_as(p.B).contiguous()
    args = list(arguments(p, device=DEVICE))
    args[3] = B.expand_as(args[3])
    out, _, states = scan.forward(*args)
    dB = scan.backward(gradient(p), *args, states)[3]
    want, want_grads = results(scan, p)
    assert rms_error(out, want[0].cpu()) <= 1e-6 and rms_error(dB, want_grads[3].cpu()) <= 1e-5


def test_forward_and_backward_with_different_groups(scan):
    p, wide = problem(dim=24, groups=2, length=300), problem(dim=24, groups=2, length=300)
    p.C = problem(dim=24, groups=3, length=300, seed=1).C
    wide.B, wide.C = p.B.repeat_interleave(3, 1), p.C.repeat_interleave(2, 1)
    (out, _, _), grads = results(scan, p)
    args = arguments(wide, torch.float64, DEVICE)
    exact_out, _, states = chunked.forward(*args)
    exact = chunked.backward(gradient(p).double(), *args, states)
    assert rms_error(out, exact_out.cpu()) <= 1e-5
    assert rms_error(grads[3], exact[3].unflatten(1, (2, 3)).sum(2).cpu()) <= 1e-4
    assert rms_error(grads[4], exact[4].unflatten(1, (3, 2)).sum(2).cpu()) <= 1e-4


def test_forward_and_backward_of_extreme_values(scan):
    p = extreme(problem(length=80))
    check_forward(scan, p)
    check_backward(scan, p)


def test_forward_keeps_nan_in_its_row(scan):
    p = problem(length=700)
    clean, clean_last, _ = scan.forward(*arguments(p, device=DEVICE))
    p.u[0, 3, 350] = torch.nan
    p.delta[1, 7, 20] = torch.inf
    out, last, _ = scan.forward(*arguments(p, device=DEVICE))
    touched = torch.zeros(out.shape, dtype=torch.bool, device=DEVICE)
    touched[0, 3, 350:] = True
    touched[1, 7, 20:] = True
    assert torch.equal(out[~touched], clean[~touched])
    assert out[0, 3, 350:].isnan().all()
    assert last[0, 3].isnan().all() and torch.equal(last[0, 4], clean_last[0, 4])


def test_backward_keeps_nan_in_its_row(scan):
    p = problem(length=700)
    p.u[0, 3, 350] = torch.nan
    _, grads = results(scan, p)
    rows = torch.ones(p.u.shape[:2], dtype=torch.bool, device=DEVICE)
    rows[0, 3] = False
    assert grads[0][rows].isfinite().all() and grads[1][rows].isfinite().all()


SAME = {
    "many-rows": dict(batch=4, dim=40, length=3_000, dtype=torch.bfloat16),
    "one-row": dict(batch=1, dim=16, length=50_000),
    "groups": dict(dim=40, groups=2, length=3_000),
    "packed": dict(batch=1, length=900, cu_seqlens=PACKED),
}


@pytest.mark.parametrize("case", SAME)
def test_forward_and_backward_give_the_same_bits_every_time(scan, case):
    runs = [[*forward, *grads] for forward, grads in (results(scan, problem(**SAME[case])) for _ in range(4))]
    for run in runs[1:]:
        for i, (a, b) in enumerate(zip(runs[0], run, strict=True)):
            assert torch.equal(a, b), i


@only_cuda
@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_forward_and_backward_beyond_2_to_31_elements(scan, direction):
    """1,100 channels of 2,000,000 positions; the last channels show offsets that overflowed."""
    if torch.cuda.mem_get_info()[0] < 40e9:
        pytest.skip("needs 40 GB of free GPU memory")
    dim, length = 1_100, 2_000_000
    g = torch.Generator(DEVICE).manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, device=DEVICE, dtype=torch.bfloat16)

    u, delta, B, C = normal(1, dim, length), normal(1, dim, length), normal(1, 1, 1, length), normal(1, 1, 1, length)
    A, bias = -torch.ones(dim, 1, device=DEVICE), torch.full((dim,), -4.0, device=DEVICE)
    args = (u, delta, A, B, C, None, None, bias, True, False, None)
    narrow = tuple(x[:, -2:] if i < 2 else x[-2:] if i in (2, 7) else x for i, x in enumerate(args))
    wide = tuple(x.double() if isinstance(x, Tensor) else x for x in narrow)
    exact_out, _, exact_states = chunked.forward(*wide)
    out, _, states = scan.forward(*args)
    assert rms_error(out[:, -2:], exact_out.cpu()) <= 1e-2
    if direction == "backward":
        exact = chunked.backward(u[:, -2:].double(), *wide, exact_states)
        grads = scan.backward(u, *args, states)
        for i in (0, 1):
            assert rms_error(grads[i][:, -2:], exact[i].cpu()) <= 1e-2, GRADS[i]
        assert rms_error(grads[2][-2:], exact[2].cpu()) <= 1e-2
    torch.cuda.empty_cache()  # other processes test on this GPU too


def leaves(**options) -> dict[str, Tensor]:
    p = problem(dtype=torch.bfloat16, length=300, **options)
    return {name: getattr(p, name).to(DEVICE).requires_grad_() for name in GRADS}


def test_auto_takes_a_kernel():
    assert resolve("selective_scan", torch.device(DEVICE), torch.bfloat16) in BACKENDS


def test_op_and_its_autograd_backward(backend):
    x = leaves()
    grad = torch.randn(x["u"].shape, device=DEVICE).to(torch.bfloat16)
    out, last = selective_scan(*x.values(), True, True)
    got = torch.autograd.grad(out, list(x.values()), grad)
    with set_backend("reference"):
        exact_out, exact_last = selective_scan(*x.values(), True, True)
        exact = torch.autograd.grad(exact_out, list(x.values()), grad)
    assert rms_error(out.detach(), exact_out.detach().cpu()) <= 1e-2
    assert rms_error(last, exact_last.cpu()) <= 1e-5 and not last.requires_grad
    for name, a, b in zip(x, got, exact, strict=True):
        assert rms_error(a, b.cpu()) <= 1e-2, name


def test_empty_length(backend):
    x = {name: t.detach()[..., :0] if name in ("u", "delta", "z", "B", "C") else t for name, t in leaves().items()}
    out, last = selective_scan(*x.values(), return_last_state=True)
    assert out.shape == (2, 20, 0) and torch.equal(last, torch.zeros_like(last))


@only_cuda
def test_mixed_devices_are_refused(backend):
    x = leaves()
    with pytest.raises(ValueError, match="delta is on cpu, u on cuda:0"):
        selective_scan(**(x | {"delta": x["delta"].detach().cpu()}))


def test_float64_is_refused(backend):
    x = {name: t.detach().double() for name, t in leaves().items()}
    if backend == "cpu":
        pytest.skip("the CPU's tests hold this for the CPU")
    with pytest.raises(TypeError, match="float64"):
        selective_scan(**x)


def test_opcheck(backend):
    args = (*leaves().values(), True, True, None, backend)
    torch.library.opcheck(torch.ops.seq2exp.selective_scan_fwd.default, args)


@pytest.mark.parametrize("compiler", ["aot_eager", "inductor"])
def test_compile_fullgraph(backend, compiler):
    if REHEARSAL and compiler == "inductor":
        pytest.skip("rehearsal: the GPU's code generator needs a CUDA device")
    x = leaves()

    def f(*values: Tensor) -> Tensor:
        return (2 * selective_scan(*values, delta_softplus=True)).float().square().sum()

    values = list(x.values())
    eager = torch.autograd.grad(f(*values), values)
    torch.compiler.reset()
    compiled = torch.autograd.grad(torch.compile(f, fullgraph=True, backend=compiler)(*values), values)
    for name, a, b in zip(x, compiled, eager, strict=True):
        assert rms_error(a, b.cpu()) <= 1e-2, name


@only_cuda
def test_cuda_graph(scan):
    """Capture of forward and backward, and a replay on other values."""
    p = problem(dtype=torch.bfloat16, length=3_000, batch=1, dim=64)
    args, grad = arguments(p, device=DEVICE), gradient(p)

    def both() -> tuple:
        out, _, states = scan.forward(*args)
        return out, *scan.backward(grad, *args, states)

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        both()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = both()
    args[0].copy_(problem(dtype=torch.bfloat16, length=3_000, batch=1, dim=64, seed=1).u)
    graph.replay()
    torch.cuda.synchronize()
    for a, b in zip(captured, both(), strict=True):
        assert torch.equal(a, b)


@only_cuda
def test_runs_on_the_current_stream(scan):
    """Inputs arrive on a side stream after a pause; a kernel on another stream would read zeros."""
    p = problem(length=3_000)
    args = list(arguments(p, device=DEVICE))
    want, want_grads = results(scan, p)
    grad, u = gradient(p), args[0]
    args[0] = torch.zeros_like(u)
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        torch.cuda._sleep(100_000_000)
        args[0].copy_(u)
        out, _, states = scan.forward(*args)
        grads = scan.backward(grad, *args, states)
    side.synchronize()
    assert torch.equal(out, want[0])
    assert all(torch.equal(a, b) for a, b in zip(grads, want_grads, strict=True))


@pytest.mark.parametrize("wide", [False, True], ids=["bf16", "fp32"])
def test_autocast_changes_nothing(backend, wide):
    x = [t.detach().float() if wide else t.detach() for t in leaves().values()]
    plain = selective_scan(*x, delta_softplus=True)
    with torch.autocast(DEVICE, torch.bfloat16):
        assert torch.equal(selective_scan(*x, delta_softplus=True), plain)
