"""What `keep_threshold` costs and saves: predictions of trained soft models with bases below a threshold left out.

    python bench/keep_threshold.py simulated=runs/demo hg38=runs/hg38        # writes bench/results/keep_threshold.md

Each argument is a name and a run of `seq2exp train`. On the genes of its test split: the share of bases kept, how far
predictions move (largest and root mean square, in units of the target), their Pearson correlation with the target, and
the time of the predictor against that of the dense one, measured in turns on one batch.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
import torch
from rich.console import Console

from seq2exp import Seq2Exp
from seq2exp.data_tools import GeneWindows, collate, open_store
from seq2exp.inference.windows import load_model, predict_genes
from seq2exp.parts import listening

THRESHOLDS = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
ROUNDS = 3
COLUMNS = ("model", "threshold", "kept", "largest difference", "rms difference", "Pearson", "dense time / time")
RESULTS = Path(__file__).parent / "results" / "keep_threshold.md"


def with_threshold(model: Seq2Exp, threshold: float) -> Seq2Exp:
    other = Seq2Exp(model.config.replace(keep_threshold=threshold)).eval()
    other.load_state_dict(model.state_dict())
    return other


class Stopwatch:
    """Seconds spent in `part("gather")` and `part("predictor")`."""

    def __init__(self) -> None:
        self.seconds, self._wanted = 0.0, False

    def __call__(self, name: str) -> Stopwatch:
        self._wanted = name in ("gather", "predictor")
        return self

    def __enter__(self) -> None:
        self._started = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        if self._wanted:
            self.seconds += time.perf_counter() - self._started


def predictor_seconds(model: Seq2Exp, batch: dict) -> float:
    watch = Stopwatch()
    features = batch["gene_features"] if model.config.gene_features else None
    with torch.inference_mode(), listening(watch):
        model(batch["sequence"], batch["signals"], features)
    return watch.seconds


def study(name: str, run: Path) -> list[list[str]]:
    model, _, settings = load_model(run, "cpu")
    windows = GeneWindows(open_store(settings["data"]["store"]), model.config.length, "test")
    batch_size = max(1, min(64, 200_000 // model.config.length))
    batch = collate([windows[i] for i in range(min(batch_size, len(windows)))])
    models = {t: with_threshold(model, t) for t in THRESHOLDS}
    seconds = {t: float("inf") for t in THRESHOLDS}
    for _ in range(ROUNDS):
        for t, m in models.items():
            seconds[t] = min(seconds[t], predictor_seconds(m, batch))
    rows, dense = [], None
    for t, m in models.items():
        genes = predict_genes(m, windows, batch_size=batch_size)
        with torch.inference_mode():
            kept = float((m(batch["sequence"], batch["signals"], *_features(m, batch)).mask >= t).float().mean())
        predicted = genes["prediction"].to_numpy()
        dense = predicted if dense is None else dense
        known = genes["target"].notna().to_numpy()
        pearson = np.corrcoef(predicted[known], genes["target"].to_numpy()[known])[0, 1]
        moved = np.abs(predicted - dense)
        rows.append(
            [name, f"{t:g}", f"{kept:.3f}", f"{moved.max():.4f}", f"{np.sqrt((moved**2).mean()):.4f}", f"{pearson:.3f}",
             f"{seconds[0.0] / seconds[t]:.2f}"]
        )  # fmt: skip
        Console().print(*rows[-1], highlight=False)
    return rows


def _features(model: Seq2Exp, batch: dict) -> list:
    return [batch["gene_features"]] if model.config.gene_features else []


def main() -> int:
    named = [argument.partition("=") for argument in sys.argv[1:]]
    if not named or not all(run for _, _, run in named):
        print(__doc__, file=sys.stderr)
        return 2
    table = [list(COLUMNS), ["---"] * len(COLUMNS)]
    for name, _, run in named:
        table += study(name, Path(run))
    lines = "\n".join(f"| {' | '.join(row)} |" for row in table)
    RESULTS.write_text(f"# Leaving out what the soft mask hardly selects\n\n{(__doc__ or '').strip()}\n\n{lines}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
