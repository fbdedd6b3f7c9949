"""`select`, `pack_selected` and `unpack_selected`: so that the predictor processes only selected bases.

Checks, the registered ops (schema, fake, autograd) and the choice of implementation.
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from seq2exp.kernels import backend as backends

_MODULES = {"reference": "reference", "cpu": "native", "triton": "triton", "cuda": "cuda"}
_STORAGE = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


class Selection(NamedTuple):
    """Which bases of a batch are selected, one row after the other.

    indices: int64 (total,) into batch * L, ascending. cu_seqlens: int64 (batch + 1,), the offsets of the rows.
    With a capacity: indices (capacity,), batch * L behind the last; cu_seqlens (batch + 2,), the padding is one more
    sequence, and no offset is above the capacity. Where more are selected than that, all indices are -1.
    """

    indices: Tensor
    cu_seqlens: Tensor


class Packed(NamedTuple):
    """The selected bases of a batch, one row after the other.

    values: (total, d), x * mask at the selected bases; 0 at padding, NaN where all indices are -1.
    indices, cu_seqlens: of the `Selection`.
    """

    values: Tensor
    indices: Tensor
    cu_seqlens: Tensor


def implementation(backend: str) -> ModuleType:
    """Imported when first used: `import seq2exp` needs no Triton."""
    return importlib.import_module(f"seq2exp.kernels.gather.{_MODULES[backend]}")


@torch.library.custom_op(
    "seq2exp::select", mutates_args=(), schema="(Tensor mask, SymInt? capacity, str backend) -> (Tensor, Tensor)"
)
def _select(mask: Tensor, capacity: int | None, backend: str) -> tuple[Tensor, Tensor]:
    if capacity is not None and not mask.is_cuda:
        check_capacity(mask, capacity)
    return implementation(backend).select(mask, capacity)


@_select.register_fake
def _(mask, capacity, backend):
    batch = mask.shape[0]
    if capacity is None:
        total, offsets = torch.library.get_ctx().new_dynamic_size(), batch + 1
    else:
        total, offsets = capacity, batch + 2
    return mask.new_empty(total, dtype=torch.int64), mask.new_empty(offsets, dtype=torch.int64)


@torch.library.custom_op(
    "seq2exp::pack_fwd", mutates_args=(),
    schema="(Tensor x, Tensor mask, Tensor indices, str backend) -> Tensor",
)  # fmt: skip
def _pack(x: Tensor, mask: Tensor, indices: Tensor, backend: str) -> Tensor:
    return implementation(backend).pack_forward(x, mask, indices)


@_pack.register_fake
def _(x, mask, indices, backend):
    return x.new_empty(indices.shape[0], x.shape[2])


@torch.library.custom_op(
    "seq2exp::pack_bwd", mutates_args=(),
    schema="(Tensor grad, Tensor x, Tensor mask, Tensor indices, str backend) -> (Tensor, Tensor)",
)  # fmt: skip
def _pack_backward(grad: Tensor, x: Tensor, mask: Tensor, indices: Tensor, backend: str) -> tuple[Tensor, Tensor]:
    return implementation(backend).pack_backward(grad, x, mask, indices)


@_pack_backward.register_fake
def _(grad, x, mask, indices, backend):
    return x.new_empty(x.shape), mask.new_empty(mask.shape)


@torch.library.custom_op(
    "seq2exp::unpack_fwd", mutates_args=(),
    schema="(Tensor values, Tensor indices, SymInt batch, SymInt length, str backend) -> Tensor",
)  # fmt: skip
def _unpack(values: Tensor, indices: Tensor, batch: int, length: int, backend: str) -> Tensor:
    if not indices.is_cuda and bool((indices.diff() < 0).any()):
        raise ValueError("unpack_selected: indices must ascend, as those of pack_selected do; sort them with values")
    return implementation(backend).unpack_forward(values, indices, (batch, length))


@_unpack.register_fake
def _(values, indices, batch, length, backend):
    return values.new_empty(batch, length, values.shape[1])


@torch.library.custom_op(
    "seq2exp::unpack_bwd", mutates_args=(), schema="(Tensor grad, Tensor indices, str backend) -> Tensor"
)
def _unpack_backward(grad: Tensor, indices: Tensor, backend: str) -> Tensor:
    return implementation(backend).unpack_backward(grad, indices)


@_unpack_backward.register_fake
def _(grad, indices, backend):
    return grad.new_empty(indices.shape[0], grad.shape[2])


def _setup_pack(ctx, inputs, output) -> None:
    *tensors, ctx.backend = inputs
    ctx.save_for_backward(*tensors)


def _setup_unpack(ctx, inputs, output) -> None:
    _, indices, _, _, ctx.backend = inputs
    ctx.save_for_backward(indices)


_pack.register_autograd(
    lambda ctx, grad: (*_pack_backward(grad, *ctx.saved_tensors, ctx.backend), None, None), setup_context=_setup_pack
)
_unpack.register_autograd(
    lambda ctx, grad: (_unpack_backward(grad, *ctx.saved_tensors, ctx.backend), None, None, None, None),
    setup_context=_setup_unpack,
)


def select(mask: Tensor, *, capacity: int | None = None) -> Selection:
    """Where mask is not 0, in order. Not differentiable.

    Parameters
    ----------
    mask: (batch, L) in float32, bfloat16, float16 or float64, any strides. NaN counts as selected.
    capacity: bases over the whole batch that there is room for. Without it the host waits for the device once, to learn
        how many are selected; with it never, and every shape is known beforehand (graphs, torch.compile).

    Raises
    ------
    TypeError, ValueError: a mask of another dtype or shape; a capacity below 1.
    ValueError: on the CPU, more bases selected than the capacity, with the number that is needed. On a GPU that would
        take a synchronisation: there all indices are -1, and what is packed by them is NaN; see `check_capacity`.
    """
    _check_mask("select", mask)
    _check_room(capacity)
    return Selection(*_select(mask.detach(), capacity, _backend("pack_selected", mask, mask.dtype, mask.numel())))


def check_capacity(mask: Tensor, capacity: int) -> None:
    """ValueError where mask (batch, L) selects more than `capacity` bases. On a GPU it waits for the device."""
    needed = int(mask.count_nonzero())
    if needed > capacity:
        raise ValueError(
            f"the mask selects {needed} bases and capacity is {capacity}: "
            f"pass capacity={needed} or more, or select fewer bases"
        )


def pack_selected(x: Tensor, mask: Tensor, *, capacity: int | None = None) -> Packed:
    """The bases whose mask is not 0, in order, each multiplied by its mask.

    Parameters
    ----------
    x: (batch, L, d) in float32, bfloat16, float16 or float64, any strides.
    mask: (batch, L) in any of them, e.g. the straight-through mask, whose value is 1 where selected and whose gradient
        reaches the generator.
    capacity: see `select`.

    Returns
    -------
    Packed: values in x's dtype, indices, cu_seqlens. Gradients flow from values to x and mask, in their dtypes; x, mask
    and indices are kept for that. Computed in float32 (float64 where an input is).

    Raises
    ------
    TypeError, ValueError: dtypes, shapes or devices that do not fit; see `select` for the capacity.
    """
    _check_mask("pack_selected", mask)
    _check_storage("pack_selected", "x", x)
    if x.dim() != 3 or x.shape[2] < 1 or mask.shape != x.shape[:2]:
        raise ValueError(
            "pack_selected: x must be (batch, L, d) with d at least 1 and mask (batch, L), "
            f"got {tuple(x.shape)} and {tuple(mask.shape)}"
        )
    if mask.device != x.device:
        raise ValueError(f"pack_selected: mask is on {mask.device}, x on {x.device}; move one of them")
    _check_room(capacity)
    backend = _backend("pack_selected", x, torch.promote_types(x.dtype, mask.dtype), mask.numel())
    indices, cu_seqlens = _select(mask.detach(), capacity, backend)
    return Packed(_pack(x, mask, indices, backend), indices, cu_seqlens)


def unpack_selected(values: Tensor, indices: Tensor, cu_seqlens: Tensor, shape: tuple[int, int]) -> Tensor:
    """The inverse placement: values (total, d) at `indices` of a zero (batch, L, d); differentiable by values.

    values, indices, cu_seqlens: as in `Packed`, with or without a capacity; padding and -1 have no place, their values
    are dropped. The indices must ascend (a ValueError on the CPU; not checked on a GPU). shape: (batch, L).

    Raises
    ------
    TypeError: a dtype that is not supported. ValueError: offsets that do not belong to these values or to this batch.
    """
    batch, length = shape
    _check_storage("unpack_selected", "values", values)
    if (
        values.dim() != 2
        or values.shape[1] < 1
        or indices.shape != values.shape[:1]
        or tuple(cu_seqlens.shape) not in ((batch + 1,), (batch + 2,))
    ):
        raise ValueError(
            f"unpack_selected: values (total, d), indices (total,) and cu_seqlens (batch + 1,) = ({batch + 1},), with "
            f"a capacity ({batch + 2},), are needed, got {tuple(values.shape)}, {tuple(indices.shape)} and "
            f"{tuple(cu_seqlens.shape)}"
        )
    if indices.dtype != torch.int64 or indices.device != values.device:
        raise ValueError(
            f"unpack_selected: indices must be int64 on {values.device}, got {indices.dtype} on {indices.device}"
        )
    backend = _backend("unpack_selected", values, values.dtype, batch * length)
    return _unpack(values, indices.contiguous(), batch, length, backend)


def _backend(op: str, x: Tensor, dtype: torch.dtype, bases: int) -> str:
    return "reference" if bases == 0 else backends.resolve(op, x.device, dtype)


def _check_mask(op: str, mask: Tensor) -> None:
    if not mask.is_floating_point():
        raise TypeError(f"{op}: mask is {mask.dtype}; a floating point mask is needed (mask.float())")
    _check_storage(op, "mask", mask)
    if mask.dim() != 2:
        raise ValueError(f"{op}: mask must be (batch, L), got {tuple(mask.shape)}")


def _check_storage(op: str, name: str, x: Tensor) -> None:
    if x.dtype not in _STORAGE:
        raise TypeError(f"{op}: {name} is {x.dtype}; use float32, bfloat16, float16 or float64")


def _check_room(capacity: int | None) -> None:
    if capacity is not None and capacity < 1:
        raise ValueError(f"pack_selected: capacity is {capacity}; at least 1 is needed")
