"""Residual add, then LayerNorm or RMSNorm, as of mamba-ssm 2.x; RMSNorm without a bias is our `add_norm`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from seq2exp.errors import UserError
from seq2exp.kernels import add_norm


def layer_norm_fn(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None = None, x1: Tensor | None = None,
    weight1: Tensor | None = None, bias1: Tensor | None = None, eps: float = 1e-6, dropout_p: float = 0.0,
    rowscale: Tensor | None = None, prenorm: bool = False, residual_in_fp32: bool = False, is_rms_norm: bool = False,
    return_dropout_mask: bool = False,
) -> Any:  # fmt: skip
    """The norm over the last axis of residual + dropout(x * rowscale) + dropout(x1).

    Parameters
    ----------
    x, x1, residual: (..., d). weight, bias: (d,); weight1, bias1: of a second norm of the same sum. rowscale: (...).
    prenorm: also return the sum, in the residual's dtype, or without one in float32 (residual_in_fp32) or x's dtype.
    return_dropout_mask: also return which elements of x and of x1 were kept, bool, None where none is dropped.

    Returns
    -------
    y in x's dtype, or the tuple of y, y1 (with weight1), sum (with prenorm), two masks (with return_dropout_mask).

    Raises
    ------
    UserError: rowscale together with x1. ValueError: shapes or devices that do not fit.
    """
    if x1 is not None and rowscale is not None:
        raise UserError("layer_norm_fn: rowscale goes with x alone; leave x1 away or scale it before")
    masks = [_dropout_mask(t, dropout_p) for t in (x, x1)]
    added = x if rowscale is None else x.to(_wide(x)) * rowscale[..., None]
    added = _dropped(added, masks[0], dropout_p)
    if x1 is not None:
        added = added.to(_wide(x)) + _dropped(x1, masks[1], dropout_p)
    stream_dtype = residual.dtype if residual is not None else torch.float32 if residual_in_fp32 else x.dtype
    y, total = _normed(added, residual, weight, bias, eps, is_rms_norm, stream_dtype)
    outs: list[Tensor | None] = [y.to(x.dtype)]
    if weight1 is not None:
        outs.append(_normed(total, None, weight1, bias1, eps, is_rms_norm, stream_dtype)[0].to(x.dtype))
    outs += [total] if prenorm else []
    outs += masks if return_dropout_mask else []
    return tuple(outs) if len(outs) > 1 else outs[0]


def rms_norm_fn(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None = None, x1: Tensor | None = None,
    weight1: Tensor | None = None, bias1: Tensor | None = None, eps: float = 1e-6, dropout_p: float = 0.0,
    rowscale: Tensor | None = None, prenorm: bool = False, residual_in_fp32: bool = False,
    return_dropout_mask: bool = False,
) -> Any:  # fmt: skip
    """`layer_norm_fn` with the root mean square in place of mean and variance."""
    return layer_norm_fn(
        x, weight, bias, residual, x1, weight1, bias1, eps, dropout_p, rowscale, prenorm, residual_in_fp32, True,
        return_dropout_mask,
    )  # fmt: skip


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last axis, of x + residual where there is a residual; dropout_p on x in training."""

    bias: None

    def __init__(
        self, hidden_size: int, eps: float = 1e-5, dropout_p: float = 0.0, device: Any = None, dtype: Any = None
    ) -> None:
        super().__init__()
        self.eps = eps
        self.drop = nn.Dropout(dropout_p) if dropout_p > 0 else None
        self.weight = nn.Parameter(torch.empty(hidden_size, device=device, dtype=dtype))
        self.register_parameter("bias", None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.ones_(self.weight)

    def forward(
        self, x: Tensor, residual: Tensor | None = None, prenorm: bool = False, residual_in_fp32: bool = False
    ) -> Any:
        return rms_norm_fn(
            x, self.weight, self.bias, residual, eps=self.eps, prenorm=prenorm, residual_in_fp32=residual_in_fp32,
            dropout_p=self.drop.p if self.drop is not None and self.training else 0.0,
        )  # fmt: skip


def _normed(
    x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor | None, eps: float, rms: bool,
    stream_dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The norm, in any dtype, and residual + x in stream_dtype."""
    if rms and bias is None:
        y, total = add_norm(x, residual, weight, epsilon=eps)
        return y, total.to(stream_dtype)
    wide = _wide(x)
    total = x.to(wide) if residual is None else x.to(wide) + residual
    if rms:
        y = F.rms_norm(total, total.shape[-1:], weight.to(wide), eps)
        y = y if bias is None else y + bias
    else:
        y = F.layer_norm(total, total.shape[-1:], weight.to(wide), None if bias is None else bias.to(wide), eps)
    return y, total.to(stream_dtype)


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _dropout_mask(x: Tensor | None, p: float) -> Tensor | None:
    return None if x is None or p <= 0 else torch.rand(x.shape, device=x.device) > p


def _dropped(x: Tensor, mask: Tensor | None, p: float) -> Tensor:
    return x if mask is None else torch.where(mask, x.to(_wide(x)) / (1 - p), 0.0)
