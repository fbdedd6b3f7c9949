"""The training loss."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from seq2exp.model import Seq2ExpOutput


def seq2exp_loss(out: Seq2ExpOutput, target: Tensor, kl_weight: float = 0.01) -> Tensor:
    """Smooth L1 of expression against target (batch,), plus kl_weight times the bottleneck's KL where there is a mask.

    Source: Seq2Exp (ICLR 2025), the information bottleneck objective. Raises ValueError when the shapes differ.
    """
    if target.shape != out.expression.shape:
        raise ValueError(f"seq2exp_loss: target is {tuple(target.shape)}, expression {tuple(out.expression.shape)}")
    loss = F.smooth_l1_loss(out.expression, target.to(out.expression.dtype))
    return loss if out.kl is None else loss + kl_weight * out.kl


def kl_ramp(step: int, steps: int, weight: float, start_fraction: float, ramp_fraction: float) -> float:
    """KL weight at a step: 0 for start_fraction of the steps, then linear to `weight` over ramp_fraction of them."""
    start, ramp = start_fraction * steps, ramp_fraction * steps
    if step < start:
        return 0.0
    return weight if ramp == 0 else weight * min(1.0, (step - start) / ramp)
