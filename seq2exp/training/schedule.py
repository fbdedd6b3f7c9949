"""Learning rate and KL weight as functions of the step."""

from __future__ import annotations

import math

from seq2exp.loss import kl_ramp

from .config import TrainConfig


def learning_rate(config: TrainConfig, step: int) -> float:
    """Learning rate of step ``step`` (0-based): linear warm-up, then a cosine."""
    peak, schedule, warmup = config.optimizer.lr, config.schedule, config.warmup_steps
    if step < warmup:
        return schedule.start_lr + (peak - schedule.start_lr) * step / warmup
    progress = (step - warmup) / max(1, config.steps - warmup)
    return schedule.end_lr + (peak - schedule.end_lr) * 0.5 * (1 + math.cos(math.pi * progress))


def kl_weight(config: TrainConfig, step: int) -> float:
    """Weight of the KL term at step ``step`` (0-based)."""
    kl = config.kl
    return kl_ramp(step, config.steps, kl.weight, kl.start_fraction, kl.ramp_fraction)
