"""The bases of a window as the backbones read them: sequence, positions and signals embedded, masked, selected."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from seq2exp.config import BackboneFields
from seq2exp.kernels import embed_bases, pack_selected
from seq2exp.kernels.gather import Selection
from seq2exp.strands import complement as complement_of


class SequenceEmbedding(nn.Linear):
    """Codes A C G T N = 0..4 (..., L) uint8, or one-hot (..., L, 4), to (..., L, d_model). N is all zero."""

    def __init__(self, d_model: int) -> None:
        super().__init__(4, d_model)

    def forward(self, sequence: Tensor) -> Tensor:
        if sequence.is_floating_point():
            return super().forward(sequence.to(self.weight.dtype))
        return F.embedding(sequence.long(), _table(self.weight, self.bias))


class Embedding(NamedTuple):
    """weight: (d_model, 4), bias: (d_model,), signal_weight: (d_model, tracks), positions: (L, d_model)."""

    config: BackboneFields
    weight: Tensor
    bias: Tensor
    signal_weight: Tensor | None = None
    positions: Tensor | None = None

    def __call__(
        self, sequence: Tensor, signals: Tensor | None = None, *, mask: Tensor | None = None,
        selection: Selection | None = None, complement: bool = False,
    ) -> Tensor:  # fmt: skip
        """The sum of what is there, times the mask: (batch, L, d_model), or the selected bases alone, (total, d_model).

        sequence: (batch, L) codes, or one-hot (batch, L, 4). signals: (batch, L, tracks), with signal_weight.
        complement: of the other strand, in genome orientation, whose positions count from the other end.
        """
        dtype = stream_dtype(self.weight, self.config)
        positions = self.positions.flip(0) if self.positions is not None and complement else self.positions
        if sequence.is_floating_point():
            x = self._one_hot(complement_of(sequence) if complement else sequence, signals, positions).to(dtype)
            if mask is not None and selection is not None:
                padded = selection.cu_seqlens.shape[0] > mask.shape[0] + 1
                return pack_selected(x, mask, capacity=selection.indices.shape[0] if padded else None).values
            return x if mask is None else x * mask.unsqueeze(-1).to(dtype)
        return embed_bases(
            sequence, _table(self.weight, self.bias), signals=signals,
            signal_weight=None if signals is None else self.signal_weight, positions=positions, mask=mask,
            indices=None if selection is None else selection.indices, complement=complement, dtype=dtype,
        )  # fmt: skip

    def _one_hot(self, sequence: Tensor, signals: Tensor | None, positions: Tensor | None) -> Tensor:
        """In plain PyTorch: so that a gradient can reach the one-hot sequence."""
        x = F.linear(sequence.to(self.weight.dtype), self.weight, self.bias)
        if positions is not None:
            x = x + positions
        if signals is not None and self.signal_weight is not None:
            x = x + F.linear(signals.to(self.signal_weight.dtype), self.signal_weight)
        return x


def stream_dtype(weight: Tensor, config: BackboneFields) -> torch.dtype:
    """Of a residual stream that starts with an embedding by this weight."""
    device = weight.device.type
    bf16 = torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.bfloat16
    return torch.bfloat16 if bf16 and config.residual_dtype == "bf16" else weight.dtype


def _table(weight: Tensor, bias: Tensor) -> Tensor:
    """(5, d_model): what a base A C G T N is embedded as."""
    return torch.cat([weight.t(), weight.new_zeros(1, weight.shape[0])]) + bias
