"""The mixer of one direction and its convolution on a GPU, as registered ops, against float64; `make gpu` runs them.

With SEQ2EXP_REHEARSAL=1 the same tests run the C++ backend on the CPU, so that they work when a GPU is at hand.
"""

from __future__ import annotations

import pytest
import torch
from mamba_reference import mixer_weights
from on_gpu import BACKENDS, DEVICE, MARKS, forced
from scan_problems import FORWARD_LIMIT, GRAD_LIMIT, rms_error
from torch.nn import functional as F

from seq2exp.kernels import ScanWeights
from seq2exp.kernels.bimamba import causal_convolution, mamba

pytestmark = MARKS

DTYPES = [torch.float32, torch.bfloat16]


def run(flat):
    return mamba(*flat[:3], ScanWeights(*flat[3:]))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("length", [1, 257, 2047])
def test_mixer(backend, dtype, length):
    """In bfloat16 the signals and projections are rounded, the oracle sees the same ones."""
    flat = [x.detach().to(DEVICE) for x in mixer_weights(length=length)]
    flat = [x.to(dtype).requires_grad_() for x in flat]
    exact = [x.detach().double().requires_grad_() for x in flat]
    wanted = run(exact)
    g = torch.randn(wanted.shape, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    with forced(backend):
        out = run(flat)
        grads = torch.autograd.grad(out, flat, g.to(dtype))
    assert out.dtype == dtype and out.is_contiguous()
    assert rms_error(out.detach(), wanted.detach()) <= 3 * FORWARD_LIMIT[dtype]
    for i, (a, b) in enumerate(zip(grads, torch.autograd.grad(wanted, exact, g.double()), strict=True)):
        assert rms_error(a, b) <= 5 * GRAD_LIMIT[dtype], i


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width,length", [(2, 1), (3, 300), (4, 2049)])
def test_convolution(backend, dtype, width, length):
    """Of a part of a larger tensor, as the scan's input and its gate lie beside each other."""
    g = torch.Generator().manual_seed(width)
    xz = torch.randn(2, 48, length, generator=g).to(DEVICE, dtype).requires_grad_()
    weight, bias = (torch.randn(*shape, generator=g).to(DEVICE).requires_grad_() for shape in ((24, width), (24,)))
    grad = torch.randn(2, 24, length, generator=g).to(DEVICE, dtype)
    with forced(backend):
        out = causal_convolution(xz[:, :24], weight, bias)
        ours = torch.autograd.grad(out, (xz, weight, bias), grad)
    x, w, b = (t.detach().double().requires_grad_() for t in (xz, weight, bias))
    wanted = F.silu(F.conv1d(F.pad(x[:, :24], (width - 1, 0)), w[:, None], b, groups=24))
    assert rms_error(out.detach(), wanted.detach()) <= FORWARD_LIMIT[dtype]
    for a, e in zip(ours, torch.autograd.grad(wanted, (x, w, b), grad.double()), strict=True):
        assert rms_error(a, e) <= GRAD_LIMIT[dtype]
