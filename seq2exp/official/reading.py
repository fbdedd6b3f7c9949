"""Published checkpoints as parameters and settings: .ckpt of Lightning, state dicts, folders as of Hugging Face."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from seq2exp.errors import UserError
from seq2exp.official.plain import plain
from seq2exp.official.settings import model_settings
from seq2exp.official.unpickle import Placeholder, StoredTensor, in_words, read_torch_file

_WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # of a folder
# Beside the model, in the state dict of the published training module.
_OF_TRAINING = (
    "encoder.", "decoder.", "task.", "loss.", "loss_val.", "train_torchmetrics.", "val_torchmetrics.",
    "test_torchmetrics.",
)  # fmt: skip
_POWER = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+")
_WIDENED = (torch.float16, torch.bfloat16)


class Checkpoint(NamedTuple):
    """Parameters under their published keys, in float32, and the published settings that came with them."""

    weights: dict[str, Tensor]
    settings: dict[str, Any]


def read_checkpoint(path: Path) -> Checkpoint:
    """A published checkpoint. Nothing in it is executed.

    Raises
    ------
    UserError: nothing there, no checkpoint, a damaged one, parameters that are no floating point numbers.
    """
    if path.is_dir():
        return _read_folder(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    if path.suffix == ".safetensors":
        return Checkpoint(parameters(_read_safetensors(path), str(path)), {})
    weights, settings = _read_torch(path)
    return Checkpoint(parameters(weights, str(path)), settings)


def read_settings(path: Path) -> dict[str, Any]:
    """Published settings from a YAML or JSON file: a model's, those of its section, or of a whole run."""
    try:
        found = yaml.safe_load(path.read_text())  # JSON is YAML
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: neither YAML nor JSON: {in_words(error)}") from None
    if not isinstance(found, dict):
        raise UserError(f"{path}: expected settings such as 'd_model: 128', found {type(found).__name__}")
    return model_settings(_numbers(found))


def _numbers(value: Any) -> Any:
    """1e-5 is text in YAML 1.1, which wants 1.0e-5; the published files mean the number."""
    if isinstance(value, dict):
        return {key: _numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_numbers(item) for item in value]
    return float(value) if isinstance(value, str) and _POWER.fullmatch(value) else value


def parameters(found: Mapping[str, Any], where: str) -> dict[str, Tensor]:
    """The model's own parameters, in float32, without the prefixes that training and torch.compile put before them."""
    named = {key.replace("_orig_mod.", ""): value for key, value in found.items()}
    if named and all(key.startswith("module.") for key in named):
        named = {key.removeprefix("module."): value for key, value in named.items()}
    if not any(key.startswith(("pToExpr.", "caduceus.")) for key in named):
        own = {key.removeprefix("model."): value for key, value in named.items() if key.startswith("model.")}
        if own:
            rest = {k: v for k, v in named.items() if not k.startswith(("model.", *_OF_TRAINING))}
            named = own | rest
    return {key: _widened(value, key, where) for key, value in named.items()}


def _widened(value: Tensor, key: str, where: str) -> Tensor:
    if key.endswith("complement_map"):
        return value
    if value.dtype not in (torch.float32, *_WIDENED):
        raise UserError(
            f"{where}: {key} is {value.dtype}; parameters must be float32 (float16 and bfloat16 are widened): "
            "save the model in float32"
        )
    return value.float()


def _read_folder(folder: Path) -> Checkpoint:
    weights = next((folder / name for name in _WEIGHTS if (folder / name).is_file()), None)
    if weights is None:
        split = any((folder / f"{name}.index.json").is_file() for name in _WEIGHTS)
        problem = "its parameters are in several files, which is not supported" if split else "no checkpoint in it"
        raise UserError(f"{folder}: {problem}; expected {' or '.join(_WEIGHTS)}, with config.json")
    path = folder / "config.json"
    if not path.is_file():
        raise UserError(f"{path}: no such file; a folder needs it beside {weights.name}, a single file does not")
    try:
        config = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path}: not a JSON object: {in_words(error)}") from None
    if isinstance(config, dict) and isinstance(config.get("model"), str):
        raise UserError(f"{folder}: holds a {config['model']} of ours already; load it with from_pretrained")
    found = read_checkpoint(weights)
    return Checkpoint(found.weights, model_settings(config) | found.settings)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(str(path))
    except SafetensorError as error:
        raise UserError(f"{path}: not a safetensors file: {error}") from None


def _read_torch(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    content = read_torch_file(path)
    if isinstance(content, Placeholder):
        raise UserError(
            f"{path}: holds a whole object, {content.origin}, which was not run; save its state_dict() instead"
        )
    settings: dict[str, Any] = {}
    weights = content
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        weights, settings = content["state_dict"], model_settings(plain(content.get("hyper_parameters")))
    if not isinstance(weights, dict) or not weights:
        raise UserError(f"{path}: no checkpoint: neither a state_dict entry nor a state dict")
    for key, value in weights.items():
        if not isinstance(key, str) or not isinstance(value, StoredTensor):
            what = value.origin if isinstance(value, Placeholder) else type(value).__name__
            raise UserError(
                f"{path}: no state dict: {plain(key)} is a {what}, not a tensor; nothing in the file was run"
            )
    return {key: _read_tensor(path, key, value) for key, value in weights.items()}, settings


def _read_tensor(path: Path, key: str, stored: StoredTensor) -> Tensor:
    try:
        return stored.read()
    except Exception as error:  # bounds, sizes, checksums, a part that is not there
        raise UserError(f"{path}: {key} cannot be read, the file is damaged or cut off: {in_words(error)}") from error
