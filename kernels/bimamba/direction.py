"""What one direction of a mixer hands to a backend's scan, and what it gets back.

A backend's module (composed, native, cuda, triton) offers, besides `CHANNELS_LAST` and `states_shape`:

    convolve(x, fwd, rev, cu_seqlens) -> (c_fwd, c_rev)
    convolve_backward(x, grad_fwd, grad_rev, fwd, rev, cu_seqlens) -> ConvolutionGrads
    scan(direction, save_states) -> (out, states)
    scan_backward(grad, direction, states, closing) -> DirectionGrads
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Taps(NamedTuple):
    """A depthwise convolution. weight: (dim, width), width 2 to 4, the last tap reads the own position. bias: (dim,).

    float32 (float64 with float64 signals), contiguous.
    """

    weight: Tensor
    bias: Tensor


class Direction(NamedTuple):
    """Inputs of y = scan(u, softplus(dt_proj low + dt_bias), A, B, C) + D u, the step sizes formed inside the scan.

    u, z, add: (batch, dim, L). low: (batch, rank, L). B, C: (batch, state, L). All of one dtype, any strides.
    dt_proj: (dim, rank). A: (dim, state). D, dt_bias: (dim,). float32 (float64 with float64 signals), contiguous.
    z: gate, or None. add: y of the other direction, or None.
    reverse: scan from the last position to the first. cu_seqlens: int64 (sequences + 1,), or None.

    Forward: out = (y + add) silu(z); without z or add the factor or the summand is left out.
    """

    u: Tensor
    low: Tensor
    dt_proj: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor
    dt_bias: Tensor
    z: Tensor | None
    add: Tensor | None
    reverse: bool
    cu_seqlens: Tensor | None


class DirectionGrads(NamedTuple):
    """Gradients of sum(grad (y + add) silu(z)); z is always given.

    u, delta, y, z: (batch, dim, L), B, C: (batch, state, L), in the dtype of the signals. A: (dim, state), D, dt_bias:
    (dim,), float32 or wider. delta: gradient of dt_proj low.
    closing: y is (y + add) silu(z), z the gradient of z. Otherwise y is the y of this direction, z is None.
    The last use of grad, z and add: their memory may be that of the gradient of u, of the gradient of z and of y.
    """

    u: Tensor
    delta: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor
    dt_bias: Tensor
    y: Tensor
    z: Tensor | None


class ConvolutionGrads(NamedTuple):
    """x: (batch, dim, L) in x's dtype. fwd, rev: gradients of the weights, float32 or wider; None where absent."""

    x: Tensor
    fwd: Taps | None
    rev: Taps | None
