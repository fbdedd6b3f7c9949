"""Which chunks and codecs a store has: bytes a base, and the time to read windows of 200 kb, on the real data.

    python bench/store_study.py ../shared/realdata            # writes bench/results/store_study.md

Every candidate is written as the store writes it and read by the store's reader without its cache, page cache warm.
The candidates take turns at each window, in random order; a time is the mean over windows of the fastest turn, in
processor time. Times hold for the machine and the moment: compare within a table.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyBigWig
import zarr
from data import HG38
from rich.console import Console
from run import cpu_model, markdown
from zarr.codecs import BloscCodec, ZstdCodec

from seq2exp.data_tools.arrays import CODES, RUNS, VALUES, ChunkCache, ChunkedArray, Layout, track_layout, write_array
from seq2exp.data_tools.fasta import read_codes

LENGTH, WINDOWS, TURNS = 200_000, 24, 5
CHROM, FIRST = "chr20", 60_000  # the bases before are N
CHUNKS = (16_384, 32_768, 65_536, 131_072, 262_144)
SHARDS = (16, 64, 128, 256, 512)
CODECS = {
    "zstd 3": ZstdCodec(level=3),
    "zstd 9": RUNS.codec,
    "blosc zstd, bytes apart": VALUES.codec,
    "blosc zstd, bits apart": BloscCodec(cname="zstd", clevel=9, shuffle="bitshuffle"),
    "blosc lz4hc, bits apart": CODES.codec,
}
TRACKS = {
    "elements (DNase)": "K562_DNase.element_density.bw",
    "cuts in 151 bases (ATAC)": "ATAC_esATAC.tn5_cuts_151bp.chr20.bw",
    "coverage (ATAC)": "ATAC_esATAC.fragment_coverage.chr20.bw",
}


def signal(path: Path) -> np.ndarray:
    with pyBigWig.open(str(path)) as file:
        values = file.values(CHROM, FIRST, file.chroms(CHROM), numpy=True)
    return np.nan_to_num(values).astype(np.float16)


def size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def times(readers: list[ChunkedArray], windows: Iterable[int], fresh: bool = False) -> list[float]:
    """Milliseconds a window; fresh: the index of a shard is read for each window again."""
    out = np.empty(LENGTH, readers[0].dtype)
    fastest = []
    for start in windows:
        seconds = dict.fromkeys(readers, float("inf"))
        for _ in range(TURNS):
            for reader in random.sample(readers, len(readers)):
                if fresh:
                    reader.forget()
                began = time.process_time()
                reader.read(start, start + LENGTH, out)
                seconds[reader] = min(seconds[reader], time.process_time() - began)
        fastest.append(list(seconds.values()))
    return (1e3 * np.mean(fastest, axis=0)).tolist()


def compare(values: np.ndarray, layouts: list[Layout], folder: Path, fresh: bool = False) -> list[tuple[int, float]]:
    """(bytes, milliseconds a window) of each layout."""
    group = zarr.open_group(folder, mode="w")
    for i, layout in enumerate(layouts):
        write_array(group, str(i), values, layout)
    readers = [ChunkedArray(folder / str(i), ChunkCache(0)) for i in range(len(layouts))]
    starts = np.random.default_rng(0).integers(0, len(values) - LENGTH, WINDOWS).tolist()
    return list(zip((size(r.path) for r in readers), times(readers, starts, fresh), strict=True))


def codec_table(values: np.ndarray, codecs: Iterable[str], chosen: Layout, folder: Path) -> str:
    names = [(codec, chunk) for codec in codecs for chunk in CHUNKS]
    found = compare(values, [Layout(c, chosen.chunks_per_shard, CODECS[n]) for n, c in names], folder)
    cells = {at: f"{size_ / len(values):.4f}, {ms:.2f} ms" for at, (size_, ms) in zip(names, found, strict=True)}
    for name, chunk in names:
        if (chunk, CODECS[name]) == (chosen.chunk, chosen.codec):
            cells[name, chunk] = f"**{cells[name, chunk]}**"
    body = [[codec, *(cells[codec, chunk] for chunk in CHUNKS)] for codec in codecs]
    return markdown(["codec", *(f"{chunk:,}" for chunk in CHUNKS)], body)


def shard_table(values: np.ndarray, chosen: Layout, folder: Path) -> str:
    found = compare(values, [chosen._replace(chunks_per_shard=n) for n in SHARDS], folder, fresh=True)
    bases = HG38["chromosomes 1-22, X, Y"]
    body = [
        [f"{n:,}", f"{bases / (n * chosen.chunk):,.0f}", f"{16 * n + 4:,}", f"{bytes_:,}", f"{ms:.2f}"]
        for n, (bytes_, ms) in zip(SHARDS, found, strict=True)
    ]
    titles = ["chunks a shard", "files for hg38", "bytes of an index", "bytes here", "ms a window, index read anew"]
    return markdown(titles, body)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("realdata", type=Path)
    hg38 = parser.parse_args().realdata / "hg38"
    random.seed(0)
    codes = next(read_codes(hg38 / "genome" / "hg38.subset.fa", {CHROM}))[1][FIRST:]
    parts = ["# How a store is cut and packed", (__doc__ or "").strip(), f"Measured on: {cpu_model()}."]
    with tempfile.TemporaryDirectory() as temporary, Console(stderr=True).status("sequence") as status:
        folder = Path(temporary) / "arrays"
        sequence_codecs = [name for name in CODECS if name != "blosc zstd, bytes apart"]
        parts += [f"## Sequence, {CHROM} of hg38", "Bytes a base and time by codec and bases in a chunk; bold: chosen."]
        parts.append(codec_table(codes, sequence_codecs, CODES, folder))
        ((bytes_, _),) = compare(codes, [CODES], folder)
        known, total = HG38["of them known"], HG38["chromosomes 1-22, X, Y"]
        ((n_bytes, _),) = compare(np.full(4_000_000, 4, np.uint8), [CODES], folder)
        whole = known * bytes_ / len(codes) + (total - known) * n_bytes / 4e6
        parts.append(
            f"hg38 has {total:,} bases, {known:,} of them known. At {bytes_ / len(codes):.4f} bytes for each of those "
            f"and {n_bytes / 4e6:.4f} for each N its sequence takes {whole / 1e9:.3f} GB."
        )
        for name, file in TRACKS.items():
            status.update(name)
            path = hg38 / "signal" / file
            values = signal(path)
            parts += [
                f"## {name[0].upper()}{name[1:]}, float16",
                codec_table(values, CODECS, track_layout(values), folder),
            ]
            parts.append(f"The bigWig has {path.stat().st_size / len(values):.4f} bytes a base.")
        status.update("shards")
        parts += ["## Shards, sequence", shard_table(codes, CODES, folder)]
        elements = signal(hg38 / "signal" / TRACKS["elements (DNase)"])
        parts += ["## Shards, a sparse track", shard_table(elements, RUNS, folder)]
    out = Path(__file__).parent / "results" / "store_study.md"
    out.write_text("\n\n".join(parts) + "\n")
    print("\n\n".join(parts))


if __name__ == "__main__":
    main()
