"""EPInformer: attention between a promoter and its candidate enhancers, as the baseline of Seq2Exp has it.

Source: Lin et al., EPInformer (2024), its model with distance, contact and activity; sizes are those of the published
Seq2Exp baseline. Candidates are the peaks of the store. It reads the sequence of the promoter and of the candidates,
and what the signals say of each candidate; no base in between.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Self

import torch
from pydantic import model_validator
from torch import Tensor, nn

from seq2exp.baselines.base import Baseline, Inputs
from seq2exp.baselines.masked import ACTIVITY, CONTACTS, require_signals
from seq2exp.config import Size, WindowFields
from seq2exp.kernels.beta_mask.settings import centre_slice
from seq2exp.model import ExpressionHead
from seq2exp.strands import one_hot

CHANNELS = (256, 128, 64, 64, 128)  # of the stem and behind each halving of the length
DILATIONS = (2, 4, 6)
SHORTEST = 16 * (2 * sum(DILATIONS) + 2)  # bases that leave two positions, which a batch norm needs of one element
FEATURES = 3  # distance, contact, activity
PER_CHANNEL = 32  # channels that an element's vector is made of


class EPInformerConfig(WindowFields):
    """elements: candidates of a gene, at most; those nearest to the TSS. element: bases of each and of the promoter.

    d_model, layers, heads: of the attention. hidden: of the head. signal_names: the columns of signals, in order.
    """

    elements: Size = 60
    element: Size = 2_000
    d_model: Size = 64
    layers: Size = 3
    heads: Size = 4
    hidden: Size = 128
    signal_names: tuple[str, ...] = (*ACTIVITY, CONTACTS)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        require_signals("EPInformer", self.signal_names)
        if not SHORTEST <= self.element <= self.length:
            raise ValueError(f"element is {self.element}: it must be {SHORTEST} to length ({self.length}) bases")
        if self.d_model % PER_CHANNEL or self.d_model % self.heads:
            raise ValueError(f"d_model is {self.d_model}: it must be a multiple of {PER_CHANNEL} and of heads")
        return self


class ElementEncoder(nn.Module):
    """Convolutions: one-hot elements (n, 4, element) -> (n, d_model)."""

    def __init__(self, element: int, d_model: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.ZeroPad1d((3, 4)), nn.Conv1d(4, CHANNELS[0], 8), nn.ELU())
        self.halve = nn.ModuleList(
            nn.Sequential(nn.Conv1d(a, b, 3, padding=1), nn.BatchNorm1d(b), nn.ELU(), nn.MaxPool1d(2))
            for a, b in pairwise(CHANNELS)
        )
        self.mix = nn.ModuleList(nn.Sequential(nn.Conv1d(b, b, 1), nn.ELU()) for b in CHANNELS[1:])
        self.wide = nn.Sequential(
            *(
                nn.Sequential(nn.Conv1d(a, 64, 3, dilation=dilation), nn.BatchNorm1d(64), nn.ELU())
                for a, dilation in zip((CHANNELS[-1], 64, 64), DILATIONS, strict=True)
            ),
            nn.Sequential(nn.Conv1d(64, PER_CHANNEL, 1), nn.BatchNorm1d(PER_CHANNEL), nn.ELU()),
        )
        positions = element // 16 - 2 * sum(DILATIONS)
        self.pool = nn.Sequential(nn.Linear(positions, d_model // PER_CHANNEL), nn.ELU())

    def forward(self, letters: Tensor) -> Tensor:
        x = self.stem(letters)
        for halve, mix in zip(self.halve, self.mix, strict=True):
            x = halve(x)
            x = x + mix(x)
        return self.pool(self.wide(x)).flatten(1)


class InteractionLayer(nn.Module):
    """Attention and a ReLU network, each behind a LayerNorm: (batch, 1 + elements, d_model) -> the same."""

    def __init__(self, d_model: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(d_model), nn.LayerNorm(d_model)
        self.attention = nn.MultiheadAttention(d_model, heads, batch_first=True)
        self.network = nn.Sequential(nn.Linear(d_model, 4 * d_model), nn.ReLU(), nn.Linear(4 * d_model, d_model))

    def forward(self, x: Tensor, absent: Tensor, apart: Tensor) -> Tensor:
        """absent: bool (batch, 1 + elements), padding. apart: bool (1 + elements, 1 + elements), pairs that do not see
        each other."""
        h = self.norm1(x)
        x = x + self.attention(h, h, h, key_padding_mask=absent, attn_mask=apart, need_weights=False)[0]
        return x + self.network(self.norm2(x))


class EPInformer(Baseline):
    """Promoter and candidates encoded, what the signals say of them added, attention, the head of Seq2Exp.

    Each candidate sees the promoter and itself, the promoter sees all. The published model also encodes its padding.
    """

    config_class = EPInformerConfig
    reads_signals = reads_peaks = True
    config: EPInformerConfig
    apart: Tensor

    def __init__(self, config: EPInformerConfig) -> None:
        super().__init__()
        self.config = config
        d = config.d_model
        self.encoder = ElementEncoder(config.element, d)
        self.described = nn.Sequential(nn.Linear(d + FEATURES, d), nn.ReLU(), nn.Linear(d, d), nn.ReLU())
        self.layers = nn.ModuleList(InteractionLayer(d, config.heads) for _ in range(config.layers))
        self.head = ExpressionHead(d, config.gene_features, config.hidden)
        apart = ~torch.eye(1 + config.elements, dtype=torch.bool)
        apart[0] = apart[:, 0] = False
        self.register_buffer("apart", apart, persistent=False)

    def hidden(self, batch: Inputs) -> Tensor:
        """(batch, 1, d_model): the promoter's. Peaks whose middle is excluded or in the centre are no candidates."""
        c, sequence = self.config, batch.sequence
        starts, there = self.places(batch.peaks, batch.exclude)
        bases = (starts[..., None] + torch.arange(c.element, device=starts.device)).flatten(1)
        letters = sequence if sequence.is_floating_point() else one_hot(sequence, torch.float32)
        letters = letters.gather(1, bases[..., None].expand(-1, -1, 4)).unflatten(1, (-1, c.element))
        encoded = self.encoder(letters[there].transpose(1, 2))
        x = encoded.new_zeros(*there.shape, c.d_model).masked_scatter(there[..., None], encoded)
        features = self.features(batch.signals, starts, bases)
        x = self.described(torch.cat([x, features.to(x.dtype)], -1))
        for layer in self.layers:
            x = layer(x, ~there, self.apart)
        return x[:, :1]

    def places(self, peaks: Tensor, exclude: Tensor | None) -> tuple[Tensor, Tensor]:
        """First bases of the promoter and of the candidates, int64 (batch, 1 + elements), and which are there."""
        c = self.config
        starts = torch.zeros(peaks.shape[0], 1 + c.elements, dtype=torch.int64, device=peaks.device)
        there = torch.zeros_like(starts, dtype=torch.bool)
        starts[:, 0], there[:, 0] = centre_slice(c.length, c.element).start, True
        for row, (first, last) in enumerate(zip(*_edges(peaks), strict=True)):
            middle = (first + last) // 2
            candidate = (middle < self.centre.start) | (middle >= self.centre.stop)
            if exclude is not None:
                candidate &= ~exclude[row, middle]
            middle = middle[candidate]
            nearest = (middle - c.length // 2).abs().argsort(stable=True)[: c.elements]
            found = (middle[nearest] - c.element // 2).clamp(0, c.length - c.element)
            starts[row, 1 : 1 + len(found)], there[row, 1 : 1 + len(found)] = found, True
        return starts, there

    def features(self, signals: Tensor, starts: Tensor, bases: Tensor) -> Tensor:
        """(batch, 1 + elements, 3): distance from the TSS in kb, mean log10(1 + contact), sqrt(H3K27ac * DNase) of the
        means. All 0 for the promoter."""
        c = self.config
        columns = [c.signal_names.index(name) for name in (CONTACTS, *ACTIVITY)]
        values = signals.float()[..., columns].gather(1, bases[..., None].expand(-1, -1, 3))
        contact, *activity = values.unflatten(1, (-1, c.element)).mean(2).unbind(-1)
        distance = (starts + c.element // 2 - c.length // 2) / 1_000
        features = torch.stack([distance, contact, torch.sqrt(activity[0] * activity[1])], -1)
        features[:, 0] = 0
        return features


def _edges(peaks: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """First and last base of every run of each row, in window coordinates."""
    before, after = peaks.roll(1, 1), peaks.roll(-1, 1)
    before[:, 0] = after[:, -1] = False
    return [row.nonzero()[:, 0] for row in peaks & ~before], [row.nonzero()[:, 0] for row in peaks & ~after]
