"""Whether both forms learn the same: loss curves on simulated data over several seeds."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd

from seq2exp.baselines import PublishedForm
from seq2exp.demo import simulated_store
from seq2exp.files import atomic
from seq2exp.inference.windows import Model
from seq2exp.training import TrainConfig, Trainer
from seq2exp.training.presets import SIMULATION, TRAINING

from .setting import MODES

POINTS = 20  # of a curve
FORMS = ("ours", "published")
COLORS = {"ours": "#2a6f97", "published": "#d1495b"}
SIZES = ("length", "center", "d_model", "generator_layers", "predictor_layers", "d_state")  # those of the demonstration


@dataclass(frozen=True)
class Learned:
    """curves: form, seed, step, loss (mean since the row before), valid_mse. final: of every form the last loss of each
    seed."""

    curves: pd.DataFrame
    final: dict[str, list[float]]

    @property
    def difference(self) -> float:
        """Of the mean final losses, published less ours."""
        return float(np.mean(self.final["published"]) - np.mean(self.final["ours"]))

    @property
    def error(self) -> float:
        """Standard error of that difference, from the spread of the seeds."""
        return float(np.sqrt(sum(np.var(values, ddof=1) / len(values) for values in self.final.values())))

    @property
    def same(self) -> bool:
        return abs(self.difference) <= 2 * self.error

    def as_json(self) -> dict[str, Any]:
        return {
            "final_loss": self.final, "difference": self.difference, "standard_error": self.error, "same": self.same,
        }  # fmt: skip

    def sentence(self) -> str:
        means = ", ".join(f"{form} {np.mean(self.final[form]):.4f}" for form in FORMS)
        return (
            f"Final loss over {len(self.final['ours'])} seeds: {means}; they differ by {abs(self.difference):.4f}, "
            f"{'within' if self.same else 'MORE THAN'} two standard errors of the seeds (2 x {self.error:.4f})."
        )


class PublishedTrainer(Trainer):
    """Trains the published form, from the weights from which ours starts."""

    def _new_model(self) -> Model:
        return PublishedForm(super()._new_model())  # type: ignore[arg-type]


def learn(
    mode: str, seeds: int, steps: int, genes: int | None, device: str, say: Callable[[str], None] = lambda _: None
) -> Learned:
    """Train both forms on one simulated genome, each with the same seeds: 2, 22, 222, ..."""
    rows: list[dict[str, float | str]] = []
    with TemporaryDirectory(prefix="seq2exp-bench-") as name:
        folder = Path(name)
        say("simulating a genome")
        store = simulated_store(folder, seed=2, **SIMULATION | ({"genes": genes} if genes else {}))
        for seed in (int("2" * (i + 1)) for i in range(seeds)):
            for form, trainer in zip(FORMS, (Trainer, PublishedTrainer), strict=True):
                say(f"training {steps} steps: seed {seed}, {form}")
                run = folder / f"{form}-{seed}"
                trainer(_config(store.path, mode, seed, steps), run, device=device, quiet=True).fit()
                rows += [{"form": form, "seed": seed, **row} for row in _metrics(run)]
    curves = pd.DataFrame(rows)
    last = curves[curves["step"] == steps]
    return Learned(curves, {form: last.loc[last["form"] == form, "loss"].tolist() for form in FORMS})


def _config(store: Path, mode: str, seed: int, steps: int) -> TrainConfig:
    """The sizes and the rate of the demonstration with the published mask and loss."""
    model = {name: TRAINING["model"][name] for name in (*SIZES, "signal_weights", "signal_betas")}
    every = max(1, steps // POINTS)
    return TrainConfig.model_validate(
        {
            "model": {"preset": mode, **MODES[mode], **model}, "data": {"store": store, "batch_size": 8},
            "optimizer": TRAINING["optimizer"], "schedule": TRAINING["schedule"], "precision": "fp32", "steps": steps,
            "seed": seed, "log_every": every, "evaluate_every": steps, "checkpoint_every": steps,
        }
    )  # fmt: skip


def _metrics(run: Path) -> list[dict[str, float]]:
    with (run / "metrics.csv").open(newline="") as file:
        return [
            {"step": int(row["step"]), "loss": float(row["loss"]), "valid_mse": float(row["valid_mse"] or "nan")}
            for row in csv.DictReader(file)
        ]


def write_curves(learned: Learned, out: Path) -> None:
    """curves.csv, and curves.png: the mean over the seeds, and a band from the lowest to the highest."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with atomic(out / "curves.csv") as partial:
        learned.curves.to_csv(partial, index=False)
    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for form in FORMS:
        by_step = learned.curves[learned.curves["form"] == form].groupby("step")["loss"]
        mean = by_step.mean()
        axes.plot(mean.index, mean, color=COLORS[form], label=form)
        axes.fill_between(mean.index, by_step.min(), by_step.max(), color=COLORS[form], alpha=0.2, linewidth=0)
    axes.set(xlabel="training step", ylabel="training loss", yscale="log")
    axes.set_title(f"mean and range over {len(learned.final['ours'])} seeds, simulated genes", fontsize=10)
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    with atomic(out / "curves.png") as partial:
        figure.savefig(partial, dpi=150)
