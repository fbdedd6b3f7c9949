"""The parts of a mixer in CUDA C++ (csrc/bimamba/cuda), loaded by seq2exp.kernels._extension. See `direction.py`."""

from __future__ import annotations

import torch
from torch import Tensor

from seq2exp.kernels.bimamba.direction import ConvolutionGrads, Direction, DirectionGrads, Taps
from seq2exp.kernels.selective_scan import cuda

CHANNELS_LAST = False
states_shape = cuda.states_shape


def convolve(
    x: Tensor, fwd: Taps | None, rev: Taps | None, cu_seqlens: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    """silu of the causal (fwd) and the anti-causal (rev) depthwise convolution; None for an absent direction."""
    outs = iter(torch.ops.seq2exp_native.bimamba_conv_fwd(x, *_flat(fwd), *_flat(rev), cu_seqlens))
    return tuple(None if taps is None else next(outs) for taps in (fwd, rev))  # type: ignore[return-value]


def convolve_backward(
    x: Tensor, grad_fwd: Tensor | None, grad_rev: Tensor | None, fwd: Taps | None, rev: Taps | None,
    cu_seqlens: Tensor | None,
) -> ConvolutionGrads:  # fmt: skip
    """Gradients of `convolve`, which is recomputed."""
    dx, *weights = torch.ops.seq2exp_native.bimamba_conv_bwd(
        x, grad_fwd, grad_rev, *_flat(fwd), *_flat(rev), cu_seqlens
    )
    grads = iter(weights)
    return ConvolutionGrads(dx, *(None if taps is None else Taps(next(grads), next(grads)) for taps in (fwd, rev)))


def scan(d: Direction, save_states: bool = True) -> tuple[Tensor, Tensor]:
    """out like u, and the float32 states at every 256th position (empty unless save_states)."""
    return torch.ops.seq2exp_native.bimamba_scan_fwd(
        d.u, d.low, d.dt_proj, d.A, d.B, d.C, d.D, d.dt_bias, d.z, d.add, d.reverse, d.cu_seqlens, save_states
    )


def scan_backward(grad: Tensor, d: Direction, states: Tensor, closing: bool) -> DirectionGrads:
    """See `DirectionGrads`. The same bits from run to run."""
    du, ddelta, y, dz, dB, dC, sums = torch.ops.seq2exp_native.bimamba_scan_cuda_bwd(
        grad, d.u, d.low, d.dt_proj, d.A, d.B, d.C, d.D, d.dt_bias, d.z, d.add, d.reverse, d.cu_seqlens, states, closing
    )
    dA, dD, dbias = cuda.parameter_gradients(sums)
    dB, dC = (x[:, 0].to(d.u.dtype) for x in (dB, dC))
    return DirectionGrads(du, ddelta, dA, dB, dC, dD, dbias, y, dz if closing else None)


def _flat(taps: Taps | None) -> Taps | tuple[None, None]:
    return (None, None) if taps is None else taps
