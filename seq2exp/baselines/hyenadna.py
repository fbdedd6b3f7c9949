"""HyenaDNA: long convolutions whose filters a small network writes, as the baseline of Seq2Exp has it.

Source: Nguyen et al., HyenaDNA (NeurIPS 2023); Poli et al., Hyena Hierarchy (ICML 2023); its sizes and its initial
weights are those of the published Seq2Exp baseline. It reads the sequence alone, from left to right.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from seq2exp.baselines.base import Baseline, Inputs
from seq2exp.config import Positive, Size, WindowFields
from seq2exp.embedding import SequenceEmbedding
from seq2exp.model import ExpressionHead

FASTEST, SLOWEST, TARGET = 0.3, 1.5, 0.01  # a filter decays to TARGET within these shares of the window
SHORT = 3  # bases of the short convolution
INITIAL_STD = 0.02


class HyenaDNAConfig(WindowFields):
    """layers, d_model, d_inner: blocks, channels, and channels inside each block's network.

    filter_features, filter_width, filter_frequency: of the network that writes the filters: its inputs for a position
        (itself, and cosine and sine of (filter_features - 1) / 2 frequencies), its width, the initial factor inside its
        sines. embed_dropout: share of the embedded values that training sets to 0. recompute: "layer" keeps only the
        residual stream for the backward.
    """

    d_model: Size = 128
    layers: Size = 4
    d_inner: Size = 512
    filter_features: Literal[3, 5, 7, 9] = 5
    filter_width: Size = 64
    filter_frequency: Positive = 10.0
    embed_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    recompute: Literal["none", "layer"] = "none"


def long_convolution(x: Tensor, kernel: Tensor) -> Tensor:
    """y[l] = sum over j <= l of kernel[j] * x[l - j], channel by channel, through an FFT of twice the length.

    x: (batch, d, L), any floating type. kernel: (d, L), float32 or wider, which is the type of the result.
    """
    n = 2 * x.shape[-1]  # so that nothing wraps around
    spectrum = torch.fft.rfft(x.to(kernel.dtype), n) * torch.fft.rfft(kernel, n)
    return torch.fft.irfft(spectrum, n)[..., : x.shape[-1]]


class HyenaFilter(nn.Module):
    """The filters of one operator, (d_model, L): a network with sines on the position, times an exponential decay."""

    position: Tensor
    decay: Tensor

    def __init__(self, d_model: int, length: int, features: int, width: int, frequency: float) -> None:
        super().__init__()
        bands = (features - 1) // 2
        time = torch.linspace(0, 1, length)[:, None]
        angle = 2 * math.pi / length * torch.arange(length)[:, None] * torch.linspace(1e-4, max(bands - 1, 1e-4), bands)
        rate = -math.log(TARGET) * torch.linspace(1 / SLOWEST, 1 / FASTEST, d_model)
        self.register_buffer("position", torch.cat([time, angle.cos(), -angle.sin()], 1), persistent=False)
        self.register_buffer("decay", torch.exp(-time * rate), persistent=False)  # (L, d_model)
        self.frequency = nn.Parameter(torch.full((width,), frequency))  # of all the sines
        self.hidden = nn.ModuleList([nn.Linear(features, width), nn.Linear(width, width), nn.Linear(width, width)])
        self.out = nn.Linear(width, d_model, bias=False)

    def forward(self) -> Tensor:
        h = self.position
        for layer in self.hidden:
            h = torch.sin(self.frequency * layer(h))
        return (self.out(h) * self.decay).t()


class HyenaOperator(nn.Module):
    """Order 2: (batch, L, d_model) -> the same. Three projections with short convolutions, x0, x1 and v; then
    x0 * (filter convolved with (x1 * v)), and a projection."""

    def __init__(self, config: HyenaDNAConfig) -> None:
        super().__init__()
        d = config.d_model
        self.in_proj = nn.Linear(d, 3 * d)
        self.short = nn.Conv1d(3 * d, 3 * d, SHORT, padding=SHORT - 1, groups=3 * d)
        self.filter = HyenaFilter(
            d, config.length, config.filter_features, config.filter_width, config.filter_frequency
        )
        self.skip = nn.Parameter(torch.randn(d))
        self.out_proj = nn.Linear(d, d)

    def forward(self, h: Tensor) -> Tensor:
        u = self.in_proj(h).transpose(1, 2)
        x0, x1, v = self.short(u)[..., : h.shape[1]].chunk(3, 1)
        v = v * x1
        with torch.autocast(h.device.type, enabled=False):  # there is no FFT in bfloat16
            kernel = self.filter()
            v = long_convolution(v, kernel) + self.skip[:, None] * v
        return self.out_proj((v.to(x0.dtype) * x0).transpose(1, 2))


class HyenaBlock(nn.Module):
    """Residual stream (batch, L, d_model) -> the same: operator, then a GELU network, each behind a LayerNorm."""

    def __init__(self, config: HyenaDNAConfig) -> None:
        super().__init__()
        d = config.d_model
        self.norm1, self.mixer = nn.LayerNorm(d), HyenaOperator(config)
        self.norm2, self.fc1, self.fc2 = nn.LayerNorm(d), nn.Linear(d, config.d_inner), nn.Linear(config.d_inner, d)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.mixer(self.norm1(x))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x)), approximate="tanh"))


class HyenaDNA(Baseline):
    """Embedded bases, Hyena blocks, the mean of the centre, the head of Seq2Exp."""

    config_class = HyenaDNAConfig
    config: HyenaDNAConfig

    def __init__(self, config: HyenaDNAConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = SequenceEmbedding(config.d_model)
        self.dropout = nn.Dropout(config.embed_dropout)
        self.blocks = nn.ModuleList(HyenaBlock(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.d_model)
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear):
                scale = 1 / math.sqrt(2 * config.layers) if name.endswith(("out_proj", "fc2")) else 1.0
                nn.init.normal_(module.weight, std=INITIAL_STD * scale)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        self.head = ExpressionHead(config.d_model, config.gene_features)

    def hidden(self, batch: Inputs) -> Tensor:
        x = self.dropout(self.embedding(batch.sequence))
        for block in self.blocks:
            recomputed = self.config.recompute == "layer" and torch.is_grad_enabled()
            x = checkpoint(block, x, use_reentrant=False) if recomputed else block(x)
        return self.norm(x[:, self.centre])
