"""``seq2exp data``: simulate a genome, build a store, import or fetch public data, say what a store holds."""

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.logging import RichHandler
from rich.table import Table

from seq2exp.data_tools import BuildConfig, SimulationParameters, Store, open_store, simulate
from seq2exp.data_tools.build import build
from seq2exp.data_tools.fetch import MIRROR, fetch
from seq2exp.data_tools.official import import_official
from seq2exp.data_tools.peaks import call_peaks
from seq2exp.data_tools.public_genes import FOLD
from seq2exp.data_tools.repair import repair_store
from seq2exp.errors import UserError

app = typer.Typer(help="Genomes, public data and stores.", add_completion=False)
_DEFAULT = SimulationParameters(seed=0)


@app.command("simulate")
def simulate_command(
    out: Annotated[Path, typer.Argument(help="Folder to write.")],
    seed: Annotated[int, typer.Option(help="The same seed gives the same files.")] = 0,
    genes: Annotated[int, typer.Option(help="Genes in all.")] = _DEFAULT.genes,
    valid_fraction: Annotated[float, typer.Option(help="Share of the genes on the validation chromosome.")] = (
        _DEFAULT.valid_fraction
    ),
    test_fraction: Annotated[float, typer.Option(help="Share of the genes on the test chromosome.")] = (
        _DEFAULT.test_fraction
    ),
    chromosomes: Annotated[int, typer.Option(help="The last is test, the one before valid.")] = _DEFAULT.chromosomes,
    length: Annotated[int, typer.Option(help="Window length in bases.")] = _DEFAULT.length,
    center: Annotated[int, typer.Option(help="Bases around the TSS without elements.")] = _DEFAULT.center,
    element_width: Annotated[int, typer.Option(help="Bases of an element.")] = _DEFAULT.element_width,
    causal: Annotated[tuple[int, int], typer.Option(help="Causal elements a gene, from and to.")] = _DEFAULT.causal,
    peak_only: Annotated[tuple[int, int], typer.Option(help="Peaks without motif a gene.")] = _DEFAULT.peak_only,
    motif_only: Annotated[tuple[int, int], typer.Option(help="Motifs without peak a gene.")] = _DEFAULT.motif_only,
    motif: Annotated[str, typer.Option(help="Letters A C G T; several motifs: A,B.")] = _DEFAULT.motif,
    motif_copies: Annotated[int, typer.Option(help="Copies in an element.")] = _DEFAULT.motif_copies,
    contact_decay: Annotated[float, typer.Option(help="contact = exp(-distance / decay).")] = _DEFAULT.contact_decay,
    contact_bin: Annotated[int, typer.Option(help="Bases of a contact bin.")] = _DEFAULT.contact_bin,
    noise: Annotated[float, typer.Option(help="Standard deviation of the target's noise.")] = _DEFAULT.noise,
) -> None:
    """Writes FASTA, bigWigs, contacts, genes and the truth of a simulated genome."""
    fields = {name: value for name, value in locals().items() if name != "out"}
    folder = simulate(out, **fields)
    tracks = " ".join(f"--track {name}={folder / name}.bw" for name in ("H3K27ac", "DNase"))
    typer.echo(f"Simulated {genes:,} genes in {folder}; the causal elements are in {folder / 'truth.bed'}. Next:")
    typer.echo(
        f"seq2exp data build --fasta {folder / 'genome.fa'} {tracks} --contacts {folder / 'contacts.tsv'} "
        f"--genes {folder / 'genes.csv'} --target target --split split --out {folder / 'store.zarr'}"
    )


@app.command("build")
def build_command(
    config: Annotated[Path | None, typer.Argument(help="YAML file with these options as fields.")] = None,
    fasta: Annotated[
        Path | None, typer.Option(help="Genome, plain, gzip or bgzip; or a store, whose sequence is shared.")
    ] = None,
    track: Annotated[list[str] | None, typer.Option(help="NAME=FILE.bw; repeat for each track.")] = None,
    contacts: Annotated[
        str | None, typer.Option(help="Contact table, .hic, .cool, .mcool, RAWobserved, or: powerlaw.")
    ] = None,
    genes: Annotated[Path | None, typer.Option(help="Gene table, CSV or TSV.")] = None,
    gtf: Annotated[Path | None, typer.Option(help="Annotation, with --expression in place of --genes.")] = None,
    expression: Annotated[Path | None, typer.Option(help="Table with gene id, target, split, features.")] = None,
    target: Annotated[str | None, typer.Option(help="Column of the gene table to predict.")] = None,
    log_target: Annotated[bool, typer.Option("--log-target", help="Predict log10(1 + target).")] = False,
    split: Annotated[str | None, typer.Option(help="Column of the gene table: train, valid, test.")] = None,
    out: Annotated[Path | None, typer.Option(help="The store to write.")] = None,
    features: Annotated[list[str] | None, typer.Option(help="Numeric columns, comma-separated or repeated.")] = None,
    mrna: Annotated[Path | None, typer.Option(help="Table of gene id and the eight mRNA features.")] = None,
    promoter_activity: Annotated[
        str | None, typer.Option(help="H3K27ac,DNase: two tracks; adds sqrt(product) at TSS +- 500 as a feature.")
    ] = None,
    columns: Annotated[
        list[str] | None, typer.Option(help="ROLE=COLUMN for gene_id, gene_name, chrom, tss, strand; repeat.")
    ] = None,
    contact_bins: Annotated[str | None, typer.Option(help="The two bin columns of a contact table: A,B.")] = None,
    contact_value: Annotated[str | None, typer.Option(help="Its value column, or a map's normalisation.")] = None,
    contact_recipe: Annotated[
        str | None, typer.Option(help="measured (as they are), or abc: coverage test and pseudocount too.")
    ] = None,
    contact_resolution: Annotated[int | None, typer.Option(help="Bases a bin; of .hic and .mcool 5,000.")] = None,
    contact_reach: Annotated[int | None, typer.Option(help="Bins kept on each side of a TSS.")] = None,
    powerlaw_gamma: Annotated[float | None, typer.Option(help="Exponent of the power law.")] = None,
    powerlaw_scale: Annotated[float | None, typer.Option(help="Scale of the power law.")] = None,
    exclude: Annotated[Path | None, typer.Option(help="BED: bases never selected.")] = None,
    include: Annotated[Path | None, typer.Option(help="BED: bases always selected.")] = None,
    peaks: Annotated[Path | None, typer.Option(help="narrowPeak or BED, kept as intervals.")] = None,
    workers: Annotated[int | None, typer.Option(help="Processes, each with a chromosome in memory (1).")] = None,
) -> None:
    """Builds a store from genome, tracks, contacts and genes; the same command again finishes an interrupted build."""
    options = {name: value for name, value in locals().items() if name != "config" and value not in (None, [])}
    if not log_target:
        del options["log_target"]  # a flag that is not given does not overrule the file
    if "track" in options:
        options["track"] = _pairs("--track", options["track"])
    if "columns" in options:
        options["columns"] = _pairs("--columns", options["columns"])
    if "features" in options:
        options["features"] = [name.strip() for text in options["features"] for name in text.split(",")]
    for name in {"contact_bins", "promoter_activity"} & set(options):
        options[name] = tuple(options[name].split(","))
    parsed = BuildConfig.from_yaml(config, **options) if config else BuildConfig.parse(**options)
    with _log() as console:
        store = build(parsed, progress=console.is_terminal)
    _describe(store, Console())


@app.command("import-official")
def import_official_command(
    data_root: Annotated[Path, typer.Argument(help="Folder with hg38/ and promo_enhan_inter/.")],
    cell_type: Annotated[str, typer.Option(help="K562, GM12878 or H1.")],
    out: Annotated[Path, typer.Option(help="The store to write.")],
    target: Annotated[str, typer.Option(help="cage: log10(1 + CAGE); rna: log10 RNA-seq.")] = "cage",
    fold: Annotated[str, typer.Option(help="Column of the split table.")] = FOLD,
    workers: Annotated[int, typer.Option(help="Processes, each with a chromosome in memory.")] = 1,
) -> None:
    """Builds a store from the published dataset's folder; the same command again finishes an interrupted import."""
    with _log() as console:
        store = import_official(
            data_root, cell_type, out, target=target, fold=fold, workers=workers, progress=console.is_terminal
        )
    _describe(store, Console())


@app.command("fetch")
def fetch_command(
    preset: Annotated[str, typer.Option(help="k562 or gm12878.")],
    out: Annotated[Path | None, typer.Option(help="Folder; default: the preset's name.")] = None,
    mirror: Annotated[
        str | None, typer.Option(envvar=MIRROR, help="Base URL to fetch from: MIRROR/<host>/<path>.")
    ] = None,
) -> None:
    """Downloads the public files of a cell line; the same command again goes on where it was interrupted."""
    with _log() as console:
        command = fetch(preset, out, mirror=mirror, progress=console.is_terminal)
    typer.echo("All files are there and checked. Next:")
    typer.echo(command)


@app.command("peaks")
def peaks_command(
    track: Annotated[Path, typer.Argument(help="A bigWig.")],
    out: Annotated[Path, typer.Option(help="The narrowPeak file to write.")],
    cutoff: Annotated[float, typer.Option(help="Least value of a peak, in the units of the track.")],
    min_length: Annotated[int, typer.Option(help="Bases.")] = 200,
    max_gap: Annotated[int, typer.Option(help="Bases between stretches that are one peak.")] = 30,
) -> None:
    """Calls the peaks of a track with MACS3 (bdgpeakcall), a program to be installed apart; for data build --peaks."""
    count = call_peaks(track, out, cutoff=cutoff, min_length=min_length, max_gap=max_gap)
    typer.echo(f"{out}: {count:,} peaks.")


@app.command("info")
def info_command(store: Annotated[Path, typer.Argument(help="A store.")]) -> None:
    """Prints what a store holds."""
    _describe(open_store(store), Console())


@app.command("repair")
def repair_command(store: Annotated[Path, typer.Argument(help="A store.")]) -> None:
    """Reads a whole store, and builds again what is damaged, from the files that the store was built from."""
    with _log() as console:
        damage = repair_store(store, progress=console.is_terminal)
    for name in damage:
        typer.echo(f"{store / name}: rebuilt")
    if not damage:
        typer.echo(f"{store}: not damaged")


@contextmanager
def _log() -> Iterator[Console]:
    """Shows what the data tools report, on stderr."""
    console = Console(stderr=True)
    logger = logging.getLogger("seq2exp.data_tools")
    handler = RichHandler(console=console, show_path=False, show_time=False)
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield console
    finally:
        logger.removeHandler(handler)


def _pairs(option: str, texts: Iterable[str]) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name or not value:
            raise UserError(f"{option} {text}: must be NAME=VALUE.")
        if name in pairs:
            raise UserError(f"{option} {text}: {name} is given twice.")
        pairs[name] = value
    return pairs


def _describe(store: Store, console: Console) -> None:
    info = store.info
    size = sum(file.stat().st_size for file in store.path.rglob("*") if file.is_file())
    table = Table(title=str(store.path), show_header=False, title_justify="left")
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    bases = sum(store.chromosomes.values())
    names = ", ".join(f"{name} {length:,}" for name, length in store.chromosomes.items())
    table.add_row("size", f"{size / 2**20:,.1f} MiB, {size / bases:.2f} bytes a base, format {info['format']}")
    table.add_row("chromosomes", f"{len(store.chromosomes)}, {bases:,} bases: {names}")
    for name in store.tracks:
        dtypes = sorted({store.track_dtype(name, chrom) for chrom in store.chromosomes})
        table.add_row(f"track {name}", f"{', '.join(dtypes)}; {info['sources'][f'track {name}']['path']}")
    table.add_row("contacts", _contact_words(info["contacts"]))
    for role in info["regions"]:
        count, covered = store.region_size(role)
        table.add_row(role, f"{count:,} intervals, {covered:,} bases")
    table.add_row("genes", _gene_words(store))
    target = f"log10(1 + {info['target']})" if info.get("log_target") else info["target"]
    table.add_row("target, split", f"{target}, {info['split'] or 'none'}")
    table.add_row("features", ", ".join(store.feature_names) or "none")
    for note in info["notes"]:
        table.add_row("note", note)
    for role, source in info["sources"].items():
        table.add_row(
            f"source {role}", f"{source['path']} ({source['bytes']:,} bytes, sha256 {source['sha256'][:16]}...)"
        )
    table.add_row("versions", ", ".join(f"{name} {text}" for name, text in info["versions"].items()))
    console.print(table)


def _contact_words(contacts: dict[str, Any] | None) -> str:
    if contacts is None:
        return "none"
    law, recipe = contacts["power_law"], contacts.get("recipe", "measured")  # format 1 knew no other
    return (
        f"{contacts['source']}; normalisation or column: {contacts['value']}; recipe: {recipe}; "
        f"{contacts['resolution']:,} bases a bin, {contacts['reach']} bins each side; {law['filled']:.1%} of them by "
        f"the power law (gamma {law['gamma']:.3g}, scale {law['scale']:.3g}, times {law['factor']:.4g})"
    )


def _gene_words(store: Store) -> str:
    genes = store.genes
    words = [f"{len(genes):,}, {int(genes['target'].isna().sum()):,} without target"]
    for split, part in genes.groupby("split", sort=False):
        words.append(f"{split or '(no split)'} {len(part):,} ({int(part['target'].notna().sum()):,} with target)")
    return "; ".join(words)
