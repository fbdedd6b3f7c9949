"""Contacts of the published dataset: HDF5 files with one value per base around each TSS, kept as bins."""

import logging
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from seq2exp.data_tools.contacts import RESOLUTION
from seq2exp.errors import UserError

log = logging.getLogger(__name__)

_SAME = 1e-3  # relative; values of one bin that differ by more are no bin of 5 kb


def contact_file(folder: Path, chrom: str) -> Path:
    """The file that holds the contacts of a chromosome's genes."""
    return folder / f"hic_feat_{chrom}.h5"


class BaseContacts:
    """``hic_feat_<chrom>.h5``: a dataset ``<chrom>_<tss>`` for each gene, float (bases,), the contact of each base.

    The datasets cover TSS - h to TSS + h, and are cut, or not, where the chromosome ends. A bin takes the mean of its
    bases, which is their value where the file was made from bins of 5 kb. NaN counts as 0, as in the published loader;
    bins that a dataset does not reach, and genes without one, count as not measured.

    Args:
        folder: where the files are.
        lengths: chromosome -> bases.
    """

    resolution = RESOLUTION
    value = "contacts of the published dataset"

    def __init__(self, folder: Path, lengths: Mapping[str, int]) -> None:
        self._folder = folder
        self._lengths = lengths

    def rows(self, chroms: np.ndarray, tss: np.ndarray, reach: int) -> np.ndarray:
        """chroms (genes,) names, tss (genes,) int64 -> (genes, 2 * reach + 1) float64, NaN where not measured.

        Raises:
            UserError: a damaged file; a dataset of the wrong length or with a negative value; no dataset at all.
        """
        out = np.full((len(tss), 2 * reach + 1), np.nan)
        sizes = self._sizes(chroms, tss)
        starts = self._starts(chroms, tss, sizes)
        uneven = 0
        for chrom in self._lengths:
            with _open(contact_file(self._folder, chrom)) as file:
                for row in np.flatnonzero(chroms == chrom):
                    if (name := f"{chrom}_{tss[row]}") in sizes:
                        values, start = _read(file, name), starts[name]
                        first, means, even = _bins(values, start, self._lengths[chrom])
                        at = first - int(tss[row]) // self.resolution + reach  # column of the first bin
                        kept = slice(max(-at, 0), max(2 * reach + 1 - at, 0))
                        out[row, max(at, 0) : max(at, 0) + len(means[kept])] = means[kept]
                        uneven += not even
        if uneven:
            log.warning(
                "%s: the contacts of %d genes are not constant over bins of %d bases; the means are kept.",
                self._folder,
                uneven,
                self.resolution,
            )
        return out

    def check(self, chroms: np.ndarray, tss: np.ndarray) -> None:
        """Looks at the length of every row, reading none. Raises UserError as ``rows``."""
        self._starts(chroms, tss, self._sizes(chroms, tss))

    def _sizes(self, chroms: np.ndarray, tss: np.ndarray) -> dict[str, int]:
        """Dataset name -> bases, of the genes that have one."""
        sizes: dict[str, int] = {}
        for chrom in self._lengths:
            with _open(contact_file(self._folder, chrom)) as file:
                wanted = {f"{chrom}_{position}" for position in tss[chroms == chrom]}
                for name in sorted(wanted & set(file)):
                    shape = getattr(file[name], "shape", ())
                    if len(shape) != 1:
                        raise UserError(f"{file.filename}: {name} is no row of values, its shape is {shape}.")
                    sizes[name] = shape[0]
                example = next(iter(file), "nothing")
        if not sizes:
            raise UserError(f"{self._folder}: has no dataset of any gene; they must be <chrom>_<tss>, not {example}.")
        return sizes

    def _starts(self, chroms: np.ndarray, tss: np.ndarray, sizes: Mapping[str, int]) -> dict[str, int]:
        """Dataset name -> the position of its first value; negative where the file goes on before the chromosome."""
        count = Counter(sizes.values())
        window = max(count, key=lambda size: (count[size], size))  # the commonest length
        starts = {}
        for chrom, position in zip(map(str, chroms), map(int, tss), strict=True):
            if (size := sizes.get(name := f"{chrom}_{position}")) is None:
                continue
            low, high = position - window // 2, position + window // 2
            inside = min(high, self._lengths[chrom]) - max(low, 0)
            if size not in (window, inside):
                cut = f", or {inside:,} on the chromosome" if inside != window else ""
                raise UserError(
                    f"{contact_file(self._folder, chrom)}: {name} has {size:,} values; one for each base of the TSS +- "
                    f"{window // 2:,} is {window:,}{cut}."
                )
            starts[name] = low if size == window else max(low, 0)
        return starts


def _open(path: Path) -> Any:
    try:
        import h5py
    except ImportError as error:
        raise UserError(
            "Importing the published dataset needs the package h5py: pip install 'seq2exp[official]' or h5py."
        ) from error
    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise UserError(f"{path}: cannot be read as HDF5, it is damaged or cut off; fetch it again.") from error


def _read(file: Any, name: str) -> np.ndarray:
    """float64 (bases,), NaN as 0."""
    try:
        values = np.nan_to_num(file[name][:].astype(np.float64), nan=0.0, posinf=np.inf, neginf=-np.inf)
    except (OSError, ValueError) as error:
        raise UserError(f"{file.filename}: {name} cannot be read; fetch the file again.") from error
    if (values < 0).any() or np.isinf(values).any():
        raise UserError(f"{file.filename}: {name} holds negative or infinite values; contacts must be at least 0.")
    return np.asarray(values)


def _bins(values: np.ndarray, start: int, length: int) -> tuple[int, np.ndarray, bool]:
    """The number of the first bin, the mean of each bin (over the bases there are), and whether bins are constant."""
    values, start = values[max(-start, 0) :][: length - max(start, 0)], max(start, 0)
    first, last = start // RESOLUTION, (start + len(values) - 1) // RESOLUTION
    edges = np.maximum(np.arange(first, last + 1) * RESOLUTION - start, 0)
    means = np.add.reduceat(values, edges) / np.diff(edges, append=len(values))
    spread = np.maximum.reduceat(values, edges) - np.minimum.reduceat(values, edges)
    return first, means, bool((spread <= _SAME * means).all())
