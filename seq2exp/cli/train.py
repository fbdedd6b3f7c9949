"""`seq2exp train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .common import Device, echo


def train(
    config: Annotated[Path | None, typer.Argument(help="YAML file with the settings", metavar="[CONFIG.yaml]")] = None,
    out: Annotated[Path | None, typer.Option(help="run folder to make")] = None,
    resume: Annotated[Path | None, typer.Option(help="run folder to continue, with the settings kept in it")] = None,
    device: Device = "auto",
) -> None:
    """Train a model: `seq2exp train CONFIG.yaml --out RUN`, continue with `seq2exp train --resume RUN`.

    On several GPUs: `torchrun --nproc-per-node GPUS -m seq2exp train CONFIG.yaml --out RUN`.

    model.name in CONFIG.yaml chooses what is trained: seq2exp (the default), a baseline such as hyenadna, or retrain.
    Strands, in CONFIG.yaml: model.rc_equivariant: true makes a model that treats both alike;
    data.rc_augmentation: 0.5 reverse-complements half of the windows instead.
    """
    from seq2exp.errors import UserError
    from seq2exp.training import train as run_training

    if resume is not None and config is None and out is None:
        result = run_training(None, resume, resume=True, device=device)
    elif resume is None and config is not None and out is not None:
        result = run_training(config, out, device=device)
    else:
        raise UserError("give a configuration and --out, or --resume alone")
    echo(
        f"{result.run}: {result.steps} steps, best validation MSE {result.best_mse:.4f} at step {result.best_step}, "
        f"{result.seconds_per_step:.2f} s/step"
    )
