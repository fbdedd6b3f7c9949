"""The mixer's convolutions on a GPU against plain PyTorch in float64; `make gpu` runs them.

With SEQ2EXP_REHEARSAL=1 the same tests run the C++ backend on the CPU.
"""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
from mixer_problems import check_convolution, taps
from on_gpu import BACKENDS, DEVICE, MARKS, implementation

from seq2exp.kernels import backends

pytestmark = MARKS


@pytest.fixture(params=BACKENDS)
def module(request) -> ModuleType:
    if reason := backends()[request.param]:
        pytest.skip(reason)
    return implementation("bimamba", request.param)


def signal(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("length", [1, 3, 63, 256, 1_000, 2_049, 20_000])
def test_convolution(module, length, dtype):
    check_convolution(module, signal(2, 9, length, dtype=dtype), taps(9, 4), taps(9, 4, 1), None, DEVICE)


@pytest.mark.parametrize("ways", [(True, True), (True, False), (False, True)], ids=["both", "fwd", "rev"])
@pytest.mark.parametrize("width", [2, 3, 4])
@pytest.mark.parametrize("cu_seqlens", [None, [0, 0, 1, 4, 64, 64, 300, 557, 558, 900, 900]], ids=["one", "packed"])
def test_convolution_widths_directions_and_packed_sequences(module, cu_seqlens, width, ways):
    fwd, rev = (taps(9, width, seed) if way else None for seed, way in enumerate(ways))
    offsets = None if cu_seqlens is None else torch.tensor(cu_seqlens)
    check_convolution(module, signal(1, 9, 900, dtype=torch.bfloat16), fwd, rev, offsets, DEVICE)


def test_convolution_of_half_a_projection(module):
    for length in (2_000, 2_001):
        x = signal(2, 18, length, dtype=torch.bfloat16)
        check_convolution(module, x[:, :9], taps(9, 4), taps(9, 4, 1), None, DEVICE)
        check_convolution(module, x.mT.contiguous().mT[:, 9:], taps(9, 4), taps(9, 4, 1), None, DEVICE)


def test_convolution_gives_the_same_bits_every_time(module):
    x = signal(2, 64, 30_000, dtype=torch.bfloat16).to(DEVICE)
    fwd, rev = taps(64, 4, device=DEVICE), taps(64, 4, 1, device=DEVICE)
    runs = []
    for _ in range(2):
        out = module.convolve(x, fwd, rev, None)
        grads = module.convolve_backward(x, *out, fwd, rev, None)
        runs.append([*out, grads.x, *grads.fwd, *grads.rev])
    assert all(map(torch.equal, *runs))
