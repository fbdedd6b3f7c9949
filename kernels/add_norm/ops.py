"""`add_norm`: checks, the registered op (schema, fake, autograd) and the choice of implementation."""

from __future__ import annotations

import importlib
from types import ModuleType

import torch
from torch import Tensor

from seq2exp.kernels import backend as backends

_MODULES = {"reference": "reference", "cpu": "native", "triton": "triton", "cuda": "cuda"}
_STORAGE = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def implementation(backend: str) -> ModuleType:
    """Imported when first used: `import seq2exp` needs no Triton."""
    return importlib.import_module(f"seq2exp.kernels.add_norm.{_MODULES[backend]}")


@torch.library.custom_op(
    "seq2exp::add_norm_fwd", mutates_args=(),
    schema="(Tensor x, Tensor? residual, Tensor weight, Tensor? gate, float epsilon, str backend) -> (Tensor, Tensor)",
)  # fmt: skip
def _forward(
    x: Tensor, residual: Tensor | None, weight: Tensor, gate: Tensor | None, epsilon: float, backend: str
) -> tuple[Tensor, Tensor]:
    return implementation(backend).forward(x, residual, weight, gate, epsilon)


@_forward.register_fake
def _(x, residual, weight, gate, epsilon, backend):
    total = x.new_empty(0) if residual is None else residual.new_empty(residual.shape)
    return x.new_empty(x.shape), total


@torch.library.custom_op(
    "seq2exp::add_norm_bwd", mutates_args=(),
    schema="(Tensor grad, Tensor? grad_residual, Tensor residual_out, Tensor weight, Tensor? gate, float epsilon, "
    "str backend) -> Tensor[]",
)  # fmt: skip
def _backward(
    grad: Tensor, grad_residual: Tensor | None, residual_out: Tensor, weight: Tensor, gate: Tensor | None,
    epsilon: float, backend: str,
) -> list[Tensor]:  # fmt: skip
    """dr, dweight, then dgate if there is a gate."""
    grads = implementation(backend).backward(grad, grad_residual, residual_out, weight, gate, epsilon)
    return [x for x in grads if x is not None]


@_backward.register_fake
def _(grad, grad_residual, residual_out, weight, gate, epsilon, backend):
    dgate = [] if gate is None else [gate.new_empty(gate.shape)]
    return [residual_out.new_empty(residual_out.shape), weight.new_empty(weight.shape), *dgate]


def _setup_context(ctx, inputs, output) -> None:
    x, residual, weight, gate, ctx.epsilon, ctx.backend = inputs
    ctx.dtype, ctx.has_residual = x.dtype, residual is not None
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x if residual is None else output[1], weight, gate)


def _autograd(ctx, grad, grad_residual):
    residual_out, weight, gate = ctx.saved_tensors
    if not ctx.has_residual:
        grad_residual = None  # of the empty tensor
    if grad is None:  # h is not used
        dr, dweight, dgate = grad_residual, None, None
    else:
        dr, dweight, *rest = _backward(grad, grad_residual, residual_out, weight, gate, ctx.epsilon, ctx.backend)
        dgate = rest[0] if rest else None
    dx = None if dr is None else dr.to(ctx.dtype)
    return dx, dr if ctx.has_residual else None, dweight, dgate, None, None


_forward.register_autograd(_autograd, setup_context=_setup_context)


def add_norm(
    x: Tensor, residual: Tensor | None, weight: Tensor, *, gate: Tensor | None = None, epsilon: float = 1e-5
) -> tuple[Tensor, Tensor]:
    """Adds x to the residual stream, then RMSNorm (Zhang and Sennrich 2019) and gate: one pass over memory.

    Parameters
    ----------
    x: (..., d) in float32, bfloat16, float16 or float64; any strides, but adjacent channels are not copied first.
    residual: the same shape, in any of the first three dtypes (float64 with float64), or None: nothing is added.
    weight: (d,), floating point.
    gate: (...), floating point, multiplies the normalised rows.
    epsilon: added to the mean square.

    Returns
    -------
    h: residual_out / rms(residual_out) * weight * gate, in x's dtype. Computed in float32 from the rounded
        residual_out, so that it can be recomputed from that bit for bit.
    residual_out: residual + x, rounded once to the residual's dtype; x itself where residual is None.

    Only residual_out, weight and gate are kept for the backward. Autocast changes nothing: dtypes are those given.

    Raises
    ------
    TypeError: not tensors, unsupported or mixed float64 dtypes.
    ValueError: shapes or devices that do not fit; on a GPU more channels than a block of the kernel takes.
    """
    check(x, residual, weight, gate)
    wide = torch.promote_types(x.dtype, torch.float32)
    backend = "reference" if x.numel() == 0 else backends.resolve("add_norm", x.device, x.dtype)
    gate = None if gate is None else gate.to(wide)
    h, residual_out = _forward(x, residual, weight.to(wide), gate, float(epsilon), backend)
    return h, x if residual is None else residual_out


def check(x: Tensor, residual: Tensor | None, weight: Tensor, gate: Tensor | None) -> None:
    for name, t in (("x", x), ("residual", residual), ("weight", weight), ("gate", gate)):
        if t is None and name in ("residual", "gate"):
            continue
        if not isinstance(t, Tensor):
            raise TypeError(f"add_norm: {name} must be a tensor, not {type(t).__name__}")
        if not t.is_floating_point():
            raise TypeError(f"add_norm: {name} is {t.dtype}; a floating point dtype is needed")
        if t.device != x.device:
            raise ValueError(f"add_norm: {name} is on {t.device}, x on {x.device}")
    for name, t in (("x", x), ("residual", residual)):
        if t is not None and t.dtype not in _STORAGE:
            raise TypeError(f"add_norm: {name} is {t.dtype}; use float32, bfloat16, float16 or float64")
    if residual is not None and (x.dtype == torch.float64) != (residual.dtype == torch.float64):
        raise TypeError(f"add_norm: x is {x.dtype}, residual is {residual.dtype}; float64 goes with float64 only")
    if x.dim() < 1 or x.shape[-1] < 1:
        raise ValueError(f"add_norm: x must be (..., d) with d at least 1, got {tuple(x.shape)}")
    if residual is not None and residual.shape != x.shape:
        raise ValueError(
            f"add_norm: residual has shape {tuple(residual.shape)}, x has {tuple(x.shape)}; they must agree"
        )
    if weight.shape != x.shape[-1:]:
        raise ValueError(f"add_norm: weight must be (d,) = ({x.shape[-1]},), got {tuple(weight.shape)}")
    if gate is not None and gate.shape != x.shape[:-1]:
        raise ValueError(f"add_norm: gate must have shape {tuple(x.shape[:-1])}, one a row, got {tuple(gate.shape)}")
