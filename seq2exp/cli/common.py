"""What evaluate, predict and discover have in common: their arguments, and opening a model with its store."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from seq2exp.data_tools import GeneWindows
    from seq2exp.inference.windows import Model

ModelPath = Annotated[Path, typer.Argument(metavar="MODEL", help="run folder of `seq2exp train`, or a saved model")]
StorePath = Annotated[Path | None, typer.Option("--store", help="store to read; default: that of the run")]
Split = Annotated[str | None, typer.Option(help="only the genes of this split (train, valid, test); default: all")]
BatchSize = Annotated[
    int | None, typer.Option(min=1, help="windows at a time; default: that of the run, 1 for a saved model")
]
Workers = Annotated[int, typer.Option(min=0, help="reader processes")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda")]
Precision = Annotated[str | None, typer.Option(help="fp32 or bf16; default: that of the run, fp32 for a saved model")]
RcAverage = Annotated[
    bool, typer.Option("--rc-average", help="mean over each window and its reverse complement; twice the work")
]


def open_trained(
    path: Path,
    store_path: Path | None,
    split: str | None,
    device: str,
    *,
    batch_size: int | None,
    workers: int,
    precision: str | None,
) -> tuple[Model, GeneWindows, dict[str, Any]]:
    """The model, the windows it is used on, and how they are run. Raises UserError when they do not fit."""
    from seq2exp.data_tools import GeneWindows, open_store
    from seq2exp.errors import UserError
    from seq2exp.inference.windows import check_inputs, load_model

    model, inputs, run = load_model(path, device)
    data = run.get("data", {})
    if store_path is None:
        if "store" not in data:
            raise UserError(f"{path}: a saved model does not say which store to use; give --store")
        store_path = Path(data["store"])
    precision = precision or str(run.get("precision", "fp32"))
    if precision not in ("fp32", "bf16"):
        raise UserError(f"precision {precision!r} is unknown: one of fp32, bf16")
    windows = GeneWindows(
        open_store(store_path), model.config.length, split, require_target=False, peaks=model.reads_peaks
    )
    check_inputs(model, inputs, windows)
    how = {"batch_size": batch_size or int(data.get("batch_size", 1)), "workers": workers, "precision": precision}
    return model, windows, how


def echo(message: Any = "", err: bool = False) -> None:
    """Results go to stdout; of several ranks (torchrun) the first speaks for all."""
    if os.environ.get("RANK", "0") == "0":
        typer.echo(message, err=err)
