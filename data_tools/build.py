"""The store builder: FASTA, bigWigs, contacts and a gene table into one Zarr store.

Work goes on in ``<out>.partial``, each finished array is noted, and the folder is renamed to ``<out>`` at the end:
a killed build is taken up again by the same call, and nothing that is unfinished ever has the store's name.
"""

import hashlib
import json
import logging
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from seq2exp.data_tools.arrays import write_small_array
from seq2exp.data_tools.bigwig import BigWig, storage_dtype
from seq2exp.data_tools.config import BuildConfig
from seq2exp.data_tools.contacts import (
    ContactSource,
    PowerLaw,
    abc_contacts,
    fill_with_power_law,
    power_law_factor,
    too_little_coverage,
)
from seq2exp.data_tools.fasta import FastaIndex, read_codes, scan_fasta
from seq2exp.data_tools.store import FORMAT, Store, open_store, partial_path
from seq2exp.data_tools.tables import check_file, closest_chromosome
from seq2exp.data_tools.workspace import NOTES, Job, Workspace
from seq2exp.errors import UserError

log = logging.getLogger(__name__)


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
        if not _is_store(path):
            check_file(path, f"the file for {role}")
    notes: list[str] = []
    with _collect_warnings(notes), _writing(config.out):
        sources, state = build_state(config)
        if config.out.exists():
            return _existing(config.out, state)
        began = time.monotonic()
        inputs = _Inputs(config)
        work = Workspace(partial_path(config.out), state)
        try:
            _write_all(config, inputs, work, progress)
            folder = str(Path.cwd())  # that relative paths are relative to
            provenance = {"sources": sources, "notes": notes, "build": state, "folder": folder}
            _write_header(config, inputs, work, provenance)
        except UserError:
            work.remove()
            raise
        log.info("%s: built in %.0f s.", config.out, time.monotonic() - began)
    return open_store(config.out)


def build_state(config: BuildConfig) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """What the input files are (role -> path, bytes, sha256), and what makes two builds the same."""
    sources = {role: _describe(path) for role, path in config.sources().items()}
    state = {
        "format": FORMAT,
        "config": config.model_dump(mode="json", exclude={"out", "workers"}),
        "sha256": {role: source["sha256"] for role, source in sources.items()},
    }
    return sources, state


class _Inputs:
    """All inputs but the sequence and signal values, read and checked against each other before anything is written."""

    def __init__(self, config: BuildConfig) -> None:
        self.fasta = _scan_sequence(config.fasta)
        lengths = self.fasta.lengths
        self.genes: pd.DataFrame = config.read_genes(lengths)
        used = set(self.genes["chrom"])
        self.chromosomes = {chrom: length for chrom, length in lengths.items() if chrom in used}
        for name, path in config.track.items():
            _check_track(name, path, config.fasta, lengths, list(self.chromosomes))
        self.regions = config.read_regions(self.chromosomes)
        source = config.open_contacts(self.chromosomes)
        self.contacts = None if source is None else _contact_rows(config, source, self.genes)
        empty = int(self.genes["target"].isna().sum())
        if empty:
            log.warning(
                "%s: %d of %d genes have no target; they are kept, but not trained on.",
                config.gene_table,
                empty,
                len(self.genes),
            )
        for chrom in self.chromosomes:
            if count := self.fasta.ambiguous[chrom]:
                log.warning("%s: %s: %d IUPAC ambiguity letters became N.", config.fasta, chrom, count)


def _write_all(config: BuildConfig, inputs: _Inputs, work: Workspace, progress: bool) -> None:
    total = len(inputs.chromosomes) * (1 + len(config.track))
    with _bar(progress, total) as advance:
        advance(len(work.finished), "reading")
        if _is_store(config.fasta):
            for chrom in inputs.chromosomes:
                if (name := f"sequence/{chrom}") not in work.finished:
                    work.share(name, config.fasta / name)
                    advance(1, name)
        work.write(_jobs(config, inputs, work.finished), config.workers, lambda name: advance(1, name))
        advance(0, "contacts and genes")


def _jobs(config: BuildConfig, inputs: _Inputs, finished: set[str]) -> Iterator[Job]:
    """The arrays that are still to write, one for each chromosome of the sequence and of each track."""
    missing = {chrom for chrom in inputs.chromosomes if f"sequence/{chrom}" not in finished}
    if missing:
        for chrom, codes in read_codes(config.fasta, missing):
            yield Job(f"sequence/{chrom}", partial(np.asarray, codes))
    for name, path in config.track.items():
        for chrom, length in inputs.chromosomes.items():
            if f"tracks/{name}/{chrom}" not in finished:
                yield Job(f"tracks/{name}/{chrom}", partial(_track_values, path, chrom, length))


def _track_values(path: Path, chrom: str, length: int) -> np.ndarray:
    """float16 or float32 (length,): a chromosome of a bigWig, 0 where the file lacks it."""
    with BigWig(path) as file:
        values = file.values(chrom) if chrom in file.lengths else np.zeros(length, np.float32)
    return values.astype(storage_dtype(values))


def _write_header(config: BuildConfig, inputs: _Inputs, work: Workspace, provenance: dict[str, Any]) -> None:
    """Contacts, genes and intervals (small: written anew each time), then the attributes."""
    contacts = None
    if inputs.contacts is not None:
        values, contacts = inputs.contacts
        chunks = min(len(values), 1024), values.shape[1]
        write_small_array(work.group, "contacts", values, chunks).attrs.put(contacts)
    for number, (name, column) in enumerate(inputs.genes.items()):
        values = column.to_numpy()
        if values.dtype.kind in "OTU" or isinstance(column.dtype, pd.StringDtype):
            values = np.array(column.astype(str).tolist(), dtype=np.dtypes.StringDType())
        array = write_small_array(work.group, f"genes/{number}", values)
        array.attrs["name"] = str(name)
    for role, regions in inputs.regions.items():
        for chrom, intervals in regions.items():
            write_small_array(work.group, f"{role}/{chrom}", intervals)
    work.publish(
        {
            "format": FORMAT,
            "chromosomes": inputs.chromosomes,
            "tracks": list(config.track),
            "contacts": contacts,
            "regions": sorted(inputs.regions),
            "gene_columns": list(map(str, inputs.genes.columns)),
            "features": config.feature_names,
            "target": config.target,
            "log_target": config.log_target,
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
    if config.contact_resolution not in (None, source.resolution):
        raise UserError(
            f"{config.contacts}: its bins have {source.resolution:,} bases, not {config.contact_resolution:,} as "
            "asked; leave out --contact-resolution, or give another file."
        )
    filled = ~np.isfinite(rows)
    factor = power_law_factor(rows, law, reach, source.resolution)
    if config.contact_recipe == "abc":
        filled |= too_little_coverage(rows, factor)[:, None]
        complete = abc_contacts(rows, law, factor, source.resolution)
    else:
        complete = fill_with_power_law(rows, law, factor, source.resolution)
    by_gene = filled.all(axis=1)
    unmeasured = [
        str(chrom) for chrom, all_filled in pd.Series(by_gene).groupby(genes["chrom"]).all().items() if all_filled
    ]
    if unmeasured and config.contacts != "powerlaw":
        log.warning("%s: no contacts of %s; they take the power law.", config.contacts, ", ".join(unmeasured))
    elsewhere = by_gene & ~genes["chrom"].isin(unmeasured).to_numpy()
    if elsewhere.any():
        first = genes["gene_id"].to_numpy()[elsewhere][0]
        log.warning(
            "%s: %d genes have no contacts, or too few (%s, ...); they take the power law.",
            config.contacts,
            elsewhere.sum(),
            first,
        )
    described = {
        "source": config.contacts,
        "recipe": config.contact_recipe,
        "value": source.value,
        "resolution": source.resolution,
        "reach": reach,
        "power_law": {"gamma": law.gamma, "scale": law.scale, "factor": factor, "filled": float(filled.mean())},
        "power_law_chromosomes": unmeasured,
    }
    return complete, described


def _is_store(path: Path) -> bool:
    return (path / "zarr.json").is_file()


def _scan_sequence(path: Path) -> FastaIndex:
    """The index of a FASTA, or of the sequence in a store, which was checked when that was built."""
    if not _is_store(path):
        return scan_fasta(path)
    lengths = open_store(path).chromosomes
    return FastaIndex(path, lengths, dict.fromkeys(lengths, 0))


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
    (out / NOTES).unlink(missing_ok=True)  # of a build that was killed at its last step
    log.info("%s: already built from these inputs.", out)
    return store


def _describe(path: Path) -> dict[str, Any]:
    if _is_store(path):
        return dict(open_store(path).info["sources"]["fasta"])
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
