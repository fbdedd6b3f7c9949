"""Problems and error limits shared by the tests of the selective scan's backends."""

from __future__ import annotations

from types import ModuleType, SimpleNamespace
from typing import Protocol

import torch
from torch import Tensor

from seq2exp.kernels.selective_scan import chunked, reference

GRADS = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")
FORWARD_LIMIT = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 1e-2}
GRAD_LIMIT = {torch.float32: 1e-4, torch.bfloat16: 1e-2, torch.float16: 1e-2}


class ScanImplementation(Protocol):
    """What every backend's module of the scan offers; see kernels/selective_scan/native.py."""

    def forward(self, *arguments: object) -> tuple[Tensor, Tensor, Tensor]: ...

    def backward(self, *arguments: object) -> tuple[Tensor | None, ...]: ...

    def states_shape(self, batch: int, dim: int, state: int, length: int, n_sequences: int | None) -> list[int]: ...


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


def arguments(p: SimpleNamespace, dtype: torch.dtype | None = None, device: str = "cpu") -> tuple:
    """Positional arguments of `forward`, optionally in another dtype or on another device."""
    tensors = [getattr(p, name) for name in GRADS]
    if dtype is not None:
        tensors = [None if x is None else x.to(dtype) for x in tensors]
    tensors = [None if x is None else x.to(device) for x in tensors]
    return *tensors, p.softplus, p.reverse, None if p.cu_seqlens is None else p.cu_seqlens.to(device)


def extreme(p: SimpleNamespace) -> SimpleNamespace:
    """p (dim at least 6, length at least 40) with decays that underflow, growth, huge gates and steps."""
    p.A[0] *= 1e4
    p.A[1] = 0.05  # grows
    p.A[2] = 0
    p.delta[0, 3, :40] = -60
    p.delta[0, 4, 5] = 300
    p.z[0, 5] = 1e4
    p.z[0, 4] = -1e4
    p.z[0, 3] = -80
    return p


def far_apart(x: Tensor, dim: int) -> Tensor:
    """x in memory that is reserved but hardly used: along `dim` its last element lies 2**31 behind the first."""
    step = (2**31 // (x.shape[dim] - 1) + 8) // 8 * 8  # whole words of 16 bytes
    strides = list(x.stride())
    strides[dim] = step
    return torch.empty(step * (x.shape[dim] - 1) + x.numel(), dtype=x.dtype).as_strided(x.shape, strides).copy_(x)


def rms_error(x: Tensor, exact: Tensor) -> float:
    assert x.shape == exact.shape
    scale = exact.double().square().mean().sqrt().clamp_min(1e-30)
    return float((x.cpu().double() - exact.double()).square().mean().sqrt() / scale)


def check_implementation(
    module: ScanImplementation, p: SimpleNamespace, oracle: ModuleType = reference, device: str = "cpu"
) -> None:
    """Forward and backward of a backend's module against the float64 oracle, to the project's limits."""
    dtype = p.u.dtype
    grad = torch.randn(p.u.shape, generator=torch.Generator().manual_seed(7)).to(dtype)
    out, last, states = module.forward(*arguments(p, device=device))
    grads = module.backward(grad.to(device), *arguments(p, device=device), states)
    wide = arguments(p, torch.float64)
    if oracle is reference:
        exact_out, exact_last = reference.selective_scan_forward(*wide)
        exact = reference.selective_scan_backward(grad.double(), *wide)
    else:
        exact_out, exact_last, exact_states = chunked.forward(*wide)
        exact = chunked.backward(grad.double(), *wide, exact_states)
    assert out.dtype == dtype and last.dtype == torch.float32
    n = None if p.cu_seqlens is None else p.cu_seqlens.numel() - 1
    assert list(states.shape) == module.states_shape(*p.u.shape[:2], p.A.shape[1], p.u.shape[2], n)
    assert rms_error(out, exact_out) <= FORWARD_LIMIT[dtype]
    assert rms_error(last, exact_last) <= 1e-5
    for name, got, want in zip(GRADS, grads, exact, strict=True):
        if getattr(p, name) is None:
            assert got is None
        else:
            # a gradient that is stored in 16 bits carries its rounding; sums over L and batch are float32 throughout
            assert rms_error(got, want) <= GRAD_LIMIT[dtype], name
            assert got.dtype == (dtype if name in ("u", "delta", "z", "B", "C") else torch.float32), name
