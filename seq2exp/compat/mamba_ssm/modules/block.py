"""The pre-norm block of mamba-ssm 2.x: residual add, norm and mixer, then, where wanted, the same with an MLP."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from seq2exp.compat.mamba_ssm.ops.triton.layer_norm import RMSNorm, layer_norm_fn
from seq2exp.errors import UserError

__all__ = ["Block"]


class Block(nn.Module):
    """Add, norm, mixer; unless mlp_cls is nn.Identity then add, norm, MLP. (batch, L, dim) -> the same and the stream.

    mixer_cls, mlp_cls, norm_cls: called with dim. fused_add_norm: one kernel for add and norm, LayerNorm and RMSNorm
    only. residual_in_fp32: the stream is float32.
    """

    def __init__(
        self, dim: int, mixer_cls: Callable[..., nn.Module], mlp_cls: Callable[..., nn.Module],
        norm_cls: Callable[..., nn.Module] = nn.LayerNorm, fused_add_norm: bool = False, residual_in_fp32: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.residual_in_fp32 = residual_in_fp32
        self.fused_add_norm = fused_add_norm
        self.norm = norm_cls(dim)
        self.mixer: Any = mixer_cls(dim)
        self.mlp: nn.Module | None = None
        if mlp_cls is not nn.Identity:
            self.norm2 = norm_cls(dim)
            self.mlp = mlp_cls(dim)
        check_norm(self.norm, fused_add_norm)

    def forward(
        self, hidden_states: Tensor, residual: Tensor | None = None, inference_params: Any = None, **mixer_kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """What the mixer (or MLP) puts out, not yet added, and the stream that it is to be added to."""
        options = (self.fused_add_norm, self.residual_in_fp32)
        hidden_states, residual = add_then_norm(self.norm, hidden_states, residual, *options)
        hidden_states = self.mixer(hidden_states, inference_params=inference_params, **mixer_kwargs)
        if self.mlp is not None:
            hidden_states, residual = add_then_norm(self.norm2, hidden_states, residual, *options)
            hidden_states = self.mlp(hidden_states)
        return hidden_states, residual

    def allocate_inference_cache(
        self, batch_size: int, max_seqlen: int, dtype: torch.dtype | None = None, **kwargs: Any
    ) -> Any:
        return self.mixer.allocate_inference_cache(batch_size, max_seqlen, dtype=dtype, **kwargs)


def add_then_norm(
    norm: Any, hidden_states: Tensor, residual: Tensor | None, fused: bool, residual_in_fp32: bool
) -> tuple[Tensor, Tensor]:
    """The normed sum, fused in hidden_states' dtype, else in that of the norm's weight; and the sum."""
    if fused:
        return layer_norm_fn(
            hidden_states, norm.weight, norm.bias, residual, eps=norm.eps, prenorm=True,
            residual_in_fp32=residual_in_fp32, is_rms_norm=isinstance(norm, RMSNorm),
        )  # fmt: skip
    residual = hidden_states if residual is None else hidden_states + residual
    hidden_states = norm(residual.to(norm.weight.dtype))
    return hidden_states, residual.float() if residual_in_fp32 else residual


def check_norm(norm: nn.Module, fused: bool) -> None:
    if fused and not isinstance(norm, nn.LayerNorm | RMSNorm):
        raise UserError(f"fused_add_norm works with LayerNorm and RMSNorm, not with {type(norm).__name__}")
