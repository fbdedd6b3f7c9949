"""Which windows a step sees: an order that depends on the seed and the step only, so that a run can resume anywhere."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from seq2exp.seeds import derive_seed, permutation
from seq2exp.strands import ALONG_THE_WINDOW, reverse_complement

WHOLE = (slice(None),)


class StepBatches:
    """Batch sampler: for every step from ``first_step`` to ``steps``, the (dataset index, epoch) pairs of its batch.

    Each epoch is a permutation drawn from (seed, epoch). Batches run on across epochs: all have ``batch_size`` items.
    parts: what is read of every batch, one micro-batch each (`Ranks.parts`).
    """

    def __init__(
        self, items: int, batch_size: int, seed: int, steps: int, first_step: int = 0, parts: Sequence[slice] = WHOLE
    ) -> None:
        self.items, self.batch_size, self.seed = items, batch_size, seed
        self.steps, self.first_step, self.parts = steps, first_step, parts

    def __len__(self) -> int:
        return (self.steps - self.first_step) * len(self.parts)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch, order = -1, []
        for step in range(self.first_step, self.steps):
            batch = []
            for position in range(step * self.batch_size, (step + 1) * self.batch_size):
                if position // self.items != epoch:
                    epoch = position // self.items
                    order = permutation(self.items, self.seed, epoch)
                batch.append((order[position % self.items], epoch))
            yield from (batch[part] for part in self.parts)


def augment(
    batch: dict[str, Any], probability: float, seed: int, step: int, batch_size: int, part: slice
) -> dict[str, Any]:
    """Reverse-complement each window of one part of a batch with ``probability``, drawn from (seed, step)."""
    generator = torch.Generator().manual_seed(derive_seed(seed, "reverse complement", step))
    chosen = (torch.rand(batch_size, generator=generator) < probability)[part]
    other = reverse_complement(batch)

    def mixed(name: str) -> Tensor:
        values: Tensor = batch[name]
        return torch.where(chosen.to(values.device).view(-1, *[1] * (values.ndim - 1)), other[name], values)

    return batch | {name: mixed(name) for name in ALONG_THE_WINDOW if name in batch}
