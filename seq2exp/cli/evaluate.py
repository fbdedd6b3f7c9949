"""`seq2exp evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .common import BatchSize, Device, ModelPath, Precision, RcAverage, Split, StorePath, Workers, echo, open_trained


def evaluate(
    model_path: ModelPath,
    store_path: StorePath = None,
    split: Split = None,
    out: Annotated[Path | None, typer.Option(help="folder for the CSV and JSON; default: MODEL/evaluation")] = None,
    batch_size: BatchSize = None,
    workers: Workers = 0,
    device: Device = "auto",
    precision: Precision = None,
    rc_average: RcAverage = False,
    truth: Annotated[
        Path | None,
        typer.Option(help="BED of known elements, their kind in column 5: adds how well the mask finds them"),
    ] = None,
) -> None:
    """Compare predictions with measured expression: MSE, MAE, Pearson, Spearman and mask ratio of every split.

    With --truth also the area under the precision-recall curve (AUPRC) of the soft mask for the elements of kind
    "causal", over bases and over elements, that of the best track or product of tracks (rival), and whether the mask
    has learned more than these show: at least 1.3 times the rival's over bases.
    """
    model, windows, how = open_trained(
        model_path, store_path, split, device, batch_size=batch_size, workers=workers, precision=precision
    )
    from seq2exp.files import atomic, write_json
    from seq2exp.inference.evaluate import score_splits
    from seq2exp.inference.windows import predict_genes

    table = score_splits(predict_genes(model, windows, rc_average=rc_average, **how))
    if truth is not None:
        from seq2exp.inference.recovery import recovery_of_splits

        recovery = recovery_of_splits(model, windows, list(table["split"]), truth, rc_average=rc_average, **how)
        table = table.merge(recovery, on="split")
    out = out or model_path / "evaluation"
    with atomic(out / "evaluation.csv") as partial:
        table.to_csv(partial, index=False)
    write_json(out / "evaluation.json", table.set_index("split").to_dict("index"))
    echo(table.set_index("split").T.to_string(float_format=lambda value: f"{value:.4f}"))
    missing = int(table["without_target"].sum())
    echo(f"{missing} genes without a target were left out; written to {out}" if missing else f"written to {out}")
