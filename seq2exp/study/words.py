"""What the numbers of a study say: the targets, and which factors matter."""

from __future__ import annotations

import pandas as pd

from seq2exp.inference.recovery import LEARNED

from .conditions import CONDITIONS, DISCOVERY, DISCOVERY_LONG, NO_MASK_DEEP, NO_MASK_LONG, PUBLISHED_SOFT

ELEMENTS, LOST, SELECTED = 0.9, 0.02, 0.15  # the targets beside LEARNED
SAME = 0.05  # AUPRC over bases: a smaller difference is not spoken of


def in_short(usual: pd.DataFrame) -> str:
    """The discovery settings in one paragraph."""
    rows = usual[usual["variant"] == DISCOVERY]
    if rows.empty:
        return "No run of the discovery settings is done."
    published = usual[usual["variant"] == PUBLISHED_SOFT]
    text = (
        f"Under the discovery settings the mask learns which elements are causal on {_share(rows)} data seeds: AUPRC "
        f"{rows['mask_bases'].mean():.2f} over bases, {rows['ratio'].mean():.2f} times the best rival (lowest "
        f"{rows['ratio'].min():.2f}), and {rows['mask_elements'].mean():.2f} over elements (lowest "
        f"{rows['mask_elements'].min():.2f}); it predicts expression with R2 {rows['r2'].mean():.3f} and lets "
        f"{100 * rows['selected'].mean():.1f} % of the bases through."
    )
    if len(published):
        text += (
            f" Under the published soft settings it learns on {_share(published)}: "
            f"{published['ratio'].mean():.2f} times the best rival, {published['mask_elements'].mean():.2f} over "
            f"elements, R2 {published['r2'].mean():.3f}."
        )
    return text


def on_other_genes(others: pd.DataFrame, grown: pd.DataFrame) -> str:
    """The discovery settings on the other conditions, in one paragraph; nothing where none is done.

    grown: runs that start from shorter windows.
    """
    if others.empty:
        return ""
    weakest = others.loc[others["ratio"].idxmin()]
    missed = list(dict.fromkeys(others.loc[others["learned"] < 1, "condition"]))
    text = (
        f"On other genes (other motifs, decoys, contacts, noise, numbers of genes, windows of up to "
        f"{_longest(others['condition'])} bases) it learns in {_share(others)} runs"
    )
    text += f", not on: {', '.join(missed)}" if missed else ""
    text += (
        f"; times best rival: median {others['ratio'].median():.2f}, lowest {weakest['ratio']:.2f} "
        f"({weakest['condition']}). R2 is {others['r2'].min():.3f} to {others['r2'].max():.3f}, of ridge regression "
        f"on the signals {others['ridge_r2'].min():.3f} to {others['ridge_r2'].max():.3f}."
    )
    for condition, rows in grown.groupby("condition"):
        text += (
            f" With {condition} and the weights of shorter windows to start from it learns in {_share(rows)} runs: "
            f"{rows['ratio'].mean():.2f} times the best rival, {rows['mask_elements'].mean():.2f} over elements, R2 "
            f"{rows['r2'].mean():.3f}."
        )
    return text


def _longest(conditions: pd.Series) -> str:
    lengths = [int(CONDITIONS[name].get("length", 512)) for name in conditions]
    return f"{max(lengths):,}"


def targets(usual: pd.DataFrame) -> pd.DataFrame:
    """Each target on each data seed of the discovery settings."""
    ours = _by_seed(usual, DISCOVERY)
    measured = [
        (f"AUPRC over bases at least {LEARNED} times the best rival", ours["ratio"], ours["ratio"] >= LEARNED, 2),
        (f"AUPRC over elements at least {ELEMENTS}", ours["mask_elements"], ours["mask_elements"] >= ELEMENTS, 3),
        (f"selected (mean mask over 0.5) under {SELECTED:.0%}", ours["selected"], ours["selected"] < SELECTED, 3),
    ]
    for variant, bare in ((DISCOVERY, NO_MASK_DEEP), (DISCOVERY_LONG, NO_MASK_LONG)):
        with_mask = _by_seed(usual, variant)
        gained = (with_mask["r2"] - _by_seed(usual, bare)["r2"]).dropna()
        if len(gained):
            steps = f"{with_mask['steps'].iloc[0]:,} steps each"
            name = f"R2 at most {LOST} below that of as many layers without a mask, {steps} (shown: difference)"
            measured.append((name, gained, gained >= -LOST, 3))
    return pd.DataFrame(
        {
            "target": name,
            **{f"seed {seed}": f"{values[seed]:.{digits}f}" if seed in values else "-" for seed in ours.index},
            "met": f"{int(met.sum())} of {len(met)}",
        }
        for name, values, met, digits in measured
    )


def _by_seed(table: pd.DataFrame, variant: str) -> pd.DataFrame:
    return table[table["variant"] == variant].set_index("seed")


def conclusions(masked: pd.DataFrame) -> str:
    """One sentence for each variant, compared with the discovery settings on the same data seeds."""
    base = masked[masked["variant"] == DISCOVERY].set_index("seed")
    lines = []
    for variant, rows in masked[masked["variant"] != DISCOVERY].groupby("variant", sort=False):
        own = rows.set_index("seed")
        both = own.index.intersection(base.index)
        if len(both):
            lines.append(f"- **{variant}**: {_verdict(own.loc[both], base.loc[both])}")
    return "\n".join(lines)


def _verdict(own: pd.DataFrame, base: pd.DataFrame) -> str:
    bases, elements, r2 = (own[name] - base[name] for name in ("mask_bases", "mask_elements", "r2"))
    if own["learned"].sum() < base["learned"].sum():
        says = "the mask learns less reliably"
    elif own["learned"].sum() > base["learned"].sum():
        says = "the mask learns more reliably"
    elif (bases <= -SAME).all():
        says = "the mask finds less, on every seed"
    elif (bases >= SAME).all():
        says = "the mask finds more, on every seed"
    else:
        says = "no difference that these seeds could show"
    return (
        f"{says} (learned on {_share(own)}, discovery {_share(base)}; AUPRC {bases.mean():+.3f} over bases, "
        f"{elements.mean():+.3f} over elements, R2 {r2.mean():+.3f})."
    )


def _share(rows: pd.DataFrame) -> str:
    return f"{int(rows['learned'].sum())} of {len(rows)}"
