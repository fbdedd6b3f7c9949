"""`mamba`: the mixer of one direction; `causal_convolution`: its convolution. Each is one op from the mixer's parts."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from seq2exp.kernels import backend as backends
from seq2exp.kernels.bimamba import mixer, ops
from seq2exp.kernels.bimamba.direction import Taps
from seq2exp.kernels.bimamba.reference import ScanWeights

# --- the mixer --------------------------------------------------------------------------------------------------------


@torch.library.custom_op(
    "seq2exp::mamba_fwd",
    mutates_args=(),
    schema="(Tensor h, Tensor[] weights, str backend, bool save_states) -> (Tensor, Tensor)",
)
def _forward(h: Tensor, weights: list[Tensor], backend: str, save_states: bool) -> tuple[Tensor, Tensor]:
    """out and the chunk states (empty unless save_states)."""
    return mixer.forward_one(backend, h, weights, save_states)


@_forward.register_fake
def _(h, weights, backend, save_states):
    dim, state = ScanWeights(*weights[2:]).A_log.shape
    shape = mixer.parts(backend).states_shape(h.shape[0], dim, state, h.shape[1], None) if save_states else [0]
    states = h.new_empty(shape, dtype=torch.promote_types(h.dtype, torch.float32))
    return torch.empty_like(h, memory_format=torch.contiguous_format), states


@torch.library.custom_op(
    "seq2exp::mamba_bwd",
    mutates_args=(),
    schema="(Tensor grad_out, Tensor h, Tensor[] weights, str backend, Tensor states) -> Tensor[]",
)
def _backward(grad_out: Tensor, h: Tensor, weights: list[Tensor], backend: str, states: Tensor) -> list[Tensor]:
    """Gradients of h and of the weights."""
    grad_h, grads = mixer.backward_one(backend, grad_out, h, weights, states)
    return [grad_h, *ops.like(grads, weights)]


@_backward.register_fake
def _(grad_out, h, weights, backend, states):
    return [torch.empty_like(x, memory_format=torch.contiguous_format) for x in (h, *weights)]


def _setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
    h, weights, ctx.backend, _ = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(h, output[1], *weights)


def _autograd(ctx: Any, grad_out: Tensor | None, _: Tensor) -> tuple:
    h, states, *weights = ctx.saved_tensors
    if grad_out is None:
        return None, [None] * len(weights), None, None
    grad_h, *grads = _backward(grad_out, h, weights, ctx.backend, states)
    return grad_h, grads, None, None


_forward.register_autograd(_autograd, setup_context=_setup_context)


def mamba(h: Tensor, in_proj: Tensor, out_proj: Tensor, weights: ScanWeights) -> Tensor:
    """One Mamba mixer (Gu and Dao 2023), from left to right: the forward direction of `bimamba`.

    Parameters, dtypes and errors are those of `bimamba`; h (batch, L, d) -> the same. The backward needs h and the
    states at chunk boundaries, no more.
    """
    ops.check(h, in_proj, out_proj, weights, weights, None, "add", None)
    dtype = ops.compute_dtype(h)
    backend = backends.resolve("bimamba", h.device, dtype)
    h = h.to(dtype)
    if h.numel() == 0:
        return h.clone()
    flat = [in_proj.to(dtype), out_proj.to(dtype), *ops.cast_direction(dtype, weights)]
    out, _ = _forward(h, flat, backend, ops.needs_backward(h, *flat))
    return out


# --- its convolution --------------------------------------------------------------------------------------------------


@torch.library.custom_op(
    "seq2exp::causal_convolution_fwd",
    mutates_args=(),
    schema="(Tensor x, Tensor weight, Tensor bias, str backend) -> Tensor",
)
def _convolve(x: Tensor, weight: Tensor, bias: Tensor, backend: str) -> Tensor:
    out, _ = mixer.parts(backend).convolve(x, Taps(weight, bias), None, None)
    return out.contiguous()


@_convolve.register_fake
def _(x, weight, bias, backend):
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@torch.library.custom_op(
    "seq2exp::causal_convolution_bwd",
    mutates_args=(),
    schema="(Tensor grad, Tensor x, Tensor weight, Tensor bias, str backend) -> (Tensor, Tensor, Tensor)",
)
def _convolve_backward(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    dx, taps, _ = mixer.parts(backend).convolve_backward(x, grad, None, Taps(weight, bias), None, None)
    assert taps is not None
    return dx.contiguous(), taps.weight.contiguous(), taps.bias.contiguous()


@_convolve_backward.register_fake
def _(grad, x, weight, bias, backend):
    return tuple(torch.empty_like(t, memory_format=torch.contiguous_format) for t in (x, weight, bias))


def _convolve_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
    x, weight, bias, ctx.backend = inputs
    ctx.save_for_backward(x, weight, bias)


def _convolve_autograd(ctx: Any, grad: Tensor) -> tuple:
    return *_convolve_backward(grad, *ctx.saved_tensors, ctx.backend), None


_convolve.register_autograd(_convolve_autograd, setup_context=_convolve_context)


def causal_convolution(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """silu of the causal depthwise convolution, as it stands in a Mamba mixer.

    Parameters
    ----------
    x: (batch, dim, L), float32, bfloat16, float16 or float64, any strides. weight: (dim, width), width 2 to 4; the last
        tap reads the own position. bias: (dim,) or None. Both may have another dtype than x; sums are float32.

    Returns
    -------
    (batch, dim, L), contiguous, in the dtype of x.

    Raises
    ------
    ValueError: shapes or devices that do not fit. TypeError: a dtype that is not supported.
    """
    check_convolution(x, weight, bias)
    if x.numel() == 0:
        return x.clone()
    wide = torch.promote_types(x.dtype, torch.float32)
    bias = x.new_zeros(x.shape[1], dtype=wide) if bias is None else bias.to(wide).contiguous()
    return _convolve(x, weight.to(wide).contiguous(), bias, backends.resolve("bimamba", x.device, x.dtype))


def check_convolution(x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    if x.dim() != 3:
        raise ValueError(f"causal_convolution: x must be (batch, dim, L), got {tuple(x.shape)}")
    if x.dtype not in ops.STORAGE:
        raise TypeError(f"causal_convolution: x is {x.dtype}; use float32, bfloat16, float16 or float64")
    dim = x.shape[1]
    if weight.dim() != 2 or weight.shape[0] != dim or not 2 <= weight.shape[1] <= 4:
        raise ValueError(
            f"causal_convolution: weight must be (dim, width) = ({dim}, 2 to 4), got {tuple(weight.shape)}"
        )
    if bias is not None and tuple(bias.shape) != (dim,):
        raise ValueError(f"causal_convolution: bias must be (dim,) = ({dim},), got {tuple(bias.shape)}")
    for name, t in (("weight", weight), ("bias", bias)):
        if t is not None and t.device != x.device:
            raise ValueError(f"causal_convolution: {name} is on {t.device}, x on {x.device}")
