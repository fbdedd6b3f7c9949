"""The whole job on simulated input, and how well it went: simulate, build, train, evaluate, discover."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from seq2exp.data_tools import GeneWindows, SimulationParameters, Store, build_store, simulate
from seq2exp.files import atomic, write_json
from seq2exp.inference.discover import Locus, Selection, discover
from seq2exp.inference.evaluate import scores
from seq2exp.inference.overlap import ElementSet
from seq2exp.inference.plot import KnownElement, read_elements
from seq2exp.inference.recovery import rivals
from seq2exp.inference.ridge import binned_signals, fit_ridge
from seq2exp.inference.scores import Element, Recovery
from seq2exp.inference.survey import survey
from seq2exp.inference.windows import load_model, predict_genes
from seq2exp.training.presets import DISCOVERY, SIMULATION, demo_training
from seq2exp.training.trainer import train


@dataclass(frozen=True)
class DemoReport:
    """What the demonstration measured on the test genes.

    Attributes:
        expression: for "model", "ridge on binned signals" and "mean": mse and pearson (NaN for the mean).
        recovery: for the soft mask and every rival score: average precision over (bases, elements).
        prevalence: the same for a constant score.
        files: where the results are.
    """

    seed: int
    steps: int
    seconds_per_step: float
    expression: dict[str, dict[str, float]]
    recovery: dict[str, tuple[float, float]]
    prevalence: tuple[float, float]
    files: dict[str, Path]


def run_demo(
    out: Path, *, seed: int = 2, steps: int | None = None, genes: int | None = None, device: str = "auto",
    say: Callable[[str], None] = lambda _: None,
) -> DemoReport:  # fmt: skip
    """Run everything into ``out``, which must not hold an earlier demonstration.

    Args:
        seed: of the simulated genome and of the training.
        steps, genes: fewer than the preset makes a quick trial whose mask has not learned.
        say: told what is going on.
    """
    say("simulating a genome with known regulatory elements and building its store")
    store = simulated_store(out, seed=seed, **SIMULATION | ({"genes": genes} if genes else {}))
    simulated = out / "simulated"
    config = demo_training(out / "store.zarr", seed, steps)
    say(f"training {config.steps} steps")
    trained = train(config, out / "run", device=device)
    say("evaluating and discovering on the test genes")
    model, _, _ = load_model(out / "run", device)
    windows = {split: GeneWindows(store, model.config.length, split) for split in ("train", "valid", "test")}
    predictions = predict_genes(model, windows["test"], batch_size=64)
    with atomic(out / "predictions.csv") as partial:
        predictions.to_csv(partial, index=False)
    expression = {"model": scores(predictions)} | _baselines(windows, predictions)

    known = read_elements(simulated / "elements.bed")
    selection = Selection(**DISCOVERY)
    loci = list(discover(model, windows["test"], selection, batch_size=64))
    gene = _telling(loci, known)
    survey(
        out / "discovery", loci, windows["test"], selection, center=model.config.center, genes=[gene],
        known=[element for element in known if element.kind != "causal"], sets=[_causal(known)], report=True,
        settings={"Model": f"{out / 'run'}, seed {seed}", "Store": store.path, "Calls": selection},
    )  # fmt: skip
    recovery = recovery_of(loci, known, windows["test"].signal_names)
    report = DemoReport(
        seed=seed,
        steps=config.steps,
        seconds_per_step=trained.seconds_per_step,
        expression={name: {key: values[key] for key in ("mse", "pearson")} for name, values in expression.items()},
        recovery=recovery.average_precision(),
        prevalence=recovery.prevalence(),
        files={
            "run (config, checkpoints, best model, metrics.csv, TensorBoard)": out / "run",
            "predictions": out / "predictions.csv",
            "elements": out / "discovery" / "elements.bed",
            "mask": out / "discovery" / "mask.bw",
            "picture": out / "discovery" / f"{gene}.png",
            "report of a gene": out / "discovery" / "reports" / f"{gene}.html",
            "overlap with the true elements": out / "discovery" / "overlap.csv",
            "true elements": simulated / "truth.bed",
            "figures": out / "report.json",
        },
    )
    write_json(out / "report.json", asdict(report) | {"files": {k: str(v) for k, v in report.files.items()}})
    return report


def _causal(known: Sequence[KnownElement]) -> ElementSet:
    """The causal elements, each of its gene."""
    rows = [(e.chrom, e.start, e.end, e.gene_id, True) for e in known if e.kind == "causal"]
    table = pd.DataFrame(rows, columns=["chrom", "start", "end", "gene_id", "regulated"])
    return ElementSet("causal", table, by_gene=True)


def simulated_store(out: Path, **simulation: Any) -> Store:
    """Simulate into out/simulated with those settings and build out/store.zarr from it."""
    simulated = simulate(out / "simulated", **simulation)
    sizes = SimulationParameters(**simulation)
    half_window = sizes.length // sizes.contact_bin // 2
    return build_store(
        fasta=simulated / "genome.fa",
        track={name: simulated / f"{name}.bw" for name in ("H3K27ac", "DNase")},
        contacts=str(simulated / "contacts.tsv"),
        contact_reach=max(200, half_window + 4),
        peaks=simulated / "peaks.bed",
        genes=simulated / "genes.csv",
        target="target",
        split="split",
        out=out / "store.zarr",
    )


def _baselines(windows: dict[str, GeneWindows], predictions: pd.DataFrame) -> dict[str, dict[str, float]]:
    """Scores on the test genes of ridge regression on binned signals and of the training mean."""
    x, y = {}, {}
    for split, dataset in windows.items():
        items = [dataset[i] for i in range(len(dataset))]
        x[split] = np.stack([binned_signals(item["signals"].numpy()) for item in items])
        y[split] = np.array([float(item["target"]) for item in items])
    weights, means, intercept = fit_ridge(x["train"], y["train"], x["valid"], y["valid"])
    ridge = predictions.assign(prediction=(x["test"] - means) @ weights + intercept)
    return {
        "ridge on binned signals": scores(ridge),
        "mean": scores(predictions.assign(prediction=float(y["train"].mean()))) | {"pearson": float("nan")},
    }


def recovery_of(loci: Iterable[Locus], known: Sequence[KnownElement], signal_names: Sequence[str]) -> Recovery:
    """Soft mask, tracks, and tracks times contact against the causal elements, outside the centre."""
    by_gene: dict[str, list[KnownElement]] = {}
    for element in known:
        by_gene.setdefault(element.gene_id, []).append(element)
    recovery = Recovery()
    for locus in loci:
        elements = [
            Element(element.start - locus.start, element.end - locus.start, element.kind == "causal")
            for element in by_gene.get(locus.gene_id, [])
        ]
        recovery.add({"soft mask": locus.mask} | rivals(locus.signals, signal_names), elements, locus.candidates)
    return recovery


def _telling(loci: Iterable[Locus], known: Sequence[KnownElement]) -> str:
    """The gene whose window shows most: causal elements first, then decoys of both kinds."""
    kinds: dict[str, list[str]] = {}
    for element in known:
        kinds.setdefault(element.gene_id, []).append(element.kind)

    def told(locus: Locus) -> tuple[int, int]:
        counts = [kinds.get(locus.gene_id, []).count(kind) for kind in ("causal", "peak_only", "motif_only")]
        return min(counts), sum(counts)

    return max(loci, key=told).gene_id
