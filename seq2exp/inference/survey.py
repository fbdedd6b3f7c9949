"""Everything that discovery writes: elements, mask, pictures, overlap with known elements, and pages to read."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from seq2exp.data_tools import GeneWindows
from seq2exp.files import atomic

from .discover import Discovery, Locus, Selection, write_discovery
from .enrichment import Enrichment
from .overlap import ElementSet, marked
from .pairs import PairScores
from .plot import KnownElement, elements_near, overlap_png, plot_locus
from .report import Reports, file_name


@dataclass(frozen=True)
class Survey:
    """What was found and where it is.

    Attributes:
        overlap: what ``Enrichment.table`` gives; empty without sets.
        tested: the scores of each set that says which elements regulate their gene.
        files: path -> what it is.
    """

    discovery: Discovery
    overlap: pd.DataFrame
    tested: list[PairScores]
    notes: list[str]
    files: dict[Path, str]


def survey(
    out: Path, loci: Iterable[Locus], windows: GeneWindows, selection: Selection, *, center: int,
    genes: Collection[str] = (), known: Sequence[KnownElement] = (), sets: Sequence[ElementSet] = (),
    shuffles: int = 1_000, seed: int = 2, report: bool = False, settings: dict[str, Any] | None = None,
) -> Survey:  # fmt: skip
    """Writes into ``out`` what loci in genome order hold, as they come.

    Args:
        center: width of the window's centre, in bases.
        genes: ids of those to draw and, with ``report``, to write pages of; without them the gene of the highest
            prediction is drawn, and all have pages.
        known: elements to draw.
        sets: what the called elements are compared with.
        settings: what the foot of the pages says.
    """
    signals = windows.signal_names
    enrichment = Enrichment(selection, signals, shuffles, seed) if sets else None
    tested = [PairScores(elements, signals) for elements in sets if elements.by_gene and elements.flagged]
    reports = None
    if report:
        reports = Reports(
            out / "reports", signal_names=signals, center=center, selection=selection, settings=settings or {},
            sets=sets, known=known, genes=genes,
        )  # fmt: skip
    watching = [watcher for watcher in (enrichment, reports, *tested) if watcher is not None]
    found = write_discovery(out, _watched(marked(loci, sets), watching), windows.store.chromosomes, genes)
    summary = f"{len(found.regions):,} elements of {found.genes:,} genes"
    files = {
        out / "elements.bed": summary, out / "elements.csv": "the same with more columns",
        out / "mask.bw": "the mask per base",
    }  # fmt: skip
    for locus in found.loci:
        picture = out / f"{file_name(locus.gene_id)}.png"
        near = [*known, *(element for elements in sets for element in elements_near(elements, locus))]
        plot_locus(picture, locus, signals, center, selection, near)
        files[picture] = f"the locus of {locus.label}"
    table, figure = pd.DataFrame(), b""
    if enrichment:
        table = enrichment.table(sets)
        figure = overlap_png(table)
        files |= _write_overlap(out, table, figure, tested)
    notes = notes_of(sets, tested, table)
    if reports:
        files[reports.index(table if sets else None, tested, notes, figure, summary)] = (
            "a page for each gene, and this index"
        )
    return Survey(found, table, tested, notes, files)


def _watched(loci: Iterable[Locus], watchers: Sequence[Any]) -> Iterator[Locus]:
    for locus in loci:
        for watcher in watchers:
            watcher.add(locus)
        yield locus


def _write_overlap(out: Path, table: pd.DataFrame, figure: bytes, tested: Sequence[PairScores]) -> dict[Path, str]:
    files = {out / "overlap.csv": "overlap with each set", out / "overlap.png": "the same as a picture"}
    tables = {out / "overlap.csv": table}
    for pairs in tested:
        path = out / f"pairs_{pairs.elements.name}.csv"
        tables[path], files[path] = pairs.pairs(), f"scores of the tested pairs of {pairs.elements.name}"
    if tested:
        path = out / "pairs.csv"
        tables[path], files[path] = pd.concat([pairs.summary() for pairs in tested]), "how well each score tells them"
    for path, rows in tables.items():
        with atomic(path) as partial:
            rows.to_csv(partial, index=False, float_format="%.6g")
    with atomic(out / "overlap.png") as partial:
        partial.write_bytes(figure)
    return files


def notes_of(sets: Sequence[ElementSet], tested: Sequence[PairScores], table: pd.DataFrame) -> list[str]:
    """What a reader of the figures must know of each set."""
    notes = []
    for elements in sets:
        notes += [f"{elements.name}: {note}" for note in elements.notes]
        acting = int(elements.table["regulated"].sum())
        row = table[(table["set"] == elements.name) & (table["measure"] == "elements")].iloc[0]
        if elements.by_gene:
            only = f", only the {acting:,} that regulate" if elements.flagged else ""
            notes.append(f"{elements.name}: compared gene by gene{only}")
        outside = acting - int(row["set_in_windows"])
        if outside:
            notes.append(f"{elements.name}: {outside:,} of {acting:,} elements have no candidate base in the windows")
        if not row["overlapping"]:
            notes.append(f"{elements.name}: no called element overlaps it")
    for pairs in tested:
        if pairs.without_scores():
            notes.append(
                f"{pairs.elements.name}: {pairs.without_scores():,} of {len(pairs.elements.table):,} pairs lie in the "
                "centre or outside the window of their gene and have no score"
            )
    return notes
