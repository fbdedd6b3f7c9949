"""The C++ implementation for the CPU (csrc/embed/cpu), loaded by seq2exp.kernels._extension."""

from __future__ import annotations

import torch
from torch import Tensor

from seq2exp.kernels.embed.bases import CODES, Bases, Grads, Wanted, rows_at


def forward(x: Bases, dtype: torch.dtype) -> Tensor:
    """See reference.py."""
    return torch.ops.seq2exp_native.embed_fwd(*arguments(x), x.complement, dtype).view(x.out_shape)


def backward(grad: Tensor, x: Bases, wanted: Wanted) -> Grads:
    """See reference.py. The same bits for any number of threads."""
    sums, *rest = raw_backward(grad, x, wanted)
    return grads(sums, rest, x, wanted)


def raw_backward(grad: Tensor, x: Bases, wanted: Wanted) -> list[Tensor]:
    """What the kernels give back: sums of the masked gradient, then the wanted gradients."""
    return torch.ops.seq2exp_native.embed_bwd(rows(grad), *arguments(x), inverse(x, wanted), x.complement, *wanted)


def arguments(x: Bases) -> tuple[Tensor | None, ...]:
    """All tensors as the kernels see them: only signals may have any strides. Large ones are not copied otherwise."""
    return (
        x.codes.contiguous(), x.table.contiguous(), narrow(x.signals),
        None if x.signal_weight is None else x.signal_weight.t().contiguous(),
        None if x.positions is None else rows(x.positions),
        None if x.mask is None else x.mask.contiguous(), None if x.indices is None else x.indices.contiguous(),
    )  # fmt: skip


def inverse(x: Bases, wanted: Wanted) -> Tensor | None:
    """The row of each place, where gradients of positions are summed over the batch."""
    return rows_at(x.indices, x.codes.numel()) if x.indices is not None and wanted.positions else None


def grads(sums: Tensor, rest: list[Tensor], x: Bases, wanted: Wanted) -> Grads:
    """sums: (5 + tracks, d), of the masked gradient by code and by signal. rest: the wanted ones, in order."""
    left = iter(rest)
    others = [next(left) if asked else None for asked in wanted]
    dweight = None if x.signals is None else sums[CODES:].t().contiguous()
    return Grads(sums[:CODES].clone(), dweight, *others)


def rows(x: Tensor) -> Tensor:
    """x (..., d) as (rows, d) with adjacent channels, rows at any stride; copied only where that needs it."""
    x = x.reshape(-1, x.shape[-1])
    return x if x.stride(1) == 1 or x.shape[1] == 1 else x.contiguous()


def narrow(signals: Tensor | None) -> Tensor | None:
    """float64 signals of a float32 model are rounded first; all others are read as they lie."""
    return signals.float() if signals is not None and signals.dtype == torch.float64 else signals
