"""Absolute times of the scan for work on the kernels: `pytest bench --benchmark-only`."""

from __future__ import annotations

import pytest
import torch
from workload import Workload, backend

from seq2exp.kernels import _extension
from seq2exp.kernels.selective_scan import native

pytestmark = pytest.mark.skipif(_extension.load() is not None, reason=f"compiled extension: {_extension.load()}")

LOADS = [
    Workload(direction, batch, length, dim=64)
    for direction in ("forward", "backward")
    for batch, length in ((1, 2_047), (8, 2_048), (1, 65_537), (8, 65_537), (1, 200_000), (1, 1_048_576))
]
SHAPES = {"window": (1, 256, 16, 50_000), "discovery": (8, 64, 4, 512)}


@pytest.mark.parametrize("load", LOADS, ids=lambda load: load.name)
def test_sizes(benchmark, load):
    x = load.inputs("cpu")
    call = load.call(backend("cpu"), x)
    load.check(call(), x)
    benchmark(call)
    benchmark.extra_info["GB/s"] = load.bytes / benchmark.stats.stats.min / 1e9


@pytest.fixture(params=SHAPES)
def inputs(request) -> tuple:
    batch, dim, state, length = SHAPES[request.param]
    torch.manual_seed(0)
    u, delta, z = (torch.randn(batch, length, dim).transpose(1, 2) for _ in range(3))
    B, C = (torch.randn(batch, length, 1, state).permute(0, 2, 3, 1) for _ in range(2))
    A = -torch.arange(1.0, state + 1).repeat(dim, 1)
    return u, delta, A, B, C, torch.ones(dim), z, torch.full((dim,), -4.0), True, False, None


@pytest.mark.parametrize("isa", [] if _extension.load() else torch.ops.seq2exp_native.cpu_instruction_sets())
def test_instruction_sets(benchmark, inputs, isa):
    before = torch.ops.seq2exp_native.cpu_instruction_set()
    torch.ops.seq2exp_native.set_cpu_instruction_set(isa)
    try:
        assert benchmark(native.forward, *inputs)[0].isfinite().all()
    finally:
        torch.ops.seq2exp_native.set_cpu_instruction_set(before)
