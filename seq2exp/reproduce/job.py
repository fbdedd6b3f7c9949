"""Carrying out the runs of a table, on one GPU, several, or the CPU."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from seq2exp.data_tools import open_store
from seq2exp.errors import UserError
from seq2exp.registry import entry
from seq2exp.runlist import RunList, Slot
from seq2exp.runlist.pool import Result
from seq2exp.training.config import model_config

from .plan import TableRun, checked_without_source
from .rows import ROWS


class Trial(NamedTuple):
    """Trained numbers of a row's model on its store; or what it lacks, and what to do about that."""

    parameters: int = 0
    lack: str | None = None


class Job(RunList[TableRun]):
    """The runs of all tables of one cell type, of which some are asked for."""

    kind, module = TableRun, "seq2exp.reproduce.one"

    def __init__(self, out: Path, runs: Sequence[TableRun]) -> None:
        super().__init__(out, runs)
        self._trials: dict[str, Trial] = {}

    def chosen(self, rows: Sequence[str], seeds: Sequence[int]) -> list[TableRun]:
        """The runs of these rows and seeds, in the order of the rows, behind those whose model is frozen in them."""
        asked = [run for row in rows for run in self.runs if run.row == row and run.seed in seeds]
        sources = {run.source for run in asked} - {run.folder for run in asked}
        return [run for run in self.runs if run.folder in sources] + asked

    def trial(self, run: TableRun) -> Trial:
        """Of the run's row, tried once."""
        if run.row not in self._trials:
            self._trials[run.row] = try_out(run)
        return self._trials[run.row]

    def obstacle(self, run: TableRun) -> str | None:
        return super().obstacle(run) or self.trial(run).lack

    def said(self, result: Result) -> str:
        values = {name: result[name] for name in ("mse", "mae", "pearson", "mask_ratio")}
        numbers = [f"{name.replace('_', ' ')} {value:.4f}" for name, value in values.items() if value is not None]
        return f"{', '.join(numbers)}, {result['seconds']:,.0f} s"


def try_out(run: TableRun) -> Trial:
    """Make the model of a run, without memory for its weights."""
    store, name = open_store(run.store), str(run.training["model"].get("name", "seq2exp"))
    model = entry(name).model
    if model.reads_peaks and not store.region_size("peaks")[0]:
        return Trial(
            lack=f"{run.row} needs peaks, {store.path} holds none: call them with `seq2exp data peaks` (which needs "
            "MACS3: pip install macs3), or take any narrowPeak file, and build the store with --peaks FILE.narrowPeak"
        )
    fields = {name: value for name, value in run.training.items() if name != "model"}
    checked = checked_without_source(run.training["model"], fields).model
    held = {"tracks": 3, "gene_features": len(store.feature_names), "signal_names": (*store.tracks, "contacts")}
    if ROWS[run.row].source is not None:
        checked = checked | {"frozen": checked["frozen"] | {"gene_features": held["gene_features"]}}
    try:
        with torch.device("meta"):
            made = model(model_config(checked, **held))
    except UserError as error:
        return Trial(lack=str(error))
    return Trial(sum(weights.numel() for weights in made.parameters() if weights.requires_grad))


def slots(devices: str | None) -> list[Slot]:
    """A slot for each GPU of a comma-separated list, or one for the CPU; None: all GPUs, else the CPU.

    Raises:
        UserError: no such GPU.
    """
    there = torch.cuda.device_count()
    names = [name.strip() for name in devices.split(",")] if devices is not None else list(map(str, range(there)))
    if names in ([], ["cpu"]):
        return [Slot("cpu", {})]
    seen = os.environ.get("CUDA_VISIBLE_DEVICES")
    numbers = seen.split(",") if seen else list(map(str, range(there)))
    for name in names:
        if not name.isdecimal() or int(name) >= there:
            found = f"0 to {there - 1}" if there else "torch finds no GPU here"
            raise UserError(f"--devices: there is no GPU {name!r} ({found}); give numbers such as 0,1, or cpu")
    return [Slot("cuda", {"CUDA_VISIBLE_DEVICES": numbers[int(name)]}) for name in dict.fromkeys(names)]
