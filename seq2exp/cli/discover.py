"""`seq2exp discover`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .common import BatchSize, Device, ModelPath, Precision, RcAverage, Split, StorePath, Workers, echo, open_trained

if TYPE_CHECKING:
    from seq2exp.inference.discover import Discovery, Locus, Selection
    from seq2exp.inference.survey import Survey


def discover(
    model_path: ModelPath,
    store_path: StorePath = None,
    split: Split = None,
    out: Annotated[Path | None, typer.Option(help="folder to write to; default: MODEL/discovery")] = None,
    top: Annotated[
        float | None,
        typer.Option(
            "--top", "--top-fraction", help="select this share of each window's bases, the highest; default: 0.10"
        ),
    ] = None,
    threshold: Annotated[
        float | None, typer.Option(help="select by this mask value instead; default for a hard model: its own")
    ] = None,
    merge_distance: Annotated[
        int, typer.Option("--merge-distance", "--merge-gap", help="join selected runs closer than this many bases")
    ] = 50,
    min_width: Annotated[
        int, typer.Option("--min-width", "--min-length", help="drop elements narrower than this many bases")
    ] = 20,
    gene: Annotated[
        list[str] | None, typer.Option(help="gene to draw, by id or name; repeatable; default: the highest prediction")
    ] = None,
    truth: Annotated[Path | None, typer.Option(help="BED of known elements, drawn below the discovered ones")] = None,
    overlap: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=BED", help="compare with these elements (cCREs, CRISPRi screens); repeatable"),
    ] = None,
    shuffles: Annotated[int, typer.Option(min=1, help="of the called elements, to compare overlaps with")] = 1_000,
    seed: Annotated[int, typer.Option(help="of the shuffles")] = 2,
    report: Annotated[
        bool, typer.Option("--report", help="a page for each gene, or each --gene, as reports/GENE.html")
    ] = False,
    batch_size: BatchSize = None,
    workers: Workers = 0,
    device: Device = "auto",
    precision: Precision = None,
    rc_average: RcAverage = False,
) -> None:
    """Find regulatory elements: as BED and CSV, the mask as bigWig, a picture; overlaps and reports on request.

    Elements are runs of bases whose soft mask is over the cut, per gene; genes whose windows overlap may name the same
    place (mask.bw has the largest value there). elements.bed, for genome browsers: chrom, start, end, name (gene and
    rank), score (1000 * mean mask), strand (.). elements.csv, with the same starts from 0: gene_id, mean_mask,
    max_mask, selected (share of its bases over the cut), tss_distance (to its middle; negative upstream), overlaps
    (names of sets). The centre of a window always passes the mask, so no element is called there, nor in N.

    --overlap: overlap.csv and overlap.png with the enrichment over shuffled elements of the same widths in the same
    windows, for the calls of the mask and for calls of about as many bases by the tracks alone. A file with a header
    may name the gene of each element (column gene, gene_id, measuredGeneSymbol ...) and whether it regulates it
    (regulated, significant); then genes are matched, and pairs.csv says which score tells the regulating elements. The
    peaks of the store are compared with too.
    """
    from seq2exp.errors import UserError

    model, windows, how = open_trained(
        model_path, store_path, split, device, batch_size=batch_size, workers=workers, precision=precision
    )
    from seq2exp.inference.discover import Selection
    from seq2exp.inference.discover import discover as loci
    from seq2exp.inference.overlap import read_sets, stored_peaks
    from seq2exp.inference.plot import read_elements
    from seq2exp.inference.survey import survey

    selection = Selection.of_model(model.config, threshold, top, merge_gap=merge_distance, min_length=min_width)
    known = read_elements(truth) if truth else []
    genes = [_gene_id(windows, name, split) for name in gene or []]
    sets = [*read_sets(overlap or [], windows.store.chromosomes, windows.genes), *stored_peaks(windows.store)]
    if len({elements.name for elements in sets}) < len(sets):
        raise UserError("--overlap peaks=...: the store's own peaks have that name; choose another")
    settings = _provenance(model_path, model, windows, split, selection, rc_average)
    then = f"comparing with {len(sets)} sets, {shuffles:,} shuffles" if sets else ""
    if sets:
        settings["Shuffles"] = f"{shuffles:,}, seed {seed}"
    masks = _with_progress(loci(model, windows, selection, rc_average=rc_average, **how), len(windows), then)
    result = survey(
        out or model_path / "discovery", masks, windows, selection, center=model.config.center, genes=genes,
        known=known, sets=sets, shuffles=shuffles, seed=seed, report=report, settings=settings,
    )  # fmt: skip
    for path, what in result.files.items():
        echo(f"{path}: {what}")
    _print_overlap(result)
    _check_called(result.discovery, selection)


def _gene_id(windows: Any, name: str, split: str | None) -> str:
    """The id of a gene that is given by id or name."""
    from seq2exp.errors import UserError

    genes = windows.genes
    for column in ("gene_id", "gene_name"):
        if column in genes and (genes[column] == name).any():
            return str(genes.loc[genes[column] == name, "gene_id"].iloc[0])
    raise UserError(f"{windows.store.path}: no gene {name!r}{f' in split {split}' if split else ''}")


def _provenance(
    path: Path, model: Any, windows: Any, split: str | None, selection: Selection, rc_average: bool
) -> dict[str, str]:  # fmt: skip
    """Where the numbers of a report come from."""
    import yaml

    from seq2exp import __version__

    run = yaml.safe_load((path / "config.yaml").read_text()) if (path / "config.yaml").is_file() else {}
    config = model.config
    hard = getattr(config, "hard", False) and config.top_fraction is None  # baselines have neither
    facts = [f"{'hard' if hard else 'soft'} mask", f"window {config.length:,}", f"centre {config.center:,}"]
    facts += [f"training seed {run['seed']}"] if "seed" in run else []
    return {
        "Model": f"{path.absolute()} ({', '.join(facts)})",
        "Store": f"{windows.store.path} ({len(windows):,} genes{f' of split {split}' if split else ''})",
        "Expression": windows.store.target_name,
        "Signals": ", ".join(windows.signal_names),
        "Calls": f"{selection}" + ("; mean of both strands" if rc_average else ""),
        "Program": f"seq2exp {__version__}",
    }


def _with_progress(loci: Iterable[Locus], total: int, then: str) -> Iterator[Locus]:
    """The loci, with a bar on a terminal; then what follows is said."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    shown: Any = {"console": console, "transient": True, "disable": not console.is_terminal}
    yield from track(loci, "discovering", total=total, **shown)
    if then and console.is_terminal:
        console.print(then)


def _print_overlap(result: Survey) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    from seq2exp.inference.pairs import SCORES
    from seq2exp.inference.report import overlap_rows

    console = Console()
    console.width = max(console.width, 120)
    if len(result.overlap):
        rows = overlap_rows(result.overlap)
        table = Table(*list(rows[0])[:2], box=SIMPLE_HEAD)
        for heading in list(rows[0])[2:]:
            table.add_column(heading, justify="right")
        for row in rows:
            table.add_row(*row.values())
        console.print(table)
    for pairs in result.tested:
        summary = pairs.summary()
        first = summary.iloc[0]
        table = Table(
            f"{pairs.elements.name}: {first['regulated']:,} of {first['pairs']:,} pairs regulate", box=SIMPLE_HEAD
        )
        table.add_column("AUPRC", justify="right")
        for score, area in zip(summary["score"], summary["auprc"], strict=True):
            table.add_row(SCORES[score], f"{area:.3f}")
        table.add_row("a constant", f"{first['prevalence']:.3f}")
        console.print(table)
    for note in result.notes:
        echo(note)


def _check_called(found: Discovery, selection: Selection) -> None:
    """Raise UserError when no element was called."""
    from seq2exp.errors import UserError

    if not found.regions:
        raise UserError(
            f"no element was called ({selection}); the largest mask value outside the centres is {found.highest:.3f}: "
            "choose a lower --threshold, or a smaller --min-width"
        )
