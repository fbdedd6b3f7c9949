"""The CUDA C++ implementation (csrc/embed/cuda), loaded by seq2exp.kernels._extension."""

from __future__ import annotations

import torch
from torch import Tensor

from seq2exp.kernels.embed import native
from seq2exp.kernels.embed.bases import Bases, Grads, Wanted


def forward(x: Bases, dtype: torch.dtype) -> Tensor:
    """See reference.py."""
    return native.forward(x, dtype)


def backward(grad: Tensor, x: Bases, wanted: Wanted) -> Grads:
    """See reference.py. The same bits in every run: parts are added in a fixed order."""
    return joined(native.raw_backward(grad, x, wanted), x, wanted)


def joined(parts: list[Tensor], x: Bases, wanted: Wanted) -> Grads:
    """From the sums in parts (parts, 5 + tracks, d), and those of mask and signals in one a segment of the channels."""
    sums, *rest = parts
    n = int(wanted.positions)
    rest = [*rest[:n], *(t.sum(0) if len(t) > 1 else t[0] for t in rest[n:])]
    return native.grads(sums.sum(0, dtype=torch.float64).float(), rest, x, wanted)
