"""What the study varies: the settings of the training (variants), the simulated genes (conditions), and its sizes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from seq2exp.registry import entry
from seq2exp.training.presets import TRAINING

from .plan import DISCOVERY, DISCOVERY_GROWN, LONGER, LONGEST, PUBLISHED_SOFT, USUAL, Run

DISCOVERY_LONG, PUBLISHED_HARD = "discovery, 3,000 steps", "published hard"
NO_MASK, NO_MASK_DEEP, NO_MASK_LONG = BARE = (
    "no mask",
    "no mask, twice the layers",
    "no mask, twice the layers, 3,000 steps",
)
SHORT: dict[str, Any] = {"steps": 1_200, "evaluate_every": 240}
LONG: dict[str, Any] = {"steps": 3_000, "evaluate_every": 300}
LAYERS = TRAINING["model"]["generator_layers"] + TRAINING["model"]["predictor_layers"]
SEEDS = (101, 102, 103, 104, 105)  # none of them was used to choose settings

Changes = dict[str, Any]


@dataclass(frozen=True)
class Variant:
    """What differs from the discovery settings: fields of sections of the training settings, and why it is asked."""

    asks: str
    changes: Changes


PUBLISHED_TRAINING: Changes = {
    "data": {"rc_augmentation": 0.0, "max_shift": 0},
    "kl": {"weight": 0.01, "start_fraction": 0.0, "ramp_fraction": 0.0},
}

# One thing at a time, set to its published value or to what might be better; at the end the published settings whole.
VARIANTS: dict[str, Variant] = {
    DISCOVERY: Variant(
        "Seq2ExpConfig.discovery, KL weight 0 until 45 % and 0.01 from 80 % of the steps, RC and shift", {}
    ),
    DISCOVERY_LONG: Variant("2.5 times the steps", LONG),
    DISCOVERY_GROWN: Variant("the weights start from those of discovery on windows of 512 (16,384) bases", {}),
    "mask at the input": Variant("mask_placement input", {"model": {"mask_placement": "input"}}),
    "select bias 3": Variant("select_bias 3", {"model": {"select_bias": 3.0}}),
    "no KL ramp": Variant("KL weight 0.01 from the first step", {"kl": {"start_fraction": 0.0, "ramp_fraction": 0.0}}),
    "KL weight 0.003": Variant("kl.weight 0.003, with the ramp", {"kl": {"weight": 0.003}}),
    "signal scale 10": Variant(
        "signal_scale 10, beta_min 1, the pair of soft", {"model": {"signal_scale": 10.0, "beta_min": 1.0}}
    ),
    "signal scale 1": Variant("signal_scale 1, beta_min 0, the pair of hard", {"model": {"signal_scale": 1.0}}),
    "prior scale 10": Variant("prior_scale 10", {"model": {"prior_scale": 10.0}}),
    "no RC augmentation": Variant("data.rc_augmentation 0, shift as before", {"data": {"rc_augmentation": 0.0}}),
    "no shift augmentation": Variant("data.max_shift 0, RC as before", {"data": {"max_shift": 0}}),
    "signals into the generator": Variant(
        "generator_input sequence+signals", {"model": {"generator_input": "sequence+signals"}}
    ),
    "packed hard": Variant("binary mask, packed predictor, task gradient", {"model": {"hard": True, "packed": True}}),
    "packed hard, no task gradient": Variant(
        "the same without task gradient, as published",
        {"model": {"hard": True, "packed": True, "task_gradient": False}},
    ),
    "top fraction": Variant(
        "the top 10 % of the means as a binary mask", {"model": {"hard": True, "top_fraction": 0.1}}
    ),
    PUBLISHED_SOFT: Variant(
        "Seq2ExpConfig.soft, KL weight 0.01 from the first step, no augmentation",
        PUBLISHED_TRAINING | {"model": {"preset": "soft"}},
    ),
    PUBLISHED_HARD: Variant(
        "Seq2ExpConfig.hard without task gradient, KL weight 0.01 from the first step, no augmentation",
        PUBLISHED_TRAINING | {"model": {"preset": "hard", "task_gradient": False}},
    ),
}

FACTORS = [name for name in VARIANTS if name not in (DISCOVERY, DISCOVERY_LONG, DISCOVERY_GROWN)]

# Models without a mask, and those whose mask is given. `layers` are the predictor's, or all that generator and
# predictor have together.
MODELS: dict[str, Changes] = {
    NO_MASK: {"name": "caduceus_signals", "layers": TRAINING["model"]["predictor_layers"]},
    NO_MASK_DEEP: {"name": "caduceus_signals", "layers": LAYERS},
    NO_MASK_LONG: {"name": "caduceus_signals", "layers": LAYERS},
    "Caduceus": {"name": "caduceus", "layers": LAYERS},
    "Mamba": {"name": "mamba", "layers": LAYERS},
    "HyenaDNA": {"name": "hyenadna", "layers": LAYERS, "d_inner": 128},
    "Enformer": {"name": "enformer", "dim": 96, "depth": LAYERS},
    "EPInformer": {"name": "epinformer", "elements": 5, "element": 416},
    "MACS3 peaks": {"name": "peaks", "predictor_layers": LAYERS, "packed": False},
    "ABC": {"name": "abc", "predictor_layers": LAYERS, "packed": False, "width": 48},
    "Seq2Exp-retrain": {"name": "retrain", "packed": False},
}
BASELINES = [name for name in MODELS if name not in BARE]
COMPARED = (DISCOVERY, PUBLISHED_SOFT, PUBLISHED_HARD, NO_MASK_DEEP)  # with the baselines, and on long windows

# Centre and elements of the size of real ones.
LARGE: Changes = {
    "center": 2_000, "element_width": 500, "motif_copies": 8, "causal": (0, 4), "peak_only": (3, 8),
    "motif_only": (3, 6), "contact_bin": 1_000, "genes": 600,
}  # fmt: skip

# What differs from the usual genes of 512 bases. Longer windows hold more elements and reach further.
CONDITIONS: dict[str, Changes] = {
    USUAL: {},
    "two motifs": {"motif": "TGACTC,GATAAG"},
    "one motif copy": {"motif_copies": 1},
    "few decoys": {"peak_only": (1, 2), "motif_only": (0, 1)},
    "many decoys": {"peak_only": (2, 4), "motif_only": (2, 3)},
    "short contacts": {"contact_decay": 100.0},
    "noise 0.2": {"noise": 0.2},
    "1,000 genes": {"genes": 1_250},
    "5,000 genes": {"genes": 6_250},
    "1,024 bases": {"length": 1_024, "contact_decay": 800.0},
    "2,048 bases": {
        "length": 2_048, "contact_decay": 1_600.0, "causal": (0, 3), "peak_only": (2, 5), "motif_only": (2, 4)
    },
    "8,192 bases": {
        "length": 8_192, "contact_decay": 6_400.0, "causal": (0, 4), "peak_only": (3, 8), "motif_only": (3, 6)
    },
    LONGER: LARGE | {"length": 16_384, "contact_decay": 4_000.0},
    LONGEST: LARGE | {"length": 200_000, "contact_decay": 50_000.0},
}  # fmt: skip

OTHERS = [name for name in CONDITIONS if name not in (USUAL, LONGER, LONGEST)]
# Where the motif is found late, and the KL weight must not rise before.
SLOW = ("2,048 bases", "8,192 bases", "two motifs", "one motif copy")


def make_run(variant: str, condition: str, seed: int, *, genes: int | None = None, **training: Any) -> Run:
    """A run of a variant on a condition.

    Args:
        genes: where the condition does not say; default: 2,600.
        training: sections or fields of the training settings that replace those of `TRAINING`.
    """
    simulation: dict[str, Any] = {"genes": genes or 2_600, "length": 512, "center": 32} | CONDITIONS[condition]
    changes = VARIANTS[variant].changes if variant in VARIANTS else (LONG if variant == NO_MASK_LONG else {})
    settings = _merged(_merged(TRAINING, changes), training)
    model = settings["model"] | {"length": simulation["length"], "center": simulation["center"]}
    if variant in MODELS:
        fields = entry(MODELS[variant]["name"]).config.model_fields
        model = {name: value for name, value in model.items() if name in fields} | MODELS[variant]
        settings["kl"] = {"weight": 0.0}
    return Run(variant, condition, seed, simulation, settings | {"model": model})


def _merged(settings: Changes, changes: Changes) -> Changes:
    """Sections merged field by field, what is no section replaced."""
    both = {name: settings[name] | value for name, value in changes.items() if isinstance(settings.get(name), dict)}
    return settings | changes | both


def quick() -> list[Run]:
    """Few small runs, to see the command work; too small for the mask to learn."""
    small: Changes = {"steps": 120, "evaluate_every": 40, "checkpoint_every": 40}
    runs = [
        make_run(variant, USUAL, seed, genes=300, **small)
        for variant in (DISCOVERY, PUBLISHED_SOFT, NO_MASK)
        for seed in SEEDS[:2]
    ]
    return [*runs, make_run(DISCOVERY, "two motifs", SEEDS[0], genes=300, **small)]


def committed() -> list[Run]:
    """At most an hour on two cores."""
    runs = [make_run(variant, USUAL, seed, **SHORT) for seed in SEEDS for variant in (DISCOVERY, NO_MASK_DEEP)]
    runs += [make_run(variant, USUAL, SEEDS[0]) for variant in (DISCOVERY_LONG, NO_MASK_LONG)]
    others = [name for name in OTHERS if name != "8,192 bases"]
    runs += [make_run(DISCOVERY, name, SEEDS[0], **(LONG if name in SLOW else SHORT)) for name in others]
    return runs + [make_run(name, USUAL, seed, **SHORT) for seed in SEEDS[:3] for name in FACTORS]


def long() -> list[Run]:
    """What is in bench/results: the committed study, longer windows, more seeds of 3,000 steps, and the baselines."""
    runs = [make_run(DISCOVERY, "8,192 bases", SEEDS[0], **LONG), make_run(DISCOVERY, "2,048 bases", SEEDS[1], **LONG)]
    runs += [make_run(DISCOVERY_GROWN, "8,192 bases", SEEDS[0], steps=1_000, evaluate_every=200)]
    runs += [make_run(variant, USUAL, SEEDS[1]) for variant in (DISCOVERY_LONG, NO_MASK_LONG)]
    return runs + committed() + [make_run(name, USUAL, SEEDS[0], **SHORT) for name in BASELINES]


def gpu() -> list[Run]:
    """Everything over five seeds, and windows of 200,000 bases; hours on one GPU."""
    large: Changes = {
        "steps": 5_000, "evaluate_every": 250, "precision": "bf16", "data": {"workers": 4},
        "model": {"d_model": 64, "d_state": 16, "recompute": "layer"}, "optimizer": {"lr": 5e-4},
    }  # fmt: skip
    runs = [make_run(name, USUAL, seed) for name in (DISCOVERY, DISCOVERY_LONG, *FACTORS, *MODELS) for seed in SEEDS]
    for seed in SEEDS[:3]:
        for condition in OTHERS:
            steps = LONG if condition in SLOW else {}
            runs += [make_run(name, condition, seed, **steps) for name in COMPARED]
        runs += [make_run(DISCOVERY_GROWN, "8,192 bases", seed), make_run(DISCOVERY, LONGER, seed, **large)]
        runs += [make_run(name, LONGEST, seed, **large) for name in (DISCOVERY_GROWN, *COMPARED)]
    return runs


PRESETS: dict[str, Callable[[], list[Run]]] = {"quick": quick, "committed": committed, "long": long, "gpu": gpu}
