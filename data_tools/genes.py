"""A TSS, a target and a split for each gene, from a gene table or from a GTF and an expression table."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from seq2exp.data_tools.gtf import read_gtf
from seq2exp.data_tools.tables import closest_chromosome, read_table
from seq2exp.errors import UserError

log = logging.getLogger(__name__)

# Accepted header names, compared without case; the first that is there counts.
COLUMN_NAMES: dict[str, tuple[str, ...]] = {
    "gene_id": ("gene_id", "ensid", "ensembl_id", "ensembl_gene_id", "geneid", "gene stable id", "gene"),
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
    gtf: Path | None = None,
    log_target: bool = False,
) -> pd.DataFrame:
    """Reads and checks a gene table.

    Args:
        path: the gene table; with `gtf`, an expression table, of which gene id, target, split and features are read.
        lengths: chromosome -> bases, from the FASTA.
        target, split, features: column names; without a split column every split is "".
        columns: header names of gene_id, gene_name, chrom, tss, strand where they are not the usual ones.
        gtf: annotation that gives names and places of the genes. Gene ids are compared without their version
            (ENSG00000000003.15), and genes that one of the files or the FASTA lacks are left out.
        log_target: take log10(1 + target), as is usual for CAGE counts.

    Returns:
        One row per gene in file order: gene_id, gene_name (when there), chrom, tss (int64, 0-based), strand (+ - or .),
        target (float64, NaN where empty), split (str), then the features (float64) by their names.

    Raises:
        UserError: the file, a column or a value is not what it must be.
    """
    table = read_table(path)
    if table.empty:
        raise UserError(f"{path}: holds a header but no gene.")
    if gtf is None:
        genes = _placed_by_columns(path, table, columns or {}, lengths)
    else:
        genes = _placed_by_gtf(path, table, columns or {}, lengths, gtf)
        table = table.loc[genes.index]
    genes["target"] = numbers(path, table, _column(path, table, target, "target"), allow_empty=True)
    if genes["target"].isna().all():
        raise UserError(f"{path}: the target column {target} is empty for all {len(genes):,} genes.")
    if log_target:
        genes["target"] = _log(path, genes["target"], target)
    genes["split"] = "" if split is None else table[_column(path, table, split, "split")].str.strip()
    for feature in features:
        if feature in genes:
            raise UserError(f"{path}: a feature column may not be called {feature}, that name is taken.")
        genes[feature] = numbers(path, table, _column(path, table, feature, "feature"), allow_empty=False)
    return genes.reset_index(drop=True)


def numbers(path: Path, table: pd.DataFrame, column: str, *, allow_empty: bool) -> pd.Series:
    """A column of text as float64, NaN where empty. Raises UserError naming the first line that is no finite number."""
    text = table[column].str.strip()
    empty = text.isin(["", "NA", "NaN", "nan", "null", "None", "."])
    values = pd.to_numeric(text.mask(empty), errors="coerce").astype(np.float64)
    wrong = (values.isna() & ~empty) | np.isinf(values)
    if wrong.any():
        row = wrong.idxmax()
        raise UserError(f"{path}: {_where(row)}: {column} is {text[row]!r}, not a finite number.")
    if empty.any() and not allow_empty:
        raise UserError(
            f"{path}: {_where(empty.idxmax())}: {column} is empty ({int(empty.sum()):,} such lines); fill or drop them."
        )
    return values


def without_version(gene_ids: pd.Series) -> pd.Series:
    """ENSG00000000003.15 -> ENSG00000000003."""
    return gene_ids.str.replace(r"\.\d+$", "", regex=True)


def find_column(path: Path, table: pd.DataFrame, role: str, named: Mapping[str, str]) -> str | None:
    """The column of a role of COLUMN_NAMES, None where an optional one is not there."""
    if role in named:
        return _column(path, table, named[role], role)
    lower = {name.strip().lower(): name for name in reversed(list(table.columns))}
    match = next((lower[name] for name in COLUMN_NAMES[role] if name in lower), None)
    if match is None and role not in _OPTIONAL:
        raise UserError(
            f"{path}: no {role} column (looked for {', '.join(COLUMN_NAMES[role])}); the columns are "
            f"{', '.join(table.columns)}; name it with columns {role}=NAME."
        )
    return match


def _where(row: object) -> str:
    """The line of a row, as ``read_table`` counts them, or its gene in tables that are indexed by gene."""
    return f"line {row}" if isinstance(row, int | np.integer) else f"gene {row}"


def _column(path: Path, table: pd.DataFrame, name: str, role: str) -> str:
    if name not in table:
        raise UserError(f"{path}: no {role} column {name!r}; the columns are {', '.join(table.columns)}.")
    return name


def _placed_by_columns(
    path: Path, table: pd.DataFrame, named: Mapping[str, str], lengths: Mapping[str, int]
) -> pd.DataFrame:
    found = {role: column for role in COLUMN_NAMES if (column := find_column(path, table, role, named)) is not None}
    genes = pd.DataFrame({role: table[column].str.strip() for role, column in found.items()})
    _check_ids(path, genes["gene_id"])
    genes["tss"] = numbers(path, table, found["tss"], allow_empty=False)
    check_positions(path, genes, lengths)
    genes["tss"] = genes["tss"].astype(np.int64)
    if "strand" not in genes:
        log.warning("%s: no strand column; strands are unknown (.).", path)
        genes["strand"] = "."
    check_strands(path, genes)
    return genes


def _placed_by_gtf(
    path: Path, table: pd.DataFrame, named: Mapping[str, str], lengths: Mapping[str, int], gtf: Path
) -> pd.DataFrame:
    column = find_column(path, table, "gene_id", named)
    gene_ids = table[column].str.strip()
    _check_ids(path, gene_ids)
    places = read_gtf(gtf)
    places = places.set_index(without_version(places.index.to_series()))
    places = places[~places.index.duplicated()]
    keys = without_version(gene_ids)
    known = keys.isin(places.index)
    if not known.any():
        raise UserError(
            f"{path}: none of its gene ids ({gene_ids.iloc[0]}, ...) is in {gtf} ({places.index[0]}, ...); the column "
            f"{column} must hold the annotation's gene_id."
        )
    if not known.all():
        first = gene_ids[~known].iloc[0]
        log.warning("%s: %d of %d genes are not in %s (%s, ...).", path, (~known).sum(), len(known), gtf, first)
    genes = places.loc[keys[known]].set_index(keys.index[known])
    genes.insert(0, "gene_id", gene_ids[known])
    here = genes["chrom"].isin(list(lengths))
    if not here.any():
        chrom = genes["chrom"].iloc[0]
        raise UserError(
            f"{gtf}: none of the genes is on a chromosome of the FASTA: {genes['gene_id'].iloc[0]} is on {chrom!r}"
            f"{closest_chromosome(chrom, lengths)}."
        )
    if not here.all():
        others = ", ".join(sorted(genes["chrom"][~here].unique())[:5])
        log.warning("%s: %d genes are on chromosomes that the FASTA lacks (%s, ...).", gtf, (~here).sum(), others)
    genes = genes[here].copy()
    check_positions(gtf, genes, lengths)
    return genes


def _log(path: Path, target: pd.Series, name: str) -> pd.Series:
    if (target < 0).any():
        row = (target < 0).idxmax()
        raise UserError(
            f"{path}: {_where(row)}: {name} is {target[row]:g}, and log10(1 + x) needs at least 0; is it a "
            "logarithm already?"
        )
    return np.log10(1 + target)


def _check_ids(path: Path, gene_ids: pd.Series) -> None:
    empty = gene_ids == ""
    if empty.any():
        raise UserError(f"{path}: {_where(empty.idxmax())} has no gene id.")
    twice = gene_ids[gene_ids.duplicated()].unique()
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
    outside = (genes["tss"] < 0) | (genes["tss"] >= limit)
    fraction = genes["tss"] % 1 != 0
    for wrong, reason in ((outside, "outside"), (fraction, "not a whole position of")):
        if wrong.any():
            gene = genes.loc[wrong.idxmax()]
            raise UserError(
                f"{path}: the TSS of {gene['gene_id']}, {gene['tss']:.15g}, is {reason} {gene['chrom']}, "
                f"which has {lengths[gene['chrom']]:,} bases; positions are 0-based."
            )


def check_strands(path: Path, genes: pd.DataFrame) -> None:
    wrong = ~genes["strand"].isin(["+", "-", "."])
    if wrong.any():
        row = wrong.idxmax()
        raise UserError(
            f"{path}: {_where(row)}: strand is {genes['strand'][row]!r}; it must be + or -, or . where unknown."
        )
