"""The store builder: FASTA, bigWigs, contacts and a gene table into one Zarr store.

Work goes on in ``<out>.partial``, each finished array is noted, and the folder is renamed to ``<out>`` at the end:
a killed build is taken up again by the same call, and nothing that is unfinished ever has the store's name.
"""

import hashlib
import json
import logging
import platform
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
import zarr
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from seq2exp.data_tools.arrays import write_array
from seq2exp.data_tools.bigwig import BigWig, storage_dtype
from seq2exp.data_tools.contacts import (
    RESOLUTION,
    ContactSource,
    PowerLaw,
    fill_with_power_law,
    open_contacts,
    power_law_factor,
)
from seq2exp.data_tools.fasta import FastaIndex, read_codes, scan_fasta
from seq2exp.data_tools.genes import COLUMN_NAMES, read_genes
from seq2exp.data_tools.store import FORMAT, Store, open_store, partial_path
from seq2exp.data_tools.tables import check_file, closest_chromosome, read_bed
from seq2exp.errors import UserError

log = logging.getLogger(__name__)


class BuildConfig(BaseModel):
    """What a store is built from: the options of ``seq2exp data build``, or the fields of its YAML file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    out: Path
    fasta: Path
    track: dict[str, Path] = Field(default_factory=dict, description="name -> bigWig, in the order of the signals")
    genes: Path = Field(description="CSV or TSV, a line per gene")
    target: str = Field(description="column of the gene table")
    split: str | None = Field(None, description="column of the gene table: train, valid, test or any other words")
    features: list[str] = Field(default_factory=list, description="numeric columns of the gene table")
    columns: dict[str, str] = Field(
        default_factory=dict, description="gene_id, gene_name, chrom, tss, strand -> header"
    )
    contacts: str | None = Field(None, description="contact table, .hic, .cool, .mcool, or the word powerlaw")
    contact_bins: tuple[str, str] | None = Field(None, description="the two bin columns of a contact table")
    contact_value: str | None = Field(None, description="value column of a contact table, or normalisation of a map")
    contact_resolution: int = Field(RESOLUTION, gt=0, description="bases a bin, of a .hic or .mcool")
    contact_reach: int = Field(200, gt=0, description="bins kept on each side of a TSS")
    powerlaw_gamma: float = Field(PowerLaw.gamma, gt=0)
    powerlaw_scale: float = PowerLaw.scale
    exclude: Path | None = Field(None, description="BED: bases the mask never selects")
    include: Path | None = Field(None, description="BED: bases the mask always selects")

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

    def sources(self) -> dict[str, Path]:
        """Role -> file, for every input file."""
        files = {"fasta": self.fasta, "genes": self.genes}
        files |= {f"track {name}": path for name, path in self.track.items()}
        if self.contacts is not None and self.contacts != "powerlaw":
            files["contacts"] = Path(self.contacts)
        files |= {role: path for role, path in (("exclude", self.exclude), ("include", self.include)) if path}
        return files


def build_store(*, progress: bool = False, **fields: Any) -> Store:
    """Builds a store, or finishes one that the same call began. A finished store of the same inputs stays as it is.

    Args:
        progress: shows a progress bar on stderr.
        fields: those of ``BuildConfig``.

    Raises:
        UserError: bad input, with nothing left behind; disk full or no permission, with the finished part kept in
            ``<out>.partial`` for the next attempt; `out` exists and is something else.
    """
    return build(BuildConfig.parse(**fields), progress=progress)


def build(config: BuildConfig, *, progress: bool = False) -> Store:
    """As ``build_store``, from a checked configuration."""
    for role, path in config.sources().items():
        check_file(path, f"the file for {role}")
    notes: list[str] = []
    with _collect_warnings(notes), _writing(config.out):
        sources = {role: _describe(path) for role, path in config.sources().items()}
        state = {
            "format": FORMAT,
            "config": config.model_dump(mode="json", exclude={"out"}),
            "sha256": {role: source["sha256"] for role, source in sources.items()},
        }
        if config.out.exists():
            return _existing(config.out, state)
        inputs = _Inputs(config)
        work = _Workspace(partial_path(config.out), state)
        try:
            _write_all(config, inputs, work, progress)
            _write_header(config, inputs, work, {"sources": sources, "notes": notes, "build": state})
        except UserError:
            work.remove()
            raise
    return open_store(config.out)


class _Inputs:
    """All inputs but the sequence and signal values, read and checked against each other before anything is written."""

    def __init__(self, config: BuildConfig) -> None:
        self.fasta: FastaIndex = scan_fasta(config.fasta)
        lengths = self.fasta.lengths
        self.genes: pd.DataFrame = read_genes(
            config.genes,
            lengths,
            target=config.target,
            split=config.split,
            features=config.features,
            columns=config.columns,
        )
        used = set(self.genes["chrom"])
        self.chromosomes = {chrom: length for chrom, length in lengths.items() if chrom in used}
        for name, path in config.track.items():
            _check_track(name, path, config.fasta, lengths, list(self.chromosomes))
        self.regions = {
            role: read_bed(path, self.chromosomes)
            for role, path in (("exclude", config.exclude), ("include", config.include))
            if path is not None
        }
        self.contacts: ContactSource | None = None
        if config.contacts is not None:
            self.contacts = open_contacts(
                config.contacts,
                columns=config.contact_bins,
                value=config.contact_value,
                resolution=config.contact_resolution,
                hint=config.fasta.name,
            )
        empty = int(self.genes["target"].isna().sum())
        if empty:
            log.warning(
                "%s: %d of %d genes have no target; they are kept, but not trained on.",
                config.genes,
                empty,
                len(self.genes),
            )
        for chrom in self.chromosomes:
            if count := self.fasta.ambiguous[chrom]:
                log.warning("%s: %s: %d IUPAC ambiguity letters became N.", config.fasta, chrom, count)


class _Workspace:
    """The ``.partial`` folder: a Zarr group, and a list of the arrays in it that are finished."""

    def __init__(self, path: Path, state: dict[str, Any]) -> None:
        self.path = path
        self._file = path / "build.json"
        self._state = state
        self.finished: set[str] = set()
        if path.exists() and not self._resume():
            log.warning("%s: belongs to a build from other inputs; it is begun again.", path)
            shutil.rmtree(path)
        path.mkdir(parents=True, exist_ok=True)
        self.group = zarr.open_group(path, mode="a")
        self._save()

    def _resume(self) -> bool:
        try:
            found = json.loads(self._file.read_text())
            if found["state"] != json.loads(json.dumps(self._state)):
                return False
            self.finished = set(found["finished"])
        except (OSError, ValueError, KeyError, TypeError):
            return False
        if self.finished:
            log.info("%s: %d finished arrays are kept.", self.path, len(self.finished))
        return True

    def write(self, name: str, values: np.ndarray) -> None:
        """Writes one array and notes it as finished."""
        write_array(self.group, name, values)
        self.finished.add(name)
        self._save()

    def _save(self) -> None:
        text = json.dumps({"state": self._state, "finished": sorted(self.finished)})
        new = self._file.with_suffix(".new")
        new.write_text(text)
        new.replace(self._file)

    def publish(self, attributes: dict[str, Any], out: Path) -> None:
        """Writes the store's attributes and gives the store its name."""
        self.group.attrs.put({"seq2exp": attributes})
        self.path.rename(out)
        (out / self._file.name).unlink()

    def remove(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)


def _write_all(config: BuildConfig, inputs: _Inputs, work: _Workspace, progress: bool) -> None:
    chromosomes = list(inputs.chromosomes)
    steps = len(chromosomes) * (1 + len(config.track)) + 1
    with _bar(progress, steps) as advance:
        missing = {chrom for chrom in chromosomes if f"sequence/{chrom}" not in work.finished}
        advance(len(chromosomes) - len(missing), "sequence")
        if missing:
            for chrom, codes in read_codes(config.fasta, missing):
                work.write(f"sequence/{chrom}", codes)
                advance(1, f"sequence {chrom}")
        for name, path in config.track.items():
            with BigWig(path) as file:
                for chrom in chromosomes:
                    if f"tracks/{name}/{chrom}" not in work.finished:
                        values = (
                            file.values(chrom)
                            if chrom in file.lengths
                            else np.zeros(inputs.chromosomes[chrom], np.float32)
                        )
                        work.write(f"tracks/{name}/{chrom}", values.astype(storage_dtype(values)))
                    advance(1, f"{name} {chrom}")
        advance(1, "contacts and genes")


def _write_header(config: BuildConfig, inputs: _Inputs, work: _Workspace, provenance: dict[str, Any]) -> None:
    """Contacts, genes and intervals (small: written anew each time), then the attributes."""
    contacts = None
    if inputs.contacts is not None:
        values, described = _contact_rows(config, inputs.contacts, inputs.genes)
        array = work.group.create_array(
            "contacts", data=values, chunks=(min(len(values), 1024), values.shape[1]), overwrite=True
        )
        contacts = described
        array.attrs.put(described)
    for number, (name, column) in enumerate(inputs.genes.items()):
        values = column.to_numpy()
        if values.dtype.kind in "OTU" or isinstance(column.dtype, pd.StringDtype):
            values = np.array(column.astype(str).tolist(), dtype=np.dtypes.StringDType())
        array = work.group.create_array(f"genes/{number}", data=values, overwrite=True)
        array.attrs["name"] = str(name)
    for role, regions in inputs.regions.items():
        for chrom, intervals in regions.items():
            work.group.create_array(f"{role}/{chrom}", data=intervals, overwrite=True)
    work.publish(
        {
            "format": FORMAT,
            "chromosomes": inputs.chromosomes,
            "tracks": list(config.track),
            "contacts": contacts,
            "regions": sorted(inputs.regions),
            "gene_columns": list(map(str, inputs.genes.columns)),
            "features": config.features,
            "target": config.target,
            "split": config.split,
            **provenance,
            "versions": _versions(),
        },
        config.out,
    )


def _contact_rows(config: BuildConfig, source: ContactSource, genes: pd.DataFrame) -> tuple[np.ndarray, dict[str, Any]]:
    """float32 (genes, 2 * reach + 1) contacts around each TSS, and what they are."""
    reach = config.contact_reach
    law = PowerLaw(config.powerlaw_gamma, config.powerlaw_scale)
    rows = source.rows(genes["chrom"].to_numpy(), genes["tss"].to_numpy(), reach)
    filled = ~np.isfinite(rows)
    factor = power_law_factor(rows, law, reach, source.resolution)
    by_gene = filled.all(axis=1)
    unmeasured = [
        str(chrom) for chrom, all_filled in pd.Series(by_gene).groupby(genes["chrom"]).all().items() if all_filled
    ]
    if unmeasured and config.contacts != "powerlaw":
        log.warning("%s: no contacts of %s; they take the power law.", config.contacts, ", ".join(unmeasured))
    described = {
        "source": config.contacts,
        "value": source.value,
        "resolution": source.resolution,
        "reach": reach,
        "power_law": {"gamma": law.gamma, "scale": law.scale, "factor": factor, "filled": float(filled.mean())},
        "power_law_chromosomes": unmeasured,
    }
    return fill_with_power_law(rows, law, factor, source.resolution), described


def _check_track(name: str, path: Path, fasta: Path, lengths: dict[str, int], chromosomes: list[str]) -> None:
    with BigWig(path) as file:
        for chrom, length in lengths.items():
            if file.lengths.get(chrom, length) != length:
                raise UserError(
                    f"{path}: {chrom} has {file.lengths[chrom]:,} bases, but {length:,} in {fasta}; track {name} and "
                    "the FASTA are of different assemblies."
                )
        missing = [chrom for chrom in chromosomes if chrom not in file.lengths]
        if len(missing) == len(chromosomes):
            raise UserError(
                f"{path}: track {name} has no chromosome {missing[0]!r}{closest_chromosome(missing[0], file.lengths)}."
            )
        if missing:
            log.warning("%s: track %s has no %s; it is 0 there.", path, name, ", ".join(missing))


def _existing(out: Path, state: dict[str, Any]) -> Store:
    try:
        store = open_store(out)
    except UserError as error:
        raise UserError(f"{out}: exists and is no finished store; remove it or choose another --out.") from error
    if store.info["build"] != json.loads(json.dumps(state)):
        raise UserError(f"{out}: exists, built from other inputs or options; remove it or choose another --out.")
    log.info("%s: already built from these inputs.", out)
    return store


def _describe(path: Path) -> dict[str, Any]:
    with path.open("rb") as handle:
        digest = hashlib.file_digest(handle, "sha256").hexdigest()
    return {"path": str(path.resolve()), "bytes": path.stat().st_size, "sha256": digest}


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in ("seq2exp", "zarr", "numcodecs", "numpy", "pyBigWig", "hictkpy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


@contextmanager
def _writing(out: Path) -> Iterator[None]:
    """Turns an error of the file system into a sentence; what is finished stays in ``<out>.partial``."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{out}: writing the store failed: {error.strerror or error}; mend that and run the same command again, "
            "finished parts are kept."
        ) from error


@contextmanager
def _collect_warnings(notes: list[str]) -> Iterator[None]:
    """Keeps the warnings of this package as notes of the store."""

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            notes.append(record.getMessage())

    handler = Keep(level=logging.WARNING)
    logger = logging.getLogger("seq2exp.data_tools")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


@contextmanager
def _bar(show: bool, total: int) -> Iterator[Callable[[int, str], None]]:
    columns = (TextColumn("{task.description:24}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not show) as bar:
        task = bar.add_task("reading", total=total)
        yield lambda steps, what: bar.update(task, advance=steps, description=what)
