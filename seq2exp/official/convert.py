"""Published checkpoints to folders of ours, and back."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from torch import nn

from seq2exp.backbone import Caduceus
from seq2exp.errors import UserError
from seq2exp.files import write_json
from seq2exp.official.exporting import KINDS, to_official
from seq2exp.official.loading import Official, load_file
from seq2exp.pretrained import CONFIG, WEIGHTS

RECORD = "official.json"  # beside a converted model: what its configuration does not keep of the published one


class Converted(NamedTuple):
    """kind: the published class. settings: the published ones."""

    model: nn.Module
    kind: str
    settings: dict[str, Any]

    @property
    def parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.model.parameters())


def convert(source: str | Path, out: str | Path, config: Mapping[str, Any] | None = None) -> Converted:
    """A published checkpoint as a folder that `from_pretrained` of the matching class reads: out, made whole or not at
    all. source and config: as of `load_official`.

    Raises
    ------
    UserError: what `load_official` raises, and an `out` that holds something already.
    """
    found = load_file(Path(source), config)
    with _new_folder(Path(out)) as folder:
        found.model.save_pretrained(folder)  # type: ignore[operator]
        constants = {key: [str(x) for x in value.tolist()] for key, value in found.constants.items()}  # -inf too
        write_json(folder / RECORD, {"class": found.kind, "settings": found.settings, "constants": constants})
    return Converted(found.model, found.kind, found.settings)


def export(source: str | Path, out: str | Path) -> Converted:
    """A folder of ours, or a run folder, as config.json and model.safetensors of the published class.

    Raises
    ------
    UserError: no model there, one that the published classes do not have, and an `out` that holds something already.
    """
    folder = _model_folder(Path(source))
    model, record = _read_ours(folder)
    weights, settings = to_official(model, record)
    kind = settings.pop("_class")
    with _new_folder(Path(out)) as made:
        save_file(weights, made / WEIGHTS, {"format": "pt"})
        write_json(made / CONFIG, {"architectures": [kind], "model_type": "caduceus"} | settings)
    return Converted(model, kind, settings)


def _model_folder(path: Path) -> Path:
    folder = path / "best" if (path / "best").is_dir() else path
    if not (folder / CONFIG).is_file():
        raise UserError(f"{path}: neither a run folder nor a saved model: {folder / CONFIG} does not exist")
    return folder


def _read_ours(folder: Path) -> tuple[nn.Module, Official | None]:
    kinds = {kind.__name__: kind for kind in KINDS}
    try:
        named = json.loads((folder / CONFIG).read_text()).get("model", "Seq2Exp")
        record = json.loads((folder / RECORD).read_text()) if (folder / RECORD).is_file() else None
    except (ValueError, AttributeError) as error:
        raise UserError(f"{folder}: cannot be read as a saved model: {' '.join(str(error).split())}") from None
    if named not in kinds:
        raise UserError(
            f"{folder / CONFIG}: a {named} has no published counterpart; those that have one are {', '.join(kinds)}"
        )
    model = kinds[named].from_pretrained(folder)  # type: ignore[attr-defined]
    if record is None:
        return model, None
    constants = {key: torch.tensor([float(x) for x in values]) for key, values in record["constants"].items()}
    settings = record["settings"]
    if isinstance(model, Caduceus) and settings.get("complement_map"):
        settings["complement_map"] = {int(token): other for token, other in settings["complement_map"].items()}
    return model, Official(model, record["class"], settings, constants)


@contextmanager
def _new_folder(out: Path) -> Iterator[Path]:
    """A folder to write into that becomes `out` when the block ends without an error."""
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(f"{out}: exists already; choose another folder")
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        partial.replace(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
