"""Residual add, then LayerNorm or RMSNorm, with the argument order of mamba-ssm 1.x."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from seq2exp.compat.mamba_ssm.ops.triton import layer_norm
from seq2exp.compat.mamba_ssm.ops.triton.layer_norm import RMSNorm

__all__ = ["RMSNorm", "layer_norm_fn", "rms_norm_fn"]


def layer_norm_fn(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None = None, eps: float = 1e-6,
    prenorm: bool = False, residual_in_fp32: bool = False, is_rms_norm: bool = False,
) -> Any:  # fmt: skip
    """The norm of residual + x over the last axis, in x's dtype; with prenorm also that sum. See `layer_norm`."""
    return layer_norm.layer_norm_fn(
        x, weight, bias, residual, eps=eps, prenorm=prenorm, residual_in_fp32=residual_in_fp32, is_rms_norm=is_rms_norm
    )


def rms_norm_fn(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None = None, prenorm: bool = False,
    residual_in_fp32: bool = False, eps: float = 1e-6,
) -> Any:  # fmt: skip
    """`layer_norm_fn` with the root mean square in place of mean and variance."""
    return layer_norm_fn(x, weight, bias, residual, eps, prenorm, residual_in_fp32, is_rms_norm=True)
