"""The settings of the demonstration, in one place: what is simulated and how the model is trained on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .config import TrainConfig

SIMULATION: dict[str, Any] = {"genes": 2_600, "length": 512, "center": 32}

TRAINING: dict[str, Any] = {
    "model": {
        "preset": "discovery",
        "length": 512,
        "center": 32,
        "d_model": 32,
        "generator_layers": 2,
        "predictor_layers": 2,
        "d_state": 4,
        "signal_weights": [0.4, 0.4, 0.2],
        "signal_betas": [1.5, 0.2, 1.0],
    },
    "data": {"batch_size": 8, "rc_augmentation": 0.5, "max_shift": 16},
    "optimizer": {"lr": 1.5e-3},
    "schedule": {"warmup_fraction": 0.1, "start_lr": 1e-5, "end_lr": 1.5e-4},
    "kl": {"weight": 0.01, "start_fraction": 0.45, "ramp_fraction": 0.35},
    "precision": "fp32",
    "steps": 1_500,
    "evaluate_every": 150,
    "checkpoint_every": 500,
    "log_every": 50,
}

# Elements of the simulation are 48 bases wide.
DISCOVERY: dict[str, Any] = {"top_fraction": 0.10, "merge_gap": 12, "min_length": 12}


def demo_training(store: Path, seed: int, steps: int | None = None) -> TrainConfig:
    """Settings of the demonstration's run on a store made with ``SIMULATION``."""
    fields = TRAINING | {"data": TRAINING["data"] | {"store": store}, "seed": seed}
    return TrainConfig.model_validate(fields if steps is None else fields | {"steps": steps})
