"""`seq2exp demo`."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .common import Device, echo

if TYPE_CHECKING:
    from seq2exp.demo import DemoReport

MADE = ("simulated", "store.zarr", "store.zarr.partial", "run", "discovery", "predictions.csv", "report.json")


def demo(
    out: Annotated[Path, typer.Option(help="folder to write to")] = Path("seq2exp-demo"),
    seed: Annotated[int, typer.Option(help="of the simulated genome and of the training")] = 2,
    steps: Annotated[int | None, typer.Option(min=1, help="training steps; fewer only try it out")] = None,
    genes: Annotated[int | None, typer.Option(min=30, help="simulated genes; fewer only try it out")] = None,
    force: Annotated[bool, typer.Option("--force", help="replace the results of an earlier demonstration")] = False,
    device: Device = "auto",
) -> None:
    """The whole job on simulated input in a few minutes: simulate, build, train, evaluate, discover."""
    from seq2exp.demo import run_demo
    from seq2exp.errors import UserError

    earlier = [out / name for name in MADE if (out / name).exists()]
    if earlier and not force:
        raise UserError(f"{out}: holds {earlier[0].name} of an earlier demonstration; give --force to replace it")
    for path in earlier:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    _print(run_demo(out, seed=seed, steps=steps, genes=genes, device=device, say=lambda text: echo(f"> {text}")))


def _print(report: DemoReport) -> None:
    base, element = report.prevalence
    echo(f"\nTraining: {report.steps} steps, {report.seconds_per_step:.3f} s/step, seed {report.seed}")
    echo("\nExpression of the test genes       MSE   Pearson")
    for name, values in report.expression.items():
        pearson = "      -" if values["pearson"] != values["pearson"] else f"{values['pearson']:7.3f}"
        echo(f"  {name:<28} {values['mse']:7.4f}   {pearson}")
    echo("\nFinding the causal elements (AUPRC)   bases  elements")
    for name, (over_bases, over_elements) in report.recovery.items():
        echo(f"  {name:<33} {over_bases:7.3f}   {over_elements:7.3f}")
    echo(f"  {'(share of true ones)':<33} {base:7.3f}   {element:7.3f}")
    echo("\nResults")
    for name, path in report.files.items():
        echo(f"  {name}: {path}")
