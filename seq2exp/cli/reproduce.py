"""`seq2exp reproduce`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .common import echo


def reproduce(
    table: Annotated[str, typer.Argument(metavar="TABLE", help="table1, table2, table4 (K562) or table5 (GM12878)")],
    store: Annotated[Path, typer.Option(help="store of the cell type, with peaks for EPInformer and MACS3")],
    out: Annotated[Path, typer.Option(help="folder for runs and table; one for all tables of a cell type")],
    cell_type: Annotated[str | None, typer.Option(help="K562 or GM12878; another has no published values")] = None,
    rows: Annotated[str | None, typer.Option(help="some rows, such as Seq2Exp-soft,Caduceus; also ABC, Ridge")] = None,
    seeds: Annotated[str | None, typer.Option(help="some of the paper's seeds, such as 2,22")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="of every run; default: the paper's")] = None,
    settings: Annotated[
        Path | None, typer.Option(help="YAML file, as of `seq2exp train`, with what is not to be as in the paper")
    ] = None,
    devices: Annotated[
        str | None, typer.Option(help="GPUs, such as 0,1, a run on each at a time, or cpu; default: all GPUs")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="say what would be run and what is lacking")] = False,
) -> None:
    """Train the rows of one of the paper's tables, with its settings and seeds; print it beside the published values.

    Interrupted, the same command goes on: runs that are done are not repeated, one that was interrupted goes on from
    its last checkpoint, one that failed is tried again. Rows, seeds and the table asked for may be others each time
    (tables share runs), the settings may not, except how they are computed: data.accumulate, data.workers,
    model.recompute, compile. table.md and table.csv in OUT are written anew after every run.
    """
    from seq2exp.data_tools import open_store
    from seq2exp.reproduce.job import Job, slots
    from seq2exp.reproduce.plan import chosen, chosen_seeds, read_settings, run_list
    from seq2exp.reproduce.report import as_list, write_table
    from seq2exp.reproduce.rows import TABLES
    from seq2exp.reproduce.store import check_store
    from seq2exp.runlist import progress_bar
    from seq2exp.runlist.plan import compare_plan

    title, cell_type = _asked(table, cell_type)
    of_table, of_seeds = chosen(rows, TABLES[table].rows), chosen_seeds(seeds)
    runs = run_list(store, cell_type, read_settings(settings, steps), of_table)
    compare_plan(out, runs)
    job = Job(out, runs)
    asked = job.chosen(of_table, of_seeds)
    check_store(open_store(store), cell_type, {run.training["model"].get("length", 200_000) for run in asked})
    places = slots(devices)
    to_do = [run for run in asked if run.folder not in job.results]
    echo(f"{title}, {cell_type}: {len(to_do)} of {len(asked)} runs to do, {len(places)} at a time")
    if dry_run:
        echo(as_list(job, asked))
        return

    table_of = (job, title, of_table, cell_type, of_seeds)
    with progress_bar() as bar:
        job.perform(to_do, places, lambda: write_table(*table_of), bar)
    echo(write_table(*table_of))
    if any(run.folder in job.failed for run in asked):
        raise typer.Exit(1)


def _asked(name: str, cell_type: str | None) -> tuple[str, str]:
    """Title and cell type of a table."""
    from seq2exp.errors import UserError
    from seq2exp.reproduce.rows import TABLES

    if name not in TABLES:
        raise UserError(f"table {name!r} is unknown: one of {', '.join(TABLES)}")
    table = TABLES[name]
    if cell_type is None and table.cell_type is None:
        raise UserError(f"{name} is of several cell types: give --cell-type K562 or --cell-type GM12878")
    if table.cell_type is not None and cell_type not in (None, table.cell_type):
        raise UserError(f"{name} is of {table.cell_type}, not of {cell_type}: table4 is K562's, table5 GM12878's")
    return table.title, cell_type or str(table.cell_type)
