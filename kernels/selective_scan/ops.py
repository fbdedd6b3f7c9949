"""`selective_scan`: checks, the registered op (schema, fake, autograd) and the choice of implementation."""

from __future__ import annotations

import importlib
from types import ModuleType

import torch
from torch import Tensor

from seq2exp.kernels import backend as backends

# The torch path serves as the `reference` backend; `reference.py` is the oracle that tests hold all against.
_MODULES = {"reference": "chunked", "cpu": "native", "triton": "triton", "cuda": "cuda"}
LONGEST = 2**31 - 1025  # positions are int in the kernels, offsets into memory are not
STORAGE = (torch.float32, torch.bfloat16, torch.float16, torch.float64)

_INPUTS = (
    "Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z, Tensor? delta_bias, "
    "bool delta_softplus, bool reverse, Tensor? cu_seqlens, str backend"
)


def _implementation(backend: str) -> ModuleType:
    """Imported when first used: `import seq2exp` needs no Triton."""
    return importlib.import_module(f"seq2exp.kernels.selective_scan.{_MODULES[backend]}")


@torch.library.custom_op(
    "seq2exp::selective_scan_fwd", mutates_args=(), schema=f"({_INPUTS}) -> (Tensor, Tensor, Tensor)"
)
def _forward(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None,
    delta_bias: Tensor | None, delta_softplus: bool, reverse: bool, cu_seqlens: Tensor | None, backend: str,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    check_offsets("selective_scan", cu_seqlens, u.shape[2])
    return _implementation(backend).forward(u, delta, A, B, C, D, z, delta_bias, delta_softplus, reverse, cu_seqlens)


@_forward.register_fake
def _(u, delta, A, B, C, D, z, delta_bias, delta_softplus, reverse, cu_seqlens, backend):
    batch, dim, length = u.shape
    n_sequences = None if cu_seqlens is None else cu_seqlens.shape[0] - 1
    state_dtype = torch.promote_types(u.dtype, torch.float32)
    shape = _implementation(backend).states_shape(batch, dim, A.shape[1], length, n_sequences)
    last = u.new_empty(batch if n_sequences is None else n_sequences, dim, A.shape[1], dtype=state_dtype)
    return torch.empty_like(u), last, u.new_empty(shape, dtype=state_dtype)


@torch.library.custom_op(
    "seq2exp::selective_scan_bwd", mutates_args=(), schema=f"(Tensor grad_out, {_INPUTS}, Tensor states) -> Tensor[]"
)
def _backward(
    grad_out: Tensor, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None,
    delta_bias: Tensor | None, delta_softplus: bool, reverse: bool, cu_seqlens: Tensor | None, backend: str,
    states: Tensor,
) -> list[Tensor]:  # fmt: skip
    """du, ddelta, dA, dB, dC, then dD, dz, ddelta_bias of those that are present."""
    du, ddelta, dA, dB, dC, *optional = _implementation(backend).backward(
        grad_out, u, delta, A, B, C, D, z, delta_bias, delta_softplus, reverse, cu_seqlens, states
    )
    return [du, ddelta, dA.to(A.dtype), dB.to(B.dtype), dC.to(C.dtype)] + [
        g.to(x.dtype) for g, x in zip(optional, (D, z, delta_bias), strict=True) if x is not None and g is not None
    ]


@_backward.register_fake
def _(grad_out, u, delta, A, B, C, D, z, delta_bias, delta_softplus, reverse, cu_seqlens, backend, states):
    dense = [torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (A, B, C)]
    optional = [torch.empty_like(x) for x in (D, z, delta_bias) if x is not None]
    return [torch.empty_like(u), torch.empty_like(delta), *dense, *optional]


def _setup_context(ctx, inputs, output) -> None:
    u, delta, A, B, C, D, z, delta_bias, ctx.delta_softplus, ctx.reverse, cu_seqlens, ctx.backend = inputs
    _, last_state, states = output
    ctx.mark_non_differentiable(last_state, states)
    ctx.set_materialize_grads(False)  # those of the states would be zeros as large as the states
    ctx.save_for_backward(u, delta, A, B, C, D, z, delta_bias, cu_seqlens, states)


def _autograd(ctx, grad_out, _grad_last, _grad_states):
    if grad_out is None:
        return (None,) * 12
    u, delta, A, B, C, D, z, delta_bias, cu_seqlens, states = ctx.saved_tensors
    du, ddelta, dA, dB, dC, *rest = _backward(
        grad_out, u, delta, A, B, C, D, z, delta_bias, ctx.delta_softplus, ctx.reverse, cu_seqlens, ctx.backend, states
    )
    optional = [rest.pop(0) if x is not None else None for x in (D, z, delta_bias)]
    return du, ddelta, dA, dB, dC, *optional, None, None, None, None


_forward.register_autograd(_autograd, setup_context=_setup_context)


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
    *,
    reverse: bool = False,
    cu_seqlens: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Selective state space scan (Mamba, Gu and Dao 2023); positional signature of mamba-ssm's selective_scan_fn.

    Parameters
    ----------
    u, delta, z: (batch, dim, L), one dtype of float32, bfloat16, float16, float64; any strides. z gates with silu.
    A: (dim, state), real. B, C: (dim, state), (batch, state, L) or (batch, groups, state, L), the last two in u's
        dtype. D, delta_bias: (dim,).
    delta_softplus: take softplus(delta + delta_bias) as the step size.
    return_last_state: also return the state after the last position.
    reverse: scan from the last position to the first, by indexing.
    cu_seqlens: int32 or int64 (sequences + 1,) offsets from 0 to L of sequences packed along L; batch must be 1.
        The state restarts at every boundary.

    Returns
    -------
    (batch, dim, L) in u's dtype; with return_last_state also the state, float32 (batch, dim, state), one row per
    sequence with cu_seqlens, that of position 0 when reverse. No gradient flows through it. State and
    accumulation are float32 (float64 for float64 inputs).

    Raises
    ------
    TypeError: not tensors, mixed or unsupported dtypes, complex A.
    ValueError: shapes, devices or offsets that do not fit.
    """
    _check(u, delta, A, B, C, D, z, delta_bias, cu_seqlens)
    batch, dim, _ = u.shape
    wide = torch.promote_types(u.dtype, torch.float32)
    backend = backends.resolve("selective_scan", u.device, u.dtype)
    if u.numel() == 0:
        n = batch if cu_seqlens is None else cu_seqlens.shape[0] - 1
        out, last = torch.zeros_like(u), u.new_zeros(n, dim, A.shape[1], dtype=wide)
        return (out, last) if return_last_state else out
    D, delta_bias = (None if x is None else x.to(wide) for x in (D, delta_bias))
    out, last, _ = _forward(
        u, delta, A.to(wide), _grouped(B, u), _grouped(C, u), D, z, delta_bias, delta_softplus, reverse,
        None if cu_seqlens is None else cu_seqlens.long(), backend,
    )  # fmt: skip
    return (out, last) if return_last_state else out


def _grouped(x: Tensor, u: Tensor) -> Tensor:
    """B or C in any of its three forms as (batch, groups, state, L)."""
    if x.dim() == 2:
        return x.to(u.dtype)[None, :, :, None].expand(u.shape[0], -1, -1, u.shape[2])
    return x[:, None] if x.dim() == 3 else x


def _check(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None,
    delta_bias: Tensor | None, cu_seqlens: Tensor | None,
) -> None:  # fmt: skip
    named = {"u": u, "delta": delta, "A": A, "B": B, "C": C, "D": D, "z": z, "delta_bias": delta_bias}
    present = {name: x for name, x in named.items() if x is not None}
    for name, x in present.items():
        if not isinstance(x, Tensor):
            raise TypeError(f"selective_scan: {name} must be a tensor, not {type(x).__name__}")
        if x.device != u.device:
            raise ValueError(f"selective_scan: {name} is on {x.device}, u on {u.device}")
        if x.is_complex():
            raise TypeError(f"selective_scan: {name} is complex; only real state spaces are supported")
    if u.dtype not in STORAGE:
        raise TypeError(f"selective_scan: u is {u.dtype}; use float32, bfloat16, float16 or float64")
    if u.dim() != 3:
        raise ValueError(f"selective_scan: u must be (batch, dim, L), got {tuple(u.shape)}")
    batch, dim, length = u.shape
    if length > LONGEST:
        raise ValueError(f"selective_scan: L is {length}; it must be at most {LONGEST}")
    for name, x in (("delta", delta), ("z", z)):
        if x is not None and x.shape != u.shape:
            raise ValueError(
                f"selective_scan: {name} has shape {tuple(x.shape)}, u has {tuple(u.shape)}; they must agree"
            )
    if A.dim() != 2 or A.shape[0] != dim:
        raise ValueError(f"selective_scan: A must be (dim, state) = ({dim}, state), got {tuple(A.shape)}")
    state = A.shape[1]
    if not 1 <= state <= 256:
        raise ValueError(f"selective_scan: state size {state} is outside 1..256")
    for name, x in (("B", B), ("C", C)):
        grouped = x.dim() == 4 and x.shape[1] > 0 and dim % x.shape[1] == 0 and (*x.shape[::2],) == (batch, state)
        if not (tuple(x.shape) in ((dim, state), (batch, state, length)) or (grouped and x.shape[3] == length)):
            raise ValueError(
                f"selective_scan: {name} must be ({dim}, {state}), ({batch}, {state}, {length}) or "
                f"({batch}, groups, {state}, {length}) with groups dividing {dim}, got {tuple(x.shape)}"
            )
    for name, x in (("D", D), ("delta_bias", delta_bias)):
        if x is not None and tuple(x.shape) != (dim,):
            raise ValueError(f"selective_scan: {name} must be (dim,) = ({dim},), got {tuple(x.shape)}")
    for name, x in present.items():
        variable = name in ("delta", "z") or (name in ("B", "C") and x.dim() > 2)
        if variable and x.dtype != u.dtype:
            raise TypeError(f"selective_scan: {name} is {x.dtype}, u is {u.dtype}; they must agree")
        if not x.is_floating_point():
            raise TypeError(f"selective_scan: {name} is {x.dtype}; a floating point dtype is needed")
    check_packing("selective_scan", cu_seqlens, u)


def check_packing(op: str, cu_seqlens: Tensor | None, x: Tensor) -> None:
    """What can be said of cu_seqlens without its values; x: (batch, ...)."""
    if cu_seqlens is None:
        return
    if cu_seqlens.dtype not in (torch.int32, torch.int64) or cu_seqlens.dim() != 1 or cu_seqlens.numel() < 2:
        raise TypeError(f"{op}: cu_seqlens must be an int32 or int64 vector of at least two offsets")
    if x.shape[0] != 1:
        raise ValueError(f"{op}: cu_seqlens needs batch 1 (sequences packed along L), got batch {x.shape[0]}")
    if cu_seqlens.device != x.device:
        raise ValueError(f"{op}: cu_seqlens is on {cu_seqlens.device}, the sequences are on {x.device}")


def check_offsets(op: str, cu_seqlens: Tensor | None, length: int) -> None:
    """The values of cu_seqlens; inside the op, where they are known."""
    if cu_seqlens is None:
        return
    bounds = cu_seqlens.tolist()
    if bounds[0] != 0 or bounds[-1] != length or bounds != sorted(bounds):
        raise ValueError(f"{op}: cu_seqlens must rise from 0 to L = {length}, got {bounds[:20]}")
