"""The bidirectional layer as published, from plain torch operations and a scan: what `bimamba` is measured against.

Two Mamba modules, the second between two flips, each with its own projections of the shared weights, its own
convolution, a step size for every channel and base in memory, its own gate. The equivariant form (Caduceus-PS) runs all
of it on both halves of the channels, the second half flipped along bases and channels before and after.

Sources: Mamba (Gu and Dao 2023), Caduceus (Schiff et al. 2024). Signals are (batch, channels, L) with bases adjacent in
memory, and every product is a bmm that reads and writes them as they lie: no copies but those that the form has.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from seq2exp.kernels import ScanWeights, selective_scan

EPSILON = 1e-5  # of RMSNorm

# (h, in_proj, out_proj, weights) -> output, all signals (batch, L, d)
Mamba = Callable[[Tensor, Tensor, Tensor, ScanWeights], Tensor]
Strand = Callable[[Tensor], Tensor]


def call(step: Callable[..., Any], *inputs: Tensor) -> Any:
    return step(*inputs)


def mamba(
    h: Tensor, in_proj: Tensor, out_proj: Tensor, w: ScanWeights, run: Callable[..., Any] = call
) -> Tensor:  # fmt: skip
    """A Mamba module, h (batch, L, d) -> the same. run(step, *inputs): how a step is called."""
    x, z = run(input_projection, h, in_proj)
    c = run(convolution, x, w.conv_weight, w.conv_bias)
    state = w.A_log.shape[1]
    low, B, C = run(x_projection, c, w.x_proj).split([w.dt_proj.shape[1], state, state], 1)
    delta = run(dt_projection, low, w.dt_proj)
    y = run(scan, c, delta, w.A_log, B, C, w.D, z, w.dt_bias)
    return run(output_projection, y, out_proj)


def input_projection(h: Tensor, in_proj: Tensor) -> tuple[Tensor, ...]:
    return _product(in_proj, h.transpose(1, 2)).chunk(2, 1)


def convolution(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    length, width = x.shape[2], weight.shape[2]
    return F.silu(F.conv1d(x, weight, bias, padding=width - 1, groups=weight.shape[0])[..., :length])


def x_projection(c: Tensor, x_proj: Tensor) -> Tensor:
    return _product(x_proj, c)


def dt_projection(low: Tensor, dt_proj: Tensor) -> Tensor:
    return _product(dt_proj, low)


def scan(
    c: Tensor, delta: Tensor, A_log: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, dt_bias: Tensor
) -> Tensor:  # fmt: skip
    return selective_scan(c, delta, -torch.exp(A_log), B, C, D, z, dt_bias, True)


def output_projection(y: Tensor, out_proj: Tensor) -> Tensor:
    return F.linear(y.transpose(1, 2), out_proj)


def _product(weight: Tensor, x: Tensor) -> Tensor:
    """(out, in) with (batch, in, L); matmul would copy x."""
    return torch.bmm(weight.expand(x.shape[0], -1, -1), x)


def flip(h: Tensor) -> Tensor:
    return h.flip(1)


def fast_mamba(h: Tensor, in_proj: Tensor, out_proj: Tensor, w: ScanWeights) -> Tensor:
    """The module as mamba-ssm runs it: its fused function with the convolution of causal-conv1d."""
    from mamba_ssm.ops.selective_scan_interface import mamba_inner_fn

    xz = (in_proj @ h.flatten(0, 1).t()).unflatten(1, h.shape[:2]).transpose(0, 1)
    return mamba_inner_fn(
        xz, w.conv_weight, w.conv_bias, w.x_proj, w.dt_proj, out_proj, None, -torch.exp(w.A_log.float()), None, None,
        w.D.float(), delta_bias=w.dt_bias.float(), delta_softplus=True,
    )  # fmt: skip


def bimamba(
    h: Tensor, in_proj: Tensor, out_proj: Tensor, fwd: ScanWeights, rev: ScanWeights, *, module: Mamba = mamba,
    run: Callable[..., Any] = call,
) -> Tensor:  # fmt: skip
    """Both modules with tied projections, summed; h (batch, L, d) -> the same."""
    forward = module(h, in_proj, out_proj, fwd)
    backward = run(flip, module(run(flip, h), in_proj, out_proj, rev))
    return run(torch.add, forward, backward)


def layer(x: Tensor, norm: Strand, mixer: Strand, final_norm: Strand) -> Tensor:
    """A backbone of one layer: x (batch, L, d) is the residual stream."""
    return final_norm(x + mixer(norm(x)).to(x.dtype))


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    return F.rms_norm(x, weight.shape, weight.to(x.dtype), EPSILON)


def on_both_strands(strand: Strand, x: Tensor) -> Tensor:
    """x (batch, L, 2 d) -> the same, as Caduceus-PS wraps its norms and mixers."""
    first, second = x.chunk(2, -1)
    return torch.cat([strand(first), _reverse_complement(strand(_reverse_complement(second)))], -1)


def _reverse_complement(x: Tensor) -> Tensor:
    return x.flip(-2, -1)


class Part(NamedTuple):
    """A step of `bimamba` alone, forward and backward, on the inputs that it has there."""

    name: str
    run: Callable[[], object]


def parts(
    h: Tensor, in_proj: Tensor, out_proj: Tensor, fwd: ScanWeights, rev: ScanWeights,
    autocast: Callable[[], AbstractContextManager] = nullcontext,
) -> list[Part]:  # fmt: skip
    """All steps, and the sums of the gradients of what two steps read."""
    found: list[Part] = []
    uses: Counter[Tensor] = Counter()

    def record(step: Callable[..., Any], *inputs: Tensor) -> Any:
        uses.update(inputs)
        found.append(_part(step, inputs, autocast))
        return step(*inputs)

    with torch.no_grad(), autocast():
        bimamba(h, in_proj, out_proj, fwd, rev, module=partial(mamba, run=record), run=record)
    sums = [Part("sums of gradients", partial(torch.add, x, x)) for x, n in uses.items() for _ in range(n - 1)]
    return found + sums


def _part(
    step: Callable[..., Any], inputs: tuple[Tensor, ...], autocast: Callable[[], AbstractContextManager]
) -> Part:  # fmt: skip
    leaves = [x.detach().requires_grad_() for x in inputs]
    outputs = step(*inputs)
    grads = [torch.randn_like(y) for y in ((outputs,) if isinstance(outputs, Tensor) else outputs)]

    def run() -> object:
        with autocast():
            outputs = step(*leaves)
        return torch.autograd.grad(outputs, leaves, grads)

    return Part(step.__name__.replace("_", " "), run)
