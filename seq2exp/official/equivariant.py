"""The published equivariant Caduceus (PS): its complements, and what its fused add and norm does to the weights.

A hidden state has two halves: a strand as it is, and the other one reversed along bases and channels. The fused add and
norm of a published layer makes the first half of the second and the other way round, so that a strand is in its own
half every other layer only; in between it meets the weights in the basis of the other half. `exchanged` writes those
layers in the basis of the strand, after which no half changes place: a permutation of weights, and its own inverse.

Counted from the end, where the halves are those that come out, these are the second, fourth, ... layer. With an odd
number of layers the strands also start in each other's half: there the embedding takes the change.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from seq2exp.errors import UserError

EMBEDDING = "caduceus.backbone.embeddings.word_embeddings."
HEAD = "lm_head."
_MAP = "complement_map"
_LAYER = re.compile(r"caduceus\.backbone\.layers\.(\d+)\.(.+)")


def is_equivariant(weights: Mapping[str, Tensor], settings: Mapping[str, Any]) -> bool:
    """As the settings say, else as the keys tell."""
    return bool(settings.get("rcps", f"{EMBEDDING}embedding.weight" in weights))


def is_fused(weights: Mapping[str, Tensor], settings: Mapping[str, Any]) -> bool:
    """As the settings say, else as the keys tell: without it the norms lie in a module more."""
    return bool(settings.get("fused_add_norm", not any(".norm.submodule." in key for key in weights)))


def complements_of(weights: Mapping[str, Tensor], settings: Mapping[str, Any], vocabulary: int) -> list[int]:
    """The complement of every token, from the state dict and the settings, which must not contradict each other."""
    stored = [weights[key].tolist() for key in (f"{EMBEDDING}{_MAP}", f"{HEAD}{_MAP}") if key in weights]
    if given := settings.get(_MAP):
        pairs = {int(token): int(other) for token, other in dict(given).items()}
        stored.append([pairs.get(token, token) for token in range(vocabulary)])  # padding: its own complement
    if not stored:
        raise UserError(
            "load_official: complement_map, the complement of every token, is neither in the state dict nor in the "
            "config; an rcps model needs it"
        )
    if any(other != stored[0] for other in stored[1:]):
        raise UserError(
            "load_official: the complement_map of the config is not that of the state dict: another vocabulary?"
        )
    return [int(token) for token in stored[0]]


def buffers(complements: Sequence[int]) -> dict[str, Tensor]:
    """The complements as the published state dict holds them."""
    return {f"{module}{_MAP}": torch.tensor(complements) for module in (EMBEDDING, HEAD)}


def exchanged(weights: Mapping[str, Tensor], complements: Sequence[int], layers: int) -> dict[str, Tensor]:
    """A model that exchanges its halves as one that does not, or back. Keys without the wrapping modules."""
    found = {}
    for key, value in weights.items():
        match = _LAYER.fullmatch(key)
        if match and (layers - int(match[1])) % 2 == 0:
            found[_other_direction(key)] = _reversed_channels(match[2], value)
        elif key == f"{EMBEDDING}weight" and layers % 2:
            found[key] = value[torch.tensor(complements)].flip(1)
        else:
            found[key] = value
    return found


def _other_direction(key: str) -> str:
    other = {"fwd": "rev", "rev": "fwd"}
    return re.sub(r"\.mamba_(fwd|rev)\.", lambda match: f".mamba_{other[match[1]]}.", key)


def _reversed_channels(name: str, value: Tensor) -> Tensor:
    if name == "norm.weight" or name.endswith("out_proj.weight"):
        return value.flip(0)
    return value.flip(1) if name.endswith("in_proj.weight") else value
