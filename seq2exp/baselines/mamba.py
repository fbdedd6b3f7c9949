"""GeneExpMamba: the Mamba baseline of Seq2Exp (ICLR 2025), one direction, on token embeddings."""

from __future__ import annotations

import math
from typing import Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from seq2exp.backbone import NORM_EPSILON, RMSNorm, ScanDirection, linear_init
from seq2exp.baselines.base import Baseline, Inputs
from seq2exp.config import BackboneFields, Size
from seq2exp.embedding import stream_dtype
from seq2exp.kernels import add_norm
from seq2exp.kernels.bimamba import mamba
from seq2exp.model import ExpressionHead

BASES = 5  # A C G T N


class GeneExpMambaConfig(BackboneFields):
    """layers: of the backbone. vocabulary: tokens of the embedding; first_base: the token of A, which those of C, G, T
    and N follow. The other fields are those of `Seq2ExpConfig`."""

    layers: Size = 4
    vocabulary: Size = 12
    first_base: int = Field(default=7, ge=0)

    @model_validator(mode="after")
    def _bases_are_tokens(self) -> Self:
        if self.first_base + BASES > self.vocabulary:
            raise ValueError(
                f"first_base is {self.first_base} and vocabulary {self.vocabulary}: the last of A C G T N is no token"
            )
        return self


class MambaMixer(nn.Module):
    """A Mamba from left to right: (batch, L, d_model) -> the same."""

    def __init__(self, d_model: int, d_state: int, d_conv: int, expand: int, out_scale: float) -> None:
        super().__init__()
        d_inner = expand * d_model
        self.in_proj = nn.Parameter(linear_init(2 * d_inner, d_model))
        self.out_proj = nn.Parameter(linear_init(d_model, d_inner) * out_scale)
        self.fwd = ScanDirection(d_inner, math.ceil(d_model / 16), d_state, d_conv)

    def forward(self, h: Tensor) -> Tensor:
        return mamba(h, self.in_proj, self.out_proj, self.fwd.weights())


class MambaLayer(nn.Module):
    """Residual add, norm and mixer."""

    def __init__(self, config: GeneExpMambaConfig) -> None:
        super().__init__()
        self.norm = RMSNorm(config.d_model)
        out_scale = 1 / math.sqrt(config.layers)  # GPT-2's rescaling of what adds to the residual stream
        self.mixer = MambaMixer(config.d_model, config.d_state, config.d_conv, config.expand, out_scale)

    def forward(self, x: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
        """Output (batch, L, d_model), not yet added, and residual stream, both for the next layer."""
        h, residual = add_norm(x, residual, self.norm.weight, epsilon=NORM_EPSILON)
        return self.mixer(h).to(residual.dtype), residual


class MambaBackbone(nn.Module):
    """Embedded bases (batch, L, d_model) -> what the last layer puts out and the residual stream, not yet added."""

    def __init__(self, config: GeneExpMambaConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(MambaLayer(config) for _ in range(config.layers))
        self.norm = RMSNorm(config.d_model)
        self.recompute = config.recompute

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        residual: Tensor | None = None
        for layer in self.layers:
            if self.recompute == "layer":
                x, residual = checkpoint(layer, x, residual, use_reentrant=False, preserve_rng_state=False)
            else:
                x, residual = layer(x, residual)
        assert residual is not None, "a backbone without layers"
        return x, residual


class GeneExpMamba(Baseline):
    """An embedding of the bases, Mamba layers, the mean of the centre, the head of Seq2Exp."""

    config_class = GeneExpMambaConfig
    config: GeneExpMambaConfig

    def __init__(self, config: GeneExpMambaConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocabulary, config.d_model)
        nn.init.normal_(self.embedding.weight, std=0.02)
        self.backbone = MambaBackbone(config)
        self.head = ExpressionHead(config.d_model, config.gene_features)

    def hidden(self, batch: Inputs) -> Tensor:
        stream = self.backbone(self._embedded(batch.sequence))
        return self.backbone.norm(*(x[:, self.centre] for x in stream))

    def _embedded(self, sequence: Tensor) -> Tensor:
        """(batch, L, d_model), in the dtype of the residual stream; of N where a one-hot base is all zero."""
        weight, first = self.embedding.weight, self.config.first_base
        if sequence.is_floating_point():
            letters = torch.cat([sequence, 1 - sequence.sum(-1, keepdim=True)], -1)
            x = F.linear(letters.to(weight.dtype), weight[first : first + BASES].t())
        else:
            x = F.embedding(sequence.long() + first, weight)
        return x.to(stream_dtype(weight, self.config))
