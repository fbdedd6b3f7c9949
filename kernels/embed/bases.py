"""What every backend is given and gives back."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

CODES = 5  # A C G T N


class Bases(NamedTuple):
    """Floating point inputs but the signals are in float32 (float64 with a float64 table).

    codes: (batch, L) uint8. table: (5, d). signals: (batch, L, tracks), any dtype and strides, with signal_weight (d,
    tracks). positions: (L, d). mask: (batch, L). indices: int64 (total,) into batch * L.
    """

    codes: Tensor
    table: Tensor
    signals: Tensor | None = None
    signal_weight: Tensor | None = None
    positions: Tensor | None = None
    mask: Tensor | None = None
    indices: Tensor | None = None
    complement: bool = False

    @property
    def out_shape(self) -> tuple[int, ...]:
        """(batch, L, d) or (total, d)."""
        return *(self.codes if self.indices is None else self.indices).shape, self.table.shape[1]


class Wanted(NamedTuple):
    """The gradients that are asked for beside those of the weights."""

    positions: bool
    mask: bool
    signals: bool


class Grads(NamedTuple):
    """In the dtype of the table; of Bases without indices or with. None: not wanted, or there is no such input."""

    table: Tensor
    signal_weight: Tensor | None
    positions: Tensor | None
    mask: Tensor | None
    signals: Tensor | None


def rows_at(indices: Tensor, places: int) -> Tensor:
    """The row of each place, int64 (places,), or -1: the inverse of indices. Padding is left out."""
    rows = indices.new_full((places + 1,), -1)
    kept = torch.where((indices >= 0) & (indices < places), indices, places)
    return rows.index_copy_(0, kept, torch.arange(len(indices), device=indices.device))[:places]
