"""`seq2exp convert`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from .common import echo


class Layout(StrEnum):
    ours = "ours"
    official = "official"


def convert(
    source: Annotated[
        Path, typer.Argument(metavar="IN", help="a published checkpoint, its folder, or a model of ours")
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="folder to make")],
    config: Annotated[
        Path | None, typer.Option(help="YAML or JSON file with published settings; they go before those in IN")
    ] = None,
    to: Annotated[Layout, typer.Option(help="ours, or official: from a model of ours to the published layout")] = (
        Layout.ours
    ),
) -> None:
    """Published Seq2Exp, Caduceus and Mamba checkpoints to safetensors and config.json, and back.

    IN: a Lightning .ckpt, a state dict, or a folder with config.json and model.safetensors or pytorch_model.bin.
    Nothing in it is executed.
    """
    from seq2exp.errors import UserError
    from seq2exp.official.convert import convert as to_ours
    from seq2exp.official.convert import export
    from seq2exp.official.reading import read_settings

    if to is Layout.official and config is not None:
        raise UserError("--config is for published checkpoints; with --to official the settings are those of the model")
    if to is Layout.official:
        made = export(source, out)
    else:
        made = to_ours(source, out, read_settings(config) if config else None)
    echo(f"{made.kind}, {made.parameters:,} parameters, as {type(made.model).__name__}")
    for name in sorted(made.settings.keys() - {"_class"}):
        echo(f"  {name}: {made.settings[name]}")
    echo(f"written to {out}")
    echo(_next(type(made.model).__name__, to, out))


def _next(kind: str, to: Layout, out: Path) -> str:
    if to is Layout.official:
        return f"next: in published code, load_state_dict of safetensors.torch.load_file('{out}/model.safetensors')"
    if kind == "Caduceus":
        return f"next: seq2exp train with `pretrained: {{path: {out}}}` in the configuration"
    return f"next: seq2exp evaluate {out} --store STORE"
