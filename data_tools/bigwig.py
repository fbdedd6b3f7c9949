"""bigWig tracks: opening with checks, values as float32 arrays, and writing for the simulator."""

import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from seq2exp.errors import UserError

_BLOCK = 4 * 2**20
_SUMMARY_POINTER = 44  # where the header says at which byte the summary of all values stands
_SIGNATURES = (bytes.fromhex("26fc8f88"), bytes.fromhex("888ffc26"))  # little and big endian


def _pybigwig() -> Any:
    try:
        import pyBigWig
    except ImportError as error:
        raise UserError("bigWig files need the package pyBigWig, which exists for Linux only.") from error
    return pyBigWig


class BigWig:
    """One open bigWig file; a context manager. Not to be kept across a fork.

    Raises:
        UserError: missing, empty, truncated, or no bigWig.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        package = _pybigwig()
        with path.open("rb") as handle:
            head = handle.read(4)
            if head not in _SIGNATURES:
                raise UserError(f"{path}: not a bigWig file.")
            handle.seek(-4, 2)
            if handle.read(4) != head:
                raise UserError(f"{path}: does not end with the bigWig signature, so it is truncated; fetch it again.")
        try:
            self._file = package.open(str(path))
        except RuntimeError as error:
            raise UserError(f"{path}: cannot be read as bigWig, it is truncated or damaged; fetch it again.") from error
        self.lengths: dict[str, int] = dict(self._file.chroms())

    def __enter__(self) -> "BigWig":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def values(self, chrom: str) -> np.ndarray:
        """float32 (length,): the whole chromosome, read in blocks; 0 where the file says nothing or NaN.

        Raises:
            UserError: a negative or infinite value, with its position; unreadable data.
        """
        length = self.lengths.get(chrom, 0)
        out = np.zeros(length, dtype=np.float32)
        for start in range(0, length, _BLOCK):
            end = min(start + _BLOCK, length)
            out[start:end] = self.window(chrom, start, end)
        return out

    def window(self, chrom: str, start: int, end: int) -> np.ndarray:
        """float32: the values of the part of [start, end) that the chromosome has. As ``values`` in all else."""
        start, end = max(start, 0), min(end, self.lengths.get(chrom, 0))
        if start >= end:
            return np.zeros(0, dtype=np.float32)
        try:
            block = self._file.values(chrom, start, end, numpy=True)
        except RuntimeError as error:
            raise UserError(f"{self.path}: {chrom}:{start}-{end} cannot be read; fetch the file again.") from error
        np.nan_to_num(block, copy=False, nan=0.0, posinf=np.inf, neginf=-np.inf)
        bad = (block < 0) | np.isinf(block)
        if bad.any():
            at = int(bad.argmax())
            raise UserError(
                f"{self.path}: the value at {chrom}:{start + at:,} is {block[at]:g}; signals must be finite and "
                "not negative (log ratios and z-scores do not serve)."
            )
        return np.asarray(block)

    def intervals(self, chrom: str) -> Iterator[tuple[int, int, float]]:
        """The (start, end, value) that the file holds for a chromosome, in order, read in blocks."""
        length = self.lengths[chrom]
        for low in range(0, length, _BLOCK):
            high = min(low + _BLOCK, length)
            for start, end, value in self._file.intervals(chrom, low, high) or ():
                yield max(start, low), min(end, high), value

    def total(self) -> float:
        """The sum over all bases of all chromosomes, from the file's own summary.

        Raises:
            UserError: a file of format version 1, which has none.
        """
        with self.path.open("rb") as handle:
            order = "<" if handle.read(4) == _SIGNATURES[0] else ">"
            handle.seek(_SUMMARY_POINTER)
            (offset,) = struct.unpack(f"{order}Q", handle.read(8))
            if not offset:
                raise UserError(f"{self.path}: an old bigWig without a summary of its values; convert it anew.")
            handle.seek(offset)
            _, _, _, total, _ = struct.unpack(f"{order}Qdddd", handle.read(40))
        return float(total)


def storage_dtype(values: np.ndarray) -> np.dtype:
    """float16 where every value keeps within 1e-3 relative, else float32."""
    for start in range(0, len(values), _BLOCK):
        block = values[start : start + _BLOCK]
        with np.errstate(over="ignore"):
            error = np.abs(block.astype(np.float16).astype(np.float32) - block)
        if not (error <= 1e-3 * np.abs(block)).all():
            return np.dtype(np.float32)
    return np.dtype(np.float16)


def write_bigwig(path: Path, tracks: Mapping[str, np.ndarray]) -> None:
    """Writes one value per base, chromosome -> float (length,)."""
    file = _pybigwig().open(str(path), "w")
    file.addHeader([(chrom, len(values)) for chrom, values in tracks.items()])
    for chrom, values in tracks.items():
        file.addEntries(chrom, 0, values=values.astype(np.float64), span=1, step=1)
    file.close()
