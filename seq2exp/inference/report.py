"""One page per gene as a self-contained HTML file, and an index of them."""

from __future__ import annotations

import base64
import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from seq2exp.files import atomic

from .discover import Locus, Selection
from .overlap import ElementSet
from .pairs import SCORES, PairScores
from .plot import KnownElement, elements_near, locus_png

ROWS = 10  # elements in a gene's table, so that it prints on one page
TEMPLATES = Path(__file__).parent / "templates"


class Reports:
    """Writes folder/GENE.html for the genes that come by, and folder/index.html at the end.

    Args:
        settings: what is printed at the foot of each page: where the numbers come from.
        genes: ids of the genes that get a page; without them all do.
    """

    def __init__(
        self, folder: Path, *, signal_names: Sequence[str], center: int, selection: Selection,
        settings: dict[str, Any], sets: Sequence[ElementSet] = (), known: Sequence[KnownElement] = (),
        genes: Collection[str] = (),
    ) -> None:  # fmt: skip
        import jinja2

        self.folder, self.settings, self.genes = folder, settings, genes
        self.sets, self.known = sets, known
        self._drawn: dict[str, Any] = {"signal_names": signal_names, "center": center, "selection": selection}
        loader = jinja2.FileSystemLoader(TEMPLATES)
        self._templates = jinja2.Environment(
            loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
        )
        self._style = (TEMPLATES / "style.css").read_text()
        self._index: list[dict[str, Any]] = []

    def add(self, locus: Locus) -> None:
        """Writes the page of a gene, its picture inside it."""
        if self.genes and locus.gene_id not in self.genes:
            return
        known = [*self.known, *(element for elements in self.sets for element in elements_near(elements, locus))]
        best = sorted(locus.regions, key=lambda region: -region.mask)
        bases = sum(region.end - region.start for region in locus.regions)
        path = self.path(locus)
        self._write(
            path, "gene.html", title=f"{locus.label}: discovered elements", locus=locus, rows=best[:ROWS],
            called=bases / len(locus.mask), sets=bool(self.sets),
            picture=_embedded(locus_png(locus, **self._drawn, known=known, title=False)),
        )  # fmt: skip
        self._index.append(
            {
                "file": path.name, "label": locus.label, "chrom": locus.chrom, "tss": locus.tss, "strand": locus.strand,
                "predicted": f"{locus.prediction:.2f}", "measured": _number(locus.target, "{:.2f}"),
                "elements": len(best),
                "best": f"{best[0].chrom}:{best[0].start + 1:,}-{best[0].end:,}" if best else "–",
                "mask": f"{best[0].mask:.3f}" if best else "–",
                "distance": f"{best[0].distance:+,}" if best else "–",
            }
        )  # fmt: skip

    def path(self, locus: Locus) -> Path:
        """Where the page of a gene is."""
        return self.folder / f"{file_name(locus.gene_id)}.html"

    def index(
        self, overlap: pd.DataFrame | None = None, tested: Sequence[PairScores] = (), notes: Sequence[str] = (),
        picture: bytes = b"", summary: str = "",
    ) -> Path:  # fmt: skip
        """Writes the index: what ``Enrichment.table`` gives with its picture, tested pairs, notes, the genes.

        Args:
            summary: a line under the title.
        """
        self._write(
            self.folder / "index.html", "index.html", title="Discovered elements", genes=self._index,
            overlap=[] if overlap is None else overlap_rows(overlap), picture=_embedded(picture),
            tested=[_tested(pairs) for pairs in tested], notes=notes, summary=summary,
        )  # fmt: skip
        return self.folder / "index.html"

    def _write(self, path: Path, template: str, **values: Any) -> None:
        page = self._templates.get_template(template).render(style=self._style, settings=self.settings, **values)
        with atomic(path) as partial:
            partial.write_text(page, encoding="utf-8")


def file_name(gene_id: str) -> str:
    """A gene id as part of a file's name."""
    return re.sub(r"[^\w.+-]", "_", gene_id)


def overlap_rows(table: pd.DataFrame) -> list[dict[str, str]]:
    """What is printed of ``Enrichment.table``: by heading, a row for each set and caller."""
    elements, bases = (table[table["measure"] == measure].to_dict("records") for measure in ("elements", "bases"))
    return [_overlap_row(row, covered["called"]) for row, covered in zip(elements, bases, strict=True)]


def _overlap_row(row: dict[str, Any], bases: int) -> dict[str, str]:
    least = 1 / (1 + row["shuffles"])  # what p is when no shuffle reaches the observed overlap
    return {
        "set": row["set"],
        "called by": row["calls"],
        "elements": f"{row['called']:,}",
        "bases": f"{bases:,}",
        "overlapping": _number(row["fraction"], "{:.1%}"),
        "shuffled ± sd": f"{_number(row['shuffled_fraction'], '{:.1%}')} ± {_number(row['shuffled_sd'], '{:.1%}')}",
        "fold": _number(row["fold"], "{:.2f}"),
        "z": _number(row["z"], "{:+.1f}"),
        "p": ("≤ " if row["p"] == least else "") + _number(row["p"], "{:.2g}"),
        "of the set, called": f"{row['set_called']:,} of {row['set_in_windows']:,}",
    }


def _tested(pairs: PairScores) -> dict[str, Any]:
    summary = pairs.summary()
    scores = [
        {"label": SCORES[row["score"]], "auprc_text": _number(row["auprc"], "{:.3f}")}
        for row in summary.to_dict("records")
    ]
    first = summary.iloc[0]
    return {
        "name": pairs.elements.name, "pairs": int(first["pairs"]), "regulated": int(first["regulated"]),
        "scores": scores, "prevalence_text": _number(first["prevalence"], "{:.3f}"),
    }  # fmt: skip


def _number(value: float, form: str) -> str:
    return "–" if value != value else form.format(value)


def _embedded(png: bytes) -> str:
    return base64.b64encode(png).decode("ascii")
