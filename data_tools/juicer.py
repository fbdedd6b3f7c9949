"""Hi-C contacts as Juicer dumps them: raw counts and a vector of normalisation factors for each chromosome.

The files of Rao et al. 2014 (GEO GSE63525): ``chr22_5kb.RAWobserved`` holds lines "bin start, bin start, count" of one
triangle, ``chr22_5kb.KRnorm`` (VCnorm, SQRTVCnorm) a factor for each bin in order; the normalised contact of bins i and
j is count / (factor_i * factor_j), and a factor NaN means that the normalisation failed there.
"""

import glob
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from seq2exp.data_tools.tables import closest_chromosome, first_line, numbered_lines
from seq2exp.errors import UserError

MARK = "RAWobserved"
_NORMALISATIONS = ("KR", "VC", "SQRTVC")
_PADDING = 10  # Juicer writes a few factors more than the chromosome has bins


class JuicerFiles(NamedTuple):
    """The files of one chromosome; norm is None for raw counts."""

    raw: Path
    norm: Path | None


def find_juicer_files(contacts: str, value: str | None = None) -> tuple[str, dict[str, JuicerFiles]]:
    """The files that `contacts` names, by chromosome.

    Args:
        contacts: a RAWobserved file with its chromosome in its name (chr22), or such a path with {chrom} in place of
            each chromosome.
        value: KR, VC, SQRTVC, or NONE for raw counts; default the first of the three that is there.

    Returns:
        the normalisation, and chromosome -> files.

    Raises:
        UserError: no such file, no chromosome in its name, or no file of the normalisation, saying which there are.
    """
    raw = _raw_files(contacts)
    there = {chrom: _norm_files(path) for chrom, path in raw.items()}
    common = [name for name in _NORMALISATIONS if all(name in norms for norms in there.values())]
    if value is None:
        value = common[0] if common else "NONE"
    if value == "NONE":
        return value, {chrom: JuicerFiles(path, None) for chrom, path in raw.items()}
    for chrom, norms in there.items():
        if value not in norms:
            wanted = raw[chrom].name.replace(MARK, f"{value}norm")
            raise UserError(
                f"{raw[chrom]}: no normalisation {value!r}: {wanted} is not beside it; it has "
                f"{', '.join(['NONE', *norms])}."
            )
    return value, {chrom: JuicerFiles(path, there[chrom][value]) for chrom, path in raw.items()}


def read_juicer(files: JuicerFiles, length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """Reads the contacts of one chromosome.

    Args:
        length: bases of the chromosome, which tell whether the files are of this assembly.

    Returns:
        bin numbers of both ends, int64 (n,); normalised contacts, float64 (n,), NaN where the normalisation failed;
        bases a bin.

    Raises:
        UserError: a line that is not what it must be, or files that do not fit each other or the chromosome.
    """
    table = _numbers(files.raw, 3, "bin start, bin start, count")
    starts, counts = table[:, :2], table[:, 2]
    wrong = ~np.isfinite(table).all(axis=1) | (table < 0).any(axis=1) | (starts % 1 != 0).any(axis=1)
    if wrong.any():
        raise UserError(f"{files.raw}: line {int(wrong.argmax()) + 1} is not two positions and a count of at least 0.")
    resolution = int(np.gcd.reduce(starts.astype(np.int64), axis=None))
    if resolution < 2:
        raise UserError(f"{files.raw}: the bins do not start at multiples of one size, so they are no bins of a map.")
    bins = starts.astype(np.int64) // resolution
    if starts.max() >= length:
        line = int((starts.max(axis=1) >= length).argmax()) + 1
        raise UserError(
            f"{files.raw}: line {line}: position {int(starts[line - 1].max()):,} is outside the chromosome, which has "
            f"{length:,} bases in the FASTA; the two are of different assemblies."
        )
    if files.norm is None:
        return bins[:, 0], bins[:, 1], counts, resolution
    factors = _numbers(files.norm, 1, "a number or NaN")[:, 0]
    expected = -(-length // resolution)
    if not expected <= len(factors) <= expected + _PADDING:
        raise UserError(
            f"{files.norm}: has {len(factors):,} lines, but the chromosome has {expected:,} bins of {resolution:,} "
            "bases; it is of another resolution or assembly, or truncated."
        )
    factors = np.where(np.isfinite(factors) & (factors > 0), factors, np.nan)
    return bins[:, 0], bins[:, 1], counts / (factors[bins[:, 0]] * factors[bins[:, 1]]), resolution


def check_chromosomes(found: Mapping[str, JuicerFiles], lengths: Mapping[str, int]) -> None:
    """Raises UserError where none of the files is of a chromosome in `lengths`, those that have genes."""
    if not set(found) & set(lengths):
        chrom, files = next(iter(found.items()))
        raise UserError(f"{files.raw}: no gene is on its chromosome {chrom!r}{closest_chromosome(chrom, lengths)}.")


def _raw_files(contacts: str) -> dict[str, Path]:
    if "{chrom}" not in contacts:
        name = Path(contacts).name
        match = re.search(r"(?<![A-Za-z0-9])chr(?:[0-9]+|[XYM])(?![A-Za-z0-9])", name)
        if match is None:
            raise UserError(f"{contacts}: no chromosome (chr22) in the file's name; write {{chrom}} in its place.")
        return {match[0]: Path(contacts)}
    parts = str(Path(contacts)).split("{chrom}")
    first, *others = map(re.escape, parts)
    pattern = re.compile(first + "(?P<chrom>[^/]+?)" + "(?P=chrom)".join(others))
    folder = Path(parts[0]).parent if not parts[0].endswith("/") else Path(parts[0])
    wanted = Path("*".join(map(glob.escape, parts))).relative_to(glob.escape(str(folder)))
    paths = sorted(folder.glob(str(wanted)))
    found = {match["chrom"]: path for path in paths if (match := pattern.fullmatch(str(path)))}
    if not found:
        raise UserError(f"{contacts}: no such file for any chromosome.")
    return found


def _norm_files(raw: Path) -> dict[str, Path]:
    """Normalisation -> file beside the raw counts, compressed or not."""
    found = {}
    for name in _NORMALISATIONS:
        path = raw.with_name(raw.name.replace(MARK, f"{name}norm"))
        plain = path.with_name(path.name.removesuffix(".gz"))
        for candidate in (path, plain, plain.with_name(f"{plain.name}.gz")):
            if candidate.is_file():
                found[name] = candidate
                break
    return found


def _numbers(path: Path, width: int, form: str) -> np.ndarray:
    """float64 (lines, width) of a file of numbers separated by tabs."""
    try:
        table = pd.read_csv(path, sep="\t", header=None, dtype=np.float64, skip_blank_lines=False)
    except (pd.errors.EmptyDataError, pd.errors.ParserError, ValueError, EOFError, OSError) as error:
        for number, line in numbered_lines(path, "Juicer"):
            _check_line(path, number, line, width, form)
        raise UserError(f"{path}: cannot be read ({first_line(error)}).") from error
    if table.shape[1] != width:
        number, line = next(numbered_lines(path, "Juicer"))
        _check_line(path, number, line, width, form)
    return table.to_numpy()


def _check_line(path: Path, number: int, line: str, width: int, form: str) -> None:
    fields = line.split("\t")
    try:
        if len(fields) == width and [float(field) for field in fields]:
            return
    except ValueError:
        pass
    raise UserError(f"{path}: line {number} is not {form}: {line[:60]!r}.")
