"""Benchmarks of the selective scan on the CPU: contests with a goal, and sizes."""

from __future__ import annotations

import ctypes
import functools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from harness import Contest, benchmark
from torch import Tensor
from workload import Workload, backend

from seq2exp.kernels import _extension
from seq2exp.kernels.selective_scan import chunked, native, reference

FLOOR = Path(__file__).parent / "floor" / "scan_floor.cpp"
LOG2E = 1.4426950408889634
STATES = 16


def inputs(batch: int, dim: int, state: int, length: int, channels_last: bool) -> tuple:
    """u, delta, A, B, C and the absent options, with step sizes and decays of the floor program."""
    g = torch.Generator().manual_seed(0)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(*shape, generator=g)

    def signal(low: float, high: float) -> Tensor:
        if channels_last:
            return uniform(low, high, batch, length, dim).transpose(1, 2)
        return uniform(low, high, batch, dim, length)

    B, C = (uniform(-0.5, 0.5, batch, length, 1, state).permute(0, 2, 3, 1) for _ in range(2))
    return signal(-0.5, 0.5), signal(0, 0.1), -uniform(1, 16, dim, state), B, C, None, None, None, False, False, None


def sequential(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, *_: object) -> Tensor:
    """The loop over positions in torch, with time outermost in memory and nothing but the recurrence inside."""
    dt = delta.permute(2, 0, 1).contiguous()
    x = dt * u.permute(2, 0, 1)
    b, c = (v[:, 0].permute(2, 0, 1)[:, :, None].contiguous() for v in (B, C))
    h = x.new_zeros(*x.shape[1:], A.shape[1])
    y = torch.empty_like(x)
    for t in range(x.shape[0]):
        h = torch.exp(dt[t, :, :, None] * A) * h + x[t, :, :, None] * b[t]
        y[t] = (h * c[t]).sum(-1)
    return y.permute(1, 2, 0)


def assert_close(got: Tensor, exact: Tensor, limit: float, what: str) -> None:
    error = float((got.double() - exact).square().mean().sqrt() / exact.square().mean().sqrt())
    assert error <= limit, f"{what} is off by {error:.1e} relative RMS, the limit is {limit:.0e}"


def check_forward(run, p: tuple, channels: int = 8) -> None:
    """Against float64, on the first channels."""
    u, delta, A, B, C, *rest = p
    exact = chunked.forward(*(x.double() for x in (u[:, :channels], delta[:, :channels], A[:channels], B, C)), *rest)[0]
    assert_close(run(*p)[0][:, :channels], exact, 1e-5, "the output")


def check_backward(run, p: tuple, grad: Tensor) -> None:
    wide = tuple(x.double() if isinstance(x, Tensor) else x for x in p)
    exact = chunked.backward(grad.double(), *wide, chunked.forward(*wide)[2])
    for name, got, want in zip(("du", "ddelta", "dA", "dB", "dC"), run(), exact, strict=False):
        assert_close(got, want, 1e-4, name)


def without_states(*p: object) -> tuple:
    return native.forward(*p, save_states=False)


@benchmark(
    "scan_cpu_forward", ours="C++ kernel", other="sequential torch loop", goal=50, rounds=3,
    unavailable=_extension.load, setting="forward, fp32, L 20,000, 256 channels, 16 states",
)  # fmt: skip
def scan_cpu_forward() -> Contest:
    p = inputs(1, 256, STATES, 20_000, channels_last=True)
    return Contest(lambda: without_states(*p), lambda: sequential(*p), lambda: check_forward(without_states, p))


@benchmark(
    "scan_torch_forward", ours="torch, over chunks", other="sequential oracle (reference.py)", goal=10, rounds=2,
    setting="forward, fp32, L 20,000, 256 channels, 16 states",
)  # fmt: skip
def scan_torch_forward() -> Contest:
    p = inputs(1, 256, STATES, 20_000, channels_last=True)
    oracle = reference.selective_scan_forward
    return Contest(lambda: chunked.forward(*p), lambda: oracle(*p), lambda: check_forward(chunked.forward, p))


@benchmark(
    "scan_cpu_small", ours="C++ kernel", other="torch, over chunks", goal=1, rounds=20, unavailable=_extension.load,
    setting="forward and backward, fp32, batch 8, L 512, 64 channels, 4 states",
)  # fmt: skip
def scan_cpu_small() -> Contest:
    p = inputs(8, 64, 4, 512, channels_last=True)
    grad = torch.randn(p[0].shape)

    def both(module) -> tuple:
        return module.backward(grad, *p, module.forward(*p)[2])

    return Contest(lambda: both(native), lambda: both(chunked), lambda: check_backward(lambda: both(native), p, grad))


@benchmark(
    "scan_cpu_backward", ours="C++ backward", other="C++ forward", goal=1 / 3, unavailable=_extension.load,
    setting="fp32, L 200,000, 256 channels, 16 states; the backward recomputes the forward",
)  # fmt: skip
def scan_cpu_backward() -> Contest:
    p = inputs(1, 256, STATES, 200_000, channels_last=True)
    states = native.forward(*p)[2]
    grad = torch.ones_like(p[0])
    small = inputs(1, 24, STATES, 5_000, channels_last=True)
    small_grad = torch.ones_like(small[0])

    def check() -> None:
        check_backward(lambda: native.backward(small_grad, *small, native.forward(*small)[2]), small, small_grad)

    return Contest(lambda: native.backward(grad, *p, states), lambda: native.forward(*p), check)


@functools.cache
def floor_library() -> ctypes.CDLL:
    folder = tempfile.mkdtemp(prefix="scan_floor")
    library = Path(folder, "floor.so")
    flags = ["-O3", "-march=native", "-std=c++17", "-shared", "-fPIC", "-pthread", "-Wno-psabi"]
    subprocess.run([os.environ.get("CXX", "g++"), *flags, str(FLOOR), "-o", str(library)], check=True)
    loaded = ctypes.CDLL(str(library))
    shutil.rmtree(folder)
    return loaded


def no_floor() -> str | None:
    if reason := _extension.load():
        return reason
    return None if shutil.which(os.environ.get("CXX", "g++")) else "no C++ compiler for the floor program"


def against_floor(channels_last: bool) -> Contest:
    p = inputs(1, 256, STATES, 200_000, channels_last)
    u, delta, A, B, C = p[:5]
    name = "floor_channels_last" if channels_last else "floor_channels_first"
    decay = (A * LOG2E).t().contiguous() if channels_last else A * LOG2E
    y = torch.zeros_like(u)
    function = getattr(floor_library(), name)

    def floor() -> Tensor:
        pointers = [ctypes.c_void_p(x.data_ptr()) for x in (u, delta, decay, B, C, y)]
        function(*pointers, ctypes.c_int64(256), ctypes.c_int64(200_000), ctypes.c_int(torch.get_num_threads()))
        return y

    def check() -> None:
        check_forward(without_states, p)
        assert_close(without_states(*p)[0], floor().double(), 1e-5, "the output, compared with the floor program's,")

    return Contest(lambda: without_states(*p), floor, check)


@benchmark(
    "scan_cpu_floor_channels_last", ours="C++ kernel", other="floor program", goal=1 / 1.3, unavailable=no_floor,
    setting="forward, fp32, (L, 256) in memory, L 200,000, 16 states",
)  # fmt: skip
def floor_channels_last() -> Contest:
    return against_floor(channels_last=True)


@benchmark(
    "scan_cpu_floor_channels_first", ours="C++ kernel", other="floor program", goal=1 / 1.3, unavailable=no_floor,
    setting="forward, fp32, (256, L) in memory, L 200,000, 16 states",
)  # fmt: skip
def floor_channels_first() -> Contest:
    return against_floor(channels_last=False)


def one_core() -> str | None:
    return _extension.load() or (None if len(os.sched_getaffinity(0)) > 1 else "one core")


def with_threads(threads: int, work: Callable[[], object]) -> Callable[[], None]:
    def run() -> None:
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            work()
        finally:
            torch.set_num_threads(before)

    return run


def threads(direction: str) -> Contest:
    load = Workload(direction, 1, 50_000)
    x = load.inputs("cpu")
    work = load.call(backend("cpu"), x)
    return Contest(with_threads(2, work), with_threads(1, work), lambda: load.check(work(), x))


for _direction in ("forward", "backward"):
    benchmark(
        f"scan_cpu_threads_{_direction}", ours="C++ kernel, 2 threads", other="1 thread", goal=1.6,
        unavailable=one_core, setting=f"{_direction}, fp32, L 50,000, 256 channels, 16 states",
    )(functools.partial(threads, _direction))  # fmt: skip


# The torch path takes seconds beyond this many state elements; longer inputs are measured alone.
REFERENCE_ELEMENTS = 64 * 16 * 200_704
LENGTHS = (2_047, 2_048, 16_384, 65_537, 200_000, 200_704, 1_048_576)


def sizes() -> list[Workload]:
    """16 channels where 64 would take over 10 GB."""
    return [
        Workload(direction, batch, length, dim=16 if batch * length > 2_000_000 else 64)
        for direction in ("forward", "backward") for batch in (1, 8) for length in LENGTHS
    ]  # fmt: skip


def size(load: Workload) -> Contest:
    x = load.inputs("cpu")
    ours = load.call(backend("cpu"), x)
    other = load.call(backend("reference"), x) if load.elements <= REFERENCE_ELEMENTS else None
    return Contest(ours, other, lambda: load.check(ours(), x), load.bytes)


for _load in sizes():
    benchmark(
        f"scan_{_load.name}", ours="C++ kernel", unavailable=_extension.load, rounds=3 if _load.length < 65_537 else 1,
        other="torch, over chunks" if _load.elements <= REFERENCE_ELEMENTS else "",
        setting=f"{_load.direction}, batch {_load.batch}, L {_load.length:,}, {_load.dim} channels",
    )(functools.partial(size, _load))  # fmt: skip


def no_mamba() -> str | None:
    try:
        import mamba_ssm.ops.selective_scan_interface  # noqa: F401
    except ImportError as error:
        return f"mamba-ssm cannot be imported: {error}"
    return _extension.load()


@benchmark(
    "scan_cpu_mamba", ours="C++ kernel", other="mamba-ssm, selective_scan_ref", unavailable=no_mamba, rounds=1,
    setting="forward, fp32, L 20,000, 64 channels, 16 states",
)  # fmt: skip
def scan_cpu_mamba() -> Contest:
    from mamba_ssm.ops.selective_scan_interface import selective_scan_ref

    load = Workload("forward", 1, 20_000, dim=64)
    x = load.inputs("cpu")

    def theirs(*arguments: object, reverse: bool) -> Tensor:
        return selective_scan_ref(*arguments)

    ours = load.call(backend("cpu"), x)
    return Contest(ours, load.call(theirs, x), lambda: load.check(ours(), x), load.bytes)
