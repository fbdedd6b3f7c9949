"""The Caduceus backbone (Schiff et al. 2024): residual add, RMSNorm, bidirectional Mamba; and its language model."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from seq2exp.kernels import ScanWeights, bimamba

NORM_EPSILON = 1e-5


class ScanDirection(nn.Module):
    """The weights of one direction of a mixer, initialised as in Mamba."""

    def __init__(self, d_inner: int, dt_rank: int, d_state: int, d_conv: int) -> None:
        super().__init__()
        bound = 1 / math.sqrt(d_conv)
        self.conv_weight = nn.Parameter(torch.empty(d_inner, 1, d_conv).uniform_(-bound, bound))
        self.conv_bias = nn.Parameter(torch.empty(d_inner).uniform_(-bound, bound))
        self.x_proj = nn.Parameter(_linear_init(dt_rank + 2 * d_state, d_inner))
        self.dt_proj = nn.Parameter(torch.empty(d_inner, dt_rank).uniform_(-(dt_rank**-0.5), dt_rank**-0.5))
        dt = torch.exp(torch.rand(d_inner) * (math.log(0.1) - math.log(0.001)) + math.log(0.001)).clamp_min(1e-4)
        self.dt_bias = nn.Parameter(dt + torch.log(-torch.expm1(-dt)))  # softplus(dt_bias) = dt
        self.A_log = nn.Parameter(torch.log(torch.arange(1, d_state + 1).float()).repeat(d_inner, 1))
        self.D = nn.Parameter(torch.ones(d_inner))

    def weights(self) -> ScanWeights:
        return ScanWeights(*(getattr(self, name) for name in ScanWeights._fields))


class BimambaMixer(nn.Module):
    """A bidirectional Mamba: (batch, L, d_model) -> the same."""

    def __init__(
        self, d_model: int, d_state: int, d_conv: int, expand: int, *, tied: bool = True, strategy: str = "add",
        out_scale: float = 1.0,
    ) -> None:  # fmt: skip
        super().__init__()
        d_inner, dt_rank = expand * d_model, math.ceil(d_model / 16)
        self.strategy = strategy
        self.in_proj = nn.Parameter(_linear_init(2 * d_inner, d_model))
        self.out_proj = nn.Parameter(_linear_init(d_model, d_inner) * out_scale)
        self.rev_in_proj = None if tied else nn.Parameter(_linear_init(2 * d_inner, d_model))
        self.rev_out_proj = None if tied else nn.Parameter(_linear_init(d_model, d_inner) * out_scale)
        self.fwd = ScanDirection(d_inner, dt_rank, d_state, d_conv)
        self.rev = ScanDirection(d_inner, dt_rank, d_state, d_conv)

    def forward(self, h: Tensor, cu_seqlens: Tensor | None = None) -> Tensor:
        rev_proj = None if self.rev_in_proj is None else (self.rev_in_proj, self.rev_out_proj)
        return bimamba(
            h, self.in_proj, self.out_proj, self.fwd.weights(), self.rev.weights(), rev_proj=rev_proj,
            strategy=self.strategy, cu_seqlens=cu_seqlens,
        )  # fmt: skip


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last axis."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(d_model))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, x.shape[-1:], self.weight.to(x.dtype), NORM_EPSILON)


class BackboneLayer(nn.Module):
    """Residual add, norm, mixer. The residual stream stays in the dtype of the backbone's input."""

    def __init__(self, d_model: int, d_state: int, d_conv: int, expand: int, **mixer: Any) -> None:
        super().__init__()
        self.norm = RMSNorm(d_model)
        self.mixer = BimambaMixer(d_model, d_state, d_conv, expand, **mixer)

    def forward(self, residual: Tensor, gate: Tensor | None, cu_seqlens: Tensor | None) -> Tensor:
        h = self.norm(residual)
        if gate is not None:
            h = h * gate
        return residual + self.mixer(h, cu_seqlens).to(residual.dtype)


class CaduceusBackbone(nn.Module):
    """Embedded bases (batch, L, d_model) -> hidden states (batch, L, d_model).

    gate: (batch, L), multiplies the normalised input of every mixer. cu_seqlens: offsets of packed sequences, batch 1.
    recompute: "layer" keeps only the residual stream and recomputes each layer in the backward.
    """

    def __init__(
        self, d_model: int, n_layers: int, *, d_state: int = 16, d_conv: int = 4, expand: int = 2, tied: bool = True,
        strategy: str = "add", recompute: str = "none",
    ) -> None:  # fmt: skip
        super().__init__()
        out_scale = 1 / math.sqrt(n_layers)  # GPT-2's rescaling of what adds to the residual stream
        self.layers = nn.ModuleList(
            BackboneLayer(d_model, d_state, d_conv, expand, tied=tied, strategy=strategy, out_scale=out_scale)
            for _ in range(n_layers)
        )
        self.norm = RMSNorm(d_model)
        self.recompute = recompute

    def forward(self, x: Tensor, *, gate: Tensor | None = None, cu_seqlens: Tensor | None = None) -> Tensor:
        gate = None if gate is None else gate.unsqueeze(-1).to(x.dtype)
        for layer in self.layers:
            if self.recompute == "layer" and torch.is_grad_enabled():
                x = checkpoint(layer, x, gate, cu_seqlens, use_reentrant=False, preserve_rng_state=False)
            else:
                x = layer(x, gate, cu_seqlens)
        return self.norm(x)


class CaduceusOutput(NamedTuple):
    """hidden: (batch, L, d_model). logits: (batch, L, vocabulary)."""

    hidden: Tensor
    logits: Tensor


class Caduceus(nn.Module):
    """Caduceus masked language model, not equivariant ("Ph"): token ids (batch, L) int64 -> `CaduceusOutput`."""

    def __init__(self, vocabulary: int, d_model: int, n_layers: int, **backbone: Any) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, d_model)
        nn.init.normal_(self.embedding.weight, std=0.02)
        self.backbone = CaduceusBackbone(d_model, n_layers, **backbone)
        self.lm_head = nn.Linear(d_model, vocabulary, bias=False)

    def forward(self, tokens: Tensor) -> CaduceusOutput:
        hidden = self.backbone(self.embedding(tokens))
        return CaduceusOutput(hidden, self.lm_head(hidden))


def _linear_init(out_features: int, in_features: int) -> Tensor:
    """torch's default for a linear layer."""
    bound = 1 / math.sqrt(in_features)
    return torch.empty(out_features, in_features).uniform_(-bound, bound)
