"""`pack_selected` and `unpack_selected`: so that the predictor processes only selected bases."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from seq2exp.kernels import backend
from seq2exp.kernels.gather import reference
from seq2exp.kernels.gather.reference import Packed


class _Pack(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        packed = reference.pack_forward(x, mask)
        ctx.save_for_backward(x, mask, packed.indices)
        ctx.mark_non_differentiable(packed.indices, packed.cu_seqlens)
        return packed

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        return reference.pack_backward(grads[0], *ctx.saved_tensors)


class _Unpack(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, indices: Tensor, shape: tuple[int, int]) -> Tensor:
        ctx.save_for_backward(indices)
        return reference.unpack_forward(values, indices, shape)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return reference.unpack_backward(grads[0], *ctx.saved_tensors), None, None


def pack_selected(x: Tensor, mask: Tensor) -> Packed:
    """The bases whose mask is not 0, in order, each multiplied by its mask.

    x: (batch, L, d); mask: (batch, L), floating point, e.g. the straight-through mask, whose value is 1 where selected
    and whose gradient reaches the generator. Gradients flow to both.

    Raises
    ------
    ValueError: shapes that do not fit. TypeError: a mask that is not floating point.
    """
    if x.dim() != 3 or mask.shape != x.shape[:2]:
        raise ValueError(
            f"pack_selected: x must be (batch, L, d) and mask (batch, L), got {tuple(x.shape)} and {tuple(mask.shape)}"
        )
    if not mask.is_floating_point():
        raise TypeError(f"pack_selected: mask is {mask.dtype}; a floating point mask is needed (mask.float())")
    backend.resolve("pack_selected", x.device, x.dtype)
    return Packed(*_Pack.apply(x, mask))


def unpack_selected(values: Tensor, indices: Tensor, cu_seqlens: Tensor, shape: tuple[int, int]) -> Tensor:
    """The inverse placement: values (total, d) at `indices` of a zero (batch, L, d).

    values, indices, cu_seqlens: as in `Packed`; shape: (batch, L).

    Raises
    ------
    ValueError: offsets that do not belong to these values or to this batch.
    """
    batch, length = shape
    if values.dim() != 2 or indices.shape != values.shape[:1] or cu_seqlens.shape != (batch + 1,):
        raise ValueError(
            f"unpack_selected: values (total, d), indices (total,) and cu_seqlens (batch + 1,) = ({batch + 1},) are "
            f"needed, got {tuple(values.shape)}, {tuple(indices.shape)} and {tuple(cu_seqlens.shape)}"
        )
    backend.resolve("unpack_selected", values.device, values.dtype)
    return _Unpack.apply(values, indices, (batch, length))
