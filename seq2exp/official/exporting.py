"""Our models in the published layout: parameters under the published keys, settings under the published names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from seq2exp.backbone import Caduceus
from seq2exp.baselines import GeneExpBiMamba, GeneExpMamba, Retrained
from seq2exp.config import BackboneFields, CaduceusConfig, Seq2ExpConfig
from seq2exp.errors import UserError
from seq2exp.model import Seq2Exp
from seq2exp.official import equivariant
from seq2exp.official.loading import Official, load
from seq2exp.official.names import published_keys, wrapped
from seq2exp.official.reading import Checkpoint

KINDS: dict[type[nn.Module], str] = {
    Seq2Exp: "GeneBiMambaMIRNP", GeneExpBiMamba: "GeneExpBiMamba", GeneExpMamba: "GeneExpMamba",
    Caduceus: "CaduceusForMaskedLM", Retrained: "GeneBiMambaMIRNP",
}  # fmt: skip
# Fields that only say how it is computed, or how it is trained: no published setting.
_OURS_ALONE = {"recompute", "residual_dtype", "task_gradient", "capacity", "select_bias"}


def to_official(model: nn.Module, record: Official | None = None) -> Checkpoint:
    """The published state dict, every tied parameter under all its keys, and the published settings, with "_class".

    record: what was read when the model came from a published checkpoint, whose settings and constants it gets back.

    Raises
    ------
    UserError: a model, or a setting of it, that the published classes do not have.
    """
    kind = KINDS.get(type(model))
    if kind is None:
        names = ", ".join(known.__name__ for known in KINDS)
        raise UserError(f"export: {type(model).__name__} has no published counterpart; those that have one are {names}")
    settings = dict(record.settings) if record else _settings(model)
    constants = record.constants if record else _constants(model)
    own = dict(model.named_parameters(remove_duplicate=False))
    weights = {key: own[name].detach().clone() for key, name in published_keys(model, kind).items()}
    if "pos_emb" in weights:
        weights["pos_emb"] = weights["pos_emb"][None]
    found = Checkpoint(_in_layout(weights, settings) | constants, settings | {"_class": kind})
    _check_that_it_comes_back(model, found)
    return found


def _in_layout(weights: dict[str, Tensor], settings: Mapping[str, Any]) -> dict[str, Tensor]:
    """As the settings say: with the equivariant class's wrapping modules and exchanged halves, or as `pre_model`."""
    if settings.get("pretrained_model"):
        return {key.replace("caduceus.", "pre_model.", 1): value for key, value in weights.items()}
    if not settings.get("rcps"):
        return weights
    complements, fused = [*settings["complement_map"].values()], settings["fused_add_norm"]
    if fused:
        weights = equivariant.exchanged(weights, complements, settings["n_layer"])
    wrapping = {wrapped(key, fused): value.contiguous() for key, value in weights.items()}
    return wrapping | equivariant.buffers(complements)


def _check_that_it_comes_back(model: nn.Module, exported: Checkpoint) -> None:
    """Whatever of our configuration the published settings cannot say is lost on the way: it is named."""
    back: Any = load(exported).model
    known = back.config.model_dump()
    for name, ours in model.config.model_dump().items():  # type: ignore[operator,union-attr]
        theirs = known.get(name)
        if name not in _OURS_ALONE and not _same(ours, theirs):
            raise UserError(
                f"export: {name}={ours!r} is not a setting of the published {exported.settings['_class']}, "
                f"which has {theirs!r}"
            )


def _same(ours: Any, theirs: Any) -> bool:
    """Shares of the signals are kept as float32 logarithms."""
    if isinstance(ours, tuple) and isinstance(theirs, tuple) and len(ours) == len(theirs):
        return all(abs(a - b) < 1e-6 for a, b in zip(ours, theirs, strict=True))
    return bool(ours == theirs)


def _settings(model: nn.Module) -> dict[str, Any]:
    """Of a model that has not come from a published checkpoint."""
    config: Any = model.config
    if isinstance(model, Retrained):
        raise UserError("export: a Retrained can only go back to the published layout that has come from there")
    settings = {
        "d_model": config.d_model,
        "ssm_cfg": {"d_state": config.d_state, "d_conv": config.d_conv, "expand": config.expand, "dt_rank": "auto",
                    "conv_bias": True, "bias": False},
        "rms_norm": True, "norm_epsilon": 1e-5, "bidirectional": True, "bidirectional_strategy": "add",
        "bidirectional_weight_tie": True, "rcps": False, "fused_add_norm": True, "complement_map": None,
        "pad_vocab_size_multiple": 8,
    }  # fmt: skip
    if isinstance(config, CaduceusConfig):
        return settings | _of_caduceus(config)
    settings |= _of_expression(config)
    return settings | (_of_seq2exp(config) if isinstance(config, Seq2ExpConfig) else _of_baseline(config))


def _of_caduceus(config: CaduceusConfig) -> dict[str, Any]:
    settings = {
        "n_layer": config.layers, "vocab_size": config.vocabulary, "bidirectional_strategy": config.strategy,
        "bidirectional_weight_tie": config.tied, "residual_in_fp32": False,
    }  # fmt: skip
    if config.complement_map is None:
        return settings
    return settings | {
        "rcps": True, "fused_add_norm": False, "complement_map": dict(enumerate(config.complement_map)),
    }  # fmt: skip


def _of_expression(config: BackboneFields) -> dict[str, Any]:
    return {
        "seq_range": config.length, "center_len": config.center, "base_size": 4, "signal_size": config.tracks,
        "rna_feat_dim": config.gene_features, "useRNAFeat": config.gene_features > 0,
        "residual_in_fp32": config.residual_dtype == "fp32", "use_bio_mask": False,
    }  # fmt: skip


def _of_baseline(config: Any) -> dict[str, Any]:
    signals = getattr(config, "interact", "no_signal") == "signal"
    return {
        "n_layer": config.layers, "vocab_size": getattr(config, "vocabulary", 12),
        "interact": "concat" if signals else "no_signal",
    }  # fmt: skip


def _of_seq2exp(config: Seq2ExpConfig) -> dict[str, Any]:
    top = config.top_fraction is not None
    hard = config.hard and not top
    return {
        "n_layer": config.predictor_layers, "gen_n_layer": config.generator_layers,
        "enc_n_layer": config.predictor_layers, "interact": "concat", "prior_signal": "all",
        "gen_signal": config.generator_input == "sequence+signals", "enc_prd_ps": config.share_backbone,
        "pos_enc": config.position_embedding, "vocab_size": 12,
        "prior_weight": ",".join(map(str, config.signal_weights)),
        "prior_beta": ",".join(map(str, config.signal_betas)),
        "prior_scale_factor": config.signal_scale, "beta_min": config.beta_min, "z_scale": config.z_scale,
        "marginal_mean": config.prior_mean, "marginal_scale": config.prior_scale, "decouple_x": True,
        "post_sample": True, "post_dist": "beta", "post_hard_dist": hard, "sample_threshold": config.threshold,
        "only_x_sig": False, "use_peak_mask": False, "merge_peak_mask": False, "use_mask_model": False,
        "use_include_list": False, "mask_region_hard": True, "dist_param_grad": False, "max_pool_size": 0,
        "pool_mask": config.smooth if hard and config.smooth > 1 else 0, "use_gumbel": False,
        "test_top": top, "test_top_percent": config.top_fraction if top else config.prior_mean,
        "test_top_soft": top and not config.hard, "test_soft": not (top or hard), "test_hard": hard,
        "aux_loss_kl": True, "aux_loss_con": True,
    }  # fmt: skip


def _constants(model: nn.Module) -> dict[str, Tensor]:
    if not isinstance(model, Seq2Exp):
        return {}
    shares, betas = (torch.tensor(x) for x in (model.config.signal_weights, model.config.signal_betas))
    return {"prior_weights": shares.log(), "signal_betas": betas}
