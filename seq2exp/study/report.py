"""simulated.md and simulated.csv: what came of the runs, in tables and in words that follow from the numbers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from seq2exp.files import atomic
from seq2exp.inference.recovery import LEARNED

from .conditions import BASELINES, COMPARED, DISCOVERY, DISCOVERY_GROWN, NO_MASK_DEEP, USUAL, VARIANTS
from .runner import Study
from .words import conclusions, in_short, on_other_genes, targets

MODEL_SCORES = {"soft mask": "mask", "generator part": "generator", "mask x gradient": "gradient"}
NOTES = "simulated_notes.md"  # written by hand, beside the report
PICTURES = {
    "simulated_variants.png": "Every point is a run: AUPRC of the mask over bases, as a multiple of the best rival. "
    "Right of the red line the mask has learned.",
    "simulated_conditions.png": "The same for the discovery settings on other genes.",
    "simulated_profile.png": "Mean soft mask around the elements of the test genes (grey: the element).",
    "simulated_curves.png": "Training: error on the validation genes and mean of the mask, means over the seeds.",
}

DEFINITIONS = f"""\
- **AUPRC** of a score for the causal elements, over bases (b) or over candidate elements scored by their mean (e), on
  the test genes, outside the centre. The test genes chose nothing: the checkpoint is chosen on the validation genes,
  the settings were chosen on genomes of other seeds.
- **best rival**: the best of each track alone, their product, and these times contact. **learned**: the AUPRC of the
  mask over bases is at least {LEARNED} times that of the best rival.
- **mask**: the soft mask, alpha / (alpha + beta). **generator**: alpha_seq / (alpha_seq + beta_seq), its part that the
  generator says; a generator that reads the sequence alone cannot tell a causal element from a motif without a peak.
  **gradient**: mask x |d expression / d mask|.
- **top 10 %**: precision / recall of the tenth of a window's bases with the highest soft mask.
- **selected**: share of bases outside the centre that the mask lets through: the ones of a binary mask (threshold or
  top fraction); of a soft one, the bases whose mean is over 0.5.
- **no mask**: the predictor alone, on sequence and signals; or with as many layers as generator and
  predictor have together. **ridge**: on 64 bins of the signals.
- Figures are mean ± standard deviation over data seeds: each has a genome, a start and an order of its own.
  **s**: seconds of a run, on one thread, with simulating and scoring."""


_BASELINES = (
    "The models of `seq2exp.registry`, with as many channels and layers as generator and predictor have together, the "
    "same optimiser, rate and steps, and the same genomes. MACS3 peaks: the mask is where the peaks are, as a perfect "
    "caller gives them. ABC: the tenth of the bases with the highest score. Seq2Exp-retrain: the published soft model, "
    f"frozen, is the mask. Caduceus with signals is `{NO_MASK_DEEP}`."
)


def table_of(study: Study) -> pd.DataFrame:
    """A row per finished run, in the order of the run list."""
    return pd.DataFrame([_row(study.results[run.folder]) for run in study.runs if run.folder in study.results])


def _row(result: dict[str, Any]) -> dict[str, Any]:
    run = result["run"]
    row: dict[str, Any] = {name: run[name] for name in ("variant", "condition", "seed")}
    row |= {"steps": run["training"]["steps"], "best_step": result["best_step"], **result["expression"]}
    for score, name in MODEL_SCORES.items():
        row[f"{name}_bases"], row[f"{name}_elements"] = result["precision"].get(score, (np.nan, np.nan))
    has_mask = bool(result["precision"])
    row |= {"best_rival": result["best_rival"], "ratio": row["mask_bases"] / result["best_rival"]}
    row |= {"learned": float(result["learned"]) if has_mask else np.nan}
    row |= {name: result[name] for name in ("top_precision", "top_recall", "selected", "mean_mask")}
    for name, (bases, elements) in result["rivals"].items():
        row |= {f"{name}_bases": bases, f"{name}_elements": elements}
    row["prevalence_bases"], row["prevalence_elements"] = result["prevalence"]
    row |= {f"ridge_{name}": value for name, value in result["ridge"].items()}
    row |= {"seconds": result["seconds"], "seconds_per_step": result["seconds_per_step"]}
    return {name: np.nan if value is None else value for name, value in row.items()}


def write_report(study: Study, folder: Path) -> None:
    """simulated.csv, a row per run, and simulated.md."""
    table = table_of(study)
    with atomic(folder / "simulated.csv") as partial:
        table.to_csv(partial, index=False, float_format="%.6g")
    text = "\n\n".join(_sections(study, table, folder)) if len(table) else "# No run is done yet"
    with atomic(folder / "simulated.md") as partial:
        partial.write_text(text + "\n")


def _sections(study: Study, table: pd.DataFrame, folder: Path) -> list[str]:
    usual = table[table["condition"] == USUAL]
    masked = usual[usual["variant"].isin(VARIANTS)]
    baselines = usual[usual["variant"].isin(BASELINES)]
    sections = ["# What the mask finds, where the truth is known", _state(study, table), "## In short"]
    others = table[table["variant"] == DISCOVERY]
    elsewhere = on_other_genes(others[others["condition"] != USUAL], table[table["variant"] == DISCOVERY_GROWN])
    sections += [in_short(usual), elsewhere, _markdown(targets(usual))]
    sections += ["## What makes the mask learn: one factor at a time", _factors(masked), _markdown(variants(masked))]
    sections.append(conclusions(masked))
    sections += ["## Expression", _markdown(expression(usual.drop(baselines.index)))]
    if len(baselines):
        shown = usual[usual["variant"].isin(COMPARED) & usual["seed"].isin(baselines["seed"])]
        sections += [
            "## Baselines on the same genes",
            _BASELINES,
            _markdown(with_baselines(pd.concat([shown, baselines]))),
        ]
    sections += ["## Other genes, discovery settings", _markdown(by_condition(others))]
    rest = table[(table["condition"] != USUAL) & (table["variant"] != DISCOVERY)]
    if len(rest):
        sections += ["## Other genes, other settings", _markdown(by_condition(rest, with_variant=True))]
    sections += ["## Scores that need no training", _markdown(references(table))]
    if (folder / NOTES).exists():
        sections.append((folder / NOTES).read_text().strip())
    sections += [
        f"![{Path(name).stem.removeprefix('simulated_')}]({name})\n\n{says}"
        for name, says in PICTURES.items()
        if (folder / name).exists()
    ]
    return [part for part in sections if part] + ["## What the words mean", DEFINITIONS]


def _state(study: Study, table: pd.DataFrame) -> str:
    state = f"{len(table)} of {len(study.runs)} runs done"
    if study.failed:
        state += f", {len(study.failed)} failed: " + "; ".join(f"{n} ({why})" for n, why in study.failed.items())
    seconds = table["seconds"]
    return (
        f"Written by `seq2exp study`; every run is a row of `simulated.csv`. {state}; they took "
        f"{seconds.sum() / 60:.0f} minutes of one core, {seconds.median():.0f} s a run (median)."
    )


def variants(table: pd.DataFrame) -> pd.DataFrame:
    """How well the mask of each variant finds the causal elements."""
    return pd.DataFrame([{"": name, **_recovery(rows)} for name, rows in _groups(table, "variant")])


def by_condition(table: pd.DataFrame, with_variant: bool = False) -> pd.DataFrame:
    """The same for other genes."""
    rows = []
    for condition, of_condition in _groups(table, "condition"):
        for variant, group in _groups(of_condition, "variant"):
            name = f"{condition}, {variant}" if with_variant else condition
            mask = _recovery(group) if variant in VARIANTS else {"seeds": str(len(group))}
            rows.append({"": name, **mask, "R2": spread(group["r2"]), "ridge R2": spread(group["ridge_r2"])})
    return pd.DataFrame(rows).fillna("-")


def expression(table: pd.DataFrame) -> pd.DataFrame:
    """How well expression is predicted."""
    names = {"mse": "MSE", "mae": "MAE", "pearson": "Pearson", "r2": "R2"}
    rows = [
        {"": name, **{title: spread(group[key]) for key, title in names.items()}, "s": f"{group['seconds'].mean():.0f}"}
        for name, group in _groups(table, "variant")
    ]
    once = table.drop_duplicates("seed")
    ridge = {title: spread(once[f"ridge_{key}"]) for key, title in names.items()}
    return pd.DataFrame([*rows, {"": "ridge", **ridge, "s": "-"}])


def with_baselines(table: pd.DataFrame) -> pd.DataFrame:
    """Expression, and the mask where there is one."""
    rows = expression(table).set_index("")
    for name, group in _groups(table, "variant"):
        has_mask = group["mask_bases"].notna().all()
        rows.loc[name, "mask, b / e"] = (
            f"{_mean(group['mask_bases'])} / {_mean(group['mask_elements'])}" if has_mask else "-"
        )
        rows.loc[name, "selected"] = f"{spread(100 * group['selected'], 1)} %" if has_mask else "-"
    return rows.fillna("-").reset_index()


def references(table: pd.DataFrame) -> pd.DataFrame:
    """Average precision of tracks and products, by condition, over bases / elements."""
    reserved = {f"{name}_bases" for name in MODEL_SCORES.values()} | {"prevalence_bases"}
    names = [column.removesuffix("_bases") for column in table if column.endswith("_bases") and column not in reserved]
    rows = []
    for condition, group in _groups(table, "condition"):
        once = group.drop_duplicates("seed")
        columns = {name: f"{_mean(once[f'{name}_bases'])} / {_mean(once[f'{name}_elements'])}" for name in names}
        prevalence = f"{_mean(once['prevalence_bases'])} / {_mean(once['prevalence_elements'])}"
        rows.append({"": condition, **columns, "share of true ones": prevalence})
    return pd.DataFrame(rows)


def _recovery(group: pd.DataFrame) -> dict[str, str]:
    pairs = {f"{name}, b / e": (f"{name}_bases", f"{name}_elements") for name in ("generator", "gradient")}
    return {
        "learned": f"{int(group['learned'].sum())} of {len(group)}",
        "mask, b": spread(group["mask_bases"]),
        "times best rival": spread(group["ratio"], 2),
        "mask, e": spread(group["mask_elements"]),
        **{title: f"{_mean(group[b])} / {_mean(group[e])}" for title, (b, e) in pairs.items()},
        "top 10 %": f"{_mean(group['top_precision'])} / {_mean(group['top_recall'])}",
        "selected": spread(100 * group["selected"], 1) + " %",
    }


def _factors(masked: pd.DataFrame) -> str:
    """What each name in the table stands for."""
    steps = masked.loc[masked["variant"] == DISCOVERY, "steps"].max()
    says = (
        "Every line is the discovery settings with one thing changed, those called published with all; sizes, "
        f"optimiser, rate and steps ({steps:,}) are the same everywhere else, those of `seq2exp/training/presets.py`."
    )
    lines = [says]
    lines += [f"- **{name}**: {variant.asks}" for name, variant in VARIANTS.items() if name in set(masked["variant"])]
    return "\n".join([lines[0], "", *lines[1:]])


def spread(values: pd.Series, digits: int = 3) -> str:
    """Mean ± standard deviation; the mean alone of one value."""
    mean = f"{values.mean():.{digits}f}"
    return mean if len(values) < 2 else f"{mean} ± {values.std():.{digits}f}"


def _mean(values: pd.Series) -> str:
    return f"{values.mean():.3f}"


def _groups(table: pd.DataFrame, column: str) -> list[tuple[str, pd.DataFrame]]:
    """In order of appearance."""
    return [(str(name), group) for name, group in table.groupby(column, sort=False)]


def _markdown(table: pd.DataFrame) -> str:
    lines: list[Sequence[str]] = [list(table.columns), ["---"] * len(table.columns)]
    lines += [[str(value) for value in row] for row in table.itertuples(index=False)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
