"""The published layer as the benchmarks take it: plain, on both strands, and each of its steps alone.

The layer itself is `seq2exp.baselines.published_layer`. The equivariant form (Caduceus-PS) runs all of it on both
halves of the channels, the second half flipped along bases and channels before and after.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from seq2exp.baselines.published_layer import add, bimamba, fast_mamba, mamba, rms_norm
from seq2exp.kernels import ScanWeights

__all__ = ["Part", "bimamba", "fast_mamba", "layer", "mamba", "on_both_strands", "parts", "rms_norm"]

Strand = Callable[[Tensor], Tensor]


def layer(x: Tensor, norm: Strand, mixer: Strand, final_norm: Strand) -> Tensor:
    """A backbone of one layer: x (batch, L, d) is the residual stream."""
    return final_norm(add(x, mixer(norm(x))))


def on_both_strands(strand: Strand, x: Tensor) -> Tensor:
    """x (batch, L, 2 d) -> the same, as Caduceus-PS wraps its norms and mixers."""
    first, second = x.chunk(2, -1)
    return torch.cat([strand(first), _reverse_complement(strand(_reverse_complement(second)))], -1)


def _reverse_complement(x: Tensor) -> Tensor:
    return x.flip(-2, -1)


class Part(NamedTuple):
    """A step of `bimamba` alone, forward and backward, on the inputs that it has there."""

    name: str
    run: Callable[[], object]


def parts(
    h: Tensor, in_proj: Tensor, out_proj: Tensor, fwd: ScanWeights, rev: ScanWeights,
    autocast: Callable[[], AbstractContextManager] = nullcontext,
) -> list[Part]:  # fmt: skip
    """All steps, and the sums of the gradients of what two steps read."""
    found: list[Part] = []
    uses: Counter[Tensor] = Counter()

    def record(step: Callable[..., Any], *inputs: Tensor) -> Any:
        uses.update(inputs)
        found.append(_part(step, inputs, autocast))
        return step(*inputs)

    with torch.no_grad(), autocast():
        bimamba(h, in_proj, out_proj, fwd, rev, run=record)
    sums = [Part("sums of gradients", partial(torch.add, x, x)) for x, n in uses.items() for _ in range(n - 1)]
    return found + sums


def _part(
    step: Callable[..., Any], inputs: tuple[Tensor, ...], autocast: Callable[[], AbstractContextManager]
) -> Part:  # fmt: skip
    leaves = [x.detach().requires_grad_() for x in inputs]
    outputs = step(*inputs)
    grads = [torch.randn_like(y) for y in ((outputs,) if isinstance(outputs, Tensor) else outputs)]

    def run() -> object:
        with autocast():
            outputs = step(*leaves)
        return torch.autograd.grad(outputs, leaves, grads)

    return Part(step.__name__.replace("_", " "), run)
