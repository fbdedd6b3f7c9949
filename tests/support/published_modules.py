"""Caduceus with the module and attribute names of the published code, in plain torch on the layer of our baselines."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from seq2exp.baselines import published_layer
from seq2exp.kernels import ScanWeights


class Mamba(nn.Module):
    def __init__(self, d_model: int, d_state: int = 4, d_conv: int = 4, expand: int = 2, bias: bool = False) -> None:
        super().__init__()
        d_inner, rank = expand * d_model, -(-d_model // 16)
        self.in_proj = nn.Linear(d_model, 2 * d_inner, bias=bias)
        self.conv1d = nn.Conv1d(d_inner, d_inner, d_conv, groups=d_inner, padding=d_conv - 1)
        self.x_proj = nn.Linear(d_inner, rank + 2 * d_state, bias=False)
        self.dt_proj = nn.Linear(rank, d_inner)
        self.A_log = nn.Parameter(torch.log(torch.arange(1.0, d_state + 1)).repeat(d_inner, 1))
        self.D = nn.Parameter(torch.ones(d_inner))
        self.out_proj = nn.Linear(d_inner, d_model, bias=bias)

    def forward(self, hidden_states: Tensor, inference_params: object = None) -> Tensor:
        weights = ScanWeights(
            self.conv1d.weight, self.conv1d.bias, self.x_proj.weight, self.dt_proj.weight, self.dt_proj.bias,
            self.A_log, self.D,
        )  # fmt: skip
        return published_layer.mamba(hidden_states, self.in_proj.weight, self.out_proj.weight, weights)


class BiMambaWrapper(nn.Module):
    def __init__(self, d_model: int, tied: bool = True, strategy: str | None = "add", **mamba: int) -> None:
        super().__init__()
        self.bidirectional, self.bidirectional_strategy = True, strategy
        self.mamba_fwd, self.mamba_rev = Mamba(d_model, **mamba), Mamba(d_model, **mamba)
        if tied:
            self.mamba_rev.in_proj.weight = self.mamba_fwd.in_proj.weight
            self.mamba_rev.out_proj.weight = self.mamba_fwd.out_proj.weight

    def forward(self, hidden_states: Tensor, inference_params: object = None) -> Tensor:
        forward = self.mamba_fwd(hidden_states)
        reverse = self.mamba_rev(hidden_states.flip(1)).flip(1)
        return forward * reverse if self.bidirectional_strategy == "ew_multiply" else forward + reverse


class RCPSWrapper(nn.Module):
    """Both strands in one tensor, (batch, L, 2 channels)."""

    def __init__(self, submodule: nn.Module) -> None:
        super().__init__()
        self.submodule = submodule

    def forward(self, x: Tensor, **options: object) -> Tensor:
        strand, other = x.chunk(2, -1)
        reverse = self.submodule(other.flip(1, 2), **options).flip(1, 2)
        return torch.cat([self.submodule(strand, **options), reverse], -1)


class Block(nn.Module):
    def __init__(self, d_model: int, rcps: bool, **mixer: object) -> None:
        super().__init__()
        wrapped = BiMambaWrapper(d_model, **mixer)
        self.mixer = RCPSWrapper(wrapped) if rcps else wrapped
        norm = nn.RMSNorm(d_model, eps=published_layer.EPSILON)
        self.norm = RCPSWrapper(norm) if rcps else norm

    def forward(self, hidden_states: Tensor) -> Tensor:
        return hidden_states + self.mixer(self.norm(hidden_states), inference_params=None)


class Backbone(nn.Module):
    """Embedded bases to hidden states, both (batch, L, d_model), with rcps (batch, L, 2 d_model)."""

    def __init__(self, d_model: int = 16, layers: int = 2, rcps: bool = False, **mixer: object) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Block(d_model, rcps, **mixer) for _ in range(layers))
        norm = nn.RMSNorm(d_model, eps=published_layer.EPSILON)
        self.norm_f = RCPSWrapper(norm) if rcps else norm

    def forward(self, hidden_states: Tensor) -> Tensor:
        for layer in self.layers:
            hidden_states = layer(hidden_states)
        return self.norm_f(hidden_states)


class CaduceusForMaskedLM(nn.Module):
    """Token ids (batch, L) to logits (batch, L, vocabulary)."""

    def __init__(self, vocabulary: int, d_model: int, layers: int, **mixer: object) -> None:
        super().__init__()
        self.caduceus = nn.Module()
        self.caduceus.backbone = Backbone(d_model, layers, **mixer)
        self.caduceus.backbone.embeddings = nn.Module()
        self.caduceus.backbone.embeddings.word_embeddings = nn.Embedding(vocabulary, d_model)
        self.lm_head = nn.Linear(d_model, vocabulary, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        backbone = self.caduceus.backbone
        return self.lm_head(backbone(backbone.embeddings.word_embeddings(tokens)))
