"""Genes of a GTF annotation: where each begins, and on which strand."""

import logging
import re
from pathlib import Path

import pandas as pd

from seq2exp.data_tools.tables import numbered_lines
from seq2exp.errors import UserError

log = logging.getLogger(__name__)

_ATTRIBUTE = re.compile(r'(?:^|;)\s*(gene_id|gene_name)[ =]+"?([^";]*)')


def read_gtf(path: Path) -> pd.DataFrame:
    """Reads the genes of a GTF file, gzip or not (https://www.ensembl.org/info/website/upload/gff.html).

    A gene is its line of feature `gene`, or, in files without such a line for it, its first `transcript`. The TSS is
    the 5' end: the start on the + strand, the end on the - strand. Of a gene id that is annotated twice
    (pseudoautosomal regions) the first place counts.

    Returns:
        One row per gene in file order, index gene_id: gene_name ("" where there is none), chrom, tss (int64, 0-based),
        strand (+ or -).

    Raises:
        UserError: a line that is not GTF, a gene without strand or gene_id, or no gene at all; with the line's number.
    """
    genes: dict[str, tuple[str, str, int, str]] = {}
    from_gene_line: set[str] = set()
    twice: set[str] = set()
    for number, line in numbered_lines(path, "GTF"):
        if not line.strip() or line.startswith("#"):
            continue
        fields = line.split("\t")
        if len(fields) != 9:
            raise UserError(f"{path}: line {number} has {len(fields)} fields separated by tabs; GTF has 9.")
        if fields[2] not in ("gene", "transcript"):
            continue
        gene_id, gene = _parse(path, number, fields)
        if fields[2] == "gene":
            if gene_id in from_gene_line:
                twice.add(gene_id)
            else:
                from_gene_line.add(gene_id)
                genes[gene_id] = gene
        else:
            genes.setdefault(gene_id, gene)
    if not genes:
        raise UserError(f"{path}: holds no line of feature gene or transcript (third column), so it gives no TSS.")
    if twice:
        log.warning(
            "%s: %d gene ids are annotated twice; the first place counts (%s, ...).", path, len(twice), min(twice)
        )
    columns = ["gene_name", "chrom", "tss", "strand"]
    return pd.DataFrame.from_dict(genes, orient="index", columns=columns).rename_axis("gene_id")


def _parse(path: Path, number: int, fields: list[str]) -> tuple[str, tuple[str, str, int, str]]:
    chrom, _, feature, first, last, _, strand, _, text = fields
    attributes = dict(reversed(_ATTRIBUTE.findall(text)))  # reversed: the first of a name counts
    gene_id = attributes.get("gene_id", "").strip()
    if not gene_id:
        raise UserError(
            f"{path}: line {number}: the {feature} has no attribute gene_id (GFF3 files do not serve, convert to GTF)."
        )
    try:
        start, end = int(first), int(last)
    except ValueError as error:
        raise UserError(f"{path}: line {number}: {first}-{last} are not the start and end of {gene_id}.") from error
    if not 1 <= start <= end:
        raise UserError(f"{path}: line {number}: {gene_id} is at {start}-{end}; positions are 1 <= start <= end.")
    if strand not in ("+", "-"):
        raise UserError(f"{path}: line {number}: {gene_id} has the strand {strand!r}, not + or -, so no 5' end.")
    tss = (start if strand == "+" else end) - 1
    return gene_id, (attributes.get("gene_name", "").strip(), chrom, tss, strand)
