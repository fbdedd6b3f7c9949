"""Gene features that come from elsewhere than the gene table: of the mRNA, and of the promoter's signals."""

import logging
from pathlib import Path

import numpy as np
import pandas as pd

from seq2exp.data_tools.bigwig import BigWig
from seq2exp.data_tools.genes import find_column, numbers, without_version
from seq2exp.data_tools.tables import read_table
from seq2exp.errors import UserError

log = logging.getLogger(__name__)

# Columns of the public table of Xpresso (Agarwal and Shendure 2020), in the order of the published model.
MRNA_FEATURES = (
    "UTR5LEN_log10zscore",
    "CDSLEN_log10zscore",
    "INTRONLEN_log10zscore",
    "UTR3LEN_log10zscore",
    "UTR5GC",
    "CDSGC",
    "UTR3GC",
    "ORFEXONDENSITY",
)
PROMOTER_ACTIVITY = "PromoterActivity"  # the published name
_PROMOTER = 500  # bases on each side of the TSS


def read_mrna_features(path: Path, gene_ids: pd.Series) -> pd.DataFrame:
    """The eight mRNA features of each gene, float64 (genes, 8), from a table with those columns and a gene id.

    Gene ids are compared without their version. A gene that the table lacks gets the mean of each column, and a warning
    counts such genes.

    Raises:
        UserError: a column or a number is missing, a gene is there twice, or no gene is in the table.
    """
    table = read_table(path)
    missing = [name for name in MRNA_FEATURES if name not in table]
    if missing:
        raise UserError(
            f"{path}: no column {missing[0]!r}; the mRNA features are {', '.join(MRNA_FEATURES)}, and the columns "
            f"{', '.join(table.columns)}."
        )
    keys = without_version(table[find_column(path, table, "gene_id", {})].str.strip())
    if keys.duplicated().any():
        raise UserError(f"{path}: the gene {keys[keys.duplicated()].iloc[0]} occurs more than once.")
    values = pd.DataFrame({name: numbers(path, table, name, allow_empty=False) for name in MRNA_FEATURES})
    found = values.set_index(keys).reindex(without_version(gene_ids)).set_index(gene_ids.index)
    lacking = found[MRNA_FEATURES[0]].isna()
    if lacking.all():
        raise UserError(f"{path}: holds none of the genes ({gene_ids.iloc[0]}, ...); its gene ids are of another kind.")
    if lacking.any():
        log.warning(
            "%s: %d of %d genes are not in it (%s, ...); they take its column means.",
            path,
            lacking.sum(),
            len(lacking),
            gene_ids[lacking].iloc[0],
        )
    return found.fillna(values.mean())


def promoter_activity(h3k27ac: Path, dnase: Path, genes: pd.DataFrame) -> np.ndarray:
    """sqrt(H3K27ac * DNase) of each promoter, float64 (genes,), both in reads per million at TSS +- 500 bases.

    The published feature: the geometric mean of the Activity-by-Contact model (Fulco et al. 2019) over its promoter
    windows, sqrt(H3K27ac.RPM.TSS1Kb * DHS.RPM.TSS1Kb).
    """
    return np.asarray(np.sqrt(reads_per_million(h3k27ac, genes) * reads_per_million(dnase, genes)))


def reads_per_million(track: Path, genes: pd.DataFrame) -> np.ndarray:
    """The share of a track's whole signal that lies within 500 bases of each TSS, in millionths, float64 (genes,).

    A read adds its length times one unit to a coverage track wherever it lies, so the share of the signal is the share
    of the reads; any constant scaling of the track drops out.

    Raises:
        UserError: the track is zero everywhere.
    """
    with BigWig(track) as file:
        total = file.total()
        if not total > 0:
            raise UserError(f"{track}: its signal adds up to {total:g}, so it gives no reads per million.")
        sums = [
            file.window(chrom, tss - _PROMOTER, tss + _PROMOTER).sum(dtype=np.float64)
            for chrom, tss in zip(genes["chrom"], genes["tss"], strict=True)
        ]
    return 1e6 * np.array(sums) / total
