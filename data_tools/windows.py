"""The map-style dataset: a window of sequence and signals around each gene's TSS."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from seq2exp.data_tools.batches import expand, stack
from seq2exp.data_tools.store import Store, open_store
from seq2exp.errors import UserError
from seq2exp.seeds import derive_seed

log = logging.getLogger(__name__)

_COMPLEMENT = np.array([3, 2, 1, 0, 4], dtype=np.uint8)
_ALL_SEEDS = 2**63


class GeneWindows(torch.utils.data.Dataset[dict[str, Any]]):
    """Windows [tss - length // 2, tss - length // 2 + length) of the genes of a split, in table order.

    Safe in DataLoader workers, forked or spawned: only paths cross into them.

    ``windows[i]``, or ``windows[i, epoch]`` where windows are shifted or reversed at random, is a dict of
        sequence: uint8 (length,), A C G T N = 0..4, N past chromosome ends
        signals: float32 (length, tracks), the store's tracks in order, then log10(1 + contact) when it has contacts
        gene_features: float32 (features,)
        target: float32 (), NaN where empty
        exclude, include: bool (length,)
        peaks: bool (length,), only with `peaks`
        gene_id: str;  chrom: str;  start: int, the window's first base;  row: int, the gene's row in store.genes

    A compact item is what travels to a GPU, 7.25 bytes a base with three tracks; ``expand`` makes the above of a batch
    of them, bit by bit. In place of signals, exclude and include it has
        tracks: (tracks, length), float16 when the store holds all of them so, else float32
        contact_bins: float32 (bins,), log10(1 + contact) of (length - 1) // resolution + 2 bins
        contact_place: int64 (4,), resolution, offset, low, high: base j lies in bin (offset + j) // resolution when
            low <= j < high, else outside the chromosome
        exclude_bits, include_bits, peaks_bits: uint8 (ceil(length / 8),), a bit a base, the first base the highest bit

    Args:
        store: a store or its path. How much of it each process keeps decoded: ``open_store(path, cache_bytes)``.
        length: bases.
        split: only the genes of this split; None: of all.
        require_target: leave out genes without a target (their number is logged).
        compact: items as described above.
        max_shift: move each window by up to so many bases, all shifts alike.
        rc_augmentation: probability with which a window is read from the other strand: the sequence reversed and
            complemented, all else along the window reversed.
        peaks: also read the peaks of the store.
        seed: shift and strand are functions of (seed, epoch, row) and nothing else.

    Raises:
        UserError: an unknown split, no gene left, no peaks in the store, or contacts that do not reach over the window.
    """

    def __init__(
        self,
        store: Store | str | Path,
        length: int = 200_000,
        split: str | None = None,
        require_target: bool = True,
        *,
        compact: bool = False,
        max_shift: int = 0,
        rc_augmentation: float = 0.0,
        peaks: bool = False,
        seed: int = 0,
    ) -> None:
        self.store = store if isinstance(store, Store) else open_store(store)
        self.length = length
        self.split = split
        self.compact = compact
        self.max_shift, self.rc_augmentation, self.seed = max_shift, rc_augmentation, seed
        if length < 1:
            raise UserError(f"The window length is {length}; it must be at least 1.")
        if max_shift < 0 or not 0 <= rc_augmentation <= 1:
            raise UserError(
                f"max_shift is {max_shift} and rc_augmentation {rc_augmentation}; they must be at least 0, and between "
                "0 and 1."
            )
        self._roles = ("exclude", "include", "peaks") if peaks else ("exclude", "include")
        if peaks and not self.store.region_size("peaks")[0]:
            raise UserError(
                f"{self.store.path}: holds no peaks; build it with --peaks FILE.narrowPeak (`seq2exp data peaks` calls "
                "them with MACS3)."
            )
        self.genes: pd.DataFrame = self._choose(split, require_target)
        self.rows: np.ndarray = self.genes.index.to_numpy(np.int64)
        covered = (2 * self.store.contact_reach - 1) * self.store.contact_resolution
        if self.store.has_contacts and length + 2 * max_shift > covered:
            shifted = f" shifted by up to {max_shift:,}" if max_shift else ""
            raise UserError(
                f"{self.store.path}: its contacts cover windows of up to {covered:,} bases, not {length:,}{shifted}; "
                "build the store with a larger --contact-reach."
            )
        self._target = torch.tensor(self.genes["target"].to_numpy(np.float32))
        self._features = torch.tensor(self.genes[self.store.feature_names].to_numpy(np.float32))
        used = {(name, chrom) for name in self.store.tracks for chrom in self.genes["chrom"].unique()}
        wide = any(self.store.track_dtype(name, chrom) != "float16" for name, chrom in used)
        self._dtype = np.dtype(np.float32 if wide else np.float16)

    def _choose(self, split: str | None, require_target: bool) -> pd.DataFrame:
        genes = self.store.genes
        if split is not None:
            there = sorted(set(genes["split"]) - {""})
            if split not in there:
                raise UserError(f"{self.store.path}: no split {split!r}; the splits are {', '.join(there) or 'none'}.")
            genes = genes[genes["split"] == split]
        if require_target:
            empty = int(genes["target"].isna().sum())
            if empty:
                log.warning(
                    "%s: %d of %d genes%s have no target and are left out.",
                    self.store.path,
                    empty,
                    len(genes),
                    f" of {split}" if split else "",
                )
            genes = genes[genes["target"].notna()]
        if genes.empty:
            raise UserError(f"{self.store.path}: no gene{f' of split {split}' if split else ''} has a target.")
        return genes

    @property
    def signal_names(self) -> list[str]:
        """Names of the columns of signals."""
        return [*self.store.tracks, *(["contacts"] if self.store.has_contacts else [])]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int | tuple[int, int]) -> dict[str, Any]:
        number, epoch = index if isinstance(index, tuple) else (index, 0)
        row = int(self.rows[number])
        chrom, tss = self.store.place(row)
        shift, reverse = self._draw(row, epoch)
        start = tss - self.length // 2 + shift
        along = self._read(row, chrom, start, reverse)
        if not self.compact:
            along = {name: values[0] for name, values in expand(stack([along])).items()}
        return along | {
            "gene_features": self._features[number],
            "target": self._target[number],
            "gene_id": str(self.store.genes.at[row, "gene_id"]),
            "row": row,
            "chrom": chrom,
            "start": start,
        }

    def _draw(self, row: int, epoch: int) -> tuple[int, bool]:
        """By how many bases the window of a gene is shifted in an epoch, and whether it is reversed."""
        shift = derive_seed(self.seed, f"shift {epoch}", row) % (2 * self.max_shift + 1) - self.max_shift
        reverse = derive_seed(self.seed, f"strand {epoch}", row) < self.rc_augmentation * _ALL_SEEDS
        return shift, reverse

    def _read(self, row: int, chrom: str, start: int, reverse: bool) -> dict[str, Any]:
        """What lies along the window, compact."""
        store, end = self.store, start + self.length
        codes = store.sequence(chrom, start, end)
        tracks = np.zeros((len(store.tracks), self.length), dtype=self._dtype)
        for name, out in zip(store.tracks, tracks, strict=True):
            store.read_track(name, chrom, start, end, out)
        regions = {role: store.regions(role, chrom, start, end) for role in self._roles}
        if reverse:
            codes, tracks = _COMPLEMENT[codes[::-1]], tracks[:, ::-1].copy()
            regions = {role: inside[::-1] for role, inside in regions.items()}
        item = {"sequence": codes, "tracks": tracks}
        item |= {f"{role}_bits": np.packbits(inside) for role, inside in regions.items()}
        if store.has_contacts:
            bins, (offset, low, high) = store.contact_bins(row, start, end)
            size = store.contact_resolution
            if reverse:
                offset = len(bins) * size - offset - self.length
                bins, low, high = bins[::-1].copy(), self.length - high, self.length - low
            item |= {"contact_bins": bins, "contact_place": np.array([size, offset, low, high])}
        return {name: torch.from_numpy(values) for name, values in item.items()}
