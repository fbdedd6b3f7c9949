"""One training step as `seq2exp train` takes it, its phases named, on a store or on random input."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from torch.utils.data import Dataset

from seq2exp.config import Seq2ExpConfig
from seq2exp.data_tools import GeneWindows, collate
from seq2exp.inference.windows import autocast, call_model
from seq2exp.loss import seq2exp_loss
from seq2exp.model import Seq2Exp
from seq2exp.parts import part

PARTS = ("data", "embedding", "generator", "mask", "gather", "predictor", "head", "backward", "optimiser")
LEARNING_RATE, WEIGHT_DECAY, BETAS, CLIP, KL_WEIGHT = 5e-4, 1e-6, (0.9, 0.95), 1.0, 0.01  # the paper's
SPARE = 1_000  # bases by which the random chromosome is longer than a window


@dataclass(frozen=True)
class StepSettings:
    """What is profiled. batch: windows. store: None for random input. device: "cpu" or "cuda".

    form: "ours", or "published": the composed form of the same model (`seq2exp.baselines.published`).
    """

    config: Seq2ExpConfig
    batch: int = 1
    precision: str = "fp32"
    device: str = "cpu"
    store: Path | None = None
    form: Literal["ours", "published"] = "ours"


class TrainingStep:
    """Calling it takes one step. Gradients and optimiser state are there from the start, as after a first step."""

    def __init__(self, settings: StepSettings) -> None:
        self.settings, self.device = settings, torch.device(settings.device)
        config = settings.config
        self.windows: Dataset[dict[str, Any]] = (
            GeneWindows(settings.store, config.length) if settings.store else RandomWindows(config)
        )
        torch.manual_seed(0)
        self.model: Any = _model(settings).to(self.device).train()
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=LEARNING_RATE, betas=BETAS, weight_decay=WEIGHT_DECAY
        )
        self.make_gradients()
        self.optimizer.step()
        self.steps = 0
        self.selected_fraction = float("nan")

    def __call__(self) -> None:
        with part("data"):
            batch = self._batch()
        with autocast(self.device, self.settings.precision):
            out = call_model(self.model, batch, self.device, seed=self.steps)
            with part("head"):
                loss = seq2exp_loss(out, batch["target"], KL_WEIGHT)
        with part("backward"):
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
        with part("optimiser"):
            nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
            self.optimizer.step()
        self.steps += 1
        self.selected_fraction = out.selected_fraction.item()

    def make_gradients(self) -> None:
        """Gradients of zero, as another step would have left some."""
        for parameter in self.model.parameters():
            parameter.grad = torch.zeros_like(parameter)

    def drop_gradients(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)

    def fixed_bytes(self) -> int:
        """Of weights and the optimiser's state."""
        state = [x for values in self.optimizer.state.values() for x in values.values()]
        tensors = [
            x for x in [*self.model.parameters(), *self.model.buffers(), *state] if x.device.type == self.device.type
        ]
        return sum({x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in tensors}.values())

    def _batch(self) -> dict[str, Any]:
        """The next windows in table order, on the device."""
        count = len(self.windows)  # type: ignore[arg-type]
        first = self.steps * self.settings.batch
        batch = collate([self.windows[i % count] for i in range(first, first + self.settings.batch)])
        return {k: v.to(self.device) if isinstance(v, torch.Tensor) else v for k, v in batch.items()}


class RandomWindows(Dataset[dict[str, Any]]):
    """Items as of `GeneWindows`, cut from one random chromosome in memory; most of the signals are low."""

    def __init__(self, config: Seq2ExpConfig) -> None:
        self.config = config
        random = torch.Generator().manual_seed(0)
        bases = config.length + SPARE
        self.codes = torch.randint(0, 4, (bases,), dtype=torch.uint8, generator=random)
        self.signals = 3 * torch.rand(bases, config.tracks, generator=random).pow_(6)

    def __len__(self) -> int:
        return SPARE

    def __getitem__(self, index: int) -> dict[str, Any]:
        here = slice(index, index + self.config.length)
        none = torch.zeros(self.config.length, dtype=torch.bool)
        return {
            "sequence": self.codes[here],
            "signals": self.signals[here],
            "gene_features": torch.zeros(self.config.gene_features),
            "target": torch.tensor(1.0),
            "exclude": none,
            "include": none,
            "row": index,
        }


def _model(settings: StepSettings) -> nn.Module:
    if settings.form == "ours":
        return Seq2Exp(settings.config)
    from seq2exp.baselines.published import PublishedForm

    return PublishedForm(settings.config, scan=published_scan(settings.device))


def published_scan(device: str) -> str:
    """What the published form is built on: mamba-ssm on a GPU where it is installed, else our scan."""
    return "mamba_ssm" if device == "cuda" and importlib.util.find_spec("mamba_ssm") else "ours"
