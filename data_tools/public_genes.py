"""The gene table of a fetched cell line: public TSS and splits, and the CAGE tags that start around each TSS."""

from pathlib import Path

import numpy as np
import pandas as pd

from seq2exp.data_tools.tables import check_file, read_table
from seq2exp.errors import UserError

FOLD = "fold_11"  # the paper's: valid chr3 and chr21, test chr22 and chrX
CAGE_BASES = 192  # on each side of the TSS: 3 bins of 128, as published


def write_gene_table(out: Path, *, places: Path, splits: Path, cage: Path) -> None:
    """Writes a CSV with gene_id, gene_name, chrom, tss, CAGE, split, a line per gene that both tables have.

    Args:
        places: the public table of mRNA features, which has gene_id, Gene name, chrom (1, 2, ... X) and TSS.
        splits: the public split table.
        cage: FANTOM5 CTSS file: BED with the number of CAGE tags that start at a base.

    Raises:
        UserError: a file is damaged or has other columns; no gene is in both tables.
    """
    listed, folds = read_table(places), read_table(splits)
    for path, table, names in (
        (places, listed, ("gene_id", "Gene name", "chrom", "TSS")),
        (splits, folds, ("ENSID", FOLD)),
    ):
        if missing := [name for name in names if name not in table]:
            raise UserError(f"{path}: no column {missing[0]!r}; the columns are {', '.join(table.columns)}.")
    found = listed.drop_duplicates("gene_id").merge(folds, left_on="gene_id", right_on="ENSID", suffixes=("", "_split"))
    if found.empty:
        raise UserError(f"{places}: no gene of it is in {splits}.")
    tss = pd.to_numeric(found["TSS"], errors="coerce")
    if tss.isna().any():
        raise UserError(f"{places}: the TSS of {found['gene_id'][tss.isna()].iloc[0]} is no number.")
    genes = pd.DataFrame(
        {
            "gene_id": found["gene_id"],
            "gene_name": found["Gene name"],
            "chrom": "chr" + found["chrom"].str.removeprefix("chr"),
            "tss": tss.astype(np.int64),
        }
    )
    genes["CAGE"] = tag_sums(cage, genes)
    genes["split"] = found[FOLD]
    new = out.with_suffix(".new")
    genes.to_csv(new, index=False)
    new.replace(out)


def tag_sums(cage: Path, genes: pd.DataFrame) -> np.ndarray:
    """float64 (genes,): CAGE tags, of both strands, that start within 192 bases of each TSS."""
    check_file(cage, "the CAGE tags")
    try:
        tags = pd.read_csv(cage, sep="\t", header=None, comment="#", usecols=[0, 1, 4], names=range(6), dtype={0: str})
        starts, counts = tags[1].to_numpy(np.int64), tags[4].to_numpy(np.float64)
    except (ValueError, EOFError, OSError) as error:
        raise UserError(f"{cage}: not a readable CTSS file (BED with the tags of a base as score).") from error
    out = np.zeros(len(genes))
    for chrom, lines in tags.groupby(0).indices.items():
        order = lines[np.argsort(starts[lines], kind="stable")]
        upto = np.concatenate([[0.0], np.cumsum(counts[order])])  # tags before the nth base that has any
        here = np.flatnonzero(genes["chrom"] == chrom)
        tss = genes["tss"].to_numpy()[here]
        low, high = (np.searchsorted(starts[order], tss + side * CAGE_BASES) for side in (-1, 1))
        out[here] = upto[high] - upto[low]
    return out
