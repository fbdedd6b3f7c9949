"""Rows of .hic, .cool and .mcool contact maps, read by hictkpy in a process of its own.

Once hictkpy is imported, a later fork of the same process can hang in its fork handler (seen with 1.4.0), which would
stop DataLoader workers. So the parent never imports it: it starts this module, sends a request as JSON and reads back
an .npz. A map that makes the library crash ends in a sentence too.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from seq2exp.errors import UserError

_NORMALIZATIONS = ("KR", "VC", "VC_SQRT", "SCALE", "weight", "ICE")


def read_map(
    path: Path,
    resolution: int,
    value: str | None,
    chroms: list[str],
    tss: list[int],
    reach: int,
    lengths: Mapping[str, int] | None = None,
) -> tuple[np.ndarray, int, str]:
    """Contacts of the bin of each TSS with `reach` bins on each side.

    Args:
        resolution: bases a bin, one of those in a .hic or .mcool; a .cool has one of its own.
        value: a normalisation of the file, "NONE" for raw counts; default the first there is of KR, VC, VC_SQRT,
            SCALE, weight, ICE, else NONE.
        lengths: chromosome -> bases, from the FASTA; a map of another assembly is refused.

    Returns:
        float64 (genes, 2 * reach + 1), NaN where not measured; the resolution; the normalisation.

    Raises:
        UserError: damaged file; no such resolution or normalisation, saying which there are.
    """
    request = {
        "path": str(path),
        "resolution": resolution,
        "value": value,
        "chroms": chroms,
        "tss": tss,
        "reach": reach,
        "lengths": dict(lengths or {}),
    }
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "rows.npz"
        child = subprocess.run(
            [sys.executable, "-m", "seq2exp.data_tools.maps", str(out)],
            input=json.dumps(request),
            capture_output=True,
            text=True,
        )
        if child.returncode == 2:
            raise UserError(child.stderr.strip())
        if child.returncode != 0:
            last = child.stderr.strip().split("\n")[-1] or f"exit code {child.returncode}"
            raise UserError(f"{path}: cannot be read as a contact map ({last}).")
        with np.load(out) as result:
            return result["rows"], int(result["resolution"]), str(result["value"])


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
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    table = np.array(rows, dtype=np.float64).reshape(len(rows), 2 * request["reach"] + 1)
    np.savez(sys.argv[1], rows=table, resolution=file.resolution(), value=value)


def _open(path: Path, resolution: int) -> Any:
    try:
        import hictkpy
    except ImportError as error:
        raise UserError("Reading .hic, .cool and .mcool needs the package hictkpy.") from error
    hictkpy.logging.setLevel("ERROR")
    try:
        if hictkpy.is_hic(path) or hictkpy.is_mcool_file(path):
            there = [int(r) for r in hictkpy.MultiResFile(path).resolutions()]
            if resolution not in there:
                raise UserError(f"{path}: no resolution {resolution}; it has {', '.join(map(str, there))}.")
            return hictkpy.File(path, resolution)
        if hictkpy.is_cooler(path):
            return hictkpy.File(path)
    except RuntimeError as error:
        raise UserError(f"{path}: cannot be read as a contact map ({str(error).splitlines()[0]}).") from error
    raise UserError(f"{path}: neither .hic nor .cool nor .mcool, or damaged.")


def _normalization(path: str, file: Any, value: str | None) -> str:
    there = list(file.avail_normalizations())
    if value is None:
        return next((name for name in _NORMALIZATIONS if name in there), "NONE")
    if value != "NONE" and value not in there:
        raise UserError(f"{path}: no normalisation {value!r}; it has {', '.join(['NONE', *there])}.")
    return value


def _check_lengths(path: str, file: Any, lengths: dict[str, int]) -> None:
    there = dict(file.chromosomes())
    for chrom, length in lengths.items():
        name = _name(chrom, there)
        if name is not None and there[name] != length:
            raise UserError(
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
