"""`seq2exp study`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .common import Device, echo

if TYPE_CHECKING:
    from seq2exp.study import Study


def study(
    out: Annotated[Path, typer.Argument(metavar="OUT_FOLDER", help="for genomes, runs and the report")],
    preset: Annotated[
        str, typer.Option(help="quick (minutes), committed (an hour on 2 cores), long, gpu")
    ] = "committed",
    workers: Annotated[
        int | None, typer.Option(min=1, help="runs at a time, one thread each; default: cores, 4 on a GPU")
    ] = None,
    results: Annotated[Path | None, typer.Option(help="folder for the report; default: OUT_FOLDER")] = None,
    report: Annotated[bool, typer.Option("--report", help="train nothing, write the report of what is done")] = False,
    device: Device = "auto",
) -> None:
    """What makes the mask learn the causal elements: many trainings on simulated genes, whose truth is known.

    Interrupted, the same command goes on; a run that is done is not repeated, and one that failed is tried again. The
    report (simulated.md, simulated.csv, pictures) is written anew after every run.
    """
    from seq2exp.inference.windows import resolve_device
    from seq2exp.runlist import progress_bar
    from seq2exp.study.pictures import write_pictures
    from seq2exp.study.report import write_report
    from seq2exp.study.runner import Study

    results = results or out
    if report:
        current = Study.found(out)
    else:
        on_gpu = resolve_device(device).type == "cuda"
        current = _begin(out, preset)
        workers = workers or (4 if on_gpu else os.cpu_count() or 1)
        echo(_plan(current, workers, on_gpu))
        with progress_bar() as progress:
            current.carry_out(workers, device, lambda: write_report(current, results), progress)
    write_pictures(current, results)
    write_report(current, results)
    echo(f"{len(current.results)} of {len(current.runs)} runs done; the report is {results / 'simulated.md'}")
    for folder, reason in current.failed.items():
        echo(f"failed: {folder}: {reason}", err=True)
    if current.failed:
        raise typer.Exit(1)


def _begin(out: Path, preset: str) -> Study:
    from seq2exp.errors import UserError
    from seq2exp.study.conditions import PRESETS
    from seq2exp.study.runner import Study

    if preset not in PRESETS:
        raise UserError(f"preset {preset!r} is unknown: one of {', '.join(PRESETS)}")
    return Study.begin(out, PRESETS[preset]())


def _plan(study: Study, workers: int, on_gpu: bool) -> str:
    """What is to be done and how long it takes, a line for each kind of run."""
    if on_gpu and not study.results:
        return f"{len(study.runs)} runs to do, {workers} at a time; how long is known when the first are done"
    kinds: dict[tuple[str, str], list[float]] = {}
    for run in study.to_do:
        kinds.setdefault((run.variant, run.condition), []).append(study.seconds(run))
    lines = [
        f"{variant + ', ' + condition:<48} {len(s):2} x {s[0] / 60:5.1f} min"
        for (variant, condition), s in kinds.items()
    ]
    basis = "from the runs that are done" if study.results else "on idle CPU cores; corrected as runs get done"
    total = (
        f"{len(study.to_do)} of {len(study.runs)} runs to do, {workers} at a time: about "
        f"{study.remaining(workers) / 60:.0f} minutes ({basis})"
    )
    return "\n".join([*lines, total])
