"""What the task gradient of the hard mode does: trains with and without it on simulated data, where the truth is known.

    python bench/task_gradient.py runs/task_gradient            # writes bench/results/task_gradient.md

The settings are those of `seq2exp demo`, but the mask is binary and the predictor packed; three seeds, of the simulated
genome and of the training. Scores are those of the test genes: Pearson of the expression, and the average precision of
the mask (its mean, before the threshold) over bases and over elements. Selected is the share of bases whose mean is
over the threshold, the centre not counted.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
from rich.console import Console

from seq2exp.data_tools import GeneWindows, build_store, open_store, simulate
from seq2exp.demo import recovery_of
from seq2exp.inference.discover import Selection, discover
from seq2exp.inference.evaluate import scores
from seq2exp.inference.plot import read_elements
from seq2exp.inference.windows import load_model, predict_genes
from seq2exp.training.config import TrainConfig
from seq2exp.training.presets import DISCOVERY, SIMULATION, TRAINING
from seq2exp.training.trainer import train

SEEDS = (2, 22, 222)
HARD = {"hard": True, "packed": True}
COLUMNS = ("Pearson", "AUPRC bases", "AUPRC elements", "best rival, bases", "selected")
RESULTS = Path(__file__).parent / "results" / "task_gradient.md"


def store_of(seed: int, folder: Path) -> tuple[Path, Path]:
    """The simulated genome of a seed: its store and its elements, made once."""
    simulated, store = folder / f"simulated{seed}", folder / f"store{seed}.zarr"
    if not store.exists():
        simulate(simulated, seed=seed, **SIMULATION)
        build_store(
            fasta=simulated / "genome.fa",
            track={name: simulated / f"{name}.bw" for name in ("H3K27ac", "DNase")},
            contacts=str(simulated / "contacts.tsv"), genes=simulated / "genes.csv", target="target", split="split",
            out=store,
        )  # fmt: skip
    return store, simulated / "elements.bed"


def run(seed: int, task_gradient: bool, folder: Path) -> tuple[float, ...]:
    """Trains (or continues) and scores; see COLUMNS."""
    store, elements = store_of(seed, folder)
    model_fields = TRAINING["model"] | HARD | {"task_gradient": task_gradient}
    config = TrainConfig.model_validate(
        TRAINING | {"model": model_fields, "data": TRAINING["data"] | {"store": store}, "seed": seed}
    )
    out = folder / f"run{seed}_{'with' if task_gradient else 'without'}"
    train(config, out, device="auto", resume=out.exists())
    model, _, _ = load_model(out, "auto")
    windows = GeneWindows(open_store(store), model.config.length, "test")
    predictions = predict_genes(model, windows, batch_size=64)
    loci = list(discover(model, windows, Selection(**DISCOVERY), batch_size=64))
    precision = recovery_of(loci, read_elements(elements), windows.signal_names).average_precision()
    bases, over_elements = precision.pop("soft mask")
    selected = float(np.mean([np.mean(locus.mask >= model.config.threshold) for locus in loci]))
    return scores(predictions)["pearson"], bases, over_elements, max(b for b, _ in precision.values()), selected


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="for stores and runs; interrupted work continues there")
    folder = parser.parse_args().folder
    table = [["task gradient", "seed", *COLUMNS], ["---"] * (2 + len(COLUMNS))]
    for task_gradient in (True, False):
        said = "yes" if task_gradient else "no"
        values = []
        for seed in SEEDS:
            values.append(run(seed, task_gradient, folder))
            table.append([said, str(seed), *(f"{v:.3f}" for v in values[-1])])
            Console().print(*table[-1], highlight=False)
        means = (f"{np.mean(v):.3f} ± {np.std(v, ddof=1):.3f}" for v in zip(*values, strict=True))
        table.append([said, "mean", *means])
    lines = "\n".join(f"| {' | '.join(row)} |" for row in table)
    RESULTS.write_text(f"# The task gradient of the hard mode\n\n{(__doc__ or '').strip()}\n\n{lines}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
