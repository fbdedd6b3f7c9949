"""Saving and loading: safetensors and config.json, never pickle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_model, save_model

from seq2exp.config import first_problem
from seq2exp.errors import UserError
from seq2exp.files import atomic, write_json

WEIGHTS, CONFIG = "model.safetensors", "config.json"


class Pretrained:
    """Mix-in of a module that is made from one configuration, `config`.

    has_mask: its output says which bases it reads. reads_peaks: its forward takes peaks, bool (batch, L).
    """

    has_mask: ClassVar[bool] = False
    reads_peaks: ClassVar[bool] = False

    config_class: ClassVar[type[BaseModel]]
    config: Any  # of that class

    @classmethod
    def from_config(cls, config: Any) -> Self:
        """A new model."""
        return cls(config)  # type: ignore[call-arg]

    def save_pretrained(self, folder: str | Path) -> None:
        """Write model.safetensors and config.json into `folder`, made when absent; each file whole or not at all."""
        folder = Path(folder)
        with atomic(folder / WEIGHTS) as partial:
            save_model(self, str(partial))  # type: ignore[arg-type]
        write_json(folder / CONFIG, self.config.model_dump(mode="json") | {"model": type(self).__name__})

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Self:
        """The model that `save_pretrained` wrote, in evaluation mode on the CPU.

        Raises
        ------
        UserError: no model there, a model of another class, a configuration or weights that do not fit.
        """
        folder = Path(folder)
        for name in (CONFIG, WEIGHTS):
            if not (folder / name).is_file():
                raise UserError(f"{folder / name}: no such file; give a folder written by save_pretrained")
        fields = _read_json(folder / CONFIG)
        kind = fields.pop("model", cls.__name__)
        if kind != cls.__name__:
            raise UserError(f"{folder / CONFIG}: holds a {kind}; load it with {kind}.from_pretrained")
        try:
            model = cls.from_config(cls.config_class.model_validate(fields))
        except ValidationError as error:
            raise UserError(f"{folder / CONFIG}: {first_problem(error)}") from None
        try:
            load_model(model, str(folder / WEIGHTS))  # type: ignore[arg-type]
        except (RuntimeError, SafetensorError, UserError) as error:
            why = " ".join(str(error).split())
            raise UserError(f"{folder / WEIGHTS}: does not fit {folder / CONFIG}: {why}") from None
        return model.eval()  # type: ignore[attr-defined,no-any-return]


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except ValueError as error:  # also what is no text
        raise UserError(f"{path}: not a JSON object: {error}") from None
    if not isinstance(found, dict):
        raise UserError(f"{path}: not a JSON object, but a {type(found).__name__}")
    return found
