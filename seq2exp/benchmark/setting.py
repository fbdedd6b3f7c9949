"""What is measured: settings with their defaults, models and input that follow from them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import torch
from pydantic import ValidationError

from seq2exp.baselines.published import SCANS, PublishedForm
from seq2exp.config import Seq2ExpConfig, first_problem
from seq2exp.errors import UserError
from seq2exp.inference.windows import resolve_device
from seq2exp.model import Seq2Exp

from .step import Batch

MODES: dict[str, dict[str, Any]] = {"soft": {}, "hard": {"task_gradient": False}}  # as published: no task gradient
DEFAULTS: dict[str, dict[str, Any]] = {
    "cuda": {"length": 200_000, "batch": 8, "precision": "bf16"},
    "cpu": {"length": 10_000, "batch": 1, "precision": "fp32"},
}
SEED = 2


@dataclass(frozen=True)
class BenchSetting:
    """length: bases of a window. reference_length: that of the published form, whose figures are extrapolated from it
    in proportion. device: "cpu" or "cuda". layers: of generator and of predictor each."""

    mode: str
    length: int
    batch: int
    d_model: int
    layers: int
    precision: str
    device: str
    scan: str
    rounds: int
    reference_length: int

    @classmethod
    def of(
        cls, *, mode: str, scan: str, device: str, precision: str | None, length: int | None, batch: int | None,
        reference_length: int | None, **sizes: Any,
    ) -> Self:  # fmt: skip
        """Fills in what is None. Raises UserError for what is unknown, impossible, or not installed."""
        device = resolve_device(device).type
        given = {"length": length, "batch": batch, "precision": precision}
        chosen: dict[str, Any] = DEFAULTS[device] | {name: value for name, value in given.items() if value is not None}
        for name, value, known in (("mode", mode, MODES), ("precision", chosen["precision"], ("fp32", "bf16"))):
            if value not in known:
                raise UserError(f"{name} {value!r} is unknown: one of {', '.join(known)}")
        reference_length = reference_length or chosen["length"]
        if reference_length > chosen["length"]:
            raise UserError(f"reference-length is {reference_length}, more than length ({chosen['length']})")
        if scan == "mamba_ssm" and device == "cpu":
            raise UserError("scan mamba-ssm runs on a GPU only; take ours, chunked or reference, or --device cuda")
        setting = cls(**chosen, **sizes, mode=mode, scan=scan, device=device, reference_length=reference_length)
        setting.config(setting.length)
        return setting

    @property
    def bases(self) -> int:
        """Of a step."""
        return self.batch * self.length

    @property
    def extrapolation(self) -> float:
        """By how much the published form's figures are multiplied."""
        return self.length / self.reference_length

    def config(self, length: int) -> Seq2ExpConfig:
        """The model's, for windows of that length. The centre keeps its share, that of the published 2,000 of 200,000,
        so that cost stays in proportion to length."""
        try:
            return getattr(Seq2ExpConfig, self.mode)(  # type: ignore[no-any-return]
                length=length, center=max(1, length // 100), d_model=self.d_model, generator_layers=self.layers,
                predictor_layers=self.layers, **MODES[self.mode],
            )  # fmt: skip
        except ValidationError as error:
            raise UserError(first_problem(error)) from None

    def model(self, length: int) -> Seq2Exp:
        """Ours, weights drawn from SEED."""
        with torch.random.fork_rng([]):
            torch.manual_seed(SEED)
            return Seq2Exp(self.config(length)).to(self.device)

    def published(self, model: Seq2Exp) -> PublishedForm:
        """The published form of that model."""
        return PublishedForm(model, self.scan)

    def inputs(self, length: int) -> Batch:
        """Random windows, most of their signals low; those of a shorter length are the starts of the longer ones."""
        g = torch.Generator().manual_seed(SEED)
        config = self.config(length)
        codes = torch.randint(0, 4, (self.length, self.batch), generator=g, dtype=torch.uint8)[:length].t()
        signals = 3 * torch.rand(self.length, self.batch, config.tracks, generator=g)[:length].transpose(0, 1) ** 6
        features = torch.rand(self.batch, config.gene_features, generator=g)
        target = torch.rand(self.batch, generator=g)
        return Batch(*(x.contiguous().to(self.device) for x in (codes, signals, features, target)))


def scan_name(option: str) -> str:
    """ "mamba-ssm" -> "mamba_ssm". Raises UserError for what is no scan."""
    name = option.replace("-", "_")
    if name not in SCANS:
        raise UserError(f"scan {option!r} is unknown: one of {', '.join(SCANS).replace('_', '-')}")
    return name
