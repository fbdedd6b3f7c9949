"""The gene table: a CSV or TSV with a TSS, a target and a split for each gene."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from seq2exp.data_tools.tables import closest_chromosome, read_table
from seq2exp.errors import UserError

log = logging.getLogger(__name__)

# Accepted header names, compared without case; the first that is there counts.
COLUMN_NAMES: dict[str, tuple[str, ...]] = {
    "gene_id": ("gene_id", "ensid", "ensembl_id", "ensembl_gene_id", "gene"),
    "gene_name": ("gene_name", "gene name", "symbol"),
    "chrom": ("chrom", "chr", "chromosome", "seqname"),
    "tss": ("tss", "tss_position"),
    "strand": ("strand",),
}
_OPTIONAL = ("gene_name", "strand")


def read_genes(
    path: Path,
    lengths: Mapping[str, int],
    *,
    target: str,
    split: str | None = None,
    features: Sequence[str] = (),
    columns: Mapping[str, str] | None = None,
) -> pd.DataFrame:
    """Reads and checks a gene table.

    Args:
        lengths: chromosome -> bases, from the FASTA.
        target, split, features: column names; without a split column every split is "".
        columns: header names of gene_id, gene_name, chrom, tss, strand where they are not the usual ones.

    Returns:
        One row per gene in file order: gene_id, gene_name (when there), chrom, tss (int64, 0-based), strand (+ - or .),
        target (float64, NaN where empty), split (str), then the features (float64) by their names.

    Raises:
        UserError: the file, a column or a value is not what it must be.
    """
    table = read_table(path)
    if table.empty:
        raise UserError(f"{path}: holds a header but no gene.")
    found = _find_columns(path, table, columns or {})
    genes = pd.DataFrame({field: table[name].str.strip() for field, name in found.items()})
    _check_ids(path, genes)
    genes["tss"] = numbers(path, table, found["tss"], allow_empty=False)
    check_positions(path, genes, lengths)
    genes["tss"] = genes["tss"].astype(np.int64)
    if "strand" not in genes:
        log.warning("%s: no strand column; strands are unknown (.).", path)
        genes["strand"] = "."
    check_strands(path, genes)
    genes["target"] = numbers(path, table, _column(path, table, target, "target"), allow_empty=True)
    if genes["target"].isna().all():
        raise UserError(f"{path}: the target column {target} is empty for all {len(genes):,} genes.")
    genes["split"] = "" if split is None else table[_column(path, table, split, "split")].str.strip()
    for feature in features:
        if feature in genes:
            raise UserError(f"{path}: a feature column may not be called {feature}, that name is taken.")
        genes[feature] = numbers(path, table, _column(path, table, feature, "feature"), allow_empty=False)
    return genes


def _column(path: Path, table: pd.DataFrame, name: str, role: str) -> str:
    if name not in table:
        raise UserError(f"{path}: no {role} column {name!r}; the columns are {', '.join(table.columns)}.")
    return name


def _find_columns(path: Path, table: pd.DataFrame, named: Mapping[str, str]) -> dict[str, str]:
    lower = {name.strip().lower(): name for name in reversed(list(table.columns))}
    found = {}
    for role, usual in COLUMN_NAMES.items():
        if role in named:
            found[role] = _column(path, table, named[role], role)
            continue
        match = next((lower[name] for name in usual if name in lower), None)
        if match is not None:
            found[role] = match
        elif role not in _OPTIONAL:
            raise UserError(
                f"{path}: no {role} column (looked for {', '.join(usual)}); the columns are "
                f"{', '.join(table.columns)}; name it with columns {role}=NAME."
            )
    return found


def numbers(path: Path, table: pd.DataFrame, column: str, *, allow_empty: bool) -> pd.Series:
    text = table[column].str.strip()
    empty = text.isin(["", "NA", "NaN", "nan", "null", "None", "."])
    numbers = pd.to_numeric(text.mask(empty), errors="coerce").astype(np.float64)
    wrong = (numbers.isna() & ~empty) | np.isinf(numbers)
    if wrong.any():
        line = int(wrong.to_numpy().argmax())
        raise UserError(f"{path}: line {line + 2}: {column} is {text.iloc[line]!r}, not a finite number.")
    if empty.any() and not allow_empty:
        line = int(empty.to_numpy().argmax())
        raise UserError(
            f"{path}: line {line + 2}: {column} is empty ({int(empty.sum()):,} such lines); fill or drop them."
        )
    return numbers


def _check_ids(path: Path, genes: pd.DataFrame) -> None:
    empty = (genes["gene_id"] == "").to_numpy()
    if empty.any():
        raise UserError(f"{path}: line {int(empty.argmax()) + 2} has no gene id.")
    twice = genes["gene_id"][genes["gene_id"].duplicated()].unique()
    if len(twice):
        raise UserError(f"{path}: {len(twice):,} gene ids occur more than once, the first is {twice[0]}.")


def check_positions(path: Path, genes: pd.DataFrame, lengths: Mapping[str, int]) -> None:
    for chrom in genes["chrom"].unique():
        if chrom not in lengths:
            raise UserError(
                f"{path}: chromosome {chrom!r} ({int((genes['chrom'] == chrom).sum()):,} genes) is not in the FASTA"
                f"{closest_chromosome(chrom, lengths)}."
            )
    limit = genes["chrom"].map(dict(lengths)).astype(np.float64)
    outside = ((genes["tss"] < 0) | (genes["tss"] >= limit)).to_numpy()
    fraction = (genes["tss"] % 1 != 0).to_numpy()
    for wrong, reason in ((outside, "outside"), (fraction, "not a whole position of")):
        if wrong.any():
            gene = genes.iloc[int(wrong.argmax())]
            raise UserError(
                f"{path}: the TSS of {gene['gene_id']}, {gene['tss']:.15g}, is {reason} {gene['chrom']}, "
                f"which has {lengths[gene['chrom']]:,} bases; positions are 0-based."
            )


def check_strands(path: Path, genes: pd.DataFrame) -> None:
    wrong = (~genes["strand"].isin(["+", "-", "."])).to_numpy()
    if wrong.any():
        raise UserError(
            f"{path}: line {int(wrong.argmax()) + 2}: strand is {genes['strand'].iloc[wrong.argmax()]!r}, not + or -."
        )
