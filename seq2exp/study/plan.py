"""A run of the study: what is trained on what."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

from seq2exp.runlist import slug

PUBLISHED_SOFT, DISCOVERY, DISCOVERY_GROWN = "published soft", "discovery", "discovery, from shorter windows"
USUAL, LONGER, LONGEST = "512 bases", "16,384 bases", "200,000 bases"
SHORTER = {LONGEST: LONGER}  # conditions whose model is larger than that of the usual one


@dataclass(frozen=True)
class Run:
    """One training: a variant of the settings, on the simulated genome of a condition and a data seed.

    simulation: of `simulate`, without the seed. training: of `TrainConfig`, without store and seed. The seed is that of
    the genome and of the training.
    """

    variant: str
    condition: str
    seed: int
    simulation: dict[str, Any]
    training: dict[str, Any]

    @property
    def title(self) -> str:
        return f"{self.variant}, {self.condition}, seed {self.seed}"

    @property
    def folder(self) -> str:
        """Where in the study's folder it is."""
        return f"runs/{slug(self.variant)}_{slug(self.condition)}_{self.seed}"

    def identity(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def source(self) -> str | None:
        """The folder of the run whose model is frozen in this one, or whose weights this one starts from."""
        if self.training["model"].get("name") == "retrain":
            return replace(self, variant=PUBLISHED_SOFT).folder
        shorter = SHORTER.get(self.condition, USUAL)
        return replace(self, variant=DISCOVERY, condition=shorter).folder if self.variant == DISCOVERY_GROWN else None

    @cached_property
    def dataset(self) -> str:
        """Where in the study's folder its genome is: the same for the same simulation and seed."""
        fields = json.dumps(self.simulation, sort_keys=True)
        return f"data/{hashlib.blake2b(fields.encode(), digest_size=4).hexdigest()}_{self.seed}"

    @property
    def work(self) -> float:
        """Bases times layers that training processes."""
        model = self.training["model"]
        layers = model.get("layers", 0) + model.get("generator_layers", 0) + model.get("predictor_layers", 0)
        return float(self.training["steps"] * self.training["data"]["batch_size"] * model["length"] * layers)
