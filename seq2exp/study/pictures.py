"""The pictures of a study, drawn from its table, its results and the runs' metrics."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from seq2exp.files import atomic
from seq2exp.inference.recovery import LEARNED

from .conditions import DISCOVERY, NO_MASK_DEEP, PUBLISHED_SOFT, USUAL, VARIANTS
from .report import table_of
from .runner import Study

POINT, LINE, MUTED = "#2a6f97", "#d1495b", "#6b7075"
KINDS = {"causal": "#d1495b", "peak_only": "#2a6f97", "motif_only": "#4c956c"}
CURVES = (
    DISCOVERY,
    "mask at the input",
    "signal scale 10",
    "packed hard",
    "top fraction",
    PUBLISHED_SOFT,
    NO_MASK_DEEP,
)


def write_pictures(study: Study, folder: Path) -> None:
    """The pictures that report.py names, those of them for which there are runs."""
    table = table_of(study)
    if table.empty:
        return
    masked = table[table["variant"].isin(VARIANTS)]
    _points(masked[masked["condition"] == USUAL], "variant", folder / "simulated_variants.png")
    _points(masked[masked["variant"] == DISCOVERY], "condition", folder / "simulated_conditions.png")
    _profiles(study, folder / "simulated_profile.png")
    _curves(study, folder / "simulated_curves.png")


def _points(table: pd.DataFrame, column: str, path: Path) -> None:
    """A line per group, a point per run."""
    names = list(dict.fromkeys(table[column]))[::-1]
    if not names:
        return
    figure = _figure(8, 1.2 + 0.32 * len(names))
    axes = figure.add_subplot()
    for place, name in enumerate(names):
        ratios = table.loc[table[column] == name, "ratio"]
        axes.plot(ratios, [place] * len(ratios), "o", color=POINT, alpha=0.7, markeredgewidth=0)
        axes.plot([ratios.mean()] * 2, [place - 0.3, place + 0.3], color=POINT, linewidth=2)
    axes.axvline(LEARNED, color=LINE, linewidth=1.2)
    axes.text(LEARNED, len(names) - 0.4, " learned", color=LINE, fontsize=9, va="bottom")
    axes.axvline(1, color=MUTED, linewidth=0.8, linestyle=":")
    axes.set_yticks(range(len(names)), names)
    axes.set(ylim=(-0.6, len(names) - 0.4), xlabel="AUPRC of the mask over bases / that of the best track or product")
    _save(figure, path)


def _profiles(study: Study, path: Path) -> None:
    """The mean soft mask around elements, discovery beside the published soft settings."""
    shown = [name for name in (DISCOVERY, PUBLISHED_SOFT) if _profile(study, name)]
    if not shown:
        return
    figure = _figure(4.2 * len(shown), 3.2)
    panels = figure.subplots(1, len(shown), sharey=True, squeeze=False)[0]
    for variant, axes in zip(shown, panels, strict=True):
        for kind, curve in _profile(study, variant).items():
            x = np.arange(len(curve)) - len(curve) / 2
            axes.plot(x, curve, color=KINDS.get(kind, MUTED), label=kind.replace("_", " "))
        half = len(curve) / 6
        axes.axvspan(-half, half, color=MUTED, alpha=0.12, linewidth=0)
        axes.set(title=variant, xlabel="bases from the element's middle")
    panels[0].set(ylabel="mean soft mask", ylim=(0, None))
    panels[0].legend(frameon=False, fontsize=9)
    _save(figure, path)


def _profile(study: Study, variant: str) -> dict[str, Any]:
    """By kind of element, the mean over the data seeds of the usual genes."""
    runs = [r for r in study.runs if r.variant == variant and r.condition == USUAL and r.folder in study.results]
    profiles = [study.results[run.folder]["profile"] for run in runs]
    kinds = dict.fromkeys(kind for profile in profiles for kind in profile)
    return {kind: np.mean([profile[kind] for profile in profiles if kind in profile], axis=0) for kind in kinds}


def _curves(study: Study, path: Path) -> None:
    """Validation error and share let through by step, the mean over the seeds of some variants."""
    figure = _figure(9, 3.4)
    panels = {"valid_mse": "MSE, validation genes", "selected_fraction": "mean of the mask, training"}
    for (column, label), axes in zip(panels.items(), figure.subplots(1, 2), strict=True):
        for variant in CURVES:
            mean = _mean_curve(study, variant, column)
            if len(mean):
                axes.plot(mean.index, mean, label=variant, linewidth=1.5)
        axes.set(xlabel="training step", ylabel=label)
        if column == "valid_mse" and axes.lines:
            axes.set_yscale("log")
            axes.legend(frameon=False, fontsize=8)
    _save(figure, path)


def _mean_curve(study: Study, variant: str, column: str) -> pd.Series:
    runs: Sequence[Any] = [r for r in study.runs if r.variant == variant and r.condition == USUAL]
    done = [pd.read_csv(study.out / r.folder / "metrics.csv") for r in runs if r.folder in study.results]
    return pd.concat(done).groupby("step")[column].mean().dropna() if done else pd.Series(dtype=float)


def _figure(width: float, height: float) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Any, path: Path) -> None:
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    with atomic(path) as partial:
        figure.savefig(partial, dpi=150)
