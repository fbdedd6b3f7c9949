"""What the baselines have in common: the inputs and the output of `Seq2Exp`, the mean of hidden states and the head."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from seq2exp.kernels.beta_mask.settings import centre_slice
from seq2exp.model import ExpressionHead, Seq2ExpOutput, check_inputs
from seq2exp.pretrained import Pretrained


class Inputs(NamedTuple):
    """What `Baseline.forward` was given, checked. signals, peaks: a tensor where the model reads them."""

    sequence: Tensor
    signals: Any
    gene_features: Tensor | None
    exclude: Tensor | None
    include: Tensor | None
    peaks: Any


class Baseline(Pretrained, nn.Module):
    """A model that can stand in the place of `Seq2Exp`: it gives `hidden` states and has a `head`, or its own `output`.

    reads_signals: whether forward needs signals. centre: the slice of a window that the centre is.
    """

    reads_signals: bool = False
    head: ExpressionHead

    def forward(
        self,
        sequence: Tensor,
        signals: Tensor | None = None,
        gene_features: Tensor | None = None,
        exclude: Tensor | None = None,
        include: Tensor | None = None,
        seed: int | None = None,
        rows: Tensor | None = None,
        peaks: Tensor | None = None,
    ) -> Seq2ExpOutput:
        """Inputs as of `Seq2Exp.forward`, so that the two can be exchanged, and peaks, bool (batch, L); what a model
        does not read has no effect, nor have seed and rows. Without a mask only `expression` of the output is set.

        Raises
        ------
        ValueError: as `Seq2Exp.forward`, and where signals or peaks are read and not given. TypeError: wrong dtypes.
        """
        for needed, given, what in (
            (self.reads_signals, signals, "signals (batch, L, tracks)"),
            (self.reads_peaks, peaks, "peaks, bool (batch, L)"),
        ):
            if needed and given is None:
                raise ValueError(f"{type(self).__name__} needs {what}")
        check_inputs(self.config, sequence, signals if self.reads_signals else None, gene_features)
        return self.output(Inputs(sequence, signals, gene_features, exclude, include, peaks))

    def output(self, batch: Inputs) -> Seq2ExpOutput:
        hidden = self.hidden(batch)
        pooled = hidden.mean(1, dtype=torch.promote_types(hidden.dtype, torch.float32))
        return Seq2ExpOutput(self.head(pooled, batch.gene_features))

    def hidden(self, batch: Inputs) -> Tensor:
        """(batch, positions, d): the hidden states whose mean the head gets."""
        raise NotImplementedError

    @property
    def centre(self) -> slice:
        return centre_slice(self.config.length, self.config.center)
