"""From masks to files: the discovered regulatory elements as BED and the mask as bigWig."""

from __future__ import annotations

import csv
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seq2exp.data_tools import GeneWindows
from seq2exp.errors import UserError
from seq2exp.files import atomic

from .windows import Model, run_windows

N = 4  # the code of an unknown base


BED = ("chrom", "start", "end", "name", "score", "strand")
COLUMNS = (
    "chrom", "start", "end", "name", "gene_id", "mean_mask", "max_mask", "selected", "tss_distance", "overlaps",
)  # fmt: skip


@dataclass(frozen=True)
class Region:
    """A discovered element of one gene: 0-based half-open genome coordinates and the mask of its bases.

    Attributes:
        name: the gene's name, or its id, and the element's rank among those of the gene by mean mask: TP53_1.
        mask, highest: mean and maximum of the soft mask.
        selected: the share of its bases that are over the cut; below 1 where runs were merged.
        distance: bases from the TSS to its middle; negative upstream of the gene.
        overlaps: names of the given sets that share a base with it.
    """

    chrom: str
    start: int
    end: int
    gene_id: str
    name: str
    mask: float
    highest: float
    selected: float
    distance: int
    overlaps: tuple[str, ...] = ()

    def bed(self) -> tuple[Any, ...]:
        """A line of elements.bed, as ``BED``: the six columns and no more, for genome browsers take a seventh for
        something else. An element has no strand."""
        return self.chrom, self.start, self.end, self.name, round(1000 * self.mask), "."

    def row(self) -> tuple[Any, ...]:
        """A row of elements.csv, as ``COLUMNS``."""
        return (
            self.chrom, self.start, self.end, self.name, self.gene_id, f"{self.mask:.4f}", f"{self.highest:.4f}",
            f"{self.selected:.3f}", self.distance, ";".join(self.overlaps),
        )  # fmt: skip


@dataclass(frozen=True)
class Selection:
    """Which bases of a window count as discovered: a threshold on the soft mask, or its largest ``top_fraction``.

    Runs closer than ``merge_gap`` bases become one region; regions shorter than ``min_length`` are dropped.
    """

    threshold: float | None = None
    top_fraction: float = 0.10
    merge_gap: int = 50
    min_length: int = 20

    def __post_init__(self) -> None:
        if self.threshold is not None and not 0 < self.threshold <= 1:
            raise UserError(f"threshold must be above 0 and at most 1, got {self.threshold}")
        if not 0 < self.top_fraction <= 1:
            raise UserError(f"top fraction must be above 0 and at most 1, got {self.top_fraction}")
        if self.merge_gap < 0 or self.min_length < 1:
            raise UserError("merge gap must be at least 0 and minimum length at least 1")

    @classmethod
    def of_model(cls, config: Any, threshold: float | None, top: float | None, **fields: int) -> Selection:
        """What was asked for; otherwise what a hard model itself selects, and of a soft one the highest tenth."""
        if threshold is not None and top is not None:
            raise UserError("give a threshold or a top fraction, not both")
        if threshold is None and top is None:
            top = getattr(config, "top_fraction", None)
            if top is None and getattr(config, "hard", False):
                threshold = config.threshold
        return cls(threshold, cls.top_fraction if top is None else top, **fields)

    def __str__(self) -> str:
        if self.threshold is not None:
            chosen = f"soft mask at least {self.threshold:g}"
        else:
            chosen = f"the {100 * self.top_fraction:.3g} % of each window's bases with the highest soft mask"
        return f"{chosen}; runs closer than {self.merge_gap} bases merged; at least {self.min_length} bases wide"

    def cut(self, mask: NDArray[np.float32]) -> float:
        """The smallest mask value that is selected, over the given candidate bases."""
        if self.threshold is not None:
            return self.threshold
        keep = max(1, int(self.top_fraction * len(mask)))
        return float(np.partition(mask, len(mask) - keep)[len(mask) - keep]) if len(mask) else float("inf")

    def chosen(self, mask: NDArray[np.float32], candidates: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """The selected bases of a window; all are (L,)."""
        return candidates & (mask > 0) & (mask >= self.cut(mask[candidates]))

    def regions(self, mask: NDArray[np.float32], candidates: NDArray[np.bool_]) -> list[tuple[int, int]]:
        """Selected runs of a window, (start, end) half-open, merged and filtered; mask and candidates are (L,)."""
        merged: list[tuple[int, int]] = []
        for start, end in runs(self.chosen(mask, candidates)).tolist():
            if merged and start - merged[-1][1] < self.merge_gap and candidates[merged[-1][1] : start].all():
                merged[-1] = (merged[-1][0], end)
            else:
                merged.append((start, end))
        return [(start, end) for start, end in merged if end - start >= self.min_length]


def runs(inside: NDArray[np.bool_]) -> NDArray[np.int64]:
    """(n, 2): the half-open stretches of (L,) where it is true."""
    return np.flatnonzero(np.diff(inside.astype(np.int8), prepend=0, append=0)).reshape(-1, 2)


@dataclass(frozen=True)
class Locus:
    """One gene's window with everything that is drawn or written about it. Arrays are (L,), signals (L, tracks)."""

    gene_id: str
    chrom: str
    start: int
    tss: int
    strand: str
    prediction: float
    target: float
    signals: NDArray[np.float32]
    mask: NDArray[np.float32]  # soft mask: before threshold and regions; 0 where excluded
    candidates: NDArray[np.bool_]  # known bases (not N) outside the centre and the excluded bases
    regions: list[Region]  # by position
    gene_name: str = ""
    target_name: str = "target"

    @property
    def end(self) -> int:
        return self.start + len(self.mask)

    @property
    def label(self) -> str:
        """What the gene is called in names and titles."""
        return self.gene_name or self.gene_id


@dataclass(frozen=True)
class Discovery:
    """How many genes were looked at, the regions found, the loci kept for pictures, and the largest mask value."""

    genes: int
    regions: list[Region]
    loci: list[Locus]
    highest: float


def discover(model: Model, windows: GeneWindows, selection: Selection, **settings: Any) -> Iterator[Locus]:
    """The loci of all windows in genome order.

    The centre of a window always passes the mask, so it is no discovery: no region lies there, nor in excluded bases,
    in bases N, or past a chromosome end.
    """
    if not model.has_mask:
        raise UserError(f"{type(model).__name__} has no mask, it is a baseline: there is nothing to discover")
    names = list(windows.store.chromosomes)
    genes = windows.genes.reset_index(drop=True)
    order = sorted(range(len(genes)), key=lambda i: (names.index(genes["chrom"][i]), genes["tss"][i]))
    length, center = model.config.length, model.config.center
    middle = slice((length - center) // 2, (length - center) // 2 + center)
    for batch, out in run_windows(model, windows, order=order, **settings):
        masks = out.soft_mask.float().cpu().numpy()
        predictions = out.expression.float().cpu().numpy()
        for i, gene_id in enumerate(batch["gene_id"]):
            gene = windows.genes.loc[int(batch["row"][i])]
            excluded = batch["exclude"][i].numpy()
            candidates = ~excluded & (batch["sequence"][i].numpy() < N)  # past a chromosome's ends is N too
            candidates[middle] = False
            mask = np.where(excluded, 0.0, masks[i]).astype(np.float32)
            locus = Locus(
                gene_id, str(batch["chrom"][i]), int(batch["start"][i]), int(gene["tss"]), str(gene["strand"]),
                float(predictions[i]), float(gene["target"]), batch["signals"][i].numpy(), mask, candidates, [],
                str(gene.get("gene_name", "")), windows.store.target_name,
            )  # fmt: skip
            yield replace(locus, regions=called(locus, selection))


def called(locus: Locus, selection: Selection) -> list[Region]:
    """The regions of a locus, by position."""
    spans = selection.regions(locus.mask, locus.candidates)
    chosen = selection.chosen(locus.mask, locus.candidates)
    means = np.array([locus.mask[a:b].mean() for a, b in spans])
    ranks = np.argsort(np.argsort(-means, kind="stable")) + 1
    return [
        Region(
            locus.chrom, locus.start + a, locus.start + b, locus.gene_id, f"{locus.label}_{rank}", float(mean),
            float(locus.mask[a:b].max()), float(chosen[a:b].mean()), tss_distance(locus, a, b),
        )
        for (a, b), mean, rank in zip(spans, means, ranks, strict=True)
    ]  # fmt: skip


def tss_distance(locus: Locus, start: int, end: int) -> int:
    """Bases from the TSS to the middle of a span of the window, negative upstream (without a strand: to the left)."""
    distance = locus.start + (start + end) // 2 - locus.tss
    return -distance if locus.strand == "-" else distance


def write_elements(out: Path, regions: Sequence[Region]) -> None:
    """Write elements.bed and elements.csv, regions in the given order below a line that names the columns."""
    with atomic(out / "elements.bed") as partial:
        lines = ("#" + "\t".join(BED), *("\t".join(map(str, region.bed())) for region in regions))
        partial.write_text("".join(f"{line}\n" for line in lines))
    with atomic(out / "elements.csv") as partial, partial.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([COLUMNS, *(region.row() for region in regions)])


def write_discovery(
    out: Path, loci: Iterable[Locus], chromosomes: dict[str, int], genes: Collection[str] = ()
) -> Discovery:
    """Write elements.bed, elements.csv and mask.bw of loci in genome order.

    Args:
        genes: ids of the genes whose loci are kept for pictures; without them the one with the highest prediction.
    """
    regions: list[Region] = []
    kept: list[Locus] = []
    count, highest = 0, 0.0
    with MaskBigWig(out / "mask.bw", chromosomes) as bigwig:
        for locus in loci:
            count += 1
            highest = max(highest, float(locus.mask[locus.candidates].max(initial=0.0)))
            bigwig.add(locus.chrom, locus.start, locus.mask)
            regions.extend(locus.regions)
            if genes:
                kept += [locus] if locus.gene_id in genes else []
            elif not kept or locus.prediction > kept[0].prediction:
                kept = [locus]
    names = list(chromosomes)
    regions.sort(key=lambda region: (names.index(region.chrom), region.start, region.end, region.gene_id))
    write_elements(out, regions)
    return Discovery(count, regions, kept, highest)


class MaskBigWig:
    """Writes masks of windows that come in genome order; where windows overlap, the largest value stays.

    Use as a context manager; the file appears when all went well.
    """

    def __init__(self, path: Path, chromosomes: dict[str, int]) -> None:
        try:
            import pyBigWig
        except ImportError:
            raise UserError("writing bigWig needs pyBigWig, which exists for Linux only") from None
        self.chromosomes = chromosomes
        self._stack = ExitStack()
        partial = self._stack.enter_context(atomic(path))
        self._file = pyBigWig.open(str(partial), "w")
        self._file.addHeader(list(chromosomes.items()))
        self._chrom, self._start = "", 0
        self._values: NDArray[np.float32] = np.zeros(0, dtype=np.float32)

    def add(self, chrom: str, start: int, mask: NDArray[np.float32]) -> None:
        """Mask (L,) of a window that begins at ``start`` (it may reach past the chromosome's ends)."""
        first = max(0, -start)
        values = mask[first : self.chromosomes[chrom] - start]
        start += first
        offset = start - self._start
        if chrom != self._chrom or offset >= len(self._values):
            self._flush(len(self._values))
            self._chrom, self._start, self._values = chrom, start, values.copy()
            return
        self._flush(offset)  # no later window reaches back there
        grown = np.zeros(max(len(self._values), len(values)), dtype=np.float32)
        grown[: len(self._values)] = self._values
        np.maximum(grown[: len(values)], values, out=grown[: len(values)])
        self._values = grown

    def _flush(self, count: int) -> None:
        if count:
            values = np.round(self._values[:count], 4)
            self._file.addEntries(self._chrom, self._start, values=values, span=1, step=1)
        self._start, self._values = self._start + count, self._values[count:]

    def __enter__(self) -> MaskBigWig:
        return self

    def __exit__(self, *error: Any) -> None:
        if error[0] is None:
            self._flush(len(self._values))
        self._file.close()
        self._stack.__exit__(*error)
