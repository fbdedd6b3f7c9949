"""Published checkpoints into our models."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from pydantic import BaseModel, ValidationError
from torch import Tensor, nn

from seq2exp.backbone import Caduceus
from seq2exp.baselines import (
    GeneExpBiMamba,
    GeneExpBiMambaConfig,
    GeneExpMamba,
    GeneExpMambaConfig,
    Retrained,
    RetrainedConfig,
)
from seq2exp.config import Seq2ExpConfig, first_problem
from seq2exp.errors import UserError
from seq2exp.model import Seq2Exp
from seq2exp.official import equivariant
from seq2exp.official import settings as published
from seq2exp.official.names import published_keys, unwrapped
from seq2exp.official.reading import Checkpoint, parameters, read_checkpoint

BACKBONE = "caduceus.backbone."
MASK_MODEL = "mask_model."
CONSTANTS = ("prior_weights", "signal_betas")  # tensors of the state dict that are settings of ours
# Which setting gives a parameter its shape, by the end of our name.
_SHAPED_BY = {
    "position_embedding": "seq_range", "x_proj": "ssm_cfg.d_state", "A_log": "ssm_cfg.d_state",
    "conv_weight": "ssm_cfg.d_conv", "in_proj": "d_model or ssm_cfg.expand", "out_proj": "d_model or ssm_cfg.expand",
    "dt_proj": "ssm_cfg.dt_rank", "embedding.weight": "vocab_size", "lm_head.weight": "vocab_size",
}  # fmt: skip

_Config = TypeVar("_Config", bound=BaseModel)


class Official(NamedTuple):
    """A published model in ours. kind: its class. settings, constants: what our configuration does not keep of it."""

    model: nn.Module
    kind: str
    settings: dict[str, Any]
    constants: dict[str, Tensor]


class _StateDict(dict[str, Tensor]):
    """Says which key is missing."""

    def __missing__(self, key: str) -> Tensor:
        raise UserError(f"load_official: the state dict lacks {key}; is config['_class'] that of this file?")


def load_official(
    path_or_state_dict: str | Path | Mapping[str, Tensor], config: Mapping[str, Any] | None = None
) -> nn.Module:
    """A published model in ours, in evaluation mode.

    Parameters
    ----------
    path_or_state_dict: a Lightning checkpoint (.ckpt), a state dict or its file (.safetensors, or of torch.save), or
        a folder with config.json and model.safetensors or pytorch_model.bin. Nothing in a file is executed.
    config: published settings under their published names, plus "_class" (GeneBiMambaMIRNP, GeneExpBiMamba,
        GeneExpMamba or CaduceusForMaskedLM); they go before those of the checkpoint. Without "_class" in either the
        keys of the state dict decide. Defaults: the published soft settings.

    Returns
    -------
    `Seq2Exp`, `Retrained`, `GeneExpBiMamba` or `GeneExpMamba` (same forward), or `Caduceus` (tokens -> hidden, logits).
    It computes what the published model computes in evaluation, where its test_ options decide.

    Raises
    ------
    UserError: no such file, no checkpoint, a damaged one, an option that we do not have, a setting out of range, a
        missing, unexpected or misshapen key.
    """
    given = path_or_state_dict
    if isinstance(given, Mapping):
        return load(Checkpoint(parameters(given, "the state dict"), {}), config).model
    return load_file(Path(given), config).model


def load_file(path: Path, config: Mapping[str, Any] | None = None) -> Official:
    """`load`, from a file or folder, which its errors name."""
    checkpoint = read_checkpoint(path)
    try:
        return load(checkpoint, config)
    except UserError as error:
        raise UserError(f"{path}: {str(error).removeprefix('load_official: ')}") from None


def load(checkpoint: Checkpoint, config: Mapping[str, Any] | None = None) -> Official:
    """`load_official`, with what the export needs beside the model."""
    settings = checkpoint.settings | dict(config or {})
    kind = published.class_of(checkpoint.weights, settings)
    published.check_supported(kind, settings)
    weights, settings = _as_ours(checkpoint.weights, settings, kind)
    model = _BUILDERS[kind](weights, settings)
    constants = {key: value for key, value in weights.items() if key.rpartition(".")[2] in CONSTANTS}
    fill(model, kind, {key: value for key, value in weights.items() if key not in constants})
    return Official(model.eval(), kind, settings, constants)


def _as_ours(
    weights: Mapping[str, Tensor], settings: dict[str, Any], kind: str
) -> tuple[_StateDict, dict[str, Any]]:  # fmt: skip
    """The parameters alone, under the keys of the plain layout, and the settings, which say what that has changed."""
    if any(key.startswith("pre_model.") for key in weights):  # a baseline that started from a pretrained backbone
        if not settings.get("fused_add_norm", True):
            raise UserError(
                "load_official: fused_add_norm=False with pretrained_model of the published model is not supported "
                "(supported: True): it reads the input of the last layer there, not its output"
            )
        settings = settings | {"pretrained_model": True}
        return _StateDict({k.replace("pre_model.", "caduceus.", 1): v for k, v in weights.items()}), settings
    if kind != "CaduceusForMaskedLM":
        return _StateDict(weights), settings
    own = _StateDict({unwrapped(key): value for key, value in weights.items() if not key.endswith("complement_map")})
    table = own[f"{equivariant.EMBEDDING}weight"]
    own.setdefault(f"{equivariant.HEAD}weight", table)  # tied, as published: files may hold it once
    if not equivariant.is_equivariant(weights, settings):
        return own, settings
    complements = equivariant.complements_of(weights, settings, table.shape[0])
    fused, layers = equivariant.is_fused(weights, settings), published.layers(own, BACKBONE, settings, "n_layer")
    if fused:
        own = _StateDict(equivariant.exchanged(own, complements, layers))
    return own, settings | {
        "rcps": True, "fused_add_norm": fused, "n_layer": layers, "complement_map": dict(enumerate(complements)),
    }  # fmt: skip


def _checked(kind: type[_Config], fields: Mapping[str, Any]) -> _Config:
    try:
        return kind(**fields)
    except ValidationError as error:
        raise UserError(f"load_official: the config does not fit: {first_problem(error)}") from None


def _seq2exp(weights: _StateDict, settings: Mapping[str, Any]) -> Seq2Exp:
    if settings.get("use_mask_model") or any(key.startswith(MASK_MODEL) for key in weights):
        return _retrained(weights, settings)
    shared = bool(settings.get("enc_prd_ps", False))
    fields = published.shared_fields(weights, settings) | published.mask_fields(weights, settings)
    fields |= published.selection_fields(weights, settings) | {
        "generator_layers": published.layers(weights, "generator.backbone.", settings, "gen_n_layer"),
        "predictor_layers": published.layers(
            weights,
            *(
                ("generator.backbone.", settings, "gen_n_layer")
                if shared
                else ("encoder.backbone.", settings, "enc_n_layer")
            ),
        ),
        "generator_input": "sequence+signals" if shared or settings.get("gen_signal") else "sequence",
        "share_backbone": shared,
        "position_embedding": "pos_emb" in weights,
    }
    return Seq2Exp(_checked(Seq2ExpConfig, fields))


def _retrained(weights: _StateDict, settings: Mapping[str, Any]) -> Retrained:
    """GeneBiMambaMIRNP with use_mask_model: a frozen generator whose largest means are the mask."""
    published.check_retrained(settings)
    frozen = _StateDict(
        {key.removeprefix(MASK_MODEL): value for key, value in weights.items() if key.startswith(MASK_MODEL)}
    )
    shared = published.shared_fields(weights, settings)
    depth = published.layers(weights, f"{MASK_MODEL}generator.backbone.", settings, "gen_n_layer")
    fields = shared | published.mask_fields(frozen, settings) | {
        "generator_layers": depth, "predictor_layers": depth, "share_backbone": True,  # nothing but the generator
        "generator_input": "sequence+signals" if settings.get("gen_signal") else "sequence", "task_gradient": False,
    }  # fmt: skip
    model = Retrained(
        _checked(
            RetrainedConfig,
            shared | {
                "tracks": fields["tracks"],
                "predictor_layers": published.layers(weights, "encoder.backbone.", settings, "enc_n_layer"),
                "packed": False, "centre_counts": True, "fraction": settings.get("top_mask_percent", 0.1),
                "frozen": _checked(Seq2ExpConfig, fields),
            },
        )
    )  # fmt: skip
    for parameter in model.frozen.head.parameters():  # which the published one does not have
        nn.init.zeros_(parameter)
    return model


def _whole_centre(fields: dict[str, Any]) -> dict[str, Any]:
    """Without a mask a published centre of 0 is the whole window."""
    return fields | {"center": fields["center"] or fields["length"]}


def _gene_exp(weights: _StateDict, settings: Mapping[str, Any]) -> GeneExpBiMamba:
    inputs = weights["input_layer.weight"].shape[1]
    fields = _whole_centre(published.shared_fields(weights, settings)) | {
        "layers": published.layers(weights, BACKBONE, settings, "n_layer"),
        "tracks": inputs - 4 if inputs > 4 else settings.get("signal_size", 3),
        "interact": "signal" if inputs > 4 else "no_signal",
    }
    return GeneExpBiMamba(_checked(GeneExpBiMambaConfig, fields))


def _gene_exp_mamba(weights: _StateDict, settings: Mapping[str, Any]) -> GeneExpMamba:
    vocabulary = weights["model.embedding.weight"].shape[0]
    if vocabulary not in (12, 16):
        raise UserError(
            f"load_official: model.embedding.weight has {vocabulary} tokens, the published tokenizer has 12, padded to "
            "16: which of them are A, C, G, T and N is not known"
        )
    fields = _whole_centre(published.shared_fields(weights, settings)) | {
        "layers": published.layers(weights, "model.", settings, "n_layer"),
        "vocabulary": vocabulary,
    }
    return GeneExpMamba(_checked(GeneExpMambaConfig, fields))


def _caduceus(weights: _StateDict, settings: Mapping[str, Any]) -> Caduceus:
    vocabulary, d_model = weights[f"{equivariant.EMBEDDING}weight"].shape
    published.check_vocabulary(vocabulary, settings)
    strands: dict[str, Any] = {}
    if settings.get("rcps"):
        strands = {"rc_equivariant": True, "complement_map": settings["complement_map"]}
    try:
        return Caduceus(
            vocabulary, d_model, published.layers(weights, BACKBONE, settings, "n_layer"),
            **published.mixer_fields(weights, settings), tied=settings.get("bidirectional_weight_tie", True),
            strategy=settings.get("bidirectional_strategy") or "add", **strands,
        )  # fmt: skip
    except ValidationError as error:
        raise UserError(f"load_official: the config does not fit: {first_problem(error)}") from None
    except ValueError as error:
        raise UserError(f"load_official: {error}") from None


_BUILDERS: dict[str, Callable[[_StateDict, Mapping[str, Any]], nn.Module]] = {
    "GeneBiMambaMIRNP": _seq2exp,
    "GeneExpBiMamba": _gene_exp,
    "GeneExpMamba": _gene_exp_mamba,
    "CaduceusForMaskedLM": _caduceus,
}


def fill(model: nn.Module, kind: str, weights: Mapping[str, Tensor]) -> None:
    """Copy the parameters, given under their published keys, in place.

    A shared parameter has several keys, of which one is enough.
    """
    wanted = published_keys(model, kind)
    own = dict(model.named_parameters(remove_duplicate=False))
    keys_of: dict[str, list[str]] = {}  # under one of our names
    first: dict[int, str] = {}
    for key, name in wanted.items():
        keys_of.setdefault(first.setdefault(id(own[name]), name), []).append(key)
    given = {name: [key for key in keys if key in weights] for name, keys in keys_of.items()}
    if missing := [keys_of[name][0] for name, keys in given.items() if not keys]:
        raise UserError(f"load_official: the state dict lacks {missing[0]}{_more(missing)}; {_why_missing(missing[0])}")
    if unexpected := sorted(weights.keys() - wanted.keys()):
        raise UserError(
            f"load_official: unexpected {unexpected[0]}{_more(unexpected)} in the state dict; "
            f"{_why_unexpected(unexpected[0])}"
        )
    for name, keys in given.items():
        _copy(own[name], name, weights[keys[0]], keys[0])
        for other in keys[1:]:
            if not torch.equal(weights[other], weights[keys[0]]):
                option = "enc_prd_ps=False" if ".mamba_rev." not in other else "bidirectional_weight_tie=False"
                raise UserError(
                    f"load_official: {other} differs from {keys[0]}, which the settings make one parameter; "
                    f"is the model one with {option}?"
                )


@torch.no_grad()
def _copy(parameter: nn.Parameter, name: str, value: Tensor, key: str) -> None:
    value = value[0] if name == "position_embedding" and value.dim() == 3 else value
    if parameter.shape != value.shape:
        setting = next((setting for end, setting in _SHAPED_BY.items() if name.endswith(end)), None)
        raise UserError(
            f"load_official: {key} is {tuple(value.shape)} in the state dict, the settings make it "
            f"{tuple(parameter.shape)}" + (f"; is {setting} that of this model?" if setting else "")
        )
    parameter.copy_(value)


def _more(keys: list[str]) -> str:
    return f" (and {len(keys) - 1} more)" if len(keys) > 1 else ""


def _why_missing(key: str) -> str:
    if ".layers." in key:
        return "the layers before it are there, so it was left out when the file was written"
    return "is config['_class'] that of this file?"


def _why_unexpected(key: str) -> str:
    if key.endswith(("in_proj.bias", "out_proj.bias")):
        return "a model with ssm_cfg.bias=True, which is not supported"
    if key.endswith(("norm.bias", "norm_f.bias")):
        return "a model with rms_norm=False, which is not supported"
    if key.startswith("score."):
        return "a CaduceusForSequenceClassification, of which only the backbone is supported: leave score. out"
    if key == "pos_emb" or ".layers." in key:
        return "is it a model with other settings, or of another class?"
    return "is config['_class'] that of this file?"
