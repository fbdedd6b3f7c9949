"""Every model that can be trained, by the name that `model: {name: ...}` of a training file gives it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from seq2exp.baselines.caduceus import GeneExpBiMamba, GeneExpBiMambaConfig
from seq2exp.baselines.enformer import Enformer, EnformerConfig
from seq2exp.baselines.epinformer import EPInformer, EPInformerConfig
from seq2exp.baselines.hyenadna import HyenaDNA, HyenaDNAConfig
from seq2exp.baselines.mamba import GeneExpMamba, GeneExpMambaConfig
from seq2exp.baselines.masked import (
    AbcMasked,
    AbcMaskedConfig,
    MaskedConfig,
    PeakMasked,
    Retrained,
    RetrainedConfig,
)
from seq2exp.baselines.ridge import Ridge, RidgeConfig
from seq2exp.config import Seq2ExpConfig, WindowFields
from seq2exp.errors import UserError
from seq2exp.model import Seq2Exp


class Entry(NamedTuple):
    """fields: what the name says about the configuration. training: the paper's settings of a run, section by section,
    where they are not the defaults of `TrainConfig`."""

    config: type[WindowFields]
    model: type[Any]  # a module that is `Pretrained`
    fields: Mapping[str, Any] = {}
    training: Mapping[str, Any] = {}


BATCH_16: Mapping[str, Any] = {"data": {"batch_size": 16}}
ENFORMER: Mapping[str, Any] = {
    "data": {"batch_size": 4},
    "optimizer": {"lr": 7e-6},
    "schedule": {"warmup_steps": 50_000, "start_lr": 0.0, "end_lr": 7e-6},
    "steps": 200_000,
}
EPINFORMER: Mapping[str, Any] = {  # a constant rate for 20 epochs
    "data": {"batch_size": 16},
    "schedule": {"warmup_steps": 0, "start_lr": 5e-4, "end_lr": 5e-4},
    "steps": 20_000,
}
SOLVED: Mapping[str, Any] = {"schedule": {"warmup_steps": 0}, "steps": 1, "precision": "fp32"}

MODELS: dict[str, Entry] = {
    "seq2exp": Entry(Seq2ExpConfig, Seq2Exp),
    "caduceus": Entry(GeneExpBiMambaConfig, GeneExpBiMamba, {"interact": "no_signal"}, BATCH_16),
    "caduceus_signals": Entry(GeneExpBiMambaConfig, GeneExpBiMamba, {"interact": "signal"}, BATCH_16),
    "mamba": Entry(GeneExpMambaConfig, GeneExpMamba, training=BATCH_16),
    "hyenadna": Entry(HyenaDNAConfig, HyenaDNA),
    "enformer": Entry(EnformerConfig, Enformer, training=ENFORMER),
    "epinformer": Entry(EPInformerConfig, EPInformer, training=EPINFORMER),
    "peaks": Entry(MaskedConfig, PeakMasked),
    "abc": Entry(AbcMaskedConfig, AbcMasked),
    "retrain": Entry(RetrainedConfig, Retrained),
    "ridge": Entry(RidgeConfig, Ridge, training=SOLVED),
}


def entry(name: str) -> Entry:
    """The model of a name. Raises UserError for an unknown one."""
    if name not in MODELS:
        raise UserError(f"name {name!r} is unknown: one of {', '.join(MODELS)}")
    return MODELS[name]


def model_class(name: str) -> type[Any] | None:
    """The class that a saved model's config.json names; None where there is no such class."""
    return next((found.model for found in MODELS.values() if found.model.__name__ == name), None)
