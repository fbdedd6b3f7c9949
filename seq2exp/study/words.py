"""What the numbers of a study say: the targets, and which factors matter."""

from __future__ import annotations

import pandas as pd

from seq2exp.inference.recovery import LEARNED

from .conditions import BARE, DISCOVERY

ELEMENTS, LOST, SELECTED = 0.9, 0.02, 0.15  # the targets beside LEARNED
SAME = 0.05  # AUPRC over bases: a smaller difference is not spoken of


def in_short(usual: pd.DataFrame) -> str:
    """The discovery settings in one paragraph."""
    rows = usual[usual["variant"] == DISCOVERY]
    if rows.empty:
        return "No run of the discovery settings is done."
    published = usual[usual["variant"] == "published soft"]
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


def targets(usual: pd.DataFrame) -> pd.DataFrame:
    """Each target on each data seed of the discovery settings."""
    rows = usual[usual["variant"] == DISCOVERY].set_index("seed")
    bare = usual[usual["variant"].isin(BARE)].groupby("seed")["r2"].max()
    measured = {
        f"AUPRC over bases at least {LEARNED} times the best rival": (rows["ratio"], rows["ratio"] >= LEARNED, 2),
        f"AUPRC over elements at least {ELEMENTS}": (rows["mask_elements"], rows["mask_elements"] >= ELEMENTS, 3),
        f"selected (mean mask over 0.5) under {SELECTED:.0%}": (rows["selected"], rows["selected"] < SELECTED, 3),
    }
    lost = (bare - rows["r2"]).dropna()
    measured[f"R2 at most {LOST} below the better model without a mask (shown: difference)"] = (-lost, lost <= LOST, 3)
    return pd.DataFrame(
        {
            "target": name,
            **{f"seed {seed}": f"{values[seed]:.{digits}f}" if seed in values else "-" for seed in rows.index},
            "met": f"{int(met.sum())} of {len(met)}",
        }
        for name, (values, met, digits) in measured.items()
    )


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
