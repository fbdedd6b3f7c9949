"""One run of a table, in a process of its own: `python -m seq2exp.reproduce.one OUT RUN DEVICE`."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from seq2exp.data_tools import GeneWindows, open_store
from seq2exp.files import atomic
from seq2exp.inference.evaluate import scores
from seq2exp.inference.windows import load_model, predict_genes
from seq2exp.runlist.child import main
from seq2exp.training import train
from seq2exp.training.config import save_config

from .plan import TableRun


def perform(run: TableRun, out: Path, device: str) -> dict[str, Any]:
    """Train (or go on) and score the best model on the test genes: scores, where its predictions are in its folder."""
    began = time.perf_counter()
    config, folder = run.config(out), out / run.folder
    begun = (folder / "config.yaml").exists()
    if begun:
        save_config(config, folder / "config.yaml")  # how it is computed may have changed
    trained = train(config, folder, resume=begun, device=device, quiet=True)
    model, _, _ = load_model(folder, device)
    genes = predict_genes(
        model,
        GeneWindows(open_store(run.store), model.config.length, "test", peaks=model.reads_peaks),
        batch_size=config.data.batch_size // config.data.accumulate,
        workers=config.data.workers,
        precision=config.precision,
    )
    with atomic(folder / "predictions.csv") as partial:
        genes.to_csv(partial, index=False)
    seconds = time.perf_counter() - began
    return scores(genes) | {"best_step": trained.best_step, "best_mse": trained.best_mse, "seconds": seconds}


if __name__ == "__main__":
    sys.exit(main(TableRun, perform, *sys.argv[1:]))
