"""What a store is built from: the fields of the builder, checked."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from seq2exp.data_tools.contacts import RESOLUTION, ContactSource, PowerLaw, open_contacts
from seq2exp.data_tools.features import MRNA_FEATURES, PROMOTER_ACTIVITY, promoter_activity, read_mrna_features
from seq2exp.data_tools.genes import COLUMN_NAMES, read_genes
from seq2exp.data_tools.juicer import MARK, find_juicer_files
from seq2exp.data_tools.tables import check_file, read_bed
from seq2exp.errors import UserError


class BuildConfig(BaseModel):
    """What a store is built from: the options of ``seq2exp data build``, or the fields of its YAML file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    out: Path
    fasta: Path
    track: dict[str, Path] = Field(default_factory=dict, description="name -> bigWig, in the order of the signals")
    genes: Path | None = Field(None, description="CSV or TSV, a line per gene")
    gtf: Path | None = Field(None, description="with expression, in place of genes: where the genes are")
    expression: Path | None = Field(None, description="with gtf: CSV or TSV with gene id, target, split, features")
    target: str = Field(description="column of the gene table")
    log_target: bool = Field(False, description="store log10(1 + target)")
    split: str | None = Field(None, description="column of the gene table: train, valid, test or any other words")
    features: list[str] = Field(default_factory=list, description="numeric columns of the gene table")
    mrna: Path | None = Field(None, description="CSV or TSV with gene id and the eight mRNA features")
    promoter_activity: tuple[str, str] | None = Field(None, description="tracks of H3K27ac and DNase: one more feature")
    columns: dict[str, str] = Field(
        default_factory=dict, description="gene_id, gene_name, chrom, tss, strand -> header"
    )
    contacts: str | None = Field(None, description="contact table, .hic, .cool, .mcool, RAWobserved, or powerlaw")
    contact_bins: tuple[str, str] | None = Field(None, description="the two bin columns of a contact table")
    contact_value: str | None = Field(None, description="value column of a contact table, or normalisation of a map")
    contact_recipe: Literal["measured", "abc"] = Field("measured", description="abc: coverage test and pseudocount too")
    contact_resolution: int | None = Field(None, gt=0, description="bases a bin; of a .hic or .mcool by default 5,000")
    contact_reach: int = Field(200, gt=0, description="bins kept on each side of a TSS")
    powerlaw_gamma: float = Field(PowerLaw.gamma, gt=0)
    powerlaw_scale: float = PowerLaw.scale
    exclude: Path | None = Field(None, description="BED: bases the mask never selects")
    include: Path | None = Field(None, description="BED: bases the mask always selects")
    peaks: Path | None = Field(None, description="narrowPeak or BED: kept as intervals")
    workers: int = Field(1, gt=0, description="processes; each holds a chromosome in memory")

    @classmethod
    def parse(cls, **fields: Any) -> "BuildConfig":
        """Checks the fields. Raises UserError naming the first one that is wrong."""
        try:
            config = cls(**fields)
        except ValidationError as error:
            first = error.errors()[0]
            name = ".".join(str(part) for part in first["loc"])
            raise UserError(f"data build: {name}: {first['msg']}; fields are {', '.join(cls.model_fields)}.") from error
        unknown = set(config.columns) - set(COLUMN_NAMES)
        if unknown:
            raise UserError(f"data build: columns: {min(unknown)!r} is none of {', '.join(COLUMN_NAMES)}.")
        if (config.gtf is None) != (config.expression is None) or (config.genes is None) == (config.gtf is None):
            raise UserError("data build: give either genes, or gtf and expression.")
        for name in config.promoter_activity or ():
            if name not in config.track:
                raise UserError(
                    f"data build: promoter_activity: no track {name!r}; the tracks are {', '.join(config.track)}."
                )
        for name in config.track:
            if not name or "/" in name or name.startswith((".", "_")):
                raise UserError(f"data build: track name {name!r} must not be empty, contain / or begin with . or _.")
            if name == "contacts":
                raise UserError("data build: a track may not be called contacts; that is the contact signal's name.")
        return config

    @classmethod
    def from_yaml(cls, path: Path, **overrides: Any) -> "BuildConfig":
        """Reads the fields from a YAML file; `overrides` win. Raises UserError as ``parse`` does."""
        check_file(path, "the build file")
        try:
            fields = yaml.safe_load(path.read_text())
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise UserError(f"{path}: not a YAML file ({' '.join(str(error).split())}).") from error
        if not isinstance(fields, dict) or not all(isinstance(key, str) for key in fields):
            raise UserError(f"{path}: must hold fields, NAME: VALUE; they are {', '.join(cls.model_fields)}.")
        return cls.parse(**{**fields, **overrides})

    @property
    def gene_table(self) -> Path:
        """The table with the targets."""
        table = self.genes or self.expression
        assert table is not None  # parse saw to it
        return table

    @property
    def feature_names(self) -> list[str]:
        """In the published order: of the mRNA, of the table, the promoter's."""
        mrna = MRNA_FEATURES if self.mrna is not None else ()
        promoter = (PROMOTER_ACTIVITY,) if self.promoter_activity is not None else ()
        return [*mrna, *self.features, *promoter]

    def sources(self) -> dict[str, Path]:
        """Role -> file, for every input file. Raises UserError where RAWobserved files are named that are not there."""
        roles = ("fasta", "genes", "gtf", "expression", "mrna", "exclude", "include", "peaks")
        files: dict[str, Path] = {role: path for role in roles if (path := getattr(self, role)) is not None}
        files |= {f"track {name}": path for name, path in self.track.items()}
        if self.contacts is None or self.contacts == "powerlaw":
            return files
        if MARK not in Path(self.contacts).name:
            return files | {"contacts": Path(self.contacts)}
        _, pairs = find_juicer_files(self.contacts, self.contact_value)
        for chrom, (raw, norm) in pairs.items():
            files |= {f"contacts {chrom}": raw} | ({f"contact norms {chrom}": norm} if norm else {})
        return files

    def read_genes(self, lengths: Mapping[str, int]) -> pd.DataFrame:
        """The genes as ``genes.read_genes`` gives them, and the features that come from elsewhere; lengths: chromosome
        -> bases."""
        genes = read_genes(
            self.gene_table,
            lengths,
            target=self.target,
            split=self.split,
            features=self.features,
            columns=self.columns,
            gtf=self.gtf,
            log_target=self.log_target,
        )
        added: dict[str, np.ndarray | pd.Series] = {}
        if self.mrna is not None:
            added |= dict(read_mrna_features(self.mrna, genes["gene_id"]).items())
        if self.promoter_activity is not None:
            h3k27ac, dnase = (self.track[name] for name in self.promoter_activity)
            added[PROMOTER_ACTIVITY] = promoter_activity(h3k27ac, dnase, genes)
        for name, values in added.items():
            if name in genes:
                raise UserError(f"{self.gene_table}: a feature column may not be called {name}, that name is taken.")
            genes[name] = values
        return genes

    def read_regions(self, lengths: Mapping[str, int]) -> dict[str, dict[str, np.ndarray]]:
        """Role -> chromosome -> int64 (n, 2) intervals, of the chromosomes in `lengths`."""
        files = {"exclude": self.exclude, "include": self.include, "peaks": self.peaks}
        return {role: read_bed(path, lengths) for role, path in files.items() if path is not None}

    def open_contacts(self, lengths: Mapping[str, int]) -> ContactSource | None:
        """Where contacts are read from, of the chromosomes in `lengths`; None without."""
        if self.contacts is None:
            return None
        return open_contacts(
            self.contacts,
            columns=self.contact_bins,
            value=self.contact_value,
            resolution=self.contact_resolution or RESOLUTION,
            hint=self.fasta.name,
            lengths=lengths,
        )
