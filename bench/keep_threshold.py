"""What `keep_threshold` costs and saves: predictions of trained soft models with bases below a threshold left out.

    python bench/keep_threshold.py simulated=runs/demo/run hg38=runs/hg38   # writes bench/results/keep_threshold.md

Each argument is a name and a run of `seq2exp train`. For the genes of its test split the mask is made once, and the
predictor then runs under it with each threshold in turn: the share of bases kept, how far predictions move from those
of the dense predictor (largest and root mean square, in units of the target), their Pearson correlation with the
target, and the time of the predictor.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from torch.utils.data import DataLoader

from seq2exp import Seq2Exp
from seq2exp.data_tools import GeneWindows, collate, open_store
from seq2exp.inference.windows import load_model

THRESHOLDS = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
BASES = 200_000  # at a time
COLUMNS = ("model", "threshold", "kept", "largest difference", "rms difference", "Pearson", "dense time / time")
RESULTS = Path(__file__).parent / "results" / "keep_threshold.md"


def with_threshold(model: Seq2Exp, threshold: float) -> Seq2Exp:
    other = Seq2Exp(model.config.replace(keep_threshold=threshold)).eval()
    other.load_state_dict(model.state_dict())
    return other


def predictions(run: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """By threshold and gene what is predicted, by threshold the share kept and the seconds, by gene the target."""
    model, _, settings = load_model(run, "cpu")
    windows = GeneWindows(open_store(settings["data"]["store"]), model.config.length, "test")
    models = [with_threshold(model, t) for t in THRESHOLDS]
    predicted, kept, seconds, targets = [], [], np.zeros(len(models)), []
    with torch.inference_mode():
        for batch in DataLoader(windows, max(1, BASES // model.config.length), collate_fn=collate):
            inputs, features = (batch["sequence"], batch["signals"]), batch["gene_features"]
            features = features if model.config.gene_features else None
            mask = model(*inputs, features).mask
            if not predicted:  # the first calls would be slower
                for m in models:
                    m.predict(*inputs, mask, features)
            kept.append([(mask >= t).float().mean(1).numpy() for t in THRESHOLDS])
            targets.append(batch["target"].numpy())
            predicted.append([])
            for i, m in enumerate(models):
                start = time.perf_counter()
                predicted[-1].append(m.predict(*inputs, mask, features).numpy())
                seconds[i] += time.perf_counter() - start
    return np.hstack(predicted), np.hstack(kept).mean(1), seconds, np.hstack(targets)


def study(name: str, run: Path) -> list[list[str]]:
    predicted, kept, seconds, target = predictions(run)
    rows = []
    for i, t in enumerate(THRESHOLDS):
        moved = np.abs(predicted[i] - predicted[0])
        pearson = np.corrcoef(predicted[i], target)[0, 1]
        rows.append(
            [name, f"{t:g}", f"{kept[i]:.3f}", f"{moved.max():.4f}", f"{np.sqrt((moved**2).mean()):.4f}",
             f"{pearson:.3f}", f"{seconds[0] / seconds[i]:.2f}"]
        )  # fmt: skip
        Console().print(*rows[-1], highlight=False)
    return rows


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
