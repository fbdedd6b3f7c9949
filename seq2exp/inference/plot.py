"""The picture of one locus: gene, tracks, contacts, mask, discovered and known elements."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from seq2exp.errors import UserError
from seq2exp.files import atomic

from .discover import Locus, Selection
from .overlap import ElementSet

COLORS = ("#2a6f97", "#4c956c", "#8d6a9f", "#b08968")  # tracks, in turn
MASK, KNOWN, DECOY, INK, MUTED = "#d1495b", "#2b2d42", "#9aa0a6", "#222222", "#6b7075"
RANKED = 5  # elements that get their rank in the picture
STYLE: Any = {
    "font.size": 9, "axes.edgecolor": MUTED, "axes.linewidth": 0.6, "text.color": INK, "axes.labelcolor": INK,
    "xtick.color": MUTED, "ytick.color": MUTED, "axes.spines.top": False, "axes.spines.right": False,
    "font.family": "DejaVu Sans",
}  # fmt: skip
POINTS = 2_000  # per curve; longer windows are drawn as maxima of equal bins


@dataclass(frozen=True)
class KnownElement:
    """An element from a BED file: 0-based half-open, ``kind`` is "" when the file has no such column.

    Those that are known not to act are drawn faint.
    """

    chrom: str
    start: int
    end: int
    gene_id: str
    kind: str
    faint: bool = False


def elements_near(elements: ElementSet, locus: Locus) -> list[KnownElement]:
    """The elements of a set in a window, of those by gene the gene's own; the kind is the set's name."""
    return [
        KnownElement(chrom, start, end, gene, elements.name if acts else f"{elements.name}: no effect", not acts)
        for chrom, start, end, gene, acts in elements.near(locus).itertuples(index=False)
    ]


def read_elements(path: Path) -> list[KnownElement]:
    """Elements of a BED file with at least three columns; column 4 is the gene, column 5 a kind unless it is a number.

    Raises:
        UserError: no such file, or a line that is not BED.
    """
    elements = []
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {getattr(error, 'strerror', error)}") from None
    for number, line in enumerate(lines, 1):
        fields = line.split("\t")
        if not line.strip() or line.startswith(("#", "track", "browser")):
            continue
        try:
            start, end = int(fields[1]), int(fields[2])
        except (IndexError, ValueError):
            raise UserError(f"{path}: line {number} is not BED (chromosome, start, end, tab-separated)") from None
        gene, kind = [*fields[3:5], "", ""][:2]
        kind = "" if _number(kind) else kind
        elements.append(KnownElement(fields[0], start, end, gene, kind, faint=kind not in ("", "causal")))
    return elements


def plot_locus(
    path: Path, locus: Locus, signal_names: Sequence[str], center: int, selection: Selection,
    known: Sequence[KnownElement] = (),
) -> None:  # fmt: skip
    """Draw one locus as PNG, atomically."""
    with atomic(path) as partial:
        partial.write_bytes(locus_png(locus, signal_names, center, selection, known))


def locus_png(
    locus: Locus, signal_names: Sequence[str], center: int, selection: Selection,
    known: Sequence[KnownElement] = (), title: bool = True,
) -> bytes:  # fmt: skip
    """The picture of a locus as a PNG file."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    here = [k for k in known if k.chrom == locus.chrom and k.end > locus.start and k.start < locus.end]
    here = [k for k in here if k.gene_id in ("", ".", locus.gene_id)]
    kinds = sorted({k.kind for k in here}, key=lambda kind: (kind != "causal", kind))
    rows = 1 + len(kinds)  # discovered, then one line per kind of known element
    heights = [0.45, *[1.0] * len(signal_names), 1.35, 0.34 * rows + 0.1]
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(
            len(heights), 1, figsize=(10, 0.75 * sum(heights) + 1.1), sharex=True, height_ratios=heights, squeeze=False
        )
        gene, *tracks, mask, elements = axes[:, 0]
        x, edges = _bins(locus)
        for i, (axis, name) in enumerate(zip(tracks, signal_names, strict=True)):
            label = "contacts\nlog10(1 + c)" if name == "contacts" else name
            _filled(axis, x, _maxima(locus.signals[:, i], edges), COLORS[i % len(COLORS)], label)
        _filled(mask, x, _maxima(locus.mask, edges), MASK, "soft mask")
        mask.set_ylim(0, 1.2)  # of 1, with room for the ranks
        mask.set_yticks([0, 0.5, 1])
        cut = selection.cut(locus.mask[locus.candidates])
        mask.axhline(cut, color=INK, lw=0.7, ls=(0, (4, 3)))
        said = f"≥ {cut:.2f}" if selection.threshold is not None else f"top {selection.top_fraction:.0%}\n≥ {cut:.2f}"
        text = {"textcoords": "offset points", "va": "center", "fontsize": 8}
        mask.annotate(said, (1, cut), (4, 0), xycoords=("axes fraction", "data"), **text)
        _ranks(mask, locus)
        _gene(gene, locus)
        _elements(elements, locus, here, kinds)
        middle = locus.start + len(locus.mask) / 2
        for axis in [*tracks, mask, elements]:
            axis.axvspan(middle - center / 2, middle + center / 2, color="#000000", alpha=0.06, lw=0)
        elements.set_xlim(locus.start, locus.end)
        elements.xaxis.set_major_formatter(_position_label(locus))
        elements.set_xlabel(f"position on {locus.chrom} ({'kb' if _kilobases(locus) else 'bp'})")
        measured = "not measured" if np.isnan(locus.target) else f"measured {locus.target:.2f}"
        if title:
            figure.suptitle(
                f"{locus.label}   {locus.chrom}:{max(0, locus.start) + 1:,}-{locus.end:,}\n"
                f"expression ({locus.target_name}): predicted {locus.prediction:.2f}, {measured}",
                x=0.13, ha="left", y=0.985, fontsize=10, weight="bold",
            )  # fmt: skip
        height = figure.get_figheight()
        top = 1 - (0.5 if title else 0.08) / height
        figure.subplots_adjust(left=0.13, right=0.94, hspace=0.16, top=top, bottom=0.5 / height)
        figure.align_ylabels([*tracks, mask])
        file = BytesIO()
        figure.savefig(file, format="png", dpi=150)
        plt.close(figure)
    return file.getvalue()


def overlap_png(table: pd.DataFrame) -> bytes:
    """The share of called elements that overlap each set, beside that of shuffled ones, as a PNG file.

    Args:
        table: what ``Enrichment.table`` gives.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    table = table[table["measure"] == "elements"]
    names = list(dict.fromkeys(table["set"]))
    with plt.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=(10, 0.62 * len(names) + 1.0), layout="constrained")
        for side, (caller, color) in zip((-0.2, 0.2), (("mask", MASK), ("tracks", COLORS[0])), strict=True):
            rows = table[table["calls"] == caller]
            places = np.array([names.index(name) for name in rows["set"]]) + side
            axis.barh(places, rows["fraction"], height=0.34, color=color, label=f"called by the {caller}")
            spread: Any = {"fmt": "D", "color": INK, "markersize": 3.5, "elinewidth": 1, "capsize": 2}
            label = "shuffled, mean ± 2 sd" if caller == "tracks" else None
            axis.errorbar(rows["shuffled_fraction"], places, xerr=2 * rows["shuffled_sd"], label=label, **spread)
            for place, fraction, fold in zip(places, rows["fraction"], rows["fold"], strict=True):
                if fold == fold:
                    at: Any = {"textcoords": "offset points", "va": "center", "fontsize": 8}
                    axis.annotate(f"{fold:.1f}x", (max(fraction, 0), place), (5, 0), **at)
        axis.set_yticks(range(len(names)), names)
        axis.tick_params(axis="y", length=0, labelcolor=INK)
        axis.set_ylim(len(names) - 0.5, -0.5)
        axis.set_xlim(0, min(1.05, 1.15 * max(0.05, np.nanmax([0.0, *table["fraction"]]))))
        axis.xaxis.set_major_formatter(lambda x, _: f"{x:.0%}")
        axis.set_xlabel("called elements that share a base with the set")
        figure.legend(loc="outside upper left", ncols=3, frameon=False, fontsize=8)
        file = BytesIO()
        figure.savefig(file, format="png", dpi=150)
        plt.close(figure)
    return file.getvalue()


def _gene(axis: Any, locus: Locus) -> None:
    """The gene's name at its TSS and the direction of transcription."""
    axis.set_ylim(0, 1)
    axis.axis("off")
    reach = len(locus.mask) * 0.05 * (1 if locus.strand != "-" else -1)
    axis.plot([locus.start, locus.end], [0.12, 0.12], color=MUTED, lw=0.8)
    axis.plot([locus.tss, locus.tss], [0.12, 0.72], color=INK, lw=1.3)
    if locus.strand in ("+", "-"):
        arrow = {"arrowstyle": "-|>", "color": INK, "lw": 1.3, "shrinkA": 0, "shrinkB": 0}
        axis.annotate("", (locus.tss + reach, 0.72), (locus.tss, 0.72), arrowprops=arrow)
    side = "right" if reach > 0 else "left"
    text = {"textcoords": "offset points", "ha": side, "va": "center", "fontsize": 9}
    axis.annotate(f"{locus.label} TSS", (locus.tss, 0.5), (-6 if reach > 0 else 6, 0), **text)


def _ranks(axis: Any, locus: Locus) -> None:
    """The ranks of the best elements above the mask, where they have room beside a better one's."""
    text: Any = {"ha": "center", "va": "center", "fontsize": 7.5, "weight": "bold"}
    taken: list[float] = []
    for rank, region in enumerate(sorted(locus.regions, key=lambda region: -region.mask)[:RANKED], 1):
        middle = (region.start + region.end) / 2
        if all(abs(middle - other) > 0.012 * len(locus.mask) for other in taken):
            axis.text(middle, 1.1, str(rank), color=MASK, **text)
            taken.append(middle)


def _elements(axis: Any, locus: Locus, known: list[KnownElement], kinds: list[str]) -> None:
    """One line of bars for what was discovered, one for each kind of known element."""
    lines = ["discovered", *[(kind or "known").replace("_", " ") for kind in kinds]]
    spans = [[(r.start, r.end - r.start) for r in locus.regions]]
    spans += [[(k.start, k.end - k.start) for k in known if k.kind == kind] for kind in kinds]
    faint = {k.kind for k in known if k.faint}
    colors = [MASK, *[DECOY if kind in faint else KNOWN for kind in kinds]]
    for row, (bars, color) in enumerate(zip(spans, colors, strict=True)):
        axis.broken_barh(
            bars, (row - 0.3, 0.6), facecolors=color, edgecolors=color if _kilobases(locus) else "white", lw=0.3
        )
    axis.set_ylim(len(lines) - 0.4, -0.6)
    axis.set_yticks(range(len(lines)), lines)
    axis.tick_params(axis="y", length=0, labelcolor=INK)
    axis.spines["left"].set_visible(False)


def _filled(axis: Any, x: NDArray[Any], values: NDArray[Any], color: str, name: str) -> None:
    axis.fill_between(x, values, color=color, lw=0, step="mid", alpha=0.9)
    axis.set_ylim(0, max(1e-6, float(values.max()) * 1.08))
    axis.set_ylabel(name, rotation=0, ha="right", va="center", labelpad=8)
    axis.locator_params(axis="y", nbins=3)
    axis.tick_params(axis="y", labelsize=7.5)
    axis.tick_params(axis="x", length=0)


def _bins(locus: Locus) -> tuple[NDArray[Any], NDArray[Any]]:
    """Positions of the drawn points and the first base of each."""
    length = len(locus.mask)
    edges = np.linspace(0, length, min(length, POINTS) + 1).astype(int)[:-1]
    return locus.start + edges + length / len(edges) / 2, edges


def _maxima(values: NDArray[np.float32], edges: NDArray[Any]) -> NDArray[Any]:
    return np.maximum.reduceat(values, edges)


def _kilobases(locus: Locus) -> bool:
    return len(locus.mask) > 10_000


def _position_label(locus: Locus) -> Any:
    from matplotlib.ticker import FuncFormatter

    return FuncFormatter(lambda x, _: f"{x / 1000:,.0f}" if _kilobases(locus) else f"{x:,.0f}")


def _number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return text in (".", "+", "-")
    return True
