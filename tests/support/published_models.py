"""Small models of ours, and what the published classes would save of them."""

from __future__ import annotations

import os
import sys
from collections import OrderedDict
from functools import partial
from pathlib import Path
from types import ModuleType

import torch

from seq2exp import Seq2Exp, Seq2ExpConfig
from seq2exp.baselines import GeneExpBiMamba, GeneExpBiMambaConfig, GeneExpMamba, GeneExpMambaConfig

LENGTH, CENTER, FEATURES, D_MODEL = 32, 4, 2, 8
SETTINGS = {
    "seq_range": LENGTH, "center_len": CENTER, "prior_beta": "1.5,0.2,1.0", "prior_weight": "2,2,1",
    "ssm_cfg": {"d_state": 4}, "_class": "GeneBiMambaMIRNP",
}  # fmt: skip
HARD = SETTINGS | {
    "post_hard_dist": True, "enc_prd_ps": True, "pos_enc": True, "prior_scale_factor": 1.0, "beta_min": 0,
    "marginal_mean": 0.45, "marginal_scale": 0.1,
}  # fmt: skip
BASELINE = SETTINGS | {"_class": "GeneExpBiMamba"}
CADUCEUS = {"_class": "CaduceusForMaskedLM", "ssm_cfg": {"d_state": 4}}

MODULES = {
    "sequence_embedding.": "seq_input_layer.", "signal_embedding.": "signal_input_layer.", "mask_head.": "mask_output.",
    "head.layers.": "pToExpr.", "predictor.": "encoder.backbone.", "generator.": "generator.backbone.",
    "embedding.": "caduceus.backbone.embeddings.word_embeddings.", "backbone.": "caduceus.backbone.",
}  # fmt: skip
WEIGHTS = {
    "conv_weight": "conv1d.weight", "conv_bias": "conv1d.bias", "x_proj": "x_proj.weight", "dt_proj": "dt_proj.weight",
    "dt_bias": "dt_proj.bias",
}  # fmt: skip


def published(model):
    """The state dict of a model of ours under the published names, tied projections twice as published."""
    found = {}
    for name, value in model.state_dict().items():
        value = value.clone()
        if name == "position_embedding":
            found["pos_emb"] = value[None]
            continue
        for ours, theirs in MODULES.items():
            if name.startswith(ours):
                name = theirs + name.removeprefix(ours)
                break
        head, _, last = name.rpartition(".")
        if head.endswith(".mixer"):
            for direction in ("fwd", "rev"):
                found[f"{head}.mamba_{direction}.{last}.weight"] = value.clone()
        elif head.endswith((".mixer.fwd", ".mixer.rev")):
            stem, direction = head[:-3], head[-3:]
            found[f"{stem}mamba_{direction}.{WEIGHTS.get(last, last)}"] = value
        else:
            found[name.replace("backbone.norm.", "backbone.norm_f.")] = value
    return found


def small(preset):
    torch.manual_seed(0)
    fields = dict(length=LENGTH, center=CENTER, gene_features=FEATURES, d_model=D_MODEL, d_state=4)
    if preset == "baseline":
        return GeneExpBiMamba(GeneExpBiMambaConfig(**fields, layers=2, interact="signal")).eval()
    return Seq2Exp(getattr(Seq2ExpConfig, preset)(**fields, generator_layers=2, predictor_layers=2)).eval()


def small_mamba(**fields):
    torch.manual_seed(0)
    own = dict(length=LENGTH, center=CENTER, gene_features=FEATURES, d_model=D_MODEL, d_state=4, layers=3)
    return GeneExpMamba(GeneExpMambaConfig(**own | fields)).eval()


CASES = {
    "soft": SETTINGS,
    "hard": HARD,
    "top_fraction": SETTINGS | {"test_top": True, "test_top_percent": 0.1},
    "baseline": BASELINE,
}


def inputs():
    return torch.randint(0, 5, (2, LENGTH), dtype=torch.uint8), torch.rand(2, LENGTH, 3), torch.rand(2, FEATURES)


class Canary:
    """Unpickling it makes a folder."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def published_mamba(model, gradients=False):
    """The state dict of a GeneExpMamba of ours under the published names, or its gradients."""
    found = {}
    for name, parameter in model.named_parameters():
        value = parameter.grad if gradients else parameter.detach().clone()
        if name.startswith("head."):
            name = name.replace("head.layers.", "pToExpr.")
        elif name == "embedding.weight":
            name = "model.embedding.weight"
        else:
            name = name.replace("backbone.norm.", "backbone.norm_f.").replace("backbone.", "model.")
            head, _, last = name.rpartition(".")
            head = head.removesuffix(".fwd")
            name = (
                f"{head}.{last}.weight" if last.endswith("_proj") and last != "x_proj" and last != "dt_proj" else name
            )
            if last in WEIGHTS:
                name = f"{head}.{WEIGHTS[last]}"
            elif last in ("A_log", "D"):
                name = f"{head}.{last}"
        found[name] = value
    return found


def omegaconf(monkeypatch):
    """A function that wraps plain values as OmegaConf would, pickled under its names; it is not installed here."""
    classes = {}
    monkeypatch.setitem(sys.modules, "omegaconf", ModuleType("omegaconf"))
    for module, names in {"dictconfig": ["DictConfig"], "listconfig": ["ListConfig"], "nodes": ["AnyNode"]}.items():
        made = ModuleType(f"omegaconf.{module}")
        for name in names:
            classes[name] = type(name, (), {"__module__": made.__name__})
            setattr(made, name, classes[name])
        monkeypatch.setitem(sys.modules, made.__name__, made)

    def wrap(value, parent=None):
        kind, field = {dict: ("DictConfig", "_content"), list: ("ListConfig", "_content")}.get(
            type(value), ("AnyNode", "_val")
        )
        node = classes[kind]()
        node.__dict__ |= {"_metadata": {"flags": {}}, "_parent": parent}
        if isinstance(value, dict):
            value = {key: wrap(item, node) for key, item in value.items()}
        elif isinstance(value, list):
            value = [wrap(item, node) for item in value]
        node.__dict__[field] = value
        return node

    return wrap


REGISTERED = {"GeneBiMambaMIRNP": "BiMambaMIRNP"}


def run_settings(settings):
    """The settings of a published run, as Hydra composes them."""
    config = {k: v for k, v in settings.items() if k not in ("_class", "seq_range")}
    kind = settings["_class"]
    return {
        "model": {"_name_": REGISTERED.get(kind, kind), "config": config | {"seq_range": "${dataset.seq_range}"}},
        "dataset": {"seq_range": settings.get("seq_range"), "data_folder": "/data"},
        "train": {"gpu_mem": "${eval:\"1\"}", "seed": 2},
    }  # fmt: skip


def lightning(weights, hyper_parameters, **more):
    """What the published training module leaves in a .ckpt."""
    return {
        "epoch": 3, "global_step": 7, "pytorch-lightning_version": "1.8.6",
        "state_dict": OrderedDict({f"model.{key}": value for key, value in weights.items()}),
        "callbacks": {"ModelCheckpoint": {"dirpath": Path("/data/run"), "best": torch.tensor(0.5)}},
        "optimizer_states": [{"state": {0: {"step": torch.tensor(7.0)}}, "param_groups": [{"lr": 5e-4}]}],
        "lr_schedulers": [{"hook": partial(max, 1)}],
        "hparams_name": "config", "hyper_parameters": hyper_parameters, **more,
    }  # fmt: skip
