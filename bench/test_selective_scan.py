"""Absolute times of the scan for work on the kernels: `pytest bench --benchmark-only`."""

from __future__ import annotations

import pytest
import torch

from seq2exp.kernels import _extension
from seq2exp.kernels.selective_scan import native

pytestmark = pytest.mark.skipif(_extension.load() is not None, reason=f"compiled extension: {_extension.load()}")

SHAPES = {"window": (1, 256, 16, 50_000), "discovery": (8, 64, 4, 512)}


@pytest.fixture(params=SHAPES)
def inputs(request) -> tuple:
    batch, dim, state, length = SHAPES[request.param]
    torch.manual_seed(0)
    u, delta, z = (torch.randn(batch, length, dim).transpose(1, 2) for _ in range(3))
    B, C = (torch.randn(batch, length, 1, state).permute(0, 2, 3, 1) for _ in range(2))
    A = -torch.arange(1.0, state + 1).repeat(dim, 1)
    return u, delta, A, B, C, torch.ones(dim), z, torch.full((dim,), -4.0), True, False, None


@pytest.mark.parametrize("isa", [] if _extension.load() else torch.ops.seq2exp_native.cpu_instruction_sets())
def test_forward(benchmark, inputs, isa):
    before = torch.ops.seq2exp_native.cpu_instruction_set()
    torch.ops.seq2exp_native.set_cpu_instruction_set(isa)
    try:
        assert benchmark(native.forward, *inputs)[0].isfinite().all()
    finally:
        torch.ops.seq2exp_native.set_cpu_instruction_set(before)


def test_backward(benchmark, inputs):
    out, _, states = native.forward(*inputs)
    assert benchmark(native.backward, torch.ones_like(out), *inputs, states)[0].isfinite().all()
