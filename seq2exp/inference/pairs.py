"""Element-gene pairs with a known answer (CRISPRi experiments): which scores tell those that regulate from the rest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from .discover import Locus, tss_distance
from .enrichment import activity
from .overlap import ElementSet
from .scores import average_precision

SCORES = {
    "mean_mask": "mean soft mask",
    "activity": "activity, geometric mean of the tracks",
    "abc": "activity x contact, share of the window (ABC)",
    "nearness": "nearness to the TSS",
}


class PairScores:
    """Collects the scores of the tested elements of a set by gene, window by window.

    Only candidate bases count: a pair whose element lies in the window's centre, or outside the window, has no score.

    ``abc`` is the share of the window's sum over bases of activity x contact that lies in the element, as in the
    Activity-by-Contact model, with all bases of the window in place of candidate elements; only where the store has
    contacts.
    """

    def __init__(self, elements: ElementSet, signal_names: Sequence[str]) -> None:
        self.elements, self.signal_names = elements, list(signal_names)
        self._by_gene = {str(gene): rows for gene, rows in elements.table.groupby("gene_id")}
        self._rows: list[dict[str, Any]] = []

    def add(self, locus: Locus) -> None:
        """One window."""
        if locus.gene_id not in self._by_gene:
            return
        active = activity(locus, self.signal_names)
        contact = None
        if "contacts" in self.signal_names:  # held as log10(1 + contact)
            contact = 10.0 ** locus.signals[:, self.signal_names.index("contacts")].astype(np.float64) - 1
            total = float((active * contact).sum())
        for chrom, start, end, regulated in self._by_gene[locus.gene_id][
            ["chrom", "start", "end", "regulated"]
        ].itertuples(index=False):
            first, last = max(start - locus.start, 0), min(end, locus.end) - locus.start
            counted = locus.candidates[max(first, 0) : max(last, 0)]
            if chrom != locus.chrom or not counted.any():
                continue
            inside = np.flatnonzero(counted) + first
            distance = tss_distance(locus, first, last)
            scores = {
                "mean_mask": float(locus.mask[inside].mean()),
                "activity": float(active[inside].mean()),
                "nearness": -float(abs(distance)),
            }
            if contact is not None:
                scores["abc"] = float((active * contact)[inside].sum()) / total if total > 0 else 0.0
            called = any(r.start < end and r.end > start for r in locus.regions)
            self._rows.append(
                {"chrom": chrom, "start": start, "end": end, "gene_id": locus.gene_id, "regulated": bool(regulated),
                 "called": called, "tss_distance": distance} | scores
            )  # fmt: skip

    def pairs(self) -> pd.DataFrame:
        """A row per pair with scores: chrom, start, end, gene_id, regulated, called, tss_distance, the scores."""
        return pd.DataFrame(self._rows)

    def without_scores(self) -> int:
        """Pairs that lie in the centre or outside the window of their gene."""
        return len(self.elements.table) - len(self._rows)

    def summary(self) -> pd.DataFrame:
        """A row per score: set, score, auprc, pairs, regulated (the number that regulate), prevalence.

        The area is NaN where none of the pairs regulates, or all do.
        """
        pairs = self.pairs()
        truth = pairs["regulated"].to_numpy(dtype=bool) if len(pairs) else np.zeros(0, dtype=bool)
        told = truth.any() and not truth.all()
        return pd.DataFrame(
            {
                "set": self.elements.name,
                "score": name,
                "auprc": average_precision(pairs[name], truth) if told else float("nan"),
                "pairs": len(pairs),
                "regulated": int(truth.sum()),
                "prevalence": float(truth.mean()) if len(pairs) else float("nan"),
            }
            for name in SCORES
            if not len(pairs) or name in pairs
        )
