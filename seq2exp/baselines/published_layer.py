"""The layer as published, from plain torch operations and a scan: residual add, RMSNorm, two Mamba modules with flips.

The second module stands between two flips. Each has its own projections of the shared weights, its own convolution, a
step size for every channel and base in memory, its own gate. Nothing of `seq2exp.kernels` is in it but the scan.

Sources: Mamba (Gu and Dao 2023), Caduceus (Schiff et al. 2024). Signals are (batch, channels, L) with bases adjacent in
memory, and every product is a bmm that reads and writes them as they lie: no copies but those that the form has.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from seq2exp.kernels import ScanWeights, selective_scan, set_backend
from seq2exp.kernels.selective_scan import reference

EPSILON = 1e-5  # of RMSNorm

# (h, in_proj, out_proj, weights) -> output, all signals (batch, L, d); by name `run`, see `call`
Mamba = Callable[..., Tensor]


def call(step: Callable[..., Any], *inputs: Any) -> Any:
    """How a step is called. Who wants to know what each step takes passes another function in its place."""
    return step(*inputs)


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
    """Our scan, on the backend in force."""
    return selective_scan(c, delta, -torch.exp(A_log), B, C, D, z, dt_bias, True)  # type: ignore[return-value]


def chunked_scan(*inputs: Tensor) -> Tensor:
    """The scan in torch operations, vectorised over chunks."""
    with set_backend("reference"):
        return scan(*inputs)


class _Sequential(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Tensor) -> Tensor:
        ctx.save_for_backward(*inputs)
        return reference.selective_scan_forward(*inputs, True)[0]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return (*reference.selective_scan_backward(grads[0], *ctx.saved_tensors, True),)


def reference_scan(
    c: Tensor, delta: Tensor, A_log: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, dt_bias: Tensor
) -> Tensor:  # fmt: skip
    """The scan in torch operations, base by base, as mamba-ssm's `selective_scan_ref` runs it."""
    inputs = (c, delta, -torch.exp(A_log), B.unsqueeze(1), C.unsqueeze(1), D, z, dt_bias)
    wide = torch.promote_types(c.dtype, torch.float32)
    return _Sequential.apply(*(x.to(wide) for x in inputs)).to(c.dtype)  # type: ignore[no-any-return]


def output_projection(y: Tensor, out_proj: Tensor) -> Tensor:
    return F.linear(y.transpose(1, 2), out_proj)


def _product(weight: Tensor, x: Tensor) -> Tensor:
    """(out, in) with (batch, in, L); matmul would copy x."""
    return torch.bmm(weight.expand(x.shape[0], -1, -1), x)


def mamba(
    h: Tensor, in_proj: Tensor, out_proj: Tensor, w: ScanWeights, run: Callable[..., Any] = call,
    scan_step: Callable[..., Tensor] = scan,
) -> Tensor:  # fmt: skip
    """A Mamba module, h (batch, L, d) -> the same. scan_step: with the arguments of `scan`."""
    x, z = run(input_projection, h, in_proj)
    c = run(convolution, x, w.conv_weight, w.conv_bias)
    state = w.A_log.shape[1]
    low, B, C = run(x_projection, c, w.x_proj).split([w.dt_proj.shape[1], state, state], 1)
    delta = run(dt_projection, low, w.dt_proj)
    y = run(scan_step, c, delta, w.A_log, B, C, w.D, z, w.dt_bias)
    return run(output_projection, y, out_proj)


def flip(h: Tensor) -> Tensor:
    return h.flip(1)


def fast_mamba(
    h: Tensor, in_proj: Tensor, out_proj: Tensor, w: ScanWeights, run: Callable[..., Any] = call
) -> Tensor:  # fmt: skip
    """The module as mamba-ssm runs it: its fused function with the convolution of causal-conv1d."""
    return run(fused_module, h, in_proj, out_proj, *w)


def fused_module(h: Tensor, in_proj: Tensor, out_proj: Tensor, *weights: Tensor) -> Tensor:
    from mamba_ssm.ops.selective_scan_interface import mamba_inner_fn

    w = ScanWeights(*weights)
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
    forward = module(h, in_proj, out_proj, fwd, run=run)
    backward = run(flip, module(run(flip, h), in_proj, out_proj, rev, run=run))
    return run(torch.add, forward, backward)


def add(residual: Tensor, x: Tensor) -> Tensor:
    """In the dtype of the residual stream."""
    return residual + x.to(residual.dtype)


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    return F.rms_norm(x, weight.shape, weight.to(x.dtype), EPSILON)
