"""Small contact maps: .hic with normalisation vectors, .cool and .mcool."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

_WRITE = """
import json, sys, hictkpy
path, lengths, resolution, pixels = json.loads(sys.stdin.read())
module = hictkpy.hic if path.endswith("hic") else hictkpy.cooler
writer = module.FileWriter(path, lengths, resolution)
writer.add_pixels_from_dict(pixels)
writer.finalize()
"""


def write_map(
    path: Path,
    lengths: Mapping[str, int],
    resolution: int,
    pixels: Mapping[str, Sequence[int]],
    norms: Mapping[str, Mapping[str, Sequence[float]]] | None = None,
) -> Path:
    """Writes a .hic or .cool; norms, of a .hic: normalisation -> chromosome -> a factor for each bin.

    By hictkpy in a process of its own: in this one it would hang later tests that fork.
    """
    request = json.dumps([str(path), lengths, resolution, pixels])
    subprocess.run([sys.executable, "-c", _WRITE], input=request, text=True, check=True, capture_output=True)
    if norms:
        _add_norms(path, list(lengths), resolution, norms)
    return path


def write_mcool(path: Path, cools: Mapping[int, Path]) -> Path:
    """Puts .cool files, resolution -> path, into one .mcool."""
    import h5py

    with h5py.File(path, "w") as file:
        file.attrs.update({"format": "HDF5::MCOOL", "format-version": 2})
        for resolution, cool in cools.items():
            with h5py.File(cool) as source:
                source.copy("/", file.require_group("resolutions"), name=str(resolution))
                file[f"resolutions/{resolution}"].attrs.update(dict(source.attrs))
    return path


def _add_norms(
    path: Path, chroms: list[str], resolution: int, norms: Mapping[str, Mapping[str, Sequence[float]]]
) -> None:
    """Replaces the empty index of normalisation vectors of a .hic, the last part of the file (format version 9).

    https://github.com/aidenlab/hic-format/blob/master/HiCFormatV9.md
    """
    data = path.read_bytes()
    pointer = data.index(b"\0", 16) + 1  # behind magic, version, footer position, genome
    position, size = struct.unpack_from("<qq", data, pointer)
    assert struct.unpack_from("<i", data, 4) == (9,) and data[position:] == bytes(4) and size == 4
    vectors = [
        (f"{name}\0".encode() + struct.pack("<i", chroms.index(chrom) + 1) + struct.pack("<3si", b"BP\0", resolution),
         struct.pack(f"<q{len(factors)}f", len(factors), *factors))
        for name, by_chrom in norms.items() for chrom, factors in by_chrom.items()
    ]  # fmt: skip
    size = 4 + sum(len(entry) + 16 for entry, _ in vectors)
    index, there = struct.pack("<i", len(vectors)), position + size
    for entry, values in vectors:
        index += entry + struct.pack("<qq", there, len(values))
        there += len(values)
    head = data[:pointer] + struct.pack("<qq", position, size) + data[pointer + 16 : position]
    path.write_bytes(head + index + b"".join(values for _, values in vectors))
