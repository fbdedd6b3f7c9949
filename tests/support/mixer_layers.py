"""Whole mixers: weights as Mamba initialises them, gradients of all of them, and the published form in torch ops."""

import pytest
import torch
from torch.nn import functional as F

from seq2exp.kernels import ScanWeights, selective_scan
from seq2exp.kernels.backend import resolve

COMPILED = resolve("bimamba", torch.device("cpu"), torch.float32) == "cpu"
BACKENDS = ["reference", pytest.param("cpu", marks=pytest.mark.skipif(not COMPILED, reason="no C++ kernels here"))]


def weights(d_inner, rank, state, width, g):
    def uniform(bound, *shape):
        return (torch.rand(*shape, generator=g) * 2 - 1) * bound

    step = torch.exp(torch.rand(d_inner, generator=g) * 4.6 - 6.9)
    return ScanWeights(
        uniform(0.5, d_inner, 1, width), uniform(0.5, d_inner), uniform(d_inner**-0.5, rank + 2 * state, d_inner),
        uniform(rank**-0.5, d_inner, rank), step.log(), torch.arange(1.0, state + 1).log().repeat(d_inner, 1),
        torch.ones(d_inner),
    )  # fmt: skip


def layer(d=16, state=16, width=4, batch=1, length=130, untied=False, seed=0):
    """h, in_proj, out_proj, fwd, rev and rev_proj, initialised like a Mamba."""
    g = torch.Generator().manual_seed(seed)
    d_inner, rank = 2 * d, -(-d // 16)

    def projections():
        return tuple((torch.rand(*s, generator=g) * 2 - 1) * s[1] ** -0.5 for s in ((2 * d_inner, d), (d, d_inner)))

    fixed = (
        torch.randn(batch, length, d, generator=g), *projections(),
        weights(d_inner, rank, state, width, g), weights(d_inner, rank, state, width, g),
    )  # fmt: skip
    return fixed, projections() if untied else None


def leaves(fixed, rev_proj):
    h, in_proj, out_proj, fwd, rev = fixed
    return [h, in_proj, out_proj, *fwd, *rev, *(rev_proj or ())]


def rebuilt(flat, untied):
    fixed = (flat[0], flat[1], flat[2], ScanWeights(*flat[3:10]), ScanWeights(*flat[10:17]))
    return fixed, tuple(flat[17:]) if untied else None


def converted(fixed, rev_proj, dtype):
    return rebuilt([x.detach().to(dtype).requires_grad_() for x in leaves(fixed, rev_proj)], rev_proj is not None)


def gradients(out, fixed, rev_proj, g):
    return torch.autograd.grad(out, leaves(fixed, rev_proj), g.to(out.dtype))


def published_form(h, in_proj, out_proj, fwd, rev, strategy):
    """Two Mamba modules and two flips under autocast; the scan itself is the same as ours."""

    def mamba(h, w):
        x, z = F.linear(h, in_proj).transpose(1, 2).chunk(2, 1)
        width, rank, state = w.conv_weight.shape[-1], w.dt_proj.shape[1], w.A_log.shape[1]
        c = F.silu(F.conv1d(F.pad(x, (width - 1, 0)), w.conv_weight, w.conv_bias, groups=x.shape[1]))
        low, B, C = F.linear(c.transpose(1, 2), w.x_proj).split([rank, state, state], -1)
        delta = F.linear(low, w.dt_proj).transpose(1, 2)
        y = selective_scan(c, delta, -torch.exp(w.A_log), B.transpose(1, 2), C.transpose(1, 2), w.D, z, w.dt_bias, True)
        return F.linear(y.transpose(1, 2), out_proj)

    a, b = mamba(h, fwd), mamba(h.flip(1), rev).flip(1)
    return a + b if strategy == "add" else a * b
