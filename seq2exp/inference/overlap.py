"""Sets of known elements (BED files), and which discovered elements they overlap."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from seq2exp.data_tools import Store
from seq2exp.data_tools.tables import check_file, closest_chromosome, numbered_lines
from seq2exp.errors import UserError

from .discover import Locus

# Columns by which a header says which gene an element was tested for (all are tried: published tables have NA in some),
# whether it regulates it (the first counts), and whether the pair counts: the ENCODE tables of CRISPRi experiments
# (Gschwind et al. 2025) have there why it does not, such as an element that overlaps a promoter. Compared without case.
GENE = (
    "gene_id", "measuredgeneensemblid", "measuredensemblid", "gene", "gene_name", "genesymbol", "measuredgenesymbol",
    "targetgene",
)  # fmt: skip
REGULATED = ("regulated", "significant")
VALID, CELL_TYPE = ("validconnection",), ("celltype",)
YES, NO, UNKNOWN = ("true", "1", "yes", "t"), ("false", "0", "no", "f"), ("na", "")


@dataclass(frozen=True)
class ElementSet:
    """Elements from a file.

    Attributes:
        table: chrom, start, end (0-based, half-open), gene_id ("" where the file names no genes), regulated (bool; True
            where the file does not say).
        by_gene: the elements belong to genes, so only an element discovered for the same gene is an overlap.
        flagged: the file says which of them regulate their gene.
        notes: what was left out or renamed, in sentences.
    """

    name: str
    table: pd.DataFrame
    by_gene: bool = False
    flagged: bool = False
    notes: list[str] = field(default_factory=list)

    @property
    def key(self) -> str:
        """The column within whose values intervals are compared."""
        return "gene_id" if self.by_gene else "chrom"

    def near(self, locus: Locus) -> pd.DataFrame:
        """Its elements in a window; of a set by gene those of the window's gene."""
        if locus.chrom not in self._by_chrom:
            return self.table.iloc[:0]
        rows = self._by_chrom[locus.chrom]
        rows = rows.iloc[: int(np.searchsorted(rows["start"], locus.end))]
        rows = rows[rows["end"] > locus.start]
        return rows[rows["gene_id"] == locus.gene_id] if self.by_gene else rows

    @cached_property
    def _by_chrom(self) -> dict[str, pd.DataFrame]:
        return {str(chrom): rows for chrom, rows in self.table.sort_values("start").groupby("chrom", sort=False)}

    def cover(self) -> Cover:
        """The bases of its elements, of those that regulate where that is known."""
        return Cover(self.table[self.table["regulated"]], self.key)


class Cover:
    """The bases that intervals cover, by chromosome or by gene.

    Args:
        intervals: start, end and the column ``key``; they may overlap each other.
    """

    def __init__(self, intervals: pd.DataFrame, key: str) -> None:
        self._parts: dict[str, tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]] = {}
        if intervals.empty:
            return
        import bioframe

        columns = intervals[[key, "start", "end"]].astype({"start": np.int64, "end": np.int64})
        merged = bioframe.merge(columns, cols=(key, "start", "end"))
        for name, rows in merged.groupby(key, sort=False):
            starts, ends = rows["start"].to_numpy(np.int64), rows["end"].to_numpy(np.int64)
            self._parts[str(name)] = starts, ends, np.append(0, np.cumsum(ends - starts))

    def bases(self, key: str, start: ArrayLike, end: ArrayLike) -> NDArray[np.int64]:
        """How many bases of each span [start, end) are covered, (n,)."""
        return self._before(key, np.asarray(end)) - self._before(key, np.asarray(start))

    def _before(self, key: str, position: NDArray[np.int64]) -> NDArray[np.int64]:
        """Covered bases to the left of positions."""
        if key not in self._parts:
            return np.zeros(position.shape, dtype=np.int64)
        starts, ends, covered = self._parts[key]
        last = np.searchsorted(starts, position, side="right") - 1
        inside = np.minimum(position, ends[last]) - starts[last]
        return np.where(last < 0, 0, covered[last] + inside)


def marked(loci: Iterable[Locus], sets: Sequence[ElementSet]) -> Iterator[Locus]:
    """The same loci, each region with the names of the sets that it overlaps."""
    covers = [(elements.name, elements.key, elements.cover()) for elements in sets]
    for locus in loci:
        keys = {"chrom": locus.chrom, "gene_id": locus.gene_id}
        starts, ends = (
            np.array([getattr(r, side) for r in locus.regions], dtype=np.int64) for side in ("start", "end")
        )
        shared = {name: cover.bases(keys[key], starts, ends) > 0 for name, key, cover in covers}
        regions = [
            replace(region, overlaps=tuple(name for name, hits in shared.items() if hits[i]))
            for i, region in enumerate(locus.regions)
        ]
        yield replace(locus, regions=regions)


def stored_peaks(store: Store) -> list[ElementSet]:
    """The peaks that a store was built with as a set, where it was."""
    table = store.intervals("peaks")
    if table.empty:
        return []
    return [ElementSet("peaks", table[["chrom", "start", "end"]].assign(gene_id="", regulated=True))]


def read_sets(
    arguments: Sequence[str], chromosomes: Mapping[str, int], genes: pd.DataFrame
) -> list[ElementSet]:  # fmt: skip
    """The sets of ``NAME=file.bed`` arguments. See ``read_set``.

    Raises:
        UserError: an argument of another form, or a name given twice.
    """
    sets: list[ElementSet] = []
    for argument in arguments:
        name, equals, path = argument.partition("=")
        if not (equals and path and re.fullmatch(r"[\w.+-]+", name)):
            raise UserError(f"--overlap takes NAME=file.bed, a name of letters, digits and . _ + -, not {argument!r}")
        if name in [s.name for s in sets]:
            raise UserError(f"--overlap {argument}: the name {name!r} is given twice")
        sets.append(read_set(name, Path(path), chromosomes, genes))
    return sets


def read_set(name: str, path: Path, chromosomes: Mapping[str, int], genes: pd.DataFrame) -> ElementSet:
    """Reads BED, gzip or not; a header that names its columns may say which gene an element is for (``GENE``), and
    whether it regulates it (``REGULATED``), as in the published tables of CRISPRi experiments. Pairs that such a table
    calls no valid connection are left out; elements tested in several cell types are all taken, with a note.

    Args:
        genes: gene_id, and gene_name where known, of the genes that are looked at. Both are understood in the file, ids
            with or without version.

    Raises:
        UserError: a line that is not BED, no chromosome in common, coordinates past a chromosome's end.
    """
    check_file(path, "the set of elements")
    columns, lines = _parse(path)
    table = pd.DataFrame(lines, columns=["line", "chrom", "start", "end", "gene", "regulated", "valid", "cell_type"])
    if table.empty:
        raise UserError(f"{path}: holds no element")
    notes: list[str] = []
    table = _known_chromosomes(path, table, chromosomes, notes)
    past = table[table["end"] > table["chrom"].map(chromosomes)]
    if len(past):
        first = past.iloc[0]
        raise UserError(
            f"{path}: line {first['line']}: {first['chrom']}:{first['start']}-{first['end']} ends past the end of "
            f"{first['chrom']} ({chromosomes[first['chrom']]:,} bases); is it of another assembly?"
        )
    if "gene" in columns:
        ids = {key: gene for gene, *keys in _gene_keys(genes) for key in keys}
        table["gene_id"] = table["gene"].map(lambda names: next((ids[name] for name in names if name in ids), ""))
        table = _leave_out(table, table["gene_id"] == "", "of genes that are not looked at", notes)
    else:
        table["gene_id"] = ""
    table = _leave_out(table, ~table["valid"].isin(YES), "whose pair is no valid connection", notes)
    table = _leave_out(table, table["regulated"].isin(UNKNOWN), "not known to regulate or not", notes)
    if table["cell_type"].nunique() > 1:
        tested = ", ".join(sorted(table["cell_type"].unique()))
        notes.append(f"its elements were tested in {tested}; for one of these alone, keep its lines of the file")
    table["regulated"] = ~table["regulated"].isin(NO)
    kept = table[["chrom", "start", "end", "gene_id", "regulated"]].reset_index(drop=True)
    return ElementSet(name, kept, "gene" in columns, "regulated" in columns, notes)


def _parse(path: Path) -> tuple[dict[str, list[int]], list[tuple[Any, ...]]]:
    """The columns that a header gives, and of each line its number, chrom, start, end, the gene's names, regulated,
    valid, cell type.

    A name that ends in a version is there without it too.
    """
    columns: dict[str, list[int]] = {}
    places = [0, 1, 2]
    lines: list[tuple[Any, ...]] = []
    for number, line in numbered_lines(path, "BED"):
        fields = line.split("\t") if "\t" in line else line.split()
        if not line.strip() or line.split()[0] in ("track", "browser"):
            continue
        if not lines and not columns:
            columns = _columns([name.strip().lstrip("#").lower() for name in fields])
            if columns:
                places = [columns[name][0] for name in ("chrom", "start", "end")]
                continue
        if line.startswith("#"):
            continue
        try:
            chrom, start, end = (fields[place].strip() for place in places)
            low, high = int(start), int(end)
            names = [fields[place].strip() for place in columns.get("gene", [])]
            flag, valid, cell_type = (
                fields[columns[name][0]].strip() if name in columns else YES[0]
                for name in ("regulated", "valid", "cell_type")
            )
        except (IndexError, ValueError):
            raise UserError(f"{path}: line {number} is not BED (chromosome, start, end, tab-separated)") from None
        if not 0 <= low < high:
            raise UserError(f"{path}: line {number}: {chrom}:{start}-{end} is no interval")
        if flag.lower() not in YES + NO + UNKNOWN:
            raise UserError(f"{path}: line {number}: whether it regulates is {flag!r}, neither TRUE nor FALSE")
        names += [name.split(".")[0] for name in names]
        lines.append((number, chrom, low, high, names, flag.lower(), valid.lower(), cell_type))
    return columns, lines


def _columns(names: list[str]) -> dict[str, list[int]]:
    """Where a header has chrom, start, end, and perhaps what else is read; nothing for a line that is no header."""
    wanted = {
        "chrom": ("chrom", "chr", "chromosome"), "start": ("start", "chromstart"), "end": ("end", "chromend"),
        "gene": GENE, "regulated": REGULATED, "valid": VALID, "cell_type": CELL_TYPE,
    }  # fmt: skip
    found = {key: [names.index(name) for name in known if name in names] for key, known in wanted.items()}
    header = found["chrom"] and found["start"] and found["end"]
    return {key: places for key, places in found.items() if places} if header else {}


def _known_chromosomes(
    path: Path, table: pd.DataFrame, chromosomes: Mapping[str, int], notes: list[str]
) -> pd.DataFrame:  # fmt: skip
    """Its lines on known chromosomes, which it may name with or without the prefix chr."""
    if not table["chrom"].isin(list(chromosomes)).any():
        renamed = table["chrom"].map(lambda name: name[3:] if name.startswith("chr") else f"chr{name}")
        if not renamed.isin(list(chromosomes)).any():
            name = table["chrom"].iloc[0]
            raise UserError(
                f"{path}: has no chromosome in common with the store, so it is of another assembly or naming: {name!r} "
                f"is not in the store{closest_chromosome(name, chromosomes)}"
            )
        notes.append(f"its {table['chrom'].iloc[0]} is taken for {renamed.iloc[0]}, and so on")
        table = table.assign(chrom=renamed)
    unknown = ~table["chrom"].isin(list(chromosomes))
    return _leave_out(table, unknown, "on chromosomes that the store lacks", notes)


def _leave_out(table: pd.DataFrame, which: pd.Series, what: str, notes: list[str]) -> pd.DataFrame:
    """The other rows, with a note of how many these are."""
    if which.any():
        notes.append(f"{int(which.sum()):,} of {len(which):,} elements {what} are left out")
    return table[~which].copy()


def _gene_keys(genes: pd.DataFrame) -> list[tuple[str, ...]]:
    """Of each gene its id, then what it may be called."""
    names = genes["gene_name"] if "gene_name" in genes else genes["gene_id"]
    return [(gene, gene, gene.split(".")[0], name) for gene, name in zip(genes["gene_id"], names, strict=True) if gene]
