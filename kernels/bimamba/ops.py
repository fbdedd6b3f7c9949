"""`bimamba`: checks, the registered op (schema, fake, autograd) and the choice of implementation.

    out = W_out((y_f + y_r) * silu(z))        (tied projections, "add")

equals W_out(y_f * silu(z)) + flip(W_out(y_r' * silu(z'))) of the published layer, because a Mamba acts base by base
except in its convolution and its scan, and both of those run from right to left by indexing.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from seq2exp.kernels import backend as backends
from seq2exp.kernels.bimamba import mixer
from seq2exp.kernels.bimamba.reference import ScanWeights
from seq2exp.kernels.selective_scan.ops import LONGEST, STORAGE, check_offsets, check_packing

STRATEGIES = ("add", "ew_multiply")
PROJECTIONS = ("in_proj", "out_proj")
_CAST = ("x_proj",)  # of ScanWeights: multiplied with signals, in their dtype; the others stay float32

_INPUTS = "Tensor h, Tensor[] weights, bool multiply, Tensor? cu_seqlens, str backend"


@torch.library.custom_op(
    "seq2exp::bimamba_fwd", mutates_args=(), schema=f"({_INPUTS}, bool save_states) -> (Tensor, Tensor, Tensor)"
)
def _forward(
    h: Tensor, weights: list[Tensor], multiply: bool, cu_seqlens: Tensor | None, backend: str, save_states: bool
) -> tuple[Tensor, Tensor, Tensor]:
    check_offsets("bimamba", cu_seqlens, h.shape[1])
    return mixer.forward(backend, h, weights, multiply, cu_seqlens, save_states)


@_forward.register_fake
def _(h, weights, multiply, cu_seqlens, backend, save_states):
    return torch.empty_like(h, memory_format=torch.contiguous_format), *fake_states(
        h, weights, cu_seqlens, backend, save_states
    )


def fake_states(
    h: Tensor, weights: list[Tensor], cu_seqlens: Tensor | None, backend: str, save_states: bool
) -> tuple[Tensor, Tensor]:
    """The chunk states of both directions, as far as torch.compile needs to know them."""
    n_sequences = None if cu_seqlens is None else cu_seqlens.shape[0] - 1
    dtype = torch.promote_types(h.dtype, torch.float32)
    fwd, rev = (
        mixer.parts(backend).states_shape(h.shape[0], *w.A_log.shape, h.shape[1], n_sequences) if save_states else [0]
        for w in mixer.Weights.of(weights).directions
    )
    return h.new_empty(fwd, dtype=dtype), h.new_empty(rev, dtype=dtype)


@torch.library.custom_op(
    "seq2exp::bimamba_bwd",
    mutates_args=(),
    schema=f"(Tensor grad_out, {_INPUTS}, Tensor states_fwd, Tensor states_rev) -> Tensor[]",
)
def _backward(
    grad_out: Tensor, h: Tensor, weights: list[Tensor], multiply: bool, cu_seqlens: Tensor | None, backend: str,
    states_fwd: Tensor, states_rev: Tensor,
) -> list[Tensor]:  # fmt: skip
    """Gradients of h and of the weights."""
    grad_h, grads = mixer.backward(backend, grad_out, h, weights, multiply, cu_seqlens, [states_fwd, states_rev])
    return [grad_h, *like(grads, weights)]


@_backward.register_fake
def _(grad_out, h, weights, multiply, cu_seqlens, backend, states_fwd, states_rev):
    return [torch.empty_like(x, memory_format=torch.contiguous_format) for x in (h, *weights)]


def like(grads: list[Tensor], weights: list[Tensor]) -> list[Tensor]:
    """grads with the dtypes of the weights, contiguous."""
    return [g.to(w.dtype).contiguous() for g, w in zip(grads, weights, strict=True)]


def _setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
    h, weights, ctx.multiply, cu_seqlens, ctx.backend, _ = inputs
    _, states_fwd, states_rev = output
    ctx.mark_non_differentiable(states_fwd, states_rev)
    ctx.set_materialize_grads(False)  # those of the states would be zeros as large as the states
    ctx.save_for_backward(h, cu_seqlens, states_fwd, states_rev, *weights)


def _autograd(ctx: Any, grad_out: Tensor | None, *_: Tensor) -> tuple:
    h, cu_seqlens, states_fwd, states_rev, *weights = ctx.saved_tensors
    if grad_out is None:
        return None, [None] * len(weights), None, None, None, None
    grad_h, *grads = _backward(grad_out, h, weights, ctx.multiply, cu_seqlens, ctx.backend, states_fwd, states_rev)
    return grad_h, grads, None, None, None, None


_forward.register_autograd(_autograd, setup_context=_setup_context)


def bimamba(
    h: Tensor,
    in_proj: Tensor,
    out_proj: Tensor,
    fwd: ScanWeights,
    rev: ScanWeights,
    *,
    rev_proj: tuple[Tensor, Tensor] | None = None,
    strategy: str = "add",
    cu_seqlens: Tensor | None = None,
) -> Tensor:
    """One bidirectional Mamba mixer (Caduceus, Schiff et al. 2024).

    Parameters
    ----------
    h: (batch, L, d), float32, bfloat16, float16 or float64; under autocast it is cast to autocast's dtype.
    in_proj: (2 d_inner, d). out_proj: (d, d_inner). fwd, rev: the weights of each direction; d_conv 2 to 4.
        Weights may have another dtype than h: projections are cast to it, the others to float32.
    rev_proj: (in_proj, out_proj) of the reverse direction where they are not tied.
    strategy: "add" or "ew_multiply", how the two directions are combined.
    cu_seqlens: int32 or int64 (sequences + 1,) offsets from 0 to L of sequences packed along L (batch 1); neither
        convolution nor scan crosses a boundary.

    Returns
    -------
    (batch, L, d) in the dtype of h, or autocast's. The backward needs h and the states at chunk boundaries, no more.

    Raises
    ------
    ValueError: shapes, strategy, devices, offsets or a d_conv that do not fit. TypeError: dtypes that do not.
    """
    check(h, in_proj, out_proj, fwd, rev, rev_proj, strategy, cu_seqlens)
    dtype = compute_dtype(h)
    backend = backends.resolve("bimamba", h.device, dtype)
    h = h.to(dtype)
    if h.numel() == 0:
        return h.clone()
    weights = cast(dtype, in_proj, out_proj, fwd, rev, rev_proj)
    cu_seqlens = None if cu_seqlens is None else cu_seqlens.long()
    out, _, _ = _forward(h, weights, strategy == "ew_multiply", cu_seqlens, backend, needs_backward(h, *weights))
    return out


def compute_dtype(h: Tensor) -> torch.dtype:
    """Autocast's dtype where it is on (float64 is never cast), else that of h."""
    device = h.device.type
    return (
        torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) and h.dtype != torch.float64 else h.dtype
    )


def cast(
    dtype: torch.dtype, in_proj: Tensor, out_proj: Tensor, fwd: ScanWeights, rev: ScanWeights,
    rev_proj: tuple[Tensor, Tensor] | None,
) -> list[Tensor]:  # fmt: skip
    """`mixer.Weights`, flat."""
    pairs = [(in_proj, out_proj), *([rev_proj] if rev_proj else [])]
    directions = [cast_direction(dtype, w) for w in (fwd, rev)]
    return mixer.Weights([(a.to(dtype), b.to(dtype)) for a, b in pairs], directions).flat()


def cast_direction(dtype: torch.dtype, w: ScanWeights) -> ScanWeights:
    wide = torch.promote_types(dtype, torch.float32)
    return ScanWeights(*(x.to(dtype if name in _CAST else wide) for name, x in zip(w._fields, w, strict=True)))


def needs_backward(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)


def check(
    h: Tensor, in_proj: Tensor, out_proj: Tensor, fwd: ScanWeights, rev: ScanWeights,
    rev_proj: tuple[Tensor, Tensor] | None, strategy: str, cu_seqlens: Tensor | None,
) -> None:  # fmt: skip
    if strategy not in STRATEGIES:
        raise ValueError(f"bimamba: strategy {strategy!r} is none of {', '.join(STRATEGIES)}")
    if h.dim() != 3:
        raise ValueError(f"bimamba: h must be (batch, L, d), got {tuple(h.shape)}")
    if h.dtype not in STORAGE:
        raise TypeError(f"bimamba: h is {h.dtype}; use float32, bfloat16, float16 or float64")
    if h.shape[1] > LONGEST:
        raise ValueError(f"bimamba: L is {h.shape[1]}; it must be at most {LONGEST}")
    d, d_inner = h.shape[2], out_proj.shape[-1]
    pairs = {"": (in_proj, out_proj), "rev_proj ": rev_proj or (in_proj, out_proj)}
    for name, (a, b) in pairs.items():
        if tuple(a.shape) != (2 * d_inner, d) or tuple(b.shape) != (d, d_inner):
            raise ValueError(
                f"bimamba: {name}in_proj must be (2 d_inner, d) and out_proj (d, d_inner) with d = {d}, "
                f"got {tuple(a.shape)} and {tuple(b.shape)}"
            )
    named = {f"{name}{field}": x for name, pair in pairs.items() for field, x in zip(PROJECTIONS, pair, strict=True)}
    for name, w in (("fwd", fwd), ("rev", rev)):
        state, dt_rank, width = w.A_log.shape[-1], w.dt_proj.shape[-1], w.conv_weight.shape[-1]
        wanted = dict(
            conv_weight=(d_inner, 1, width), conv_bias=(d_inner,), x_proj=(dt_rank + 2 * state, d_inner),
            dt_proj=(d_inner, dt_rank), dt_bias=(d_inner,), A_log=(d_inner, state), D=(d_inner,),
        )  # fmt: skip
        for field, shape in wanted.items():
            if tuple(getattr(w, field).shape) != shape:
                raise ValueError(f"bimamba: {name}.{field} must be {shape}, got {tuple(getattr(w, field).shape)}")
        if not 2 <= width <= 4:
            raise ValueError(f"bimamba: {name}.conv_weight is {width} wide; widths of 2 to 4 are supported")
        if not 1 <= state <= 256:
            raise ValueError(f"bimamba: {name}.A_log has {state} states; 1 to 256 are supported")
        named |= {f"{name}.{field}": x for field, x in w._asdict().items()}
    if fwd.conv_weight.shape != rev.conv_weight.shape:
        raise ValueError("bimamba: the convolutions of fwd and rev must be of one width")
    for name, x in named.items():
        if x.device != h.device:
            raise ValueError(f"bimamba: {name} is on {x.device}, h on {h.device}")
        if x.dtype not in STORAGE:
            raise TypeError(f"bimamba: {name} is {x.dtype}; a floating point dtype is needed")
    check_packing("bimamba", cu_seqlens, h)
