"""The mixer's parts on a GPU against plain PyTorch in float64; `make gpu` runs them.

With SEQ2EXP_REHEARSAL=1 the same tests run the C++ backend on the CPU, so that they work when a GPU is at hand.
"""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
from mixer_problems import check_scan, direction, on, scan_backward
from on_gpu import BACKENDS, DEVICE, MARKS, implementation
from torch import Tensor

from seq2exp.kernels import backends
from seq2exp.kernels.bimamba.direction import Direction

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

pytestmark = MARKS


@pytest.fixture(params=BACKENDS)
def module(request) -> ModuleType:
    if reason := backends()[request.param]:
        pytest.skip(reason)
    return implementation("bimamba", request.param)


PACKED = [0, 0, 1, 64, 64, 300, 557, 558, 900, 900]
CASES: dict[str, dict] = {
    **{
        f"{name}-{length}": dict(dtype=dtype, length=length, reverse=length % 2 == 0)
        for name, dtype in DTYPES.items() for length in (1, 2, 63, 257, 2047, 2048)
    },
    **{f"rank{n}": dict(rank=n, length=1032, dtype=torch.bfloat16) for n in (1, 2, 4, 5, 8, 16)},
    **{f"state{n}": dict(state=n, length=300) for n in (1, 5, 17, 64)},
    **{f"dim{n}": dict(dim=n, length=300) for n in (1, 8, 33)},
    "no-gate": dict(gate=False, length=300),
    "no-add": dict(add=False, length=512),
    "bare": dict(gate=False, add=False, length=300),
    "channels-last": dict(channels_last=True, length=700, dtype=torch.bfloat16),
    "packed": dict(batch=1, length=900, cu_seqlens=PACKED),
    "packed-reverse": dict(batch=1, length=900, cu_seqlens=PACKED, reverse=True, dtype=torch.bfloat16),
    "packed-long": dict(batch=1, dim=8, length=20_000, cu_seqlens=[0, 17, 8_000, 8_001, 20_000]),
    "one-row": dict(batch=1, dim=24, length=20_000, rank=8),
    "one-row-reverse": dict(batch=1, dim=24, length=20_000, rank=8, reverse=True, dtype=torch.bfloat16),
    "65537": dict(batch=1, dim=4, length=65_537, reverse=True),
    "layer": dict(batch=3, dim=256, length=1_024, rank=8, reverse=True, dtype=torch.bfloat16),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_scan(module, case):
    check_scan(module, direction(**CASES[case]), DEVICE)


def results(module: ModuleType, d: Direction) -> list[Tensor]:
    """out, saved states, then the gradients of both forms of the backward, with NaN in memory that was not written."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        out, states = module.scan(d, True)
        grads = [scan_backward(module, torch.ones_like(d.u), d, states, closing) for closing in (False, True)]
    finally:
        torch.use_deterministic_algorithms(before)
    return [out, states, *(x for g in grads for x in g if x is not None)]


@pytest.mark.parametrize("case", ["one-row", "packed", "layer"])
def test_scan_gives_the_same_bits_every_time(module, case):
    d = on(direction(**CASES[case]), device=DEVICE)
    runs = [results(module, d) for _ in range(4)]
    assert len(runs[0]) == 2 + 8 + 9
    for other in runs[1:]:
        for i, (a, b) in enumerate(zip(runs[0], other, strict=True)):
            assert torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8)), i
