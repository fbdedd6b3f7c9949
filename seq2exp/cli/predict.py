"""`seq2exp predict`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .common import BatchSize, Device, ModelPath, Precision, RcAverage, Split, StorePath, Workers, echo, open_trained


def predict(
    model_path: ModelPath,
    store_path: StorePath = None,
    split: Split = None,
    out: Annotated[Path | None, typer.Option(help="CSV to write; default: MODEL/predictions.csv")] = None,
    batch_size: BatchSize = None,
    workers: Workers = 0,
    device: Device = "auto",
    precision: Precision = None,
    rc_average: RcAverage = False,
) -> None:
    """Predict the expression of every gene of a store, with or without a target, into one CSV (tss counts from 0)."""
    model, windows, how = open_trained(
        model_path, store_path, split, device, batch_size=batch_size, workers=workers, precision=precision
    )
    from seq2exp.files import atomic
    from seq2exp.inference.windows import predict_genes

    genes = predict_genes(model, windows, rc_average=rc_average, **how)
    out = out or model_path / "predictions.csv"
    with atomic(out) as partial:
        genes.to_csv(partial, index=False)
    echo(f"{out}: {len(genes)} genes")
