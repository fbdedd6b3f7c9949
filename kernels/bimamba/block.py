"""`bimamba_block`: residual add, RMSNorm, gate and mixer as one op, which saves the residual stream and chunk states.

    residual_out = residual + x        h = residual_out / rms(residual_out) * weight * gate        out = bimamba(h)

The backward recomputes h from residual_out, which the next block needs anyway: a layer saves nothing else but its chunk
states. The parts are those of `add_norm` and of the mixer.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from seq2exp.kernels import backend as backends
from seq2exp.kernels.add_norm import ops as norm
from seq2exp.kernels.bimamba import mixer, ops
from seq2exp.kernels.bimamba.reference import ScanWeights

_INPUTS = (
    "Tensor? gate, float epsilon, Tensor[] weights, bool multiply, Tensor? cu_seqlens, str backend, str norm_backend"
)


@torch.library.custom_op(
    "seq2exp::bimamba_block_fwd",
    mutates_args=(),
    schema=f"(Tensor x, Tensor? residual, Tensor norm_weight, {_INPUTS}, bool save_states)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
)
def _forward(
    x: Tensor, residual: Tensor | None, norm_weight: Tensor, gate: Tensor | None, epsilon: float, weights: list[Tensor],
    multiply: bool, cu_seqlens: Tensor | None, backend: str, norm_backend: str, save_states: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """out, residual_out (empty without residual: it is x), chunk states of both directions."""
    _check_offsets(cu_seqlens, x)

    def run(rows: slice) -> tuple[mixer.Outputs, mixer.Outputs]:
        h, residual_out = norm.implementation(norm_backend).forward(
            x[rows], None if residual is None else residual[rows], norm_weight, None if gate is None else gate[rows],
            epsilon,
        )  # fmt: skip
        out, *states = mixer.forward_rows(backend, h.to(weights[0].dtype), weights, multiply, cu_seqlens, save_states)
        return (out, residual_out, *states), ()

    out, residual_out, states_fwd, states_rev = mixer.by_rows(tuple(x.shape[:2]), mixer.FORWARD_BASES, run)[0]
    return out, residual_out, states_fwd, states_rev


def _check_offsets(cu_seqlens: Tensor | None, x: Tensor) -> None:
    """On the CPU. On a GPU every layer would wait for the device: the backbone has checked."""
    if x.device.type == "cpu":
        ops.check_offsets("bimamba_block", cu_seqlens, x.shape[1])


@_forward.register_fake
def _(x, residual, norm_weight, gate, epsilon, weights, multiply, cu_seqlens, backend, norm_backend, save_states):
    out = torch.empty(x.shape, dtype=weights[0].dtype, device=x.device)
    residual_out = x.new_empty(0) if residual is None else torch.empty_like(out, dtype=residual.dtype)
    return out, residual_out, *ops.fake_states(out, weights, cu_seqlens, backend, save_states)


@torch.library.custom_op(
    "seq2exp::bimamba_block_bwd",
    mutates_args=(),
    schema=f"(Tensor grad_out, Tensor? grad_residual, Tensor residual_out, Tensor norm_weight, {_INPUTS}, "
    "Tensor states_fwd, Tensor states_rev) -> Tensor[]",
)
def _backward(
    grad_out: Tensor, grad_residual: Tensor | None, residual_out: Tensor, norm_weight: Tensor, gate: Tensor | None,
    epsilon: float, weights: list[Tensor], multiply: bool, cu_seqlens: Tensor | None, backend: str, norm_backend: str,
    states_fwd: Tensor, states_rev: Tensor,
) -> list[Tensor]:  # fmt: skip
    """Gradients of residual_out, norm_weight, gate (if there is one) and weights."""
    m = norm.implementation(norm_backend)

    def run(rows: slice) -> tuple[mixer.Outputs, mixer.Outputs]:
        stream, own_gate = residual_out[rows], None if gate is None else gate[rows]
        h, _ = m.forward(stream, None, norm_weight, own_gate, epsilon)
        states = [mixer.states_of(x, residual_out.shape[0], rows) for x in (states_fwd, states_rev) if x.numel()]
        if not states:  # not kept
            _, *states = mixer.forward_rows(backend, h.to(grad_out.dtype), weights, multiply, cu_seqlens, True)
        grad_h, grads = mixer.backward_rows(
            backend, grad_out[rows], h.to(grad_out.dtype), weights, multiply, cu_seqlens, states
        )
        del h
        grad, grad_norm, grad_gate = m.backward(
            grad_h, None if grad_residual is None else grad_residual[rows], stream, norm_weight, own_gate, epsilon
        )
        return [grad, *([] if grad_gate is None else [grad_gate])], [grad_norm, *grads]

    (grad, *grad_gate), (grad_norm, *grads) = mixer.by_rows(
        tuple(residual_out.shape[:2]), mixer.BACKWARD_BASES, run
    )  # fmt: skip
    return [grad, grad_norm, *grad_gate, *ops.like(grads, weights)]


@_backward.register_fake
def _(
    grad_out, grad_residual, residual_out, norm_weight, gate, epsilon, weights, multiply, cu_seqlens, backend,
    norm_backend, states_fwd, states_rev,
):  # fmt: skip
    inputs = [residual_out, norm_weight, *([] if gate is None else [gate]), *weights]
    return [torch.empty_like(x, memory_format=torch.contiguous_format) for x in inputs]


def _setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
    x, residual, norm_weight, gate, ctx.epsilon, weights, ctx.multiply, cu_seqlens, *ctx.backends, _ = inputs
    _, residual_out, *states = output
    ctx.mark_non_differentiable(*states)
    ctx.set_materialize_grads(False)
    ctx.x_dtype, ctx.has_residual = x.dtype, residual is not None
    stream = x if residual is None else residual_out
    ctx.save_for_backward(stream, norm_weight, gate, cu_seqlens, *states, *weights)


def _autograd(ctx: Any, grad_out: Tensor | None, grad_residual: Tensor | None, *_: Tensor) -> tuple:
    residual_out, norm_weight, gate, cu_seqlens, states_fwd, states_rev, *weights = ctx.saved_tensors
    if grad_out is None:
        grad_out = torch.zeros(residual_out.shape, dtype=weights[0].dtype, device=residual_out.device)
    grad, grad_norm, *rest = _backward(
        grad_out, grad_residual if ctx.has_residual else None, residual_out, norm_weight, gate, ctx.epsilon, weights,
        ctx.multiply, cu_seqlens, *ctx.backends, states_fwd, states_rev,
    )  # fmt: skip
    grad_gate = None if gate is None else rest.pop(0)
    return (
        grad.to(ctx.x_dtype), grad if ctx.has_residual else None, grad_norm, grad_gate, None, rest,
        None, None, None, None, None,
    )  # fmt: skip


_forward.register_autograd(_autograd, setup_context=_setup_context)


def bimamba_block(
    x: Tensor,
    residual: Tensor | None,
    norm_weight: Tensor,
    in_proj: Tensor,
    out_proj: Tensor,
    fwd: ScanWeights,
    rev: ScanWeights,
    *,
    gate: Tensor | None = None,
    epsilon: float = 1e-5,
    rev_proj: tuple[Tensor, Tensor] | None = None,
    strategy: str = "add",
    cu_seqlens: Tensor | None = None,
    recompute: bool = False,
) -> tuple[Tensor, Tensor]:
    """A pre-norm block of Caduceus: add_norm and then bimamba, with what each of them takes and raises.

    Parameters
    ----------
    x: (batch, L, d), what the block before put out, or the first block's input. cu_seqlens: its values are checked on
        the CPU only, not to wait for a GPU in every block. residual: the stream so far, the same
        shape, in its own dtype; None: x is the stream. norm_weight: (d,). gate: (batch, L), multiplies
        the mixer's input. recompute: the chunk states are not kept for the backward, which scans forward once more.

    Returns
    -------
    out: (batch, L, d), the mixer's output, not yet added. residual_out: the stream, in the dtype of residual (of x).
    """
    norm.check(x, residual, norm_weight, gate)
    ops.check(x, in_proj, out_proj, fwd, rev, rev_proj, strategy, cu_seqlens)
    dtype = ops.compute_dtype(x)
    weights = ops.cast(dtype, in_proj, out_proj, fwd, rev, rev_proj)
    wide = torch.promote_types(dtype, torch.float32)
    norm_weight, gate = norm_weight.to(wide), None if gate is None else gate.to(wide)
    if x.numel() == 0:
        return x.to(dtype), x if residual is None else residual + x
    out, residual_out, _, _ = _forward(
        x, residual, norm_weight, gate, epsilon, weights, strategy == "ew_multiply",
        None if cu_seqlens is None else cu_seqlens.long(), backends.resolve("bimamba", x.device, dtype),
        backends.resolve("add_norm", x.device, x.dtype),
        not recompute and ops.needs_backward(x, residual, norm_weight, gate, *weights),
    )  # fmt: skip
    return out, x if residual is None else residual_out
