"""Benchmarks of add_norm on the CPU, against the same in torch: residual + x, F.rms_norm, times the gate."""

from __future__ import annotations

import functools

import torch
from harness import Contest, benchmark
from scan import assert_close
from torch import Tensor
from torch.nn import functional as F

from seq2exp.kernels import _extension
from seq2exp.kernels.add_norm import native, reference

LENGTH, CHANNELS, EPSILON = 200_000, 128, 1e-5


def inputs(length: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """x, residual, weight, gate."""
    g = torch.Generator().manual_seed(0)
    x, residual = (torch.randn(1, length, CHANNELS, generator=g).to(dtype) for _ in range(2))
    return x, residual, torch.rand(CHANNELS, generator=g), torch.rand(1, length, generator=g)


def composed(x: Tensor, residual: Tensor, weight: Tensor, gate: Tensor) -> tuple[Tensor, Tensor]:
    total = residual + x
    h = F.rms_norm(total, total.shape[-1:], weight.to(x.dtype), EPSILON)
    return h * gate[..., None].to(x.dtype), total


def check(dtype: torch.dtype) -> None:
    p = inputs(1_000, dtype)
    got = native.forward(*p, EPSILON)
    exact = reference.forward(*(x.double() for x in p), EPSILON)
    grads = native.backward(p[0], p[1], got[1], *p[2:], EPSILON)
    exact_grads = reference.backward(p[0].double(), p[1].double(), exact[1], *(x.double() for x in p[2:]), EPSILON)
    limit = 1e-4 if dtype == torch.float32 else 1e-2
    names = ("h", "residual_out", "dr", "dweight", "dgate")
    for name, x, want in zip(names, (*got, *grads), (*exact, *exact_grads), strict=True):
        assert_close(x, want, limit, name)


def forward(dtype: torch.dtype) -> Contest:
    p = inputs(LENGTH, dtype)
    traffic = 4 * p[0].nbytes  # x and residual read, h and residual_out written
    return Contest(lambda: native.forward(*p, EPSILON), lambda: composed(*p), lambda: check(dtype), traffic)


def backward(dtype: torch.dtype) -> Contest:
    """The torch side is autograd's backward alone; its forward is not timed."""
    p = inputs(LENGTH, dtype)
    leaves = [x.requires_grad_() for x in inputs(LENGTH, dtype)]
    outputs = composed(*leaves)
    total = outputs[1].detach()
    traffic = 4 * p[0].nbytes  # both gradients and residual_out read, dr written
    return Contest(
        lambda: native.backward(p[0], p[1], total, *p[2:], EPSILON),
        lambda: torch.autograd.grad(outputs, leaves, p[:2], retain_graph=True),
        lambda: check(dtype),
        traffic,
    )


for _prepare in (forward, backward):
    for _name, _dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        benchmark(
            f"add_norm_cpu_{_prepare.__name__}_{_name}", ours="C++ kernel", other="torch", goal=3, rounds=5,
            unavailable=_extension.load,
            setting=f"add_norm {_prepare.__name__}, {_name}, L {LENGTH:,}, {CHANNELS} channels, with gate",
        )(functools.partial(_prepare, _dtype))  # fmt: skip
