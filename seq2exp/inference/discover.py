"""From masks to files: the discovered regulatory elements as BED and the mask as bigWig."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seq2exp.data_tools import GeneWindows
from seq2exp.errors import UserError
from seq2exp.files import atomic

from .windows import Model, run_windows


@dataclass(frozen=True)
class Region:
    """A discovered element: 0-based half-open genome coordinates, mean mask of its bases."""

    chrom: str
    start: int
    end: int
    gene_id: str
    mask: float

    def bed(self) -> str:
        """BED6 and the mean mask; the score is 1000 * mean mask, the strand unknown."""
        fields = (self.chrom, self.start, self.end, self.gene_id, round(1000 * self.mask), ".", f"{self.mask:.4f}")
        return "\t".join(map(str, fields))


@dataclass(frozen=True)
class Selection:
    """Which bases of a window count as discovered: a threshold on the mask, or its largest ``top_fraction``.

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

    def cut(self, mask: NDArray[np.float32]) -> float:
        """The smallest mask value that is selected, over the given candidate bases."""
        if self.threshold is not None:
            return self.threshold
        keep = max(1, int(self.top_fraction * len(mask)))
        return float(np.partition(mask, len(mask) - keep)[len(mask) - keep]) if len(mask) else float("inf")

    def regions(self, mask: NDArray[np.float32], candidates: NDArray[np.bool_]) -> list[tuple[int, int]]:
        """Selected runs of a window, (start, end) half-open, merged and filtered; mask and candidates are (L,)."""
        chosen = candidates & (mask > 0) & (mask >= self.cut(mask[candidates]))
        edges = np.flatnonzero(np.diff(chosen.astype(np.int8), prepend=0, append=0))
        merged: list[tuple[int, int]] = []
        for start, end in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
            if merged and start - merged[-1][1] < self.merge_gap and candidates[merged[-1][1] : start].all():
                merged[-1] = (merged[-1][0], end)
            else:
                merged.append((start, end))
        return [(start, end) for start, end in merged if end - start >= self.min_length]


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
    candidates: NDArray[np.bool_]  # inside the chromosome, outside the centre and the excluded bases
    regions: list[Region]

    @property
    def end(self) -> int:
        return self.start + len(self.mask)


@dataclass(frozen=True)
class Discovery:
    """How many genes were looked at, the regions found, and the locus kept for the picture."""

    genes: int
    regions: list[Region]
    locus: Locus | None


def discover(model: Model, windows: GeneWindows, selection: Selection, **settings: Any) -> Iterator[Locus]:
    """The loci of all windows in genome order.

    The centre of a window always passes the mask, so it is no discovery: no region lies there, in excluded bases or
    past a chromosome end.
    """
    if not model.has_mask:
        raise UserError(f"{type(model).__name__} has no mask, it is a baseline: there is nothing to discover")
    chromosomes = windows.store.chromosomes
    names = list(chromosomes)
    genes = windows.genes.reset_index(drop=True)
    order = sorted(range(len(genes)), key=lambda i: (names.index(genes["chrom"][i]), genes["tss"][i]))
    length, center = model.config.length, model.config.center
    for batch, out in run_windows(model, windows, order=order, **settings):
        masks = out.soft_mask.float().cpu().numpy()
        predictions = out.expression.float().cpu().numpy()
        for i, gene_id in enumerate(batch["gene_id"]):
            chrom, start = str(batch["chrom"][i]), int(batch["start"][i])
            gene = windows.genes.loc[int(batch["row"][i])]
            excluded = batch["exclude"][i].numpy()
            position = np.arange(start, start + length)
            candidates = ~excluded & (position >= 0) & (position < chromosomes[chrom])
            candidates[(length - center) // 2 : (length - center) // 2 + center] = False
            mask = np.where(excluded, 0.0, masks[i]).astype(np.float32)
            regions = [
                Region(chrom, start + a, start + b, gene_id, float(mask[a:b].mean()))
                for a, b in selection.regions(mask, candidates)
            ]
            yield Locus(
                gene_id, chrom, start, int(gene["tss"]), str(gene["strand"]), float(predictions[i]),
                float(gene["target"]), batch["signals"][i].numpy(), mask, candidates, regions,
            )  # fmt: skip


def write_bed(path: Path, regions: Iterable[Region]) -> None:
    """Write regions in the given order."""
    with atomic(path) as partial:
        partial.write_text("".join(region.bed() + "\n" for region in regions))


def write_discovery(
    out: Path, loci: Iterable[Locus], chromosomes: dict[str, int], gene: str | None = None
) -> Discovery:
    """Write regions.bed and mask.bw of loci in genome order.

    Args:
        gene: id of the gene whose locus is kept for the picture; without it the one with the highest prediction.

    Returns:
        what was found. ``locus`` is None when no such gene came by.
    """
    regions: list[Region] = []
    kept: Locus | None = None
    genes = 0
    with MaskBigWig(out / "mask.bw", chromosomes) as bigwig:
        for locus in loci:
            genes += 1
            bigwig.add(locus.chrom, locus.start, locus.mask)
            regions.extend(locus.regions)
            if locus.gene_id == gene or (gene is None and (kept is None or locus.prediction > kept.prediction)):
                kept = locus
    regions.sort(key=lambda region: (list(chromosomes).index(region.chrom), region.start, region.end))
    write_bed(out / "regions.bed", regions)
    return Discovery(genes, regions, kept)


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
