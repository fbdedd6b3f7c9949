"""A checkpoint is one safetensors file: weights, AdamW state, and the run's state as JSON in its header."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from seq2exp.errors import UserError
from seq2exp.files import atomic
from seq2exp.inference.windows import Model

from .parallel import placed, whole


def save_checkpoint(path: Path, model: nn.Module, optimizer: Optimizer, state: dict[str, Any], write: bool) -> None:
    """Write atomically: a reader finds the old file or the new one, never a part of it.

    Where the model is sharded, all ranks take part and one of them writes the whole.
    """
    tensors = {f"model.{name}": tensor for name, tensor in own_weights(model).items()}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer.{key}.{name}"] = value
    tensors = {name: whole(tensor.detach()).contiguous() for name, tensor in tensors.items()}
    if not write:
        return
    with atomic(path) as partial:
        try:
            save_file(tensors, partial, {"state": json.dumps(state)})
        except SafetensorError as error:
            raise UserError(f"{path}: the checkpoint cannot be written: {error}") from None
        with partial.open("rb") as file:
            os.fsync(file.fileno())


def load_checkpoint(path: Path, model: nn.Module, optimizer: Optimizer) -> dict[str, Any]:
    """Fill model and optimizer in place and return the run's state.

    Raises:
        UserError: the file is damaged, or holds a model of another shape.
    """
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            state: dict[str, Any] = json.loads(file.metadata()["state"])
            tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, TypeError, KeyError, ValueError) as error:
        raise UserError(f"{path}: not a checkpoint of this program: {error}") from None
    weights = {name.removeprefix("model."): tensor for name, tensor in tensors.items() if name.startswith("model.")}
    check_weights(path, model, weights)
    load_weights(model, weights)
    for name, parameter in model.named_parameters():
        kept = {key: tensors.get(f"optimizer.{key}.{name}") for key in ("step", "exp_avg", "exp_avg_sq")}
        if kept["step"] is not None:
            moved = {k: v if k == "step" else placed(v, parameter) for k, v in kept.items() if v is not None}
            optimizer.state[parameter] = moved
    return state


def load_weights(model: nn.Module, weights: dict[str, Tensor]) -> None:
    """Fill a model, sharded or not, from whole tensors."""
    own = model.state_dict()
    model.load_state_dict({name: placed(tensor, own[name]) for name, tensor in weights.items()}, strict=False)


def check_weights(path: Path, model: nn.Module, weights: dict[str, Tensor]) -> None:
    """Raise UserError, naming the first tensor, unless ``weights`` has the names and shapes of ``model``."""
    expected = own_weights(model)
    for name in sorted(expected.keys() | weights.keys()):
        here, there = weights.get(name), expected.get(name)
        if here is None or there is None:
            problem = "missing" if here is None else "not used"
            raise UserError(f"{path}: a checkpoint of another model: {name} is {problem}")
        if here.shape != there.shape:
            raise UserError(
                f"{path}: a checkpoint of another shape: {name} is {tuple(here.shape)}, "
                f"the model has {tuple(there.shape)}"
            )


def save_model(folder: Path, model: Model, inputs: dict[str, Any]) -> None:
    """``model.save_pretrained`` and the names of its inputs (inputs.json), each file replaced atomically."""
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(partial)
    (partial / "inputs.json").write_text(json.dumps(inputs, indent=1) + "\n")
    if not folder.exists():
        partial.rename(folder)
        return
    for file in sorted(partial.iterdir()):
        file.replace(folder / file.name)
    partial.rmdir()


def own_weights(model: nn.Module) -> dict[str, Tensor]:
    """The state dict, every shared tensor once."""
    first: dict[int, str] = {}
    state = model.state_dict(keep_vars=True)
    return {name: tensor for name, tensor in state.items() if first.setdefault(id(tensor), name) == name}
