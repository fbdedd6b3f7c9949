"""Opening and reading a store; the format is described in README.md."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import zarr

from seq2exp.data_tools.arrays import CACHE_BYTES, ChunkCache, ChunkedArray
from seq2exp.errors import UserError

FORMAT = 2  # 1: zstd for the sequence too, no checksums on what is read as a whole
REGIONS = ("exclude", "include", "peaks")
_BASE_COLUMNS = ("gene_id", "gene_name", "chrom", "tss", "strand", "target", "split")


def partial_path(out: Path) -> Path:
    """Where a store is built before it gets its name."""
    return out.with_name(f"{out.name}.partial")


def open_store(path: str | Path, cache_bytes: int = CACHE_BYTES) -> "Store":
    """Opens a finished store for reading.

    Args:
        cache_bytes: how much decoded sequence and signal each process keeps at most; 0: nothing.

    Raises:
        UserError: no store, an unfinished one, or one of a newer format.
    """
    return Store(Path(path), cache_bytes)


class Store:
    """A finished store. Keeps paths and decoded chunks, no open files; pickled, it becomes its path.

    Attributes:
        path: the folder, absolute.
        info: everything in the store's header (sources, versions, notes, ...).
        chromosomes: name -> bases.
        tracks: names in signal order, contacts not among them.
        has_contacts: whether contacts are stored.
        contact_resolution, contact_reach: bases a bin, and bins on each side of the TSS's (0, 0 without contacts).
        genes: a row per gene: gene_id, gene_name (when there), chrom, tss (0-based), strand, target (NaN where empty),
            split, then the features. The index is the row number that ``contacts`` takes.
        feature_names: the feature columns.
    """

    def __init__(self, path: Path, cache_bytes: int = CACHE_BYTES) -> None:
        self.path = path.absolute()
        self.info = read_header(path)
        self.chromosomes: dict[str, int] = dict(self.info["chromosomes"])
        self.tracks: list[str] = list(self.info["tracks"])
        contacts: dict[str, Any] | None = self.info["contacts"]
        self.has_contacts = contacts is not None
        self.contact_resolution = int(contacts["resolution"]) if contacts else 0
        self.contact_reach = int(contacts["reach"]) if contacts else 0
        self.feature_names: list[str] = list(self.info["features"])
        try:
            group = zarr.open_group(self.path, mode="r")
            self.genes = _read_genes(group, self.info["gene_columns"])
            self._contacts = whole_array(group, "contacts") if contacts else None
            self._regions = {
                role: {c: whole_array(group, f"{role}/{c}") for c in self.chromosomes if f"{role}/{c}" in group}
                for role in REGIONS
            }
        except (OSError, KeyError, ValueError) as error:
            raise UserError(f"{path}: the store is damaged ({error}); {self._remedy}.") from error
        self._cache = ChunkCache(cache_bytes)
        self._arrays: dict[str, ChunkedArray] = {}
        self._chroms = self.genes["chrom"].to_numpy()
        self._tss = self.genes["tss"].to_numpy()

    def __reduce__(self) -> tuple[Any, ...]:
        return open_store, (self.path, self._cache.limit)

    def __repr__(self) -> str:
        return f"Store({self.path}: {len(self.genes)} genes, tracks {', '.join(self.tracks)})"

    @property
    def target_name(self) -> str:
        """What the target is: the column it came from, or log10(1 + column)."""
        name = str(self.info["target"])
        return f"log10(1 + {name})" if self.info.get("log_target") else name

    def sequence(self, chrom: str, start: int, end: int) -> np.ndarray:
        """uint8 (end - start,): base codes A C G T N = 0..4 of [start, end), 0-based; N outside the chromosome."""
        self._check(chrom, start, end)
        out = np.full(end - start, 4, dtype=np.uint8)
        self._array(f"sequence/{chrom}").read(start, end, out)
        return out

    def track(self, name: str, chrom: str, start: int, end: int) -> np.ndarray:
        """float32 (end - start,): the signal over [start, end); 0 outside the chromosome and where unmeasured."""
        out = np.zeros(end - start, dtype=np.float32)
        self.read_track(name, chrom, start, end, out)
        return out

    def read_track(self, name: str, chrom: str, start: int, end: int, out: np.ndarray) -> None:
        """Puts the signal over [start, end) into out (end - start,), casting; out stays as it is outside the
        chromosome."""
        if name not in self.tracks:
            raise UserError(f"{self.path}: no track {name!r}; the tracks are {', '.join(self.tracks)}.")
        self._check(chrom, start, end)
        self._array(f"tracks/{name}/{chrom}").read(start, end, out)

    def place(self, row: int) -> tuple[str, int]:
        """Chromosome and TSS of gene `row`."""
        return str(self._chroms[row]), int(self._tss[row])

    def contacts(self, row: int, start: int, end: int) -> np.ndarray:
        """float32 (end - start,): log10(1 + contact) of each base with the TSS of gene `row`; 0 outside its chromosome.

        Raises:
            UserError: the store has no contacts, or they do not reach that far.
        """
        bins, (offset, low, high) = self.contact_bins(row, start, end)
        out = np.zeros(end - start, dtype=np.float32)
        out[low:high] = np.repeat(bins, self.contact_resolution)[offset + low : offset + high]
        return out

    def contact_bins(self, row: int, start: int, end: int) -> tuple[np.ndarray, tuple[int, int, int]]:
        """As ``contacts``, by bins: float32 ((end - start - 1) // resolution + 2,) and (offset, low, high): base j of
        the window lies in bin (offset + j) // resolution when low <= j < high, else outside the chromosome."""
        if self._contacts is None:
            raise UserError(f"{self.path}: holds no contacts; build it with --contacts.")
        size, reach = self.contact_resolution, self.contact_reach
        chrom, tss = self.place(row)
        self._check(chrom, start, end)
        bins = np.zeros((end - start - 1) // size + 2, dtype=np.float32)
        low, high = max(start, 0), min(end, self.chromosomes[chrom])
        if low >= high:
            return bins, (0, 0, 0)
        column = tss // size - reach  # the bin of the chromosome that is column 0 of the stored row
        first, last = low // size - column, (high - 1) // size - column
        if first < 0 or last > 2 * reach:
            raise UserError(
                f"{self.path}: contacts reach {reach * size:,} bases from a TSS, the window {chrom}:{start}-{end} "
                "more; build the store with a larger --contact-reach."
            )
        to = low // size - start // size
        bins[to : to + last + 1 - first] = np.log10(1 + self._contacts[row, first : last + 1])
        return bins, (start % size, low - start, high - start)

    def regions(self, role: str, chrom: str, start: int, end: int) -> np.ndarray:
        """bool (end - start,): the bases of [start, end) in the intervals of a role of ``REGIONS``."""
        self._check(chrom, start, end)
        out = np.zeros(end - start, dtype=bool)
        intervals = self._regions[role].get(chrom)
        if intervals is not None:
            first = np.searchsorted(intervals[:, 1], start, side="right")
            last = np.searchsorted(intervals[:, 0], end, side="left")
            for low, high in intervals[first:last].tolist():
                out[max(low - start, 0) : high - start] = True
        return out

    def intervals(self, role: str) -> pd.DataFrame:
        """All intervals of a role of ``REGIONS``: chrom, start, end; 0-based, half-open."""
        parts = [pd.DataFrame(i, columns=["start", "end"]).assign(chrom=c) for c, i in self._regions[role].items()]
        return pd.concat([pd.DataFrame({"chrom": [], "start": [], "end": []}, dtype=object), *parts], ignore_index=True)

    def track_dtype(self, name: str, chrom: str) -> str:
        """float16 or float32: how the track is stored on this chromosome."""
        return str(self._array(f"tracks/{name}/{chrom}").dtype.name)

    def region_size(self, role: str) -> tuple[int, int]:
        """Intervals and bases in the intervals of a role of ``REGIONS``."""
        intervals = list(self._regions[role].values())
        return sum(map(len, intervals)), sum(int((i[:, 1] - i[:, 0]).sum()) for i in intervals)

    @property
    def _remedy(self) -> str:
        return f"rebuild what is damaged with `seq2exp data repair {self.path}`"

    def _array(self, name: str) -> ChunkedArray:
        if name not in self._arrays:
            self._arrays[name] = ChunkedArray(self.path / name, self._cache, self._remedy)
        return self._arrays[name]

    def _check(self, chrom: str, start: int, end: int) -> None:
        if chrom not in self.chromosomes:
            raise UserError(f"{self.path}: no chromosome {chrom!r}; it holds {', '.join(self.chromosomes)}.")
        if end < start:
            raise UserError(f"{chrom}:{start}-{end} ends before it starts.")


def read_header(path: Path) -> dict[str, Any]:
    """What a store says of itself. Raises UserError as ``open_store`` does."""
    again = "run the command that began it again (`seq2exp data build` or `import-official`), which finishes it"
    if path.name.endswith(".partial"):
        raise UserError(f"{path}: an unfinished store; {again}.")
    if not path.exists():
        if partial_path(path).exists():
            raise UserError(f"{path}: not finished, only {partial_path(path).name} is there; {again}.")
        raise UserError(f"{path}: no such store.")
    try:
        header: dict[str, Any] = json.loads((path / "zarr.json").read_text())["attributes"]["seq2exp"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not a finished seq2exp store; build one with `seq2exp data build`.") from error
    found = header.get("format")
    if not isinstance(found, int) or not 1 <= found <= FORMAT:
        raise UserError(
            f"{path}: the store has format {found}, this version of seq2exp reads up to {FORMAT}; update seq2exp, or "
            "build the store again."
        )
    return header


def whole_array(group: zarr.Group, name: str) -> np.ndarray:
    """An array that is read as a whole. Raises OSError, KeyError or ValueError when it is damaged."""
    array = group[name]
    if not isinstance(array, zarr.Array):
        raise ValueError(f"{name} is no array")
    try:
        return np.asarray(array[...])
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"{name}: {error}") from error


def _read_genes(group: zarr.Group, names: list[str]) -> pd.DataFrame:
    columns = {}
    for number, name in enumerate(names):
        values = whole_array(group, f"genes/{number}")
        columns[name] = values.astype(object) if values.dtype.kind in "TUO" else values
    return pd.DataFrame(columns)
