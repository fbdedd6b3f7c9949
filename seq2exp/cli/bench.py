"""`seq2exp bench`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .common import Device, echo


def bench(
    length: Annotated[
        int | None, typer.Option(min=1, help="bases of a window; default: 200,000 on a GPU, 10,000 on the CPU")
    ] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="windows; default: 8 on a GPU, 1 on the CPU")] = None,
    d_model: Annotated[int, typer.Option(min=1, help="channels")] = 128,
    layers: Annotated[int, typer.Option(min=1, help="of generator and of predictor each")] = 4,
    mode: Annotated[str, typer.Option(help="the paper's mask: soft or hard")] = "soft",
    precision: Annotated[str | None, typer.Option(help="fp32 or bf16; default: bf16 on a GPU, fp32 on the CPU")] = None,
    device: Device = "auto",
    scan: Annotated[
        str,
        typer.Option(help="of the published form: ours, mamba-ssm, or plain torch: reference (base by base), chunked"),
    ] = "ours",
    rounds: Annotated[int, typer.Option(min=1, help="times that both are measured, in turns")] = 3,
    reference_length: Annotated[
        int | None,
        typer.Option(min=100, help="measure the published form at this length and extrapolate in proportion"),
    ] = None,
    learn: Annotated[bool, typer.Option("--learn", help="also train both on simulated genes")] = False,
    seeds: Annotated[int, typer.Option(min=2, max=9, help="with --learn: runs of each form")] = 3,
    steps: Annotated[int, typer.Option(min=1, help="with --learn: training steps of a run")] = 300,
    genes: Annotated[int | None, typer.Option(min=30, help="with --learn: simulated genes")] = None,
    out: Annotated[Path | None, typer.Option(help="folder for bench.json, bench.csv, curves.csv, curves.png")] = None,
) -> None:
    """Our training step beside that of the published form, on the same random windows in one process.

    The published form is written here from its mathematics in plain torch operations. Both are first checked to give
    the same; the table then says how many bases a second they train, and in how much memory. With the defaults it takes
    about two minutes on the CPU. Exit code 1: they do not give the same, or do not learn the same.
    """
    from rich.console import Console

    from seq2exp.benchmark.contest import WrongResult, contest
    from seq2exp.benchmark.learn import learn as train_both
    from seq2exp.benchmark.report import print_result, write_result
    from seq2exp.benchmark.setting import BenchSetting, scan_name

    setting = BenchSetting.of(
        mode=mode, scan=scan_name(scan), device=device, precision=precision, length=length, batch=batch,
        reference_length=reference_length, d_model=d_model, layers=layers, rounds=rounds,
    )  # fmt: skip
    with Console(stderr=True).status("") as status:
        try:
            result = contest(setting, status.update)
        except WrongResult as error:
            echo(error)
            raise typer.Exit(1) from None
        print_result(result, Console())
        learned = train_both(mode, seeds, steps, genes, device, status.update) if learn else None
    if learned:
        echo(learned.sentence())
    if out is not None:
        write_result(result, learned, out)
        echo(f"written to {out}")
    if learned and not learned.same:
        raise typer.Exit(1)
