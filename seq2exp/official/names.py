"""Published parameter names and ours."""

from __future__ import annotations

import re
from collections.abc import Iterator

from torch import nn

# Modules, and of a layer the parameters of one direction: theirs -> ours.
_HEADS = {
    "seq_input_layer.": "sequence_embedding.", "signal_input_layer.": "signal_embedding.",
    "input_layer.": "input_layer.", "mask_output.": "mask_head.", "pToExpr.": "head.layers.", "lm_head.": "lm_head.",
    "caduceus.backbone.embeddings.word_embeddings.": "embedding.", "model.embedding.": "embedding.",
}  # fmt: skip
_BACKBONES = {
    "encoder.backbone.": "predictor.", "generator.backbone.": "generator.", "caduceus.backbone.": "backbone.",
    "pre_model.backbone.": "backbone.", "model.": "backbone.",
}  # fmt: skip
_DIRECTION = {
    "conv1d.weight": "conv_weight", "conv1d.bias": "conv_bias", "x_proj.weight": "x_proj", "dt_proj.weight": "dt_proj",
    "dt_proj.bias": "dt_bias", "A_log": "A_log", "D": "D",
}  # fmt: skip
# Where the equivariant Caduceus wraps a module in another.
_WRAPPED = {
    ".mixer.submodule.": ".mixer.", ".norm.submodule.": ".norm.", ".norm_f.submodule.": ".norm_f.",
    ".word_embeddings.embedding.": ".word_embeddings.", "lm_head.lm_head.": "lm_head.",
}  # fmt: skip
_FROZEN = {"mask_model.": "frozen."}  # the frozen model of a retrained one
_NOT_THERE = ("predictor.", "head.", "position_embedding")  # of which the published one has the mask alone


def official_name(key: str) -> str:
    """Our name of a published parameter."""
    for theirs, ours in _FROZEN.items():
        if key.startswith(theirs):
            return ours + official_name(key.removeprefix(theirs))
    key = unwrapped(key)
    if key == "pos_emb":
        return "position_embedding"
    for theirs, ours in _HEADS.items():
        if key.startswith(theirs):
            return ours + key.removeprefix(theirs)
    for theirs, ours in _BACKBONES.items():
        if key.startswith(theirs):
            return ours + _layer_name(key.removeprefix(theirs))
    return key


def unwrapped(key: str) -> str:
    """A key of the equivariant Caduceus as the other one has it."""
    for theirs, plain in _WRAPPED.items():
        key = key.replace(theirs, plain)
    return key


def wrapped(key: str, fused: bool) -> str:
    """A key as the equivariant Caduceus has it; with its fused add and norm the norms are not wrapped."""
    for theirs, plain in _WRAPPED.items():
        if not (fused and "norm" in plain):
            key = key.replace(plain, theirs)
    return key


def _layer_name(key: str) -> str:
    key = key.replace("norm_f.", "norm.")
    match = re.fullmatch(r"(layers\.\d+\.mixer)\.(?:mamba_(fwd|rev)\.)?(.+)", key)
    if match is None:
        return key
    mixer, direction, name = match[1], match[2] or "fwd", match[3]
    if name in ("in_proj.weight", "out_proj.weight"):
        return f"{mixer}.{'rev_' if direction == 'rev' else ''}{name.removesuffix('.weight')}"
    return f"{mixer}.{direction}.{_DIRECTION.get(name, name)}"


def published_keys(model: nn.Module, kind: str) -> dict[str, str]:
    """The keys of the published state dict -> our parameter; a tied one has two keys."""
    names = dict(model.named_parameters(remove_duplicate=False))
    found = {}
    for name in names:
        for key in _keys_of(name, kind):
            found[key] = name
    return found


def _keys_of(name: str, kind: str) -> Iterator[str]:
    for theirs, ours in _FROZEN.items():
        if name.startswith(ours):
            inner = name.removeprefix(ours)
            if not inner.startswith(_NOT_THERE):
                yield from (theirs + key for key in _keys_of(inner, kind))
            return
    if name == "position_embedding":
        yield "pos_emb"
        return
    one_direction = kind == "GeneExpMamba"
    for theirs, ours in _HEADS.items():
        if name.startswith(ours) and theirs.startswith("model.") == (one_direction and ours == "embedding."):
            yield theirs + name.removeprefix(ours)
            return
    for theirs, ours in _BACKBONES.items():
        if name.startswith(ours) and (theirs == "model.") == one_direction:
            yield from (theirs + key for key in _layer_keys(name.removeprefix(ours), one_direction))
            return
    raise AssertionError(f"{name}: no published name")


def _layer_keys(name: str, one_direction: bool) -> Iterator[str]:
    match = re.fullmatch(r"(layers\.\d+\.mixer)\.(.+)", name)
    if match is None:
        yield "norm_f.weight" if name == "norm.weight" else name
        return
    mixer, last = match.groups()
    modules = {"fwd": mixer, "rev": ""} if one_direction else {d: f"{mixer}.mamba_{d}" for d in ("fwd", "rev")}
    direction, _, weight = last.rpartition(".")
    if direction:
        theirs = {ours: theirs for theirs, ours in _DIRECTION.items()}
        yield f"{modules[direction]}.{theirs[weight]}"
    elif last.startswith("rev_"):
        yield f"{modules['rev']}.{last.removeprefix('rev_')}.weight"
    else:
        yield f"{modules['fwd']}.{last}.weight"
        if not one_direction:  # tied; the reverse direction's own one, if there is, comes later and replaces this
            yield f"{modules['rev']}.{last}.weight"
