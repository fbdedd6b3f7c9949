"""The two strands of DNA: the complement of bases, the reverse complement of a batch, both strands at once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

ALONG_THE_WINDOW = ("sequence", "signals", "exclude", "include", "peaks")  # of a batch, (batch, L, ...)


def complement(sequence: Tensor) -> Tensor:
    """A <-> T, C <-> G, N stays, base by base: codes A C G T N = 0..4 uint8, or one-hot (..., 4) with N all zero."""
    if sequence.is_floating_point():
        return sequence.flip(-1)
    return torch.where(sequence < 4, 3 - sequence, sequence)


def both_strands(sequence: Tensor) -> Tensor:
    """The bases and their complements, (2, *sequence.shape), both in genome orientation: nothing is reversed."""
    return torch.stack([sequence, complement(sequence)])


def reverse_complement(batch: dict[str, Any]) -> dict[str, Any]:
    """A batch as read from the other strand: the sequence reversed and complemented; all else along the
    window reversed. What is not along it stays. Doing it twice gives the batch back."""
    other = batch | {"sequence": complement(batch["sequence"])}
    return other | {name: other[name].flip(1) for name in ALONG_THE_WINDOW if name in batch}


def one_hot(sequence: Tensor, dtype: torch.dtype) -> Tensor:
    """Codes A C G T N = 0..4 (batch, L) to (batch, L, 4), N all zero."""
    return torch.eye(5, 4, dtype=dtype, device=sequence.device)[sequence.long()]
