"""The run list: what is trained on what, fixed when a study begins."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from seq2exp.errors import UserError
from seq2exp.files import write_json

SHOWN = 5  # differences that a refusal names


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


def slug(name: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-")


def keep_plan(out: Path, runs: Sequence[Run]) -> None:
    """Write the run list into a new study's folder, or compare it with that of the study which is there.

    Raises:
        UserError: the lists differ; says in what.
    """
    path = out / "runs.json"
    now = {run.folder: _plain(run) for run in runs}
    if len(now) < len(runs):
        raise ValueError("two runs of the list have the same name")
    if not path.exists():
        write_json(path, list(now.values()))
        return
    before = {run.folder: _plain(run) for run in read_plan(out)}
    found = [f"{name} is new" for name in now if name not in before]
    found += [f"{name} is gone" for name in before if name not in now]
    for name in now.keys() & before.keys():
        found += [f"{name}: {line}" for line in _differences(before[name], now[name])]
    if found:
        more = f", and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
        raise UserError(
            f"{path}: the run list was changed since this study began: {'; '.join(sorted(found)[:SHOWN])}{more}; "
            "go on with the settings it began with, or give another folder"
        )


def read_plan(out: Path) -> list[Run]:
    """The run list of a study that has begun. Raises UserError when there is none."""
    path = out / "runs.json"
    try:
        return [Run(**fields) for fields in json.loads(path.read_text())]
    except FileNotFoundError:
        raise UserError(f"{path}: no such file: no study has begun in {out}") from None
    except (ValueError, TypeError) as error:
        raise UserError(f"{path}: not the run list of a study: {error}") from None


def _plain(run: Run) -> dict[str, Any]:
    """As JSON gives it back: lists, no tuples."""
    fields: dict[str, Any] = json.loads(json.dumps(asdict(run)))
    return fields


def _differences(before: dict[str, Any], now: dict[str, Any], where: str = "") -> list[str]:
    lines = []
    for name in sorted(before.keys() | now.keys()):
        old, new = before.get(name), now.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            lines += _differences(old, new, f"{where}{name}.")
        elif old != new:
            lines.append(f"{where}{name} was {old}, is {new}")
    return lines
