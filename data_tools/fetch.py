"""The public files that the paper's cell lines are built from: ``seq2exp data fetch``."""

import json
import logging
import os
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urljoin, urlsplit

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from seq2exp.data_tools.download import Remote, check, download, get
from seq2exp.data_tools.public_genes import write_gene_table
from seq2exp.errors import UserError

log = logging.getLogger(__name__)

MIRROR = "SEQ2EXP_MIRROR"  # environment variable: fetch from <value>/<host>/<path> instead of https://<host>/<path>
SUMS = "SHA256SUMS"

_ENCODE = "https://www.encodeproject.org/files/"
_FOURDN = "https://data.4dnucleome.org/files-processed/"
_FANTOM = "https://fantom.gsc.riken.jp/5/datafiles/reprocessed/hg38_v1/basic/human.cell_line.hCAGE/"
_UCSC = "https://hgdownload.soe.ucsc.edu/goldenPath/hg38/bigZips/"
_EPINFORMER = "https://raw.githubusercontent.com/pinellolab/EPInformer/"


@dataclass(frozen=True)
class PublicFile:
    """A file of a preset.

    Attributes:
        role: what it is for.
        name: what it is called here.
        url: where it is; of ENCODE and 4DN the page of its accession, which says the rest.
        kind: portal: `url` answers with JSON that has the address, md5sum and file_size; direct: `url` is the file.
        md5: hexadecimal, where it is known beforehand.
    """

    role: str
    name: str
    url: str
    kind: Literal["portal", "direct"] = "direct"
    md5: str | None = None


def _encode(role: str, accession: str) -> PublicFile:
    return PublicFile(role, f"{accession}.bigWig", f"{_ENCODE}{accession}/", "portal")


def _fourdn(accession: str) -> PublicFile:
    return PublicFile("contacts", f"{accession}.hic", f"{_FOURDN}{accession}/", "portal")


_GENOME = PublicFile("fasta", "hg38.fa.gz", f"{_UCSC}hg38.fa.gz", md5="1c9dcaddfa41027f17cd8f7a82c7293b")
_SPLITS = PublicFile(
    "splits",
    "leave_chrom_out_crossvalidation_split_18377genes.csv",
    f"{_EPINFORMER}66b369de3e16bf89ba7092ffb8cfefdb72717ebe/data/leave_chrom_out_crossvalidation_split_18377genes.csv",
)
_MRNA = PublicFile(
    "mRNA features",
    "mRNA_halflife_features.csv",
    f"{_EPINFORMER}4de7e4bd90031a1764ca14389a0ffee3779bc726/data/mRNA_halflife_features.csv",
)
PRESETS: dict[str, tuple[PublicFile, ...]] = {
    "k562": (
        _GENOME,
        _encode("H3K27ac", "ENCFF465GBD"),
        _encode("DNase", "ENCFF414OGC"),
        _fourdn("4DNFITUOMFUQ"),
        PublicFile(
            "CAGE",
            "CNhs11250.ctss.bed.gz",
            f"{_FANTOM}chronic%2520myelogenous%2520leukemia%2520cell%2520line%253aK562.CNhs11250.10454-106G4"
            ".hg38.nobarcode.ctss.bed.gz",
        ),
        _SPLITS,
        _MRNA,
    ),
    "gm12878": (
        _GENOME,
        _encode("H3K27ac", "ENCFF798KYP"),
        _encode("DNase", "ENCFF960FMM"),
        _fourdn("4DNFI1UEG1HD"),
        PublicFile(
            "CAGE",
            "CNhs12333.ctss.bed.gz",
            f"{_FANTOM}B%2520lymphoblastoid%2520cell%2520line%253a%2520GM12878%2520ENCODE%252c%2520biol_rep3.CNhs12333"
            ".10823-111C4.hg38.nobarcode.ctss.bed.gz",
        ),
        _SPLITS,
        _MRNA,
    ),
}


def fetch(preset: str, out: Path | None = None, *, mirror: str | None = None, progress: bool = False) -> str:
    """Downloads the files of a preset and writes the table of their genes. What is there already is checked and kept.

    Args:
        preset: a name of ``PRESETS``.
        out: folder; default: the preset's name.
        mirror: base URL that serves the files as <mirror>/<host>/<path>; default: the environment's SEQ2EXP_MIRROR.
        progress: shows a progress bar on stderr.

    Returns:
        The command that builds the store.

    Raises:
        UserError: unknown preset; as ``download``; a file in the folder is not the published one.
    """
    if preset not in PRESETS:
        raise UserError(f"preset {preset!r} is unknown: one of {', '.join(PRESETS)}.")
    folder = out or Path(preset)
    mirror = mirror or os.environ.get(MIRROR)
    folder.mkdir(parents=True, exist_ok=True)
    sums = _read_sums(folder / SUMS)
    for file in PRESETS[preset]:
        sums[file.name] = _fetch_one(file, folder / file.name, sums.get(file.name), mirror, progress)
        _write_sums(folder / SUMS, sums)
    paths = {file.role: folder / file.name for file in PRESETS[preset]}
    genes = folder / f"genes_{preset}.csv"
    write_gene_table(genes, places=paths["mRNA features"], splits=paths["splits"], cage=paths["CAGE"])
    return build_command(paths, genes, folder / f"{preset}.zarr")


def build_command(paths: dict[str, Path], genes: Path, store: Path) -> str:
    """`seq2exp data build` with the fetched files; paths: role -> file."""
    words: list[object] = ["seq2exp", "data", "build", "--fasta", paths["fasta"]]
    words += [word for name in ("H3K27ac", "DNase") for word in ("--track", f"{name}={paths[name]}")]
    words += ["--contacts", paths["contacts"], "--contact-value", "VC"]
    words += ["--genes", genes, "--target", "CAGE", "--log-target", "--split", "split"]
    words += ["--mrna", paths["mRNA features"], "--promoter-activity", "H3K27ac,DNase", "--out", store]
    return shlex.join(map(str, words))


def _fetch_one(file: PublicFile, path: Path, recorded: str | None, mirror: str | None, progress: bool) -> str:
    """Downloads a file, or checks the one that is there. Returns its sha256."""
    if path.exists() and recorded:
        wrong, sha256 = check(Remote(file.url, sha256=recorded), path)
    elif path.exists():
        wrong, sha256 = check(_resolve(file, None, mirror), path)
    else:
        remote = _resolve(file, recorded, mirror)
        log.info("%s: from %s", path.name, remote.url)
        with _bar(path.name, progress) as report:
            return download(remote, path, report=report)
    if wrong:
        raise UserError(f"{path}: is there, but {wrong}; remove it and run the same command again.")
    log.info("%s: already there, checked.", path.name)
    return sha256


def _resolve(file: PublicFile, recorded: str | None, mirror: str | None) -> Remote:
    """Where the file is, its size and checksum; without a published checksum that of an earlier download."""
    if file.kind == "direct":
        return Remote(_address(file.url, mirror), md5=file.md5, sha256=None if file.md5 else recorded)
    page = _address(f"{file.url}?format=json", mirror)
    answer = get(page)
    try:
        found: dict[str, Any] = json.loads(answer)
        # 4DN wants a login for its own address, and names the open one beside it
        target = urljoin(file.url, str(found.get("open_data_url") or found["href"]))
        return Remote(_address(target, mirror), size=int(found["file_size"]), md5=str(found["md5sum"]))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{page}: does not describe a file (href, file_size, md5sum); try again later.") from error


def _address(url: str, mirror: str | None) -> str:
    if not mirror:
        return url
    parts = urlsplit(url)
    return f"{mirror.rstrip('/')}/{parts.netloc}{parts.path}{f'?{parts.query}' if parts.query else ''}"


def _read_sums(path: Path) -> dict[str, str]:
    """File name -> sha256, from a file as sha256sum writes it."""
    if not path.exists():
        return {}
    try:
        pairs = [line.split(maxsplit=1) for line in path.read_text().splitlines() if line.strip()]
        return {name: digest for digest, name in pairs}
    except ValueError as error:
        raise UserError(f"{path}: is no list of checksums; remove it and run the same command again.") from error


def _write_sums(path: Path, sums: dict[str, str]) -> None:
    new = path.with_suffix(".new")
    new.write_text("".join(f"{digest}  {name}\n" for name, digest in sums.items()))
    new.replace(path)


@contextmanager
def _bar(name: str, show: bool) -> Iterator[Callable[[int, int | None], None]]:
    columns = (TextColumn("{task.description:24}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), disable=not show) as bar:
        task = bar.add_task(name, total=None)
        yield lambda there, size: bar.update(task, completed=there, total=size)
