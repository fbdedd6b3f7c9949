"""The C++ parts of a mixer for the CPU (csrc/bimamba/cpu), loaded by seq2exp.kernels._extension. See direction.py."""

from __future__ import annotations

import torch
from torch import Tensor

from seq2exp.kernels.bimamba.direction import ConvolutionGrads, Direction, DirectionGrads, Taps
from seq2exp.kernels.selective_scan import native

CHANNELS_LAST = True
states_shape = native.states_shape


def convolve(
    x: Tensor, fwd: Taps | None, rev: Taps | None, cu_seqlens: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    """silu of the causal (fwd) and the anti-causal (rev) convolution, each with the shape, dtype and strides of x."""
    outs = torch.ops.seq2exp_native.bimamba_conv_fwd(x, *_pair(fwd), *_pair(rev), cu_seqlens)
    c_fwd, c_rev = (None if taps is None else out for taps, out in zip((fwd, rev), outs, strict=True))
    return c_fwd, c_rev


def convolve_backward(
    x: Tensor, grad_fwd: Tensor | None, grad_rev: Tensor | None, fwd: Taps | None, rev: Taps | None,
    cu_seqlens: Tensor | None,
) -> ConvolutionGrads:  # fmt: skip
    """Gradients of `convolve`, whose value before silu is recomputed. The same bits for any number of threads."""
    dx, *grads = torch.ops.seq2exp_native.bimamba_conv_bwd(x, grad_fwd, grad_rev, *_pair(fwd), *_pair(rev), cu_seqlens)
    return ConvolutionGrads(
        dx, *(None if taps is None else Taps(*pair) for taps, pair in ((fwd, grads[:2]), (rev, grads[2:])))
    )


def scan(d: Direction, save_states: bool = True) -> tuple[Tensor, Tensor]:
    """out (batch, dim, L) with u's dtype and strides, and chunk states (float32; empty without save_states)."""
    return torch.ops.seq2exp_native.bimamba_scan_fwd(*d, save_states)


def scan_backward(grad: Tensor, d: Direction, states: Tensor, closing: bool) -> DirectionGrads:
    """See `DirectionGrads`. The same bits for any number of threads. Each gradient has the layout of its input."""
    *grads, dz = torch.ops.seq2exp_native.bimamba_scan_bwd(grad, *d, states, closing)
    return DirectionGrads(*grads, dz if closing else None)


def _pair(taps: Taps | None) -> tuple[Tensor | None, Tensor | None]:
    return (None, None) if taps is None else tuple(taps)
