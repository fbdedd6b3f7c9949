"""Text tables, BED and narrowPeak files, and chromosome names: what several readers share."""

import gzip
import warnings
import zlib
from collections.abc import Iterable, Iterator, Mapping
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


def is_gzip(path: Path) -> bool:
    """Whether the file begins as gzip and bgzip files do."""
    with path.open("rb") as handle:
        return handle.read(2) == b"\x1f\x8b"


def numbered_lines(path: Path, what: str) -> Iterator[tuple[int, str]]:
    """Yields (line number from 1, line without its end) of a text file, gzip or not.

    Raises:
        UserError: not UTF-8 text, or truncated gzip.
    """
    try:
        with gzip.open(path, "rt", encoding="utf-8") if is_gzip(path) else path.open(encoding="utf-8") as text:
            for number, line in enumerate(text, 1):
                yield number, line.rstrip("\r\n")
    except (UnicodeDecodeError, EOFError, OSError, zlib.error) as error:
        raise UserError(f"{path}: not a readable {what} file ({first_line(error)}).") from error


def read_table(path: Path) -> pd.DataFrame:
    """Reads a CSV or TSV with a header, gzip or not, as text; empty fields are "". Tabs in the header mean TSV.

    Returns:
        The table without empty lines; its index is the number of each row's first line in the file, from 1.

    Raises:
        UserError: not a table, not UTF-8 text, truncated gzip, or two columns of one name.
    """
    packed = is_gzip(path)
    try:
        with gzip.open(path, "rt", encoding="utf-8-sig") if packed else path.open(encoding="utf-8-sig") as text:
            blank, header = 0, text.readline()
            while header.isspace():
                blank, header = blank + 1, text.readline()
            separator = "\t" if "\t" in header else ","
            names = [name.strip().strip('"') for name in header.rstrip("\r\n").split(separator)]
            twice = {name for name in names if names.count(name) > 1}
            if twice:
                raise UserError(f"{path}: the column {min(twice)!r} occurs more than once.")
            text.seek(0)
            with warnings.catch_warnings():
                warnings.simplefilter("error", pd.errors.ParserWarning)  # lines longer than the header
                table = pd.read_csv(
                    text, sep=separator, dtype=str, keep_default_na=False, index_col=False, skiprows=blank,
                    skip_blank_lines=False,
                )  # fmt: skip
            text.seek(0)
            lines = sum(1 for _ in text)
    except (ValueError, pd.errors.ParserWarning, EOFError, OSError, zlib.error) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path}: not a readable CSV or TSV table ({first_line(error)}).") from error
    table = table.fillna("").rename(columns=str.strip)
    heights = np.ones(len(table), dtype=np.int64)
    if lines != blank + 1 + len(table):  # quoted fields with line ends in them
        for _, column in table.items():
            heights += column.str.count("\n").to_numpy(np.int64)
    table.index = pd.Index(blank + 2 + np.cumsum(heights) - heights)
    is_blank = np.ones(len(table), dtype=bool)
    for _, column in table.items():
        is_blank[is_blank] = column[is_blank].str.strip() == ""
    return table[~is_blank]


def read_bed(path: Path, lengths: Mapping[str, int]) -> dict[str, np.ndarray]:
    """Reads BED or narrowPeak intervals; chromosomes that `lengths` lacks are left out.

    A file named .narrowPeak (or .narrowPeak.gz) must have its ten columns, the last the summit's distance from the
    start or -1 (https://genome.ucsc.edu/FAQ/FAQformat.html#format12); of any other, three are read.

    Returns:
        chromosome -> int64 (n, 2), sorted, merged, half-open.

    Raises:
        UserError: a line without its fields, coordinates that are no interval of the chromosome, a summit outside its
            peak, or none of the chromosomes in `lengths`.
    """
    narrow = path.name.removesuffix(".gz").endswith(".narrowPeak")
    found: dict[str, list[tuple[int, int]]] = {}
    unknown = ""
    for number, line in numbered_lines(path, "BED"):
        fields = line.split("\t") if "\t" in line else line.split()
        if not line.strip() or line.startswith("#") or line.split()[0] in ("track", "browser"):
            continue
        try:
            chrom, start, end = fields[0].strip(), int(fields[1]), int(fields[2])
            summit = int(fields[9]) if narrow else -1
        except (IndexError, ValueError) as error:
            form = "narrowPeak (10 columns, the last a whole number)" if narrow else "BED (chromosome, start, end)"
            raise UserError(f"{path}: line {number} is not {form}.") from error
        if chrom not in lengths:
            unknown = unknown or chrom
            continue
        if not 0 <= start < end <= lengths[chrom]:
            raise UserError(
                f"{path}: line {number}: {chrom}:{start}-{end} is not an interval of {chrom}, which has "
                f"{lengths[chrom]:,} bases."
            )
        if not -1 <= summit < end - start:
            raise UserError(
                f"{path}: line {number}: the summit, {summit}, is not within the {end - start:,} bases of the peak."
            )
        found.setdefault(chrom, []).append((start, end))
    if unknown and not found:
        closest = closest_chromosome(unknown, lengths)
        raise UserError(f"{path}: none of its chromosomes is one of the genes': {unknown!r} is not{closest}.")
    return {chrom: _merge(sorted(intervals)) for chrom, intervals in found.items()}


def closest_chromosome(name: str, known: Iterable[str]) -> str:
    """What to say after "chromosome NAME is missing": the chr-prefix mistake, or the names there are."""
    other = name[3:] if name.startswith("chr") else f"chr{name}"
    names = list(known)
    if other in names:
        return f", which calls it {other!r} (with and without the prefix chr): rename one of the two"
    return f", which has {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}"


def first_line(error: Exception) -> str:
    """What an exception says, in one line."""
    return str(error).strip().split("\n")[0]


def _merge(intervals: list[tuple[int, int]]) -> np.ndarray:
    merged: list[list[int]] = []
    for start, end in intervals:
        if merged and start <= merged[-1][1]:
            merged[-1][1] = max(merged[-1][1], end)
        else:
            merged.append([start, end])
    return np.array(merged, dtype=np.int64).reshape(-1, 2)
