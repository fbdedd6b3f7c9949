"""One run of a study, in a process of its own: `python -m seq2exp.study.one STUDY RUN DEVICE`."""

from __future__ import annotations

import os
import shutil
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from seq2exp.data_tools import GeneWindows, open_store
from seq2exp.demo import simulated_store
from seq2exp.inference.recovery import Found, recover
from seq2exp.inference.ridge import binned_signals, fit_ridge
from seq2exp.inference.windows import load_model
from seq2exp.runlist.child import main
from seq2exp.training import TrainConfig, train

from .plan import DISCOVERY_GROWN, Run

SCORED_BASES = 16_384  # at a time
BUILT_FROM = ("genome.fa", "genome.fa.fai", "H3K27ac.bw", "DNase.bw", "contacts.tsv", "peaks.bed")


def perform(run: Run, out: Path, device: str) -> dict[str, Any]:
    """Simulate (or find) the genome, train (or go on), score on the test genes, which nothing was chosen by."""
    began = time.perf_counter()
    data, folder = dataset(run, out), out / run.folder
    config = TrainConfig.model_validate(settings(run, data / "store.zarr", out))
    trained = train(config, folder, resume=(folder / "config.yaml").exists(), device=device, quiet=True)
    model, _, _ = load_model(folder, device)
    store = open_store(data / "store.zarr")
    windows = GeneWindows(store, model.config.length, "test", peaks=model.reads_peaks)
    batch = max(1, SCORED_BASES // model.config.length)
    found = recover(model, windows, data / "simulated" / "elements.bed", batch_size=batch)
    return {
        "run": asdict(run),
        "expression": errors(found.genes["prediction"].to_numpy(), found.genes["target"].to_numpy()),
        "ridge": ridge(data, model.config.length),
        "best_step": trained.best_step,
        "seconds_per_step": trained.seconds_per_step,
        "seconds": time.perf_counter() - began,
    } | _recovery(found)


def settings(run: Run, store: Path, out: Path) -> dict[str, Any]:
    """Of the training, with what it takes from another run in that folder."""
    fields = run.training | {"data": run.training["data"] | {"store": store}, "seed": run.seed}
    if run.source is None:
        return fields
    if run.variant == DISCOVERY_GROWN:
        return fields | {"start_from": out / run.source}
    return fields | {"model": fields["model"] | {"source": str(out / run.source)}}


def dataset(run: Run, out: Path) -> Path:
    """The folder of a run's genome: store.zarr, and simulated/ with what is true of it. Made where it is not there."""
    folder = out / run.dataset
    if folder.exists():
        return folder
    mine = folder.with_name(f"{folder.name}.{os.getpid()}.partial")
    simulated_store(mine, seed=run.seed, **run.simulation)
    for name in BUILT_FROM:
        (mine / "simulated" / name).unlink(missing_ok=True)
    try:
        mine.rename(folder)
    except OSError:  # another run has made it meanwhile
        shutil.rmtree(mine)
    return folder


def errors(prediction: Any, target: Any) -> dict[str, float]:
    """MSE, MAE, Pearson and R2 of predictions (genes,)."""
    difference = np.asarray(prediction, dtype=np.float64) - target
    mse = float(np.mean(difference**2))
    constant = np.std(prediction) < 1e-9
    return {
        "mse": mse,
        "mae": float(np.mean(np.abs(difference))),
        "pearson": float("nan") if constant else float(np.corrcoef(prediction, target)[0, 1]),
        "r2": 1 - mse / float(np.var(target)),
    }


def ridge(data: Path, length: int) -> dict[str, float]:
    """Errors on the test genes of ridge regression on binned signals."""
    store, x, y = open_store(data / "store.zarr"), {}, {}
    for split in ("train", "valid", "test"):
        items = GeneWindows(store, length, split)
        x[split] = np.stack([binned_signals(items[i]["signals"].numpy()) for i in range(len(items))])
        y[split] = items.genes["target"].to_numpy(np.float64)
    weights, means, intercept = fit_ridge(x["train"], y["train"], x["valid"], y["valid"])
    return errors((x["test"] - means) @ weights + intercept, y["test"])


def _recovery(found: Found) -> dict[str, Any]:
    kept = asdict(found) | {"best_rival": found.best_rival, "learned": found.learned}
    del kept["genes"]
    return kept


if __name__ == "__main__":
    sys.exit(main(Run, perform, *sys.argv[1:]))
