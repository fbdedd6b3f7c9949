"""Whether discovered elements overlap a set more often than shuffled ones, and what calls by the tracks alone reach."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from seq2exp.seeds import derive_seed

from .discover import Locus, Selection, runs
from .overlap import Cover, ElementSet

CALLERS = ("mask", "tracks")


def activity(locus: Locus, signal_names: Sequence[str]) -> NDArray[np.float32]:
    """(L,): the geometric mean of the tracks without the contacts, as in the Activity-by-Contact model."""
    columns = [i for i, name in enumerate(signal_names) if name != "contacts"]
    if not columns:
        return np.zeros(len(locus.mask), dtype=np.float32)
    product = np.prod(locus.signals[:, columns].astype(np.float64), axis=1)
    return np.power(product, 1 / len(columns)).astype(np.float32)


def shuffled_starts(rng: np.random.Generator, segments: NDArray[np.int64], width: int, count: int) -> NDArray[np.int64]:
    """(count,): random starts for a span of a width, each place where it lies wholly inside a segment as likely.

    Args:
        segments: (n, 2), half-open, at least one of them of that width.
    """
    places = np.maximum(segments[:, 1] - segments[:, 0] - width + 1, 0)
    ends = np.cumsum(places)
    drawn = rng.integers(ends[-1], size=count)
    segment = np.searchsorted(ends, drawn, side="right")
    return segments[segment, 0] + drawn - (ends - places)[segment]


class Enrichment:
    """Collects the calls of many windows, and compares their overlap with sets to that of shuffled calls.

    A shuffled call has the width of the called one and lies in the same gene's window, anywhere wholly on candidate
    bases: not in the centre, where the mask always is 1, nor in excluded or unknown bases. Each is placed on its own,
    so shuffled calls may overlap. Where several genes' windows overlap and their calls share bases, the one with the
    highest score counts and the others do not, or the same place would be counted several times.

    The calls "tracks" cover about as many bases of each window: those of highest activity, merged and filtered alike.
    """

    def __init__(self, selection: Selection, signal_names: Sequence[str], shuffles: int = 1_000, seed: int = 2) -> None:
        self.selection, self.signal_names = selection, signal_names
        self.shuffles, self.seed = shuffles, seed
        self.segments: dict[str, NDArray[np.int64]] = {}
        self._places: dict[str, str] = {}
        self._calls: dict[str, list[tuple[Any, ...]]] = {caller: [] for caller in CALLERS}

    def add(self, locus: Locus) -> None:
        """One window and its calls."""
        self.segments[locus.gene_id] = locus.start + runs(locus.candidates)
        self._places[locus.gene_id] = locus.chrom
        self._calls["mask"] += [(r.chrom, r.start, r.end, r.gene_id, r.mask) for r in locus.regions]
        values = activity(locus, self.signal_names)
        active = locus.candidates & (values > 0)
        for a, b in self._as_wide(values, active, sum(r.end - r.start for r in locus.regions)):
            score = float(values[a:b].mean())
            self._calls["tracks"].append((locus.chrom, locus.start + a, locus.start + b, locus.gene_id, score))

    def _as_wide(self, values: NDArray[np.float32], active: NDArray[np.bool_], bases: int) -> list[tuple[int, int]]:
        """The spans that the highest active values (L,) are called as, of so many that they cover about ``bases``."""
        most = int(active.sum())
        if not (bases and most):
            return []

        def spans(count: int) -> list[tuple[int, int]]:
            return replace(self.selection, threshold=None, top_fraction=count / most).regions(values, active)

        def covered(found: list[tuple[int, int]]) -> int:
            return sum(b - a for a, b in found)

        enough = 1 + bisect_left(range(1, most), bases, key=lambda count: covered(spans(count)))
        return min((spans(count) for count in (enough - 1, enough) if count), key=lambda s: abs(covered(s) - bases))

    def calls(self, caller: str, elements: ElementSet | None = None) -> pd.DataFrame:
        """The calls that are compared with a set: chrom, start, end, gene_id, score.

        With a set by gene all calls of its genes; otherwise, of calls that share bases, the one of highest score.
        """
        table = pd.DataFrame(self._calls[caller], columns=["chrom", "start", "end", "gene_id", "score"])
        if table.empty:
            return table
        if elements is not None and elements.by_gene:
            return table[table["gene_id"].isin(elements.table["gene_id"].unique())]
        import bioframe

        clusters = bioframe.cluster(table, min_dist=None, return_cluster_intervals=False)
        return table.loc[sorted(clusters.groupby("cluster")["score"].idxmax())]

    def table(self, sets: Sequence[ElementSet]) -> pd.DataFrame:
        """One row per set, caller and measure.

        Columns:
            set, calls ("mask", "tracks"), measure ("elements": calls that share a base with the set; "bases": bases of
            the calls that the set covers); called, overlapping: counts of those; fraction; shuffles;
            shuffled_fraction and shuffled_sd: mean and standard deviation over the shuffles; fold: fraction /
            shuffled_fraction; z; p: share of shuffles, the observed one among them, that reach the observed overlap
            (one-sided, so at least 1 / (shuffles + 1));
            set_in_windows, set_called: elements of the set on candidate bases of the windows, and those called.
        """
        return pd.DataFrame([row for elements in sets for caller in CALLERS for row in self._rows(elements, caller)])

    def _rows(self, elements: ElementSet, caller: str) -> Iterator[dict[str, Any]]:
        calls, cover = self.calls(caller, elements), elements.cover()
        observed = np.zeros(2)  # calls, bases
        shuffled = np.zeros((2, self.shuffles))
        rng = np.random.default_rng(derive_seed(self.seed, f"shuffle {elements.name} {caller}"))
        for call in calls.to_dict("records"):
            key, width = call[elements.key], call["end"] - call["start"]
            bases = cover.bases(key, call["start"], call["end"])
            observed += (bases > 0, bases)
            starts = shuffled_starts(rng, self.segments[call["gene_id"]], width, self.shuffles)
            bases = cover.bases(key, starts, starts + width)
            shuffled += (bases > 0, bases)
        totals = len(calls), int((calls["end"] - calls["start"]).sum())
        held, found = self._of_the_set(elements, caller)
        for measure, total, seen, drawn in zip(("elements", "bases"), totals, observed, shuffled, strict=True):
            yield {
                "set": elements.name, "calls": caller, "measure": measure, "called": total, "overlapping": int(seen),
                **comparison(seen, drawn, total), "set_in_windows": held, "set_called": found,
            }  # fmt: skip

    def _of_the_set(self, elements: ElementSet, caller: str) -> tuple[int, int]:
        """Elements of the set on candidate bases of the windows, and those of them that a call overlaps."""
        segments = [
            {"chrom": self._places[gene], "gene_id": gene, "start": start, "end": end}
            for gene, parts in self.segments.items()
            for start, end in parts.tolist()
        ]
        calls = pd.DataFrame(self._calls[caller], columns=["chrom", "start", "end", "gene_id", "score"])
        table = elements.table[elements.table["regulated"]]
        held = overlapping(table, Cover(pd.DataFrame(segments), elements.key), elements.key)
        return int(held.sum()), int((held & overlapping(table, Cover(calls, elements.key), elements.key)).sum())


def comparison(observed: float, shuffled: NDArray[np.float64], total: float) -> dict[str, float]:
    """The observed overlap against the shuffled ones, (n,), all counts out of a total."""
    mean, sd = float(shuffled.mean()), float(shuffled.std(ddof=1)) if len(shuffled) > 1 else 0.0
    nan = float("nan")
    never = float("inf") if observed else nan  # seen, but in no shuffle
    return {
        "fraction": observed / total if total else nan,
        "shuffles": len(shuffled),
        "shuffled_fraction": mean / total if total else nan,
        "shuffled_sd": sd / total if total else nan,
        "fold": observed / mean if mean else never,
        "z": (observed - mean) / sd if sd else nan,
        "p": (1 + int((shuffled >= observed).sum())) / (1 + len(shuffled)) if total else nan,
    }


def overlapping(table: pd.DataFrame, cover: Cover, key: str) -> NDArray[np.bool_]:
    """Which rows (start, end and the column ``key``) share a base with a cover."""
    result = np.zeros(len(table), dtype=bool)
    for name, rows in table.groupby(key).indices.items():
        part = table.iloc[rows]
        result[rows] = cover.bases(str(name), part["start"].to_numpy(), part["end"].to_numpy()) > 0
    return result
