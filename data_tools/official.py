"""The published dataset's folder as the input of a store: ``seq2exp data import-official``.

The layout and the meaning of each file are those of the published loader: windows are centred on the ``tss`` of the
ABC gene list, contacts are stored without the logarithm, the target is log10(1 + CAGE), and the gene features are the
eight of the mRNA followed by the promoter activity.
"""

import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from seq2exp.data_tools.bigwig import BigWig
from seq2exp.data_tools.build import build
from seq2exp.data_tools.config import BuildConfig
from seq2exp.data_tools.contacts import ContactSource
from seq2exp.data_tools.features import MRNA_FEATURES, PROMOTER_ACTIVITY
from seq2exp.data_tools.genes import check_positions, check_strands, numbers
from seq2exp.data_tools.official_contacts import BaseContacts, contact_file
from seq2exp.data_tools.pickles import read_masks
from seq2exp.data_tools.public_genes import CAGE_BASES, FOLD
from seq2exp.data_tools.store import Store
from seq2exp.data_tools.tables import read_table
from seq2exp.errors import UserError

log = logging.getLogger(__name__)

CELL_TYPES = ("K562", "GM12878", "H1")
_ACTIVITY_COLUMNS = ("H3K27ac.RPM.TSS1Kb", "DHS.RPM.TSS1Kb")
# The bigWigs of the paper, should a folder hold several.
_TRACKS = {
    "H3K27ac": {"K562": "ENCFF465GBD", "GM12878": "ENCFF798KYP", "H1": "ENCFF771GNB"},
    "DNase": {"K562": "ENCFF414OGC", "GM12878": "ENCFF960FMM", "H1": "ENCFF232GUZ"},
}
# What is looked for below DATA_ROOT, and what for; {cell} is the cell type.
_INTER = "promo_enhan_inter"
_FILES = {
    "fasta": ("hg38/hg38.ml.fa", "the genome"),
    "H3K27ac": (f"{_INTER}/H3K27ac/{{cell}}/*.bigWig", "the H3K27ac signal"),
    "DNase": (f"{_INTER}/DNase-seq/{{cell}}/*.bigWig", "the DNase signal"),
    "genes": (f"{_INTER}/{{cell}}_*_ABC_nominated/DNase_*_Neighborhoods/GeneList.txt", "TSS and promoter activity"),
    "expression": (f"{_INTER}/GM12878_K562_18377_gene_expr_fromXpresso.csv", "expression and mRNA features"),
    "splits": (f"{_INTER}/leave_chrom_out_crossvalidation_split_18377genes.csv", "train, valid and test genes"),
    "lengths": ("chr_length.json", "the chromosome lengths of the assembly"),
    "exclude": ("hg38_blacklist_dict_v1.pkl", "bases the mask never selects"),
    "include": ("hg38_includelist_dict.pkl", "bases the mask always selects"),
}
_H1_FILES = {
    "genes": (f"{_INTER}/H1_ABC/Neighborhoods/GeneList.txt", _FILES["genes"][1]),
    "cage": (f"{_INTER}/CAGE/H1/*.bw", "the CAGE signal, from which the expression of H1 is summed"),
}
_PEAKS = f"{_INTER}/DNase-seq/{{cell}}/peaks/peaks_bigWig/macs3.bigWig"
_HIC = f"{_INTER}/HiC/{{cell}}"


class OfficialConfig(BuildConfig):
    """What a store is built from, found below the published dataset's folder."""

    cell_type: str
    expression: Path
    splits: Path
    lengths: Path
    cage: Path | None = None
    contact_chromosomes: list[str]
    contact_reach: int = 21  # windows of 200 kb, whatever the position of the TSS in its bin

    @classmethod
    def find(
        cls, root: Path, cell_type: str, out: Path, target: str = "cage", fold: str = FOLD, workers: int = 1
    ) -> "OfficialConfig":
        """Finds the files.

        Args:
            root: the folder that holds hg38/ and promo_enhan_inter/.
            cell_type: one of ``CELL_TYPES``.
            target: cage or rna.
            fold: column of the split table.
            workers: processes; each holds a chromosome in memory.

        Raises:
            UserError: files are missing, all of them named with what they are for; several where one is expected.
        """
        for name, value, choices in (("cell type", cell_type, CELL_TYPES), ("target", target, ("cage", "rna"))):
            if value not in choices:
                raise UserError(f"{name} {value!r} is unknown: one of {', '.join(choices)}.")
        if workers < 1:
            raise UserError(f"workers is {workers}; it must be at least 1.")
        if not root.is_dir():
            raise UserError(f"{root}: no such folder; it must hold hg38/ and {_INTER}/ of the published dataset.")
        wanted = _FILES | (_H1_FILES if cell_type == "H1" else {})
        if target == "rna":
            wanted.pop("cage", None)
        missing, found = [], dict[str, Path]()
        for role, (pattern, purpose) in wanted.items():
            path = _one(root, pattern.format(cell=cell_type), _TRACKS.get(role, {}).get(cell_type))
            if path is None:
                missing.append(f"{pattern.format(cell=cell_type)} ({purpose})")
            else:
                found[role] = path
        hic = root / _HIC.format(cell=cell_type)
        chromosomes = _gene_chromosomes(found["genes"], found["splits"]) if {"genes", "splits"} <= set(found) else []
        for path in [contact_file(hic, c) for c in chromosomes or ["<chrom>"]]:
            if not path.is_file() and (chromosomes or not list(hic.glob(contact_file(hic, "*").name))):
                missing.append(f"{path.relative_to(root)} (contacts around each TSS)")
        if missing:
            raise UserError(f"{root}: {len(missing)} files of the published dataset are missing: {'; '.join(missing)}.")
        peaks = root / _PEAKS.format(cell=cell_type)
        column = f"{cell_type}_CAGE_128*3_sum" if target == "cage" else f"Actual_{cell_type}"
        return cls(
            out=out,
            track={name: found.pop(name) for name in _TRACKS},
            target=column,
            log_target=target == "cage",
            split=fold,
            features=[*MRNA_FEATURES, PROMOTER_ACTIVITY],
            contacts=str(hic),
            contact_chromosomes=chromosomes,
            cell_type=cell_type,
            peaks=peaks if peaks.is_file() else None,
            workers=workers,
            **found,
        )

    def sources(self) -> dict[str, Path]:
        """Role -> file, for every input file."""
        roles = ("fasta", "genes", "expression", "splits", "lengths", "cage", "exclude", "include", "peaks")
        files = {role: path for role in roles if (path := getattr(self, role)) is not None}
        files |= {f"track {name}": path for name, path in self.track.items()}
        folder = Path(str(self.contacts))
        return files | {f"contacts {chrom}": contact_file(folder, chrom) for chrom in self.contact_chromosomes}

    def read_genes(self, lengths: Mapping[str, int]) -> pd.DataFrame:
        """The genes that the split table, the expression table and the gene list all have, in the split table's order.

        Raises:
            UserError: a missing column, a value that is no number, a TSS outside its chromosome, another assembly,
                contacts of the wrong length (here, before the long work begins).
        """
        self._check_lengths(lengths)
        splits, expression, listed = _tables(self.splits, self.expression, self.genes)
        _need(self.splits, splits, "ENSID", str(self.split))
        _need(self.expression, expression, *MRNA_FEATURES, *([] if self.cage else [self.target]))
        _need(self.genes, listed, "chr", "tss", "strand", *_ACTIVITY_COLUMNS)
        kept = splits.index[splits.index.isin(expression.index) & splits.index.isin(listed.index)]
        if kept.empty:
            raise UserError(
                f"{self.splits}: none of its genes is in both {self.expression.name} and {self.genes.name}."
            )
        if left := len(splits) - len(kept):
            log.warning("%s: %d genes are in not all of the three gene tables and are left out.", self.splits, left)
        splits, expression, listed = splits.loc[kept], expression.loc[kept], listed.loc[kept]
        genes = pd.DataFrame({"gene_id": splits["ENSID"], "gene_name": splits["Gene name"], "chrom": listed["chr"]})
        genes["tss"] = numbers(self.genes, listed, "tss", allow_empty=False)
        check_positions(self.genes, genes, lengths)
        genes["tss"] = genes["tss"].astype(np.int64)
        genes["strand"] = listed["strand"]
        check_strands(self.genes, genes)
        genes["target"] = self._targets(genes, expression)
        genes["split"] = splits[str(self.split)]
        for name in MRNA_FEATURES:
            genes[name] = numbers(self.expression, expression, name, allow_empty=False)
        reads = [numbers(self.genes, listed, name, allow_empty=False) for name in _ACTIVITY_COLUMNS]
        genes[PROMOTER_ACTIVITY] = np.sqrt(reads[0] * reads[1])
        used = {chrom: bases for chrom, bases in lengths.items() if chrom in set(genes["chrom"])}
        BaseContacts(Path(str(self.contacts)), used).check(genes["chrom"].to_numpy(), genes["tss"].to_numpy())
        return genes.reset_index(drop=True)

    def _targets(self, genes: pd.DataFrame, expression: pd.DataFrame) -> pd.Series:
        """log10(1 + CAGE), or the logarithms of RNA-seq as the table has them."""
        if self.cage is not None:
            return pd.Series(np.log10(1 + _sums(self.cage, genes)), index=genes.index)
        values = numbers(self.expression, expression, self.target, allow_empty=True)
        if self.target.startswith("Actual_"):
            return values
        if (values < 0).any():
            raise UserError(f"{self.expression}: {self.target} holds negative values; it must be sums of CAGE tags.")
        return np.log10(1 + values)

    def read_regions(self, lengths: Mapping[str, int]) -> dict[str, dict[str, np.ndarray]]:
        """Role -> chromosome -> int64 (n, 2) intervals: exclude, include, and peaks when there are any."""
        regions = {
            role: dict(_mask_intervals(path, purpose, lengths))
            for role, path, purpose in (
                ("exclude", self.exclude, _FILES["exclude"][1]),
                ("include", self.include, _FILES["include"][1]),
            )
            if path is not None
        }
        if self.peaks is None:
            log.warning("%s: has no peaks; %s is not there.", self.cell_type, _PEAKS.format(cell=self.cell_type))
            return regions
        with BigWig(self.peaks) as file:
            regions["peaks"] = {c: runs(file.values(c) > 0) for c in lengths if c in file.lengths}
        return regions

    def open_contacts(self, lengths: Mapping[str, int]) -> ContactSource | None:
        """The HDF5 files of the cell type."""
        return BaseContacts(Path(str(self.contacts)), lengths)

    def _check_lengths(self, lengths: Mapping[str, int]) -> None:
        try:
            listed = json.loads(self.lengths.read_text())
            listed = {str(name): int(bases) for name, bases in listed.get("hg38", listed).items()}
        except (ValueError, AttributeError, TypeError) as error:
            raise UserError(f"{self.lengths}: must be JSON, chromosome -> bases below hg38 ({error}).") from error
        for chrom, bases in listed.items():
            if lengths.get(chrom, bases) != bases:
                raise UserError(
                    f"{self.fasta}: {chrom} has {lengths[chrom]:,} bases, but {bases:,} in {self.lengths.name}; the "
                    "two are of different assemblies."
                )


def import_official(
    root: Path,
    cell_type: str,
    out: Path,
    *,
    target: str = "cage",
    fold: str = FOLD,
    workers: int = 1,
    progress: bool = False,
) -> Store:
    """Builds a store from the published dataset's folder; resumable and atomic as ``build_store``.

    Args:
        root: DATA_ROOT, which holds hg38/ and promo_enhan_inter/.
        cell_type: K562, GM12878 or H1.
        target: cage (log10(1 + sum of CAGE over 384 bases)) or rna (log10 RNA-seq, as the table has it).
        fold: column of the split table.
        workers: processes; each holds a chromosome in memory.

    Raises:
        UserError: missing files, all named at once; tables, HDF5 or pickles that are not what they must be.
    """
    return build(OfficialConfig.find(root, cell_type, out, target, fold, workers), progress=progress)


def runs(mask: np.ndarray) -> np.ndarray:
    """bool (length,) -> int64 (n, 2): where it is true, half-open."""
    edges = np.flatnonzero(np.diff(mask.astype(np.int8), prepend=0, append=0))
    return edges.reshape(-1, 2).astype(np.int64)


def _one(root: Path, pattern: str, accession: str | None) -> Path | None:
    paths = sorted(path for path in root.glob(pattern) if path.is_file())
    published = [path for path in paths if accession is not None and path.name.startswith(accession)]
    if len(published) == 1:
        return published[0]
    if len(paths) > 1:
        names = ", ".join(str(path.relative_to(root)) for path in paths)
        raise UserError(f"{root}: {pattern} must be one file, but there are {names}; keep one.")
    return paths[0] if paths else None


def _tables(splits: Path, expression: Path, listed: Path) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """The split table, the expression table and the gene list, as text, each by Ensembl id.

    The gene list's symbol is the Ensembl id, or (H1) the gene's name.
    """
    first, second, third = (read_table(path) for path in (splits, expression, listed))
    _need(splits, first, "ENSID", "Gene name")
    _need(expression, second, "ENSID")
    _need(listed, third, "symbol")
    by_name = third["symbol"].isin(first["Gene name"]).sum() > third["symbol"].isin(first["ENSID"]).sum()
    third = _unique(listed, third, "symbol")
    if by_name:
        named = first[first["Gene name"].isin(third.index)]
        third = third.loc[named["Gene name"]].set_index(named["ENSID"])
    return _unique(splits, first, "ENSID"), _unique(expression, second, "ENSID"), third


def _unique(path: Path, table: pd.DataFrame, column: str) -> pd.DataFrame:
    twice = table[column].duplicated()
    if twice.any():
        log.warning("%s: %d lines repeat a %s and are left out.", path, int(twice.sum()), column)
    return table[~twice].set_index(column, drop=False)


def _gene_chromosomes(listed: Path, splits: Path) -> list[str]:
    """The chromosomes of the genes that both tables have."""
    table, genes = read_table(listed), read_table(splits)
    _need(listed, table, "chr", "symbol")
    _need(splits, genes, "ENSID", "Gene name")
    used = table["symbol"].isin(genes["ENSID"]) | table["symbol"].isin(genes["Gene name"])
    return sorted(set(table["chr"][used]))


def _need(path: Path, table: pd.DataFrame, *columns: str) -> None:
    missing = [name for name in columns if name not in table]
    if missing:
        raise UserError(f"{path}: no column {missing[0]!r}; the columns are {', '.join(table.columns)}.")


def _sums(path: Path, genes: pd.DataFrame) -> np.ndarray:
    """float64 (genes,): the signal summed over the TSS +- 192 bases, as published for H1."""
    out = np.zeros(len(genes))
    with BigWig(path) as file:
        for chrom, rows in genes.groupby("chrom").indices.items():
            values = file.values(str(chrom)).astype(np.float64)
            for row, tss in zip(rows, genes["tss"].iloc[rows], strict=True):
                out[row] = values[max(tss - CAGE_BASES, 0) : tss + CAGE_BASES].sum()
    return out


def _mask_intervals(path: Path, purpose: str, lengths: Mapping[str, int]) -> Iterator[tuple[str, np.ndarray]]:
    masks = read_masks(path, purpose)
    for chrom, length in lengths.items():
        if chrom not in masks:
            log.warning("%s: has no %s.", path, chrom)
        elif len(masks[chrom]) != length:
            raise UserError(
                f"{path}: {chrom} has {len(masks[chrom]):,} values, one for each of its {length:,} bases is expected."
            )
        else:
            yield chrom, runs(masks[chrom])
