"""Learning rate, KL weight and random seeds as functions of the step."""

from __future__ import annotations

import hashlib
import math

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
    start, ramp = config.kl.start_fraction * config.steps, config.kl.ramp_fraction * config.steps
    if step < start:
        return 0.0
    return config.kl.weight * (min(1.0, (step - start) / ramp) if ramp else 1.0)


def derive_seed(seed: int, purpose: str, index: int = 0) -> int:
    """A 63-bit seed for one purpose and one step or epoch, the same on every machine."""
    digest = hashlib.blake2b(f"{seed}/{purpose}/{index}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
