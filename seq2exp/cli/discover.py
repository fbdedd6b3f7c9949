"""`seq2exp discover`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .common import BatchSize, Device, ModelPath, Precision, RcAverage, Split, StorePath, Workers, echo, open_trained


def discover(
    model_path: ModelPath,
    store_path: StorePath = None,
    split: Split = None,
    out: Annotated[Path | None, typer.Option(help="folder to write to; default: MODEL/discovery")] = None,
    top_fraction: Annotated[float, typer.Option(help="select this share of each window's bases, the highest")] = 0.10,
    threshold: Annotated[float | None, typer.Option(help="select by this mask value instead")] = None,
    merge_gap: Annotated[int, typer.Option(help="join selected runs closer than this many bases")] = 50,
    min_length: Annotated[int, typer.Option(help="drop regions shorter than this many bases")] = 20,
    gene: Annotated[str | None, typer.Option(help="gene to draw; default: the highest prediction")] = None,
    truth: Annotated[Path | None, typer.Option(help="BED of known elements, drawn below the discovered ones")] = None,
    batch_size: BatchSize = None,
    workers: Workers = 0,
    device: Device = "auto",
    precision: Precision = None,
    rc_average: RcAverage = False,
) -> None:
    """Find regulatory elements: regions.bed, the mask as mask.bw (where windows overlap, the largest value), a picture.

    regions.bed: chromosome, start, end, gene, score (1000 * mean mask), strand (.), mean mask. The centre of a window
    always passes the mask, so no region is reported there.
    """
    from seq2exp.errors import UserError

    model, windows, how = open_trained(
        model_path, store_path, split, device, batch_size=batch_size, workers=workers, precision=precision
    )
    from seq2exp.inference.discover import Selection, write_discovery
    from seq2exp.inference.discover import discover as loci
    from seq2exp.inference.plot import plot_locus, read_elements

    selection = Selection(threshold, top_fraction, merge_gap, min_length)
    known = read_elements(truth) if truth else []
    if gene is not None and gene not in set(windows.genes["gene_id"]):
        raise UserError(f"{windows.store.path}: no gene {gene!r}{f' in split {split}' if split else ''}")
    out = out or model_path / "discovery"
    chromosomes = windows.store.chromosomes
    masks = loci(model, windows, selection, rc_average=rc_average, **how)
    found = write_discovery(out, masks, chromosomes, gene)
    echo(f"{out / 'regions.bed'}: {len(found.regions)} regions of {found.genes} genes")
    echo(f"{out / 'mask.bw'}: the mask per base")
    if found.locus is not None:
        picture = out / f"{found.locus.gene_id}.png"
        plot_locus(picture, found.locus, windows.signal_names, model.config.center, selection, known)
        echo(f"{picture}: the locus of {found.locus.gene_id}")
