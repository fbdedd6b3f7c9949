"""Contacts between a TSS and the bins around it: measured tables and maps, the power law where nothing was measured.

A source gives rows (genes, 2 * reach + 1) of contacts in its own units; the middle column is the bin of the TSS; NaN
means not measured. ``fill_with_power_law`` completes them. ``abc_contacts`` does it as the Activity-by-Contact (ABC)
model of Fulco et al. 2019 and Nasser et al. 2021 does, each step a function here. The last step, log10(1 + contact), is
the store's reader's: what is stored keeps its units.
"""

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import pandas as pd

from seq2exp.data_tools.juicer import MARK, check_chromosomes, find_juicer_files, read_juicer
from seq2exp.data_tools.maps import read_map
from seq2exp.data_tools.tables import read_table
from seq2exp.errors import UserError

log = logging.getLogger(__name__)

RESOLUTION = 5_000  # bases a bin, where the source does not say: the Activity-by-Contact (ABC) model's
_FLOOR = 5_000  # ABC: the law was fitted from 5 kb on; nearer pairs count as 5 kb apart
_PSEUDOCOUNT_DISTANCE = 1_000_000  # ABC: hic_pseudocount_distance
_COVERAGE = 0.01  # ABC: qc_hic, the least contact of a promoter with itself, a row of the map summing to 1
_Lookup = tuple[np.ndarray, np.ndarray, np.ndarray]  # bins that have a value, sorted pair keys, values
_VALUE_COLUMNS = ("KR_norm", "KR", "VC_norm", "VC", "balanced", "contact", "value", "count", "raw_count")


@dataclass(frozen=True)
class PowerLaw:
    """contact = exp(scale - gamma * ln(max(distance, 5 kb) + 1)), as in the ABC model (Fulco et al. 2019, and
    get_powerlaw_at_distance of broadinstitute/ABC-Enhancer-Gene-Prediction).

    The defaults are ABC's average over human cell types, in fractions of a bin's contacts (rows of the map sum to 1).
    """

    gamma: float = 0.87
    scale: float = -4.80 + 11.63 * 0.87

    def contact(self, distance: np.ndarray) -> np.ndarray:
        """distance in bases -> contact, float64, same shape."""
        return np.asarray(np.exp(self.scale - self.gamma * np.log(np.maximum(distance, _FLOOR) + 1.0)))


class ContactSource(Protocol):
    """Where contacts come from; resolution in bases a bin, of some sources known once there are rows."""

    resolution: int
    value: str

    def rows(self, chroms: np.ndarray, tss: np.ndarray, reach: int) -> np.ndarray:
        """chroms (genes,) names, tss (genes,) int64 -> (genes, 2 * reach + 1) float64, NaN where not measured."""
        ...


class PowerLawSource:
    """No measurement at all."""

    resolution = RESOLUTION
    value = "power law"

    def rows(self, chroms: np.ndarray, tss: np.ndarray, reach: int) -> np.ndarray:
        return np.full((len(tss), 2 * reach + 1), np.nan)


class PairSource:
    """Contacts held as pairs of bins, by chromosome.

    A pair that is not listed counts as 0 when both of its bins have a value somewhere, else as not measured.
    """

    resolution: int
    value: str
    _chroms: dict[str, _Lookup]

    def rows(self, chroms: np.ndarray, tss: np.ndarray, reach: int) -> np.ndarray:
        out = np.full((len(tss), 2 * reach + 1), np.nan)
        for chrom, lookup in self._chroms.items():
            here = np.flatnonzero(chroms == chrom)
            out[here] = self._rows(lookup, tss[here], reach)
        return out

    def _rows(self, lookup: _Lookup, tss: np.ndarray, reach: int) -> np.ndarray:
        covered, keys, values = lookup
        own = (tss // self.resolution)[:, None]
        other = own + np.arange(-reach, reach + 1)[None, :]
        measured = np.isin(own, covered) & np.isin(other, covered)
        wanted = _key(np.minimum(own, other), np.maximum(own, other))
        at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
        out = np.where(keys[at] == wanted, values[at], 0.0)
        return np.asarray(np.where(measured, out, np.nan))


class TableSource(PairSource):
    """A table of bin pairs: chrom, bin1, bin2 (start of each bin in bases, either order) and a value, CSV or TSV.

    An empty or NaN value is not measured (KR fails on bins of low coverage).
    """

    def __init__(
        self,
        path: Path,
        columns: Sequence[str] | None = None,
        value: str | None = None,
        hint: str = "",
        lengths: Mapping[str, int] | None = None,
    ) -> None:
        table = read_table(path)
        first, second = columns or _bin_columns(path, list(table.columns), hint)
        self.value = value or _value_column(path, list(table.columns))
        for name in ("chrom", first, second, self.value):
            if name not in table:
                raise UserError(f"{path}: no column {name!r}; the columns are {', '.join(table.columns)}.")
        if table.empty:
            raise UserError(f"{path}: holds a header but no contact.")
        bins = [_whole_numbers(path, table, name) for name in (first, second)]
        values = pd.to_numeric(table[self.value].replace({"": "nan", "NA": "nan"}), errors="coerce").to_numpy(
            np.float64
        )
        wrong = np.isnan(values) & ~table[self.value].str.strip().str.lower().isin(["", "na", "nan"]).to_numpy()
        wrong |= (values < 0) | np.isinf(values)
        if wrong.any():
            line = table.index[wrong.argmax()]
            text = table.at[line, self.value]
            raise UserError(f"{path}: line {line}: {self.value} is {text!r}, not a finite number of at least 0.")
        self.resolution = _resolution(path, np.concatenate(bins))
        numbers = [b // self.resolution for b in bins]
        self._chroms = {}
        for chrom, lines in table.groupby("chrom").indices.items():
            _check_bins(path, str(chrom), np.maximum(*bins)[lines], table.index[lines], lengths)
            self._chroms[str(chrom)] = _lookup(numbers[0][lines], numbers[1][lines], values[lines])


class JuicerSource(PairSource):
    """RAWobserved files with their KRnorm or VCnorm, one pair of files a chromosome. See ``juicer.find_juicer_files``
    for the arguments; chromosomes that `lengths` lacks are not read."""

    def __init__(self, contacts: str, lengths: Mapping[str, int], value: str | None = None) -> None:
        self.value, self._files = find_juicer_files(contacts, value)
        check_chromosomes(self._files, lengths)
        if value is None and self.value == "NONE":
            log.warning("%s: no normalisation; raw counts are used.", contacts)
        self._contacts, self._lengths = contacts, lengths

    def rows(self, chroms: np.ndarray, tss: np.ndarray, reach: int) -> np.ndarray:
        """As of ``ContactSource``; reads one chromosome at a time. Raises UserError as ``read_juicer``."""
        out = np.full((len(tss), 2 * reach + 1), np.nan)
        resolutions = {}
        for chrom in sorted(set(self._files) & set(self._lengths)):
            here = np.flatnonzero(chroms == chrom)
            out[here] = self._rows(self._read(chrom), tss[here], reach)
            resolutions[chrom] = self.resolution
        if len(set(resolutions.values())) > 1:
            raise UserError(f"{self._contacts}: the files are of different resolutions ({_listed(resolutions)}).")
        return out

    def _read(self, chrom: str) -> _Lookup:
        first, second, values, self.resolution = read_juicer(self._files[chrom], self._lengths[chrom])
        return _lookup(first, second, values)


class MapSource:
    """A .hic, .cool or .mcool map: the row of the TSS's bin. See ``maps.read_map`` for the arguments."""

    def __init__(
        self,
        path: Path,
        resolution: int = RESOLUTION,
        value: str | None = None,
        lengths: Mapping[str, int] | None = None,
    ) -> None:
        self._path = path
        _, self.resolution, self.value = read_map(path, resolution, value, [], [], 0, lengths)
        if value is None and self.value == "NONE":
            log.warning("%s: no known normalisation; raw counts are used.", path)

    def rows(self, chroms: np.ndarray, tss: np.ndarray, reach: int) -> np.ndarray:
        names = [str(chrom) for chrom in chroms]
        return np.asarray(read_map(self._path, self.resolution, self.value, names, tss.tolist(), reach)[0])


def open_contacts(
    contacts: str,
    *,
    columns: Sequence[str] | None = None,
    value: str | None = None,
    resolution: int = RESOLUTION,
    hint: str = "",
    lengths: Mapping[str, int] | None = None,
) -> ContactSource:
    """Opens what `contacts` names: the word powerlaw, a .hic, .cool or .mcool map, RAWobserved files, or a table.

    Args:
        columns: the two bin columns of a table.
        value: the value column of a table, or the normalisation of the others.
        resolution: bases a bin, of a .hic or .mcool.
        hint: a file name with the assembly in it, for tables that have bins in several.
        lengths: chromosome -> bases, from the FASTA; contacts of another assembly are refused.

    Raises:
        UserError: see the sources.
    """
    if contacts == "powerlaw":
        return PowerLawSource()
    path = Path(contacts)
    if re.search(r"\.(hic|m?cool)$", path.name):
        return MapSource(path, resolution, value, lengths)
    if MARK in path.name:
        return JuicerSource(contacts, lengths or {}, value)
    return TableSource(path, columns, value, hint, lengths)


def power_law_factor(rows: np.ndarray, law: PowerLaw, reach: int, resolution: int) -> float:
    """What brings the power law into the units of the measured rows: the ratio of their sums over measured bins, the
    TSS's own bin apart (most of its contacts are self-ligation). 1 when nothing was measured."""
    expected = _expected(law, reach, resolution)
    known = np.isfinite(rows)
    known[:, reach] = False
    there, total = float(rows[known].sum()), float((known * expected).sum())
    return there / total if there > 0 and total > 0 else 1.0


def fill_with_power_law(rows: np.ndarray, law: PowerLaw, factor: float, resolution: int) -> np.ndarray:
    """rows (genes, 2 * reach + 1) with NaN where not measured -> float32, those filled by factor * power law."""
    reach = rows.shape[1] // 2
    expected = factor * _expected(law, reach, resolution)
    return np.where(np.isfinite(rows), rows, expected[None, :]).astype(np.float32)


def too_little_coverage(rows: np.ndarray, factor: float) -> np.ndarray:
    """bool (genes,): the bin of the TSS has too few contacts with itself for its row to mean anything.

    ABC's qc_hic drops a gene whose promoter has less than 0.01 contacts with itself in a map whose rows sum to 1; the
    units of such a map are those of the power law, so `factor` brings the threshold into those of the rows. False where
    that contact was not measured.
    """
    return np.asarray(rows[:, rows.shape[1] // 2] < _COVERAGE * factor)


def pseudocount(law: PowerLaw, distance: np.ndarray) -> np.ndarray:
    """min(power law at the distance, power law at 1 Mb), same shape.

    What ABC's add_hic_pseudocount adds to a contact, so that a pair not seen is not taken for one that never meets.
    """
    return np.minimum(law.contact(distance), law.contact(np.array(_PSEUDOCOUNT_DISTANCE)))


def abc_contacts(rows: np.ndarray, law: PowerLaw, factor: float, resolution: int) -> np.ndarray:
    """rows (genes, 2 * reach + 1), the TSS's row of the map, NaN where not measured -> float32, by ABC's recipe.

    Genes with too little coverage take the power law, as does whatever was not measured; then the pseudocount is added.
    All of it is in the units of the rows: `factor` times the power law.
    """
    rows = np.where(too_little_coverage(rows, factor)[:, None], np.nan, rows)
    filled = fill_with_power_law(rows, law, factor, resolution)
    added = factor * pseudocount(law, _distances(rows.shape[1] // 2, resolution))
    return (filled + added[None, :]).astype(np.float32)


def _distances(reach: int, resolution: int) -> np.ndarray:
    return np.abs(np.arange(-reach, reach + 1)) * float(resolution)


def _expected(law: PowerLaw, reach: int, resolution: int) -> np.ndarray:
    return law.contact(_distances(reach, resolution))


def _key(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    return np.asarray((low.astype(np.int64) << 32) + high.astype(np.int64))


def _lookup(first: np.ndarray, second: np.ndarray, values: np.ndarray) -> _Lookup:
    known = np.isfinite(values)
    covered = np.unique(np.concatenate([first[known], second[known]]))
    keys = _key(np.minimum(first, second), np.maximum(first, second))
    order = np.argsort(keys, kind="stable")
    return covered, keys[order], values[order]


def _check_bins(path: Path, chrom: str, starts: np.ndarray, lines: pd.Index, lengths: Mapping[str, int] | None) -> None:
    outside = starts >= (lengths or {}).get(chrom, np.inf)
    if lengths and outside.any():
        at = int(outside.argmax())
        raise UserError(
            f"{path}: line {lines[at]}: the bin at {chrom}:{starts[at]:,} is outside {chrom}, which has "
            f"{lengths[chrom]:,} bases in the FASTA; the two are of different assemblies."
        )


def _listed(numbers: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {number:,}" for name, number in sorted(numbers.items()))


def _bin_columns(path: Path, names: list[str], hint: str) -> tuple[str, str]:
    """bin1 and bin2, or bin1_X and bin2_X; several X are told apart by the assembly in a file name."""
    if {"bin1", "bin2"} <= set(names):
        return "bin1", "bin2"
    assemblies = [n.removeprefix("bin1_") for n in names if n.startswith("bin1_") and f"bin2_{n[5:]}" in names]
    for text in (path.name, hint):
        matches = [a for a in assemblies if a.lower() in text.lower()]
        if len(matches) == 1:
            assemblies = matches
    if len(assemblies) == 1:
        return f"bin1_{assemblies[0]}", f"bin2_{assemblies[0]}"
    raise UserError(
        f"{path}: the bin columns are not clear (bin1 and bin2 are looked for); the columns are {', '.join(names)}; "
        "name the two with contact_bins."
    )


def _value_column(path: Path, names: list[str]) -> str:
    for name in _VALUE_COLUMNS:
        if name in names:
            return name
    raise UserError(
        f"{path}: no contact column (looked for {', '.join(_VALUE_COLUMNS)}); the columns are {', '.join(names)}; "
        "name it with contact_value."
    )


def _whole_numbers(path: Path, table: pd.DataFrame, name: str) -> np.ndarray:
    numbers = pd.to_numeric(table[name], errors="coerce").to_numpy(np.float64)
    wrong = ~np.isfinite(numbers) | (numbers < 0) | (numbers % 1 != 0)
    if wrong.any():
        line = table.index[wrong.argmax()]
        raise UserError(f"{path}: line {line}: {name} is {table.at[line, name]!r}, not a position.")
    return np.asarray(numbers.astype(np.int64))


def _resolution(path: Path, starts: np.ndarray) -> int:
    size = int(np.gcd.reduce(starts))
    if size < 2:
        raise UserError(
            f"{path}: the bins do not start at multiples of one size, so they are no bins of a contact map."
        )
    return size
