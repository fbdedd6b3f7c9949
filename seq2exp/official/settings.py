"""Settings of the published classes: where they are found, which change the forward pass, and as fields of ours."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from seq2exp.errors import UserError
from seq2exp.official.plain import resolved

CLASSES = ("GeneBiMambaMIRNP", "GeneExpBiMamba", "GeneExpMamba", "CaduceusForMaskedLM")
_REGISTERED = {  # the names of the published model registry
    "BiMambaMIRNP": "GeneBiMambaMIRNP", "caduceus_lm": "CaduceusForMaskedLM", "caduceus": "Caduceus",
}  # fmt: skip

# Options that change the forward pass, and the values of them that we have.
_BACKBONE = {
    "bidirectional": (True,), "bidirectional_strategy": ("add", None), "bidirectional_weight_tie": (True,),
    "rcps": (False,), "rms_norm": (True,), "norm_epsilon": (1e-5,),
}  # fmt: skip
_SUPPORTED: dict[str, dict[str, tuple[Any, ...]]] = {
    "GeneBiMambaMIRNP": _BACKBONE | {
        "interact": ("concat",), "base_size": (4,), "use_bio_mask": (False,), "use_peak_mask": (False,),
        "merge_peak_mask": (False,), "only_x_sig": (False,), "decouple_x": (True,), "post_sample": (True,),
        "post_dist": ("beta",), "prior_signal": ("all", "h3k27ac", "DHS", "hic"),
    },
    "GeneExpBiMamba": _BACKBONE | {"interact": ("concat", "no_signal"), "base_size": (4,), "use_bio_mask": (False,)},
    "GeneExpMamba": {"rms_norm": (True,), "norm_epsilon": (1e-5,), "use_bio_mask": (False,)},
    "CaduceusForMaskedLM": {
        "bidirectional": (True,), "bidirectional_strategy": ("add", "ew_multiply", None), "rms_norm": (True,),
        "norm_epsilon": (1e-5,),
    },
}  # fmt: skip
_SSM = {"conv_bias": (True,), "bias": (False,), "layer": ("Mamba1",)}
TRACKS = ("h3k27ac", "DHS", "hic")  # of prior_signal, in the order of the signals


def model_settings(found: Any) -> dict[str, Any]:
    """The settings of the model, with "_class", in those of a run (Hydra's), a model section, or what is flat already.

    What refers to another setting has its value; {} where nothing is found.
    """
    if not isinstance(found, dict):
        return {}
    found = resolved(found)
    if (
        not isinstance(found.get("model"), dict)
        and isinstance(found.get("config"), dict)
        and "model" in found["config"]
    ):
        found = found["config"]
    section = found["model"] if isinstance(found.get("model"), dict) else found
    settings = dict(section["config"]) if isinstance(section.get("config"), dict) else dict(section)
    names = [settings.pop("_class", None), section.get("_name_"), *_listed(settings.pop("architectures", None))]
    kind = next((name for name in names if isinstance(name, str)), None)
    if kind:
        settings["_class"] = _REGISTERED.get(kind, kind)
    dataset = found.get("dataset")
    if isinstance(dataset, dict) and "seq_range" in dataset:
        settings.setdefault("seq_range", dataset["seq_range"])
    return settings


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def class_of(weights: Mapping[str, Tensor], settings: Mapping[str, Any]) -> str:
    """The published class: the setting, else told from the keys."""
    named = settings.get("_class")
    if named is None:
        if any(key.startswith(("mask_output.", "mask_model.")) for key in weights):
            return "GeneBiMambaMIRNP"
        if any(key.startswith("lm_head.") or ".word_embeddings." in key for key in weights):
            return "CaduceusForMaskedLM"
        return "GeneExpMamba" if "model.embedding.weight" in weights else "GeneExpBiMamba"
    if named not in CLASSES:
        raise UserError(f"load_official: class {named!r} is unknown; config['_class'] is one of {', '.join(CLASSES)}")
    return str(named)


def check_supported(kind: str, settings: Mapping[str, Any]) -> None:
    """Raise UserError for an option that changes the forward pass and that we do not have."""
    ssm = settings.get("ssm_cfg")
    ssm = ssm if isinstance(ssm, Mapping) else {}
    for options, values, section in ((_SUPPORTED[kind], settings, ""), (_SSM, ssm, "ssm_cfg.")):
        for name, fine in options.items():
            if name in values and values[name] not in fine:
                raise UserError(
                    f"load_official: {section}{name}={values[name]!r} of the published model is not supported "
                    f"(supported: {', '.join(repr(value) for value in fine if value is not None)})"
                )
    d_model, rank = settings.get("d_model"), ssm.get("dt_rank", "auto")
    if rank != "auto" and isinstance(d_model, int) and rank != math.ceil(d_model / 16):
        raise UserError(
            f"load_official: ssm_cfg.dt_rank={rank!r} of the published model is not supported "
            f"(supported: 'auto', which is {math.ceil(d_model / 16)} here)"
        )


def layers(weights: Mapping[str, Tensor], prefix: str, settings: Mapping[str, Any], name: str) -> int:
    """How many there are; name: the setting that must say the same, where it is given."""
    found = {int(m[1]) for key in weights if (m := re.match(rf"{re.escape(prefix)}layers\.(\d+)\.", key))}
    if not found:
        raise UserError(
            f"load_official: no layers under {prefix!r} in the state dict; is config['_class'] that of this file?"
        )
    count = max(found) + 1
    _same(f"the state dict has {count} layers under {prefix!r}", name, settings.get(name, count), count)
    return count


def check_vocabulary(tokens: int, settings: Mapping[str, Any]) -> None:
    """vocab_size, with its padding, against the embedding."""
    given, multiple = settings.get("vocab_size", tokens), settings.get("pad_vocab_size_multiple", 8)
    padded = given + -given % multiple if isinstance(given, int) and isinstance(multiple, int) and multiple else given
    if tokens not in (given, padded):
        raise UserError(
            f"load_official: the embedding has {tokens} tokens, vocab_size is {given!r}, padded {padded}: the config "
            "is that of another vocabulary"
        )


def _same(what: str, name: str, given: Any, found: Any) -> None:
    if given != found:
        raise UserError(f"load_official: {what}, {name} is {given!r}: the config is that of another model")


def mixer_fields(weights: Mapping[str, Tensor], settings: Mapping[str, Any]) -> dict[str, Any]:
    """d_state, d_conv and expand: as the settings say, else as the first mixer has them."""
    ssm = settings.get("ssm_cfg") or {}
    given = {name: ssm[name] for name in ("d_state", "d_conv", "expand") if name in ssm}
    return _mixer_of(weights) | given


def _mixer_of(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    found = {}
    for key, value in weights.items():
        if key.endswith(".A_log") and value.dim() == 2:
            found["d_state"] = value.shape[1]
        elif key.endswith(".conv1d.weight") and value.dim() == 3:
            found["d_conv"] = value.shape[2]
        elif key.endswith(".out_proj.weight") and value.dim() == 2 and value.shape[1] % value.shape[0] == 0:
            found["expand"] = value.shape[1] // value.shape[0]
    return found


def shared_fields(weights: Mapping[str, Tensor], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Of every class that predicts expression."""
    d_model, inputs = weights["pToExpr.2.weight"].shape[0], weights["pToExpr.0.weight"].shape[1]
    _same(f"the head of the state dict is {d_model} wide", "d_model", settings.get("d_model", d_model), d_model)
    return {
        "length": settings.get("seq_range") or 200_000,
        "center": settings.get("center_len", 2_000),
        "d_model": d_model,
        "gene_features": inputs - d_model,
        "residual_dtype": "fp32" if settings.get("residual_in_fp32") else "bf16",
    } | mixer_fields(weights, settings)


def mask_fields(weights: Mapping[str, Tensor], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Of the Beta mask of GeneBiMambaMIRNP. Defaults: the published soft settings."""
    published = {
        "signal_scale": ("prior_scale_factor", 10.0), "beta_min": ("beta_min", 1.0), "z_scale": ("z_scale", 1.0),
        "prior_mean": ("marginal_mean", 0.1), "prior_scale": ("marginal_scale", 10.0),
        "threshold": ("sample_threshold", 0.5),
    }  # fmt: skip
    fields = {ours: settings.get(name, default) for ours, (name, default) in published.items()}
    if settings.get("use_include_list") and not settings.get("mask_region_hard", True):
        raise UserError(
            "load_official: use_include_list=True with mask_region_hard=False of the published model is not supported "
            "(supported: mask_region_hard=True, where the include list forces bases to 1)"
        )
    tracks = weights["signal_input_layer.weight"].shape[1]
    shares = _priors(weights, settings, "prior_weights", "prior_weight")
    betas = _priors(weights, settings, "signal_betas", "prior_beta")
    chosen = settings.get("prior_signal", "all")
    if chosen != "all":  # one track, which takes the first share and the first beta
        place = TRACKS.index(chosen)
        shares = [shares[0] if i == place else 0.0 for i in range(tracks)]
        betas = [betas[0]] * tracks
    return fields | {
        "tracks": tracks, "signal_weights": tuple(shares[:tracks]), "signal_betas": tuple(betas[:tracks]),
    }  # fmt: skip


def selection_fields(weights: Mapping[str, Tensor], settings: Mapping[str, Any]) -> dict[str, Any]:
    """How the mask selects, as the published model does in evaluation: what it does in training, when no test_ option
    is set."""
    packed = "pos_emb" in weights
    tests = [name for name in ("test_top", "test_soft", "test_hard") if settings.get(name)]
    if len(tests) > 1:
        raise UserError(
            f"load_official: {' and '.join(tests)} of the published model are both True; at most one may be"
        )
    hard = tests == ["test_hard"] or (not tests and bool(settings.get("post_hard_dist", False)))
    fields: dict[str, Any] = {"task_gradient": False}
    if tests == ["test_top"]:
        hard = not settings.get("test_top_soft", False)
        fields["top_fraction"] = settings.get("test_top_percent", settings.get("marginal_mean", 0.1))
    elif hard:
        fields["smooth"] = settings.get("pool_mask") or 1
    if packed and not hard:
        raise UserError(
            "load_official: pos_enc=True with a soft mask of the published model is not supported "
            "(supported: test_hard=True, or test_top=True with test_top_soft=False)"
        )
    return fields | {"hard": hard, "packed": packed}


def check_retrained(settings: Mapping[str, Any]) -> None:
    """Raise UserError for options that a model with a frozen mask model has differently, or whose largest mask values
    would be equal ones, of which the published code takes any."""
    for name, fine in {
        "test_soft": True,
        "test_top": False,
        "test_hard": False,
        "pos_enc": False,
        "enc_prd_ps": False,
    }.items():
        if settings.get(name, fine) != fine:
            raise UserError(
                f"load_official: {name}={settings[name]!r} with use_mask_model of the published model is not supported "
                f"(supported: {fine!r})"
            )


def _priors(weights: Mapping[str, Tensor], settings: Mapping[str, Any], key: str, name: str) -> list[float]:
    """Per-track numbers from the state dict (the weights are kept there as logarithms), else from the settings."""
    if key in weights:
        stored = weights[key].double()
        return (torch.softmax(stored, 0) if key == "prior_weights" else stored).tolist()
    if name not in settings:
        raise UserError(f"load_official: {key} is neither in the state dict nor, as {name}, in the config")
    try:
        values = [float(x) for x in str(settings[name]).split(",")]
    except ValueError:
        raise UserError(f"load_official: {name}={settings[name]!r} is not a list of numbers like '2,2,1'") from None
    return [x / sum(values) for x in values] if key == "prior_weights" else values
