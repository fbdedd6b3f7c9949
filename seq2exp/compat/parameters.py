"""The parameters of the published models: modules with the published names, shapes and order, and no forward.

Initialised as published: Mamba's own initialisation, biases of all other linear layers 0, what adds to the residual
stream divided by the square root of the number of layers.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import nn

from seq2exp.backbone import NORM_EPSILON, ScanDirection
from seq2exp.compat.settings import CaduceusConfig


class Mamba(nn.Module):
    """One direction of a mixer."""

    def __init__(self, d_model: int, out_scale: float, d_state: int = 16, d_conv: int = 4, expand: int = 2) -> None:
        super().__init__()
        d_inner, rank = expand * d_model, math.ceil(d_model / 16)
        initial = ScanDirection(d_inner, rank, d_state, d_conv)
        self.in_proj = nn.Linear(d_model, 2 * d_inner, bias=False)
        self.conv1d = nn.Conv1d(d_inner, d_inner, d_conv, groups=d_inner, padding=d_conv - 1)
        self.x_proj = nn.Linear(d_inner, rank + 2 * d_state, bias=False)
        self.dt_proj = nn.Linear(rank, d_inner)
        self.dt_proj.weight, self.dt_proj.bias = initial.dt_proj, initial.dt_bias
        self.A_log, self.D = initial.A_log, initial.D
        self.out_proj = nn.Linear(d_inner, d_model, bias=False)
        with torch.no_grad():
            self.out_proj.weight *= out_scale
        # Read by the published training code: what it does not decay, and what it does not initialise again.
        self.A_log._no_weight_decay = self.D._no_weight_decay = True  # type: ignore[attr-defined]
        self.dt_proj.bias._no_reinit = True  # type: ignore[attr-defined]


class BiMamba(nn.Module):
    """Both directions, with tied projections."""

    def __init__(self, d_model: int, out_scale: float, **sizes: int) -> None:
        super().__init__()
        self.mamba_fwd, self.mamba_rev = (Mamba(d_model, out_scale, **sizes) for _ in range(2))
        self.mamba_rev.in_proj.weight = self.mamba_fwd.in_proj.weight
        self.mamba_rev.out_proj.weight = self.mamba_fwd.out_proj.weight


class Block(nn.Module):
    def __init__(self, d_model: int, mixer: nn.Module) -> None:
        super().__init__()
        self.mixer = mixer
        self.norm = nn.RMSNorm(d_model, eps=NORM_EPSILON)


class MixerModel(nn.Module):
    """A backbone: its layers, with mixers of one kind, and the last norm; with a vocabulary, an embedding before."""

    def __init__(
        self, config: CaduceusConfig, n_layer: int, mixer: type[Mamba | BiMamba], vocabulary: int | None = None
    ) -> None:
        super().__init__()
        d, out_scale = config.d_model, 1 / math.sqrt(n_layer)
        if vocabulary is not None:
            self.embedding = nn.Embedding(vocabulary, d)
            nn.init.normal_(self.embedding.weight, std=0.02)
        self.layers = nn.ModuleList(Block(d, mixer(d, out_scale, **config.mixer_sizes)) for _ in range(n_layer))
        self.norm_f = nn.RMSNorm(d, eps=NORM_EPSILON)


class Caduceus(nn.Module):
    """A bidirectional backbone that reads embedded bases."""

    def __init__(self, config: CaduceusConfig, n_layer: int) -> None:
        super().__init__()
        self.backbone = MixerModel(config, n_layer, BiMamba)


def linear(inputs: int, outputs: int) -> nn.Linear:
    layer = nn.Linear(inputs, outputs)
    nn.init.zeros_(layer.bias)
    return layer


def head(config: CaduceusConfig, layer: Callable[[int, int], nn.Linear] = linear) -> nn.Sequential:
    """`pToExpr`."""
    d = config.d_model
    return nn.Sequential(layer(d + config.gene_features, d), nn.ReLU(), layer(d, d), nn.ReLU(), layer(d, 1))


def add_generator(model: nn.Module, config: CaduceusConfig) -> None:
    """What the mask is made with: `generator`, `prior_weights` (logarithms), `signal_betas`, `mask_output`."""
    model.generator = Caduceus(config, config.gen_n_layer)
    weights, betas = (torch.tensor(config.numbers(name)) for name in ("prior_weight", "prior_beta"))
    model.prior_weights = nn.Parameter(torch.log(weights / weights.sum()), requires_grad=False)
    model.signal_betas = nn.Parameter(betas, requires_grad=False)
    model.mask_output = linear(config.d_model, 2)
