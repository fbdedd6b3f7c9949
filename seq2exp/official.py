"""Published checkpoints: state dicts of GeneBiMambaMIRNP, GeneExpBiMamba and CaduceusForMaskedLM into our models."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from seq2exp.backbone import Caduceus
from seq2exp.baselines import GeneExpBiMamba, GeneExpBiMambaConfig
from seq2exp.config import BackboneFields, Seq2ExpConfig, first_problem
from seq2exp.errors import UserError
from seq2exp.model import Seq2Exp

_DIRECTION = {
    "conv1d.weight": "conv_weight", "conv1d.bias": "conv_bias", "x_proj.weight": "x_proj", "dt_proj.weight": "dt_proj",
    "dt_proj.bias": "dt_bias", "A_log": "A_log", "D": "D",
}  # fmt: skip
_HEADS = {
    "seq_input_layer.": "sequence_embedding.", "signal_input_layer.": "signal_embedding.",
    "input_layer.": "input_layer.", "mask_output.": "mask_head.", "pToExpr.": "head.layers.", "lm_head.": "lm_head.",
}  # fmt: skip
_BACKBONES = {
    "encoder.backbone.": "predictor.", "generator.backbone.": "generator.", "caduceus.backbone.": "backbone.",
}  # fmt: skip
# Options of the published classes that change the forward pass and that we do not have, with the value that is fine.
_UNSUPPORTED = {
    "use_bio_mask": False, "use_peak_mask": False, "use_gumbel": False, "max_pool_size": 0, "pool_mask": 0,
    "merge_mask": 0, "use_mask_model": False, "merge_peak_mask": False, "only_x_sig": False,
    "use_include_list": False, "rcps": False, "bidirectional": True, "rms_norm": True, "prior_signal": "all",
    "post_dist": "beta",
}  # fmt: skip


_Config = TypeVar("_Config", bound=BackboneFields)


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
    path_or_state_dict: a bare state dict under its published keys, or the path of one (.safetensors, or a torch file
        that holds tensors only).
    config: the published settings under their published names, plus "_class": GeneBiMambaMIRNP, GeneExpBiMamba or
        CaduceusForMaskedLM. Without "_class" the keys of the state dict decide.

    Returns
    -------
    `Seq2Exp` or `GeneExpBiMamba` (same forward), or `Caduceus` (tokens -> hidden, logits).

    Raises
    ------
    UserError: no such file, a file with more than tensors (nothing in it is executed), an option that we do not have,
        a setting out of range, a missing, unexpected or misshapen key.
    """
    given = path_or_state_dict
    weights = _StateDict(given if isinstance(given, Mapping) else _read(Path(given)))
    settings = dict(config or {})
    kind = settings.get("_class") or _guess_class(weights)
    for name, fine in _UNSUPPORTED.items():
        if name in settings and settings[name] != fine:
            raise UserError(
                f"load_official: {name}={settings[name]!r} of the published model is not supported (only {fine!r})"
            )
    builders: dict[str, Callable[..., nn.Module]] = {
        "GeneBiMambaMIRNP": _seq2exp,
        "GeneExpBiMamba": _gene_exp,
        "CaduceusForMaskedLM": _caduceus,
    }
    if kind not in builders:
        raise UserError(f"load_official: class {kind!r} is unknown; config['_class'] is one of {', '.join(builders)}")
    model = builders[kind](weights, settings)
    _fill(model, _renamed(weights))
    return model.eval()


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    if path.suffix == ".safetensors":
        try:
            return load_file(str(path))
        except SafetensorError as error:
            raise UserError(f"{path}: not a safetensors file: {error}") from None
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # on a file that is damaged or holds more than tensors torch raises almost anything
        raise UserError(f"{path}: not a bare state dict that torch can read without running code in it") from error
    if not isinstance(found, Mapping) or not all(isinstance(x, Tensor) for x in found.values()):
        raise UserError(f"{path}: not a bare state dict (a mapping from names to tensors)")
    return dict(found)


def _checked(kind: type[_Config], fields: Mapping[str, Any]) -> _Config:
    try:
        return kind(**fields)
    except ValidationError as error:
        raise UserError(f"load_official: the config does not fit: {first_problem(error)}") from None


def _guess_class(weights: Mapping[str, Tensor]) -> str:
    if "mask_output.weight" in weights:
        return "GeneBiMambaMIRNP"
    return "CaduceusForMaskedLM" if "lm_head.weight" in weights else "GeneExpBiMamba"


def _mixer_fields(settings: Mapping[str, Any]) -> dict[str, Any]:
    ssm = settings.get("ssm_cfg") or {}
    return {ours: ssm[ours] for ours in ("d_state", "d_conv", "expand") if ours in ssm}


def _layers(weights: Mapping[str, Tensor], prefix: str) -> int:
    found = {int(m[1]) for key in weights if (m := re.match(rf"{re.escape(prefix)}layers\.(\d+)\.", key))}
    if not found:
        raise UserError(f"load_official: no layers under {prefix!r} in the state dict")
    return max(found) + 1


def _shared_fields(weights: Mapping[str, Tensor], settings: Mapping[str, Any]) -> dict[str, Any]:
    d_model = weights["pToExpr.2.weight"].shape[0]
    fields = {
        "length": settings.get("seq_range", 200_000),
        "center": settings.get("center_len", 2_000),
        "d_model": d_model,
        "gene_features": weights["pToExpr.0.weight"].shape[1] - d_model,
    }
    return fields | _mixer_fields(settings)


def _seq2exp(weights: Mapping[str, Tensor], settings: Mapping[str, Any]) -> Seq2Exp:
    tracks = weights["signal_input_layer.weight"].shape[1]
    hard = bool(settings.get("post_hard_dist", False))
    shared = bool(settings.get("enc_prd_ps", hard))
    published = {
        "signal_scale": ("prior_scale_factor", 10.0), "beta_min": ("beta_min", 1.0), "z_scale": ("z_scale", 1.0),
        "prior_mean": ("marginal_mean", 0.1), "prior_scale": ("marginal_scale", 10.0),
        "threshold": ("sample_threshold", 0.5),
    }  # fmt: skip
    fields = {ours: settings.get(name, default) for ours, (name, default) in published.items()}
    fields |= _shared_fields(weights, settings) | {
        "tracks": tracks,
        "generator_layers": _layers(weights, "generator.backbone."),
        "predictor_layers": _layers(weights, "generator.backbone." if shared else "encoder.backbone."),
        "generator_input": "sequence+signals" if hard else "sequence",
        "share_backbone": shared,
        "position_embedding": "pos_emb" in weights,
        "signal_weights": tuple(_priors(weights, settings, "prior_weights", "prior_weight", tracks)),
        "signal_betas": tuple(_priors(weights, settings, "signal_betas", "prior_beta", tracks)),
    }
    if settings.get("test_top"):
        fields |= {
            "top_fraction": settings.get("test_top_percent", 0.1),
            "hard": not settings.get("test_top_soft", False),
        }
    elif hard:
        fields |= {"hard": True, "packed": True}
    fields |= {"task_gradient": False}
    return Seq2Exp(_checked(Seq2ExpConfig, fields))


def _priors(
    weights: Mapping[str, Tensor], settings: Mapping[str, Any], key: str, name: str, tracks: int
) -> list[float]:
    """Per-track numbers from the state dict (the weights are kept there as logarithms), else from the settings."""
    if key in weights:
        stored = weights[key].double()
        return (torch.softmax(stored, 0) if key == "prior_weights" else stored).tolist()
    if name not in settings:
        raise UserError(f"load_official: {key} is neither in the state dict nor, as {name}, in the config")
    try:
        values = [float(x) for x in str(settings[name]).split(",")][:tracks]
    except ValueError:
        raise UserError(f"load_official: {name}={settings[name]!r} is not a list of numbers like '2,2,1'") from None
    return [x / sum(values) for x in values] if key == "prior_weights" else values


def _gene_exp(weights: Mapping[str, Tensor], settings: Mapping[str, Any]) -> GeneExpBiMamba:
    inputs = weights["input_layer.weight"].shape[1]
    fields = _shared_fields(weights, settings) | {
        "layers": _layers(weights, "caduceus.backbone."),
        "tracks": inputs - 4 if inputs > 4 else settings.get("signal_size", 3),
        "interact": "signal" if inputs > 4 else "no_signal",
    }
    return GeneExpBiMamba(_checked(GeneExpBiMambaConfig, fields))


def _caduceus(weights: Mapping[str, Tensor], settings: Mapping[str, Any]) -> Caduceus:
    vocabulary, d_model = weights["caduceus.backbone.embeddings.word_embeddings.weight"].shape
    return Caduceus(
        vocabulary, d_model, _layers(weights, "caduceus.backbone."), **_mixer_fields(settings),
        tied=settings.get("bidirectional_weight_tie", True), strategy=settings.get("bidirectional_strategy", "add"),
    )  # fmt: skip


def _renamed(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our names. Tied reverse projections and the copies that a shared encoder leaves behind are dropped by `_fill`."""
    return {official_name(key): _reshaped(key, value) for key, value in weights.items()}


def _reshaped(key: str, value: Tensor) -> Tensor:
    return value[0] if key == "pos_emb" and value.dim() == 3 else value


def official_name(key: str) -> str:
    """Our name of a published parameter."""
    if key == "pos_emb":
        return "position_embedding"
    if key == "caduceus.backbone.embeddings.word_embeddings.weight":
        return "embedding.weight"
    for theirs, ours in _HEADS.items():
        if key.startswith(theirs):
            return ours + key.removeprefix(theirs)
    for theirs, ours in _BACKBONES.items():
        if key.startswith(theirs):
            return ours + _layer_name(key.removeprefix(theirs))
    return key


def _layer_name(key: str) -> str:
    key = key.replace("norm_f.", "norm.")
    match = re.fullmatch(r"(layers\.\d+\.mixer)\.mamba_(fwd|rev)\.(.+)", key)
    if match is None:
        return key
    mixer, direction, name = match.groups()
    if name in ("in_proj.weight", "out_proj.weight"):
        return f"{mixer}.{'rev_' if direction == 'rev' else ''}{name.removesuffix('.weight')}"
    return f"{mixer}.{direction}.{_DIRECTION.get(name, name)}"


def _fill(model: nn.Module, weights: dict[str, Tensor]) -> None:
    wanted = dict(model.named_parameters(remove_duplicate=False))
    unused = {"prior_weights", "signal_betas"}  # settings, not parameters, here
    for name in list(weights):
        tied = name.replace(".rev_in_proj", ".in_proj").replace(".rev_out_proj", ".out_proj")
        if name in unused or (name not in wanted and tied in wanted):
            del weights[name]
    missing, unexpected = sorted(wanted.keys() - weights.keys()), sorted(weights.keys() - wanted.keys())
    if missing:
        raise UserError(
            f"load_official: the state dict lacks {missing[0]} (and {len(missing) - 1} more); does the config fit it?"
        )
    if unexpected:
        raise UserError(f"load_official: unexpected {unexpected[0]} (and {len(unexpected) - 1} more) in the state dict")
    with torch.no_grad():
        for name, parameter in wanted.items():
            if parameter.shape != weights[name].shape:
                raise UserError(
                    f"load_official: {name} is {tuple(weights[name].shape)} in the state dict, "
                    f"the config makes it {tuple(parameter.shape)}"
                )
            parameter.copy_(weights[name])
