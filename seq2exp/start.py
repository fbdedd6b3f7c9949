"""Models that start from trained weights: of a run, or of a pretrained Caduceus."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from seq2exp.backbone import Caduceus, CaduceusBackbone
from seq2exp.baselines.mamba import BASES, GeneExpMambaConfig
from seq2exp.errors import UserError
from seq2exp.model import Seq2Exp
from seq2exp.official import load_official
from seq2exp.pretrained import CONFIG

if TYPE_CHECKING:
    from seq2exp.inference.windows import Model

PARTS = ("generator", "predictor")
TOKENIZER = (12, 16)  # tokens of the published tokenizer, and padded
FIRST_BASE = GeneExpMambaConfig.model_fields["first_base"].default


def start_from_pretrained(
    model: Seq2Exp, source: str | Path | Caduceus, *, parts: Sequence[str] = PARTS, freeze: bool = False
) -> Seq2Exp:
    """The model itself, with the layers of a pretrained Caduceus in its backbones, and its embedding of the bases.

    Parameters
    ----------
    source: a `Caduceus`, a folder of `seq2exp convert`, or a published checkpoint as `load_official` takes it.
    parts: "generator", "predictor" or both; a shared backbone is both.
    freeze: the layers taken over get no gradient. The embedding does: the signals are added to it.

    Raises
    ------
    UserError: no Caduceus there, one of other sizes, strands or tokens; an unknown part. The model is then unchanged.
    """
    check_parts(parts)
    caduceus = source if isinstance(source, Caduceus) else read_caduceus(Path(source))
    where = "the pretrained model" if isinstance(source, Caduceus) else str(source)
    _check_fits(model, caduceus, parts, where)
    for part in parts:
        _backbone(model, part).load_state_dict(caduceus.backbone.state_dict())
    bases = caduceus.embedding.weight[FIRST_BASE : FIRST_BASE + BASES].detach()  # A C G T N
    with torch.no_grad():
        model.sequence_embedding.bias.copy_(bases[-1])
        model.sequence_embedding.weight.copy_((bases[:-1] - bases[-1]).t())
    if freeze:
        freeze_parts(model, parts)
    return model


def start_from_run(model: Model, path: Path) -> None:
    """Give a model the weights of a trained one of its kind and sizes: a run folder, or one of `save_pretrained`.

    The window may be another one, but for a learned position embedding.

    Raises
    ------
    UserError: no model there, one of another kind or of other sizes. The model is then unchanged.
    """
    from seq2exp.inference.windows import model_folder

    theirs, ours = type(model).from_pretrained(model_folder(path)).state_dict(), model.state_dict()
    for name in (*ours, *theirs):
        shapes = [tuple(weights[name].shape) if name in weights else "absent" for weights in (theirs, ours)]
        if shapes[0] != shapes[1]:
            raise UserError(f"{path}: its weights do not fit: {name} is {shapes[0]} there, {shapes[1]} here")
    model.load_state_dict(theirs)


def freeze_parts(model: Seq2Exp, parts: Sequence[str]) -> None:
    """No gradient for the layers of these parts."""
    for part in parts:
        _backbone(model, part).requires_grad_(False)


def check_parts(parts: Sequence[str]) -> None:
    if not parts or set(parts) - set(PARTS):
        raise UserError(f"parts {list(parts)!r}: give generator, predictor or both")


def read_caduceus(path: Path) -> Caduceus:
    """From a folder of ours or a published checkpoint."""
    if path.is_dir() and (path / CONFIG).is_file() and _is_ours(path / CONFIG):
        return Caduceus.from_pretrained(path)
    found = load_official(path)
    if not isinstance(found, Caduceus):
        raise UserError(f"{path}: holds a {type(found).__name__}; a pretrained Caduceus is needed")
    return found


def _is_ours(config: Path) -> bool:
    try:
        return "model" in json.loads(config.read_text())
    except (ValueError, TypeError):
        return False  # said where it is read


def _backbone(model: Seq2Exp, part: str) -> CaduceusBackbone:
    return model.generator if part == "generator" else model.predictor


def _check_fits(model: Seq2Exp, caduceus: Caduceus, parts: Sequence[str], where: str) -> None:
    ours, theirs = model.config, caduceus.config
    for name in ("d_model", "d_state", "d_conv", "expand", "rc_equivariant"):
        _same(where, name, getattr(theirs, name), name, getattr(ours, name))
    for part in parts:
        _same(where, "layers", theirs.layers, f"{part}_layers", getattr(ours, f"{part}_layers"))
    if not theirs.tied or theirs.strategy != "add":
        raise UserError(
            f"{where}: tied={theirs.tied}, strategy={theirs.strategy!r}; Seq2Exp has tied=True, strategy='add' only"
        )
    if theirs.vocabulary not in TOKENIZER:
        raise UserError(
            f"{where}: a vocabulary of {theirs.vocabulary} tokens; the published tokenizer has {TOKENIZER[0]}, padded "
            f"{TOKENIZER[1]}: which of them are A, C, G, T and N is not known"
        )


def _same(where: str, name: str, theirs: object, field: str, ours: object) -> None:
    if theirs != ours:
        raise UserError(f"{where}: {name} is {theirs}, {field} of the model is {ours}: make them the same")
