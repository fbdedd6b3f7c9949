"""What evaluate, predict and discover have in common: their arguments, and opening a model with its store."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from torch import nn

    from seq2exp.data_tools import GeneWindows

ModelPath = Annotated[Path, typer.Argument(metavar="MODEL", help="run folder of `seq2exp train`, or a saved model")]
StorePath = Annotated[Path | None, typer.Option("--store", help="store to read; default: that of the run")]
Split = Annotated[str | None, typer.Option(help="only the genes of this split (train, valid, test); default: all")]
BatchSize = Annotated[int, typer.Option(min=1, help="windows at a time")]
Workers = Annotated[int, typer.Option(min=0, help="reader processes")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda")]
Precision = Annotated[str | None, typer.Option(help="fp32 or bf16; default: that of the run, fp32 for a saved model")]


def open_trained(
    path: Path, store_path: Path | None, split: str | None, device: str, precision: str | None
) -> tuple[nn.Module, GeneWindows, str]:
    """The model, the windows it is used on, and the precision. Raises UserError when they do not fit."""
    from seq2exp.data_tools import GeneWindows, open_store
    from seq2exp.errors import UserError
    from seq2exp.inference.windows import check_inputs, load_model

    model, inputs, run = load_model(path, device)
    if store_path is None:
        if not run:
            raise UserError(f"{path}: a saved model does not say which store to use; give --store")
        store_path = Path(run["data"]["store"])
    precision = precision or str(run.get("precision", "fp32"))
    if precision not in ("fp32", "bf16"):
        raise UserError(f"precision {precision!r} is unknown: one of fp32, bf16")
    windows = GeneWindows(open_store(store_path), model.config.length, split, require_target=False)
    check_inputs(model, inputs, windows)
    return model, windows, precision


def echo(message: Any = "") -> None:
    """Results go to stdout."""
    typer.echo(message)
