"""Benchmarks of the data: whole samples of 200 kb from a store against the files themselves; sizes.

    python bench/data.py        # as: python bench/run.py data_

The windows lie at random places of ../shared/realdata's chr20: sequence, three tracks, contacts. Each is read once, in
random order, the page cache warm. The store decodes what it reads every time, unless its cache is what is measured. The
rivals keep their files open and find the contacts, a row of bins a gene, in memory.
"""

from __future__ import annotations

import functools
import importlib.util
import itertools
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from harness import Contest, benchmark
from torch.utils.data import DataLoader, Dataset, default_collate

from seq2exp.data_tools import GeneWindows, Store, build_store, collate, open_store, stack

REAL = Path(__file__).resolve().parents[2] / "shared" / "realdata" / "hg38"
FASTA = REAL / "genome" / "hg38.subset.fa"
TRACKS = {
    "H3K27ac": REAL / "signal" / "K562_H3K27ac.element_density.bw",
    "DNase": REAL / "signal" / "K562_DNase.element_density.bw",
    "ATAC": REAL / "signal" / "ATAC_esATAC.tn5_cuts_151bp.chr20.bw",
}
LENGTH, GENES, FEW, BATCH = 200_000, 512, 32, 8
CHROM, PLACES = "chr20", (200_000, 9_800_000)
OTHER, OTHER_TSS = "chr22", 20_300_000  # what the FASTA and two tracks hold besides
HG38 = {"chromosomes 1-22, X, Y": 3_088_269_832, "of them known": 2_937_639_212}
HG38_LIMIT = 0.9  # GB, the sequence
CACHE = 512 * 2**20
CODES = np.full(256, 4, np.uint8)
CODES[np.frombuffer(b"ACGTacgt", np.uint8)] = np.tile(np.arange(4, dtype=np.uint8), 2)
ONE_HOT = {base: [float(base == other) for other in "ACGT"] for base in "ACGTN"}
_FOLDER = tempfile.TemporaryDirectory(prefix="seq2exp_bench_")


def unavailable() -> str | None:
    if not FASTA.exists():
        return f"no {REAL.parent.name} beside the project"
    missing = [name for name in ("pyBigWig", "pyfaidx") if importlib.util.find_spec(name) is None]
    return f"no {missing[0]}" if missing else None


@functools.cache
def store_path() -> Path:
    """A store with genes at random places of CHROM, and one in no split on OTHER, so that all of it is stored."""
    folder = Path(_FOLDER.name)
    tss = np.random.default_rng(0).integers(*PLACES, GENES)
    genes = pd.DataFrame({"gene_id": np.arange(GENES), "chrom": CHROM, "tss": tss, "strand": "+", "split": "read"})
    genes.loc[GENES] = [GENES, OTHER, OTHER_TSS, "+", ""]
    genes.assign(target=0.0).to_csv(folder / "genes.csv", index=False)
    out = folder / "store.zarr"
    columns = {"target": "target", "split": "split"}
    build_store(out=out, fasta=FASTA, track=TRACKS, genes=folder / "genes.csv", contacts="powerlaw", **columns)
    return out


def windows(cache_bytes: int = 0, compact: bool = True) -> GeneWindows:
    return GeneWindows(open_store(store_path(), cache_bytes), LENGTH, "read", compact=compact)


class Files(Dataset[dict[str, Any]]):
    """Windows read from FASTA and bigWigs. Files are opened by the process that reads them, and kept open."""

    def __init__(self, store: Store) -> None:
        self.genes, self.resolution = store.genes[:GENES], store.contact_resolution
        self.contacts = [store.contact_bins(row, *self.place(row)) for row in range(len(self.genes))]

    def place(self, row: int) -> tuple[int, int]:
        start = int(self.genes["tss"].iat[row]) - LENGTH // 2
        return start, start + LENGTH

    def __len__(self) -> int:
        return len(self.genes)

    @functools.cached_property
    def fasta(self) -> Any:
        import pyfaidx

        return pyfaidx.Fasta(str(FASTA), build_index=False, as_raw=True, sequence_always_upper=True)

    @functools.cached_property
    def tracks(self) -> list[Any]:
        import pyBigWig

        return [pyBigWig.open(str(path)) for path in TRACKS.values()]

    def contact_row(self, row: int) -> np.ndarray:
        bins, (offset, _, _) = self.contacts[row]
        return np.repeat(bins, self.resolution)[offset : offset + LENGTH]


class NumpyFiles(Files):
    """pyfaidx and pyBigWig to numpy: codes (L,), tracks float32 (3, L), contacts float32 (L,)."""

    def __getitem__(self, row: int) -> dict[str, Any]:
        start, end = self.place(row)
        text = self.fasta[CHROM][start:end]
        tracks = np.empty((len(TRACKS), LENGTH), np.float32)
        for file, out in zip(self.tracks, tracks, strict=True):
            out[:] = file.values(CHROM, start, end, numpy=True)
        np.nan_to_num(tracks, copy=False)
        return {
            "sequence": CODES[np.frombuffer(text.encode(), np.uint8)],
            "tracks": tracks,
            "contacts": self.contact_row(row),
        }


class PublishedFiles(Files):
    """As the published loader is described: one-hot in Python, lists of values, lists to tensors; (L, 4) each."""

    def __getitem__(self, row: int) -> dict[str, Any]:
        start, end = self.place(row)
        one_hot = torch.tensor([ONE_HOT[base] for base in self.fasta[CHROM][start:end]])
        columns = [torch.tensor(file.values(CHROM, start, end)).nan_to_num() for file in self.tracks]
        columns.append(torch.from_numpy(self.contact_row(row)))
        return {"sequence": one_hot, "signals": torch.stack(columns, 1)}


def order(count: int) -> list[int]:
    return np.random.default_rng(1).permutation(GENES)[:count].tolist()


def one_by_one(data: Dataset[Any], count: int) -> Callable[[], None]:
    """Reads `count` windows in this process, in one thread as a worker has."""
    indices = order(count)

    def work() -> None:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        for i in indices:
            data[i]
        torch.set_num_threads(threads)

    return work


def by_workers(data: Dataset[Any], count: int, together: Callable[[list[Any]], Any]) -> Callable[[], None]:
    """Reads `count` windows in batches by two worker processes, which stay."""
    batches = DataLoader(data, BATCH, sampler=order(count), num_workers=2, collate_fn=together, persistent_workers=True)

    def work() -> None:
        for _ in batches:
            pass

    return work


def check(count: int, complete: bool, rivals: type[Files]) -> None:
    """What the store gives is what the files give: sequence and contacts the same bits, tracks to within 1e-3."""
    ours, files = windows(compact=not complete), rivals(open_store(store_path()))
    for i in order(count):
        full, other = ours[i] if complete else {n: v[0] for n, v in collate([ours[i]]).items()}, files[i]
        codes, signals = full["sequence"].numpy(), full["signals"].numpy()
        if rivals is NumpyFiles:
            expected = np.stack([*other["tracks"], other["contacts"]], 1)
        else:
            codes, expected = np.eye(5, 4)[codes], other["signals"].numpy()
        assert np.array_equal(codes, other["sequence"]), f"another sequence in window {i}"
        assert np.allclose(signals, expected, rtol=1e-3, atol=0), f"other signals in window {i}"
        assert np.array_equal(signals[:, -1], expected[:, -1]), f"other contacts in window {i}"


def contest(rivals: type[Files], workers: bool, complete: bool) -> Contest:
    count = FEW if rivals is PublishedFiles else GENES
    ours, files = windows(compact=not complete), rivals(open_store(store_path()))
    if workers:
        together = collate if complete else stack
        sides = by_workers(ours, count, together), by_workers(files, count, default_collate)
    else:
        sides = one_by_one(ours, count), one_by_one(files, count)
    return Contest(*sides, lambda: check(FEW, complete, rivals), samples=count)


for _name, _rivals, _goal, _said in (
    ("numpy", NumpyFiles, 1, "pyfaidx, pyBigWig, numpy"),
    ("published", PublishedFiles, 20, "one-hot, lists, tensors"),
):
    for _workers, _complete in itertools.product((False, True), (False, True)):
        _where = "2 workers, batches of 8" if _workers else "1 process"
        _form = "complete" if _complete else "compact"
        benchmark(
            f"data_{_name}_{'workers' if _workers else 'alone'}{'_complete' if _complete else ''}",
            ours=f"store, {_form}", other=_said, goal=None if _complete and _goal == 1 else _goal, rounds=3,
            unavailable=unavailable, setting=f"windows of 200 kb, 3 tracks, contacts; {_where}, no cache",
        )(functools.partial(contest, _rivals, _workers, _complete))  # fmt: skip


@benchmark(
    "data_cache", ours="store, all decoded chunks kept", other="store, none kept", rounds=3, unavailable=unavailable,
    setting="windows of 200 kb, 3 tracks, contacts; 1 process, compact, every window seen before",
)  # fmt: skip
def cache() -> Contest:
    kept = windows(CACHE)
    one_by_one(kept, GENES)()
    return Contest(one_by_one(kept, GENES), one_by_one(windows(), GENES), lambda: None, samples=GENES)


@benchmark(
    "data_handed_over", ours="a compact item", other="the limit", goal=1, unit="bytes a base", unavailable=unavailable,
    setting="200 kb, 3 tracks, contacts, exclude and include",
)  # fmt: skip
def handed_over() -> Contest:
    tensors = [value for value in windows()[0].values() if isinstance(value, torch.Tensor)]
    return Contest(lambda: sum(x.nbytes for x in tensors) / LENGTH, lambda: 8.0, lambda: None)


def held(array: str) -> int:
    """Bytes of an array, or of all below a group."""
    return sum(file.stat().st_size for file in (store_path() / array).rglob("*") if file.is_file())


def sizes(array: str) -> Contest:
    source = FASTA if array == "sequence" else TRACKS[array.removeprefix("tracks/")]
    bases = sum(open_store(store_path()).chromosomes.values())
    return Contest(lambda: held(array) / bases, lambda: source.stat().st_size / bases, lambda: None)


def hg38_gigabytes() -> float:
    """Of the sequence of hg38: at the bytes that a known base takes on CHROM, and an N on OTHER."""
    store = open_store(store_path())
    bases = {chrom: store.chromosomes[chrom] for chrom in (CHROM, OTHER)}
    known = {chrom: int((store.sequence(chrom, 0, bases[chrom]) < 4).sum()) for chrom in bases}
    for_known = held(f"sequence/{CHROM}") / known[CHROM]
    for_n = max(0.0, held(f"sequence/{OTHER}") - for_known * known[OTHER]) / (bases[OTHER] - known[OTHER])
    total, there = HG38.values()
    return (there * for_known + (total - there) * for_n) / 1e9


benchmark(
    "data_size_sequence", ours="sequence in the store", other="FASTA", goal=1, unit="bytes a base",
    unavailable=unavailable, setting="10.6 Mb of hg38 and 20.4 Mb of N",
)(functools.partial(sizes, "sequence"))  # fmt: skip
benchmark(
    "data_size_hg38", ours="sequence of hg38, extrapolated", other="the limit", goal=1, unit="GB",
    unavailable=unavailable, setting="chromosomes 1-22, X and Y, from those 31 Mb",
)(lambda: Contest(hg38_gigabytes, lambda: HG38_LIMIT, lambda: None))  # fmt: skip
for _name, _path in TRACKS.items():
    benchmark(
        f"data_size_{_name}", ours=f"{_name} in the store", other="bigWig", goal=1, unit="bytes a base",
        unavailable=unavailable, setting=_path.name,
    )(functools.partial(sizes, f"tracks/{_name}"))  # fmt: skip


if __name__ == "__main__":
    from run import main  # which registers all benchmarks, these too

    sys.exit(main(["data_"]))
