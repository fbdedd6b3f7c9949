"""The process that ``maps`` starts to read a .hic, .cool or .mcool map.

Run by its path and without the package around it, which would import torch first.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

_NORMALIZATIONS = ("KR", "VC", "VC_SQRT", "SCALE", "weight", "ICE")


class Refused(Exception):
    """A user's mistake: the parent raises it as UserError."""


def main() -> None:
    """The child: request on stdin, result in the file of the first argument, a user's mistake on stderr with code 2."""
    request = json.load(sys.stdin)
    try:
        file = _open(Path(request["path"]), request["resolution"])
        value = _normalization(request["path"], file, request["value"])
        _check_lengths(request["path"], file, request["lengths"])
        rows = [
            _row(file, value, c, t, request["reach"]) for c, t in zip(request["chroms"], request["tss"], strict=True)
        ]
    except Refused as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    table = np.array(rows, dtype=np.float64).reshape(len(rows), 2 * request["reach"] + 1)
    np.savez(sys.argv[1], rows=table, resolution=file.resolution(), value=value)


def _open(path: Path, resolution: int) -> Any:
    try:
        import hictkpy
    except ImportError as error:
        raise Refused("Reading .hic, .cool and .mcool needs the package hictkpy.") from error
    hictkpy.logging.setLevel("ERROR")
    try:
        if hictkpy.is_hic(path) or hictkpy.is_mcool_file(path):
            there = [int(r) for r in hictkpy.MultiResFile(path).resolutions()]
            if resolution not in there:
                raise Refused(f"{path}: no resolution {resolution}; it has {', '.join(map(str, there))}.")
            return hictkpy.File(path, resolution)
        if hictkpy.is_cooler(path):
            return hictkpy.File(path)
    except RuntimeError as error:
        raise Refused(f"{path}: cannot be read as a contact map ({str(error).splitlines()[0]}).") from error
    raise Refused(f"{path}: neither .hic nor .cool nor .mcool, or damaged.")


def _normalization(path: str, file: Any, value: str | None) -> str:
    there = list(file.avail_normalizations())
    if value is None:
        return next((name for name in _NORMALIZATIONS if name in there), "NONE")
    if value != "NONE" and value not in there:
        raise Refused(f"{path}: no normalisation {value!r}; it has {', '.join(['NONE', *there])}.")
    return value


def _check_lengths(path: str, file: Any, lengths: dict[str, int]) -> None:
    there = dict(file.chromosomes())
    for chrom, length in lengths.items():
        name = _name(chrom, there)
        if name is not None and there[name] != length:
            raise Refused(
                f"{path}: {name} has {there[name]:,} bases, but {length:,} in the FASTA; the two are of different "
                "assemblies."
            )


def _name(chrom: str, there: dict[str, int]) -> str | None:
    """What a map calls a chromosome: .hic files often leave the prefix chr out."""
    return next((n for n in (chrom, chrom.removeprefix("chr"), f"chr{chrom}") if n in there), None)


def _row(file: Any, value: str, chrom: str, tss: int, reach: int) -> np.ndarray:
    row = np.full(2 * reach + 1, np.nan)
    lengths = dict(file.chromosomes())
    name = _name(chrom, lengths)
    size = int(file.resolution())
    if name is None or tss >= lengths[name]:
        return row
    length, own = lengths[name], tss // size
    low, high = max(own - reach, 0), min(own + reach + 1, -(-length // size))

    def fetch(*ranges: tuple[int, int]) -> np.ndarray:
        queries = (f"{name}:{first * size + 1}-{min(last * size, length)}" for first, last in ranges)
        pixels = file.fetch(*queries, normalization=value, count_type="float64")
        return np.asarray(pixels.to_numpy(), dtype=np.float64)

    # the map is an upper triangle: the bins before the TSS's are in its column, those after it in its row
    row[low - own + reach : reach] = fetch((low, own + 1), (own, own + 1))[:-1, 0]
    row[reach : high - own + reach] = fetch((own, own + 1), (own, high))[0]
    return row if np.nansum(row) > 0 else np.full_like(row, np.nan)


if __name__ == "__main__":
    main()
