"""Ridge regression on binned signals and gene features: the baseline that every model has to beat."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from seq2exp.baselines.base import Baseline, Inputs
from seq2exp.config import Size, WindowFields
from seq2exp.inference.ridge import Array, binned_signals, fit_ridge
from seq2exp.model import Seq2ExpOutput

if TYPE_CHECKING:
    from seq2exp.data_tools import GeneWindows


class RidgeConfig(WindowFields):
    """bins: equal parts of the window, in each of which every signal is averaged."""

    bins: Size = 64


class Ridge(Baseline):
    """A linear function of the binned signals and the gene features, found in closed form: `fit`, no steps."""

    config_class = RidgeConfig
    reads_signals = True
    config: RidgeConfig
    weights: nn.Parameter
    means: nn.Parameter
    intercept: nn.Parameter

    def __init__(self, config: RidgeConfig) -> None:
        super().__init__()
        self.config = config
        inputs = config.bins * config.tracks + config.gene_features
        for name, shape in (("weights", (inputs,)), ("means", (inputs,)), ("intercept", ())):
            zeros = torch.zeros(shape, dtype=torch.float64)
            self.register_parameter(name, nn.Parameter(zeros, requires_grad=False))

    def fit(self, train: GeneWindows, valid: GeneWindows) -> None:
        """Solve for the training genes, the penalty chosen by the error on the validation genes."""
        (x, y), (x_valid, y_valid) = (self._arrays(windows) for windows in (train, valid))
        for name, value in zip(("weights", "means", "intercept"), fit_ridge(x, y, x_valid, y_valid), strict=True):
            getattr(self, name).copy_(torch.as_tensor(value))

    def output(self, batch: Inputs) -> Seq2ExpOutput:
        rows = _rows(batch.signals, batch.gene_features)
        x = torch.from_numpy(np.stack([self._inputs(*row) for row in rows])).to(self.weights.device)
        return Seq2ExpOutput(((x - self.means) @ self.weights + self.intercept).float())

    def _inputs(self, signals: Tensor, gene_features: Tensor | None) -> Array:
        binned = binned_signals(signals.float().cpu().numpy(), self.config.bins)
        return binned if gene_features is None else np.append(binned, gene_features.double().cpu().numpy())

    def _arrays(self, windows: GeneWindows) -> tuple[Array, Array]:
        """Inputs (genes, features) and targets (genes,), a gene at a time: windows need not fit into the memory."""
        from seq2exp.data_tools import collate

        x, y = [], []
        for i in range(len(windows)):
            gene = collate([windows[i]])
            x.append(self._inputs(gene["signals"][0], gene["gene_features"][0]))
            y.append(float(gene["target"][0]))
        return np.stack(x), np.array(y)


def _rows(signals: Tensor, gene_features: Tensor | None) -> list[tuple[Tensor, Tensor | None]]:
    return [(row, None if gene_features is None else gene_features[i]) for i, row in enumerate(signals)]
