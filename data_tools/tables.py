"""Text tables, BED files and chromosome names: what several readers share."""

import gzip
import warnings
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from seq2exp.errors import UserError


def check_file(path: Path, what: str) -> None:
    """Raises UserError unless path is a readable file that is not empty."""
    if path.is_dir():
        raise UserError(f"{path}: a folder, where {what} must be a file.")
    try:
        with path.open("rb") as handle:
            empty = not handle.read(1)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file ({what}).") from error
    except OSError as error:
        raise UserError(f"{path}: {what} cannot be read: {error.strerror or error}.") from error
    if empty:
        raise UserError(f"{path}: {what} is empty.")


def read_table(path: Path) -> pd.DataFrame:
    """Reads a CSV or TSV with a header, gzip or not, as text; empty fields are "". Tabs in the header mean TSV.

    Raises:
        UserError: not a table, not UTF-8 text, truncated gzip, or two columns of one name.
    """
    with path.open("rb") as handle:
        packed = handle.read(2) == b"\x1f\x8b"
    try:
        with gzip.open(path, "rt", encoding="utf-8-sig") if packed else path.open(encoding="utf-8-sig") as text:
            header = text.readline()
            separator = "\t" if "\t" in header else ","
            names = [name.strip().strip('"') for name in header.rstrip("\r\n").split(separator)]
            twice = {name for name in names if names.count(name) > 1}
            if twice:
                raise UserError(f"{path}: the column {min(twice)!r} occurs more than once.")
            text.seek(0)
            with warnings.catch_warnings():
                warnings.simplefilter("error", pd.errors.ParserWarning)  # lines longer than the header
                table = pd.read_csv(text, sep=separator, dtype=str, keep_default_na=False, index_col=False)
    except (ValueError, pd.errors.ParserWarning, EOFError, OSError, zlib.error) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path}: not a readable CSV or TSV table ({_first_line(error)}).") from error
    return table.fillna("").rename(columns=str.strip)


def read_bed(path: Path, lengths: Mapping[str, int]) -> dict[str, np.ndarray]:
    """Reads BED intervals, chromosome -> int64 (n, 2) sorted and merged; chromosomes that `lengths` lacks are left out.

    Raises:
        UserError: a line without three fields, or coordinates that are no interval of the chromosome.
    """
    with path.open("rb") as handle:
        packed = handle.read(2) == b"\x1f\x8b"
    found: dict[str, list[tuple[int, int]]] = {}
    try:
        with gzip.open(path, "rt") if packed else path.open() as text:
            for number, line in enumerate(text, 1):
                fields = line.split()
                if not fields or fields[0].startswith("#") or fields[0] in ("track", "browser"):
                    continue
                try:
                    chrom, start, end = fields[0], int(fields[1]), int(fields[2])
                except (IndexError, ValueError) as error:
                    raise UserError(f"{path}: line {number} is not BED (chromosome, start, end).") from error
                if chrom not in lengths:
                    continue
                if not 0 <= start < end <= lengths[chrom]:
                    raise UserError(
                        f"{path}: line {number}: {chrom}:{start}-{end} is not an interval of {chrom}, which has "
                        f"{lengths[chrom]:,} bases."
                    )
                found.setdefault(chrom, []).append((start, end))
    except (UnicodeDecodeError, EOFError, OSError, zlib.error) as error:
        raise UserError(f"{path}: not a readable BED file ({_first_line(error)}).") from error
    return {chrom: _merge(sorted(intervals)) for chrom, intervals in found.items()}


def closest_chromosome(name: str, known: Iterable[str]) -> str:
    """What to say after "chromosome NAME is missing": the chr-prefix mistake, or the names there are."""
    other = name[3:] if name.startswith("chr") else f"chr{name}"
    names = list(known)
    if other in names:
        return f", which calls it {other!r} (with and without the prefix chr): rename one of the two"
    return f", which has {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}"


def _merge(intervals: list[tuple[int, int]]) -> np.ndarray:
    merged: list[list[int]] = []
    for start, end in intervals:
        if merged and start <= merged[-1][1]:
            merged[-1][1] = max(merged[-1][1], end)
        else:
            merged.append([start, end])
    return np.array(merged, dtype=np.int64).reshape(-1, 2)


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]
