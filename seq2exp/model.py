"""Seq2Exp: a generator learns a mask over the bases, a predictor reads what the mask selects."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from seq2exp.backbone import CaduceusBackbone
from seq2exp.config import BackboneFields, Seq2ExpConfig
from seq2exp.kernels import BetaMask, beta_mask, pack_selected
from seq2exp.kernels.beta_mask.settings import centre_slice
from seq2exp.parts import part
from seq2exp.pretrained import Pretrained
from seq2exp.strands import both_strands


class Seq2ExpOutput(NamedTuple):
    """expression: (batch,), log10(1 + CAGE) or whatever the target is. mask, soft_mask, alpha, beta: (batch, L).

    kl, continuity: scalars. selected_fraction: mean of the mask, scalar. All but the expression are None for a model
    without a mask.
    """

    expression: Tensor
    mask: Tensor | None = None
    soft_mask: Tensor | None = None
    alpha: Tensor | None = None
    beta: Tensor | None = None
    kl: Tensor | None = None
    continuity: Tensor | None = None
    selected_fraction: Tensor | None = None


class SequenceEmbedding(nn.Linear):
    """Codes A C G T N = 0..4 (..., L) uint8, or one-hot (..., L, 4), to (..., L, d_model). N is all zero."""

    def __init__(self, d_model: int) -> None:
        super().__init__(4, d_model)

    def forward(self, sequence: Tensor) -> Tensor:
        if sequence.is_floating_point():
            return super().forward(sequence.to(self.weight.dtype))
        table = torch.cat([self.weight.t(), self.weight.new_zeros(1, self.out_features)])
        return F.embedding(sequence.long(), table) + self.bias


class ExpressionHead(nn.Module):
    """Mean of the centre hidden states, gene features behind it, a ReLU network: (batch, d_model) -> (batch,)."""

    def __init__(self, d_model: int, gene_features: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(d_model + gene_features, d_model),
            nn.ReLU(),
            nn.Linear(d_model, d_model),
            nn.ReLU(),
            nn.Linear(d_model, 1),
        )

    def forward(self, pooled: Tensor, gene_features: Tensor | None) -> Tensor:
        if gene_features is not None:
            pooled = torch.cat([pooled, gene_features.to(pooled.dtype)], -1)
        expression = self.layers(pooled).squeeze(-1)
        return expression.to(torch.promote_types(expression.dtype, torch.float32))


class Seq2Exp(Pretrained, nn.Module):
    """Embedding, generator, Beta mask, predictor, head. Source: Seq2Exp (ICLR 2025), section 3."""

    config_class = Seq2ExpConfig
    config: Seq2ExpConfig
    position_embedding: Tensor | None

    def __init__(self, config: Seq2ExpConfig) -> None:
        super().__init__()
        self.config = config
        d = config.d_model
        self.sequence_embedding = SequenceEmbedding(d)
        self.signal_embedding = nn.Linear(config.tracks, d)
        positions = nn.Parameter(torch.randn(config.length, d) * 0.02) if config.position_embedding else None
        self.register_parameter("position_embedding", positions)
        self.predictor = _backbone(config, config.predictor_layers)
        self.generator = self.predictor if config.share_backbone else _backbone(config, config.generator_layers)
        self.mask_head = nn.Linear(d, 2)
        with torch.no_grad():
            self.mask_head.bias[1] += config.select_bias
        self.head = ExpressionHead(d, config.gene_features)

    def forward(
        self,
        sequence: Tensor,
        signals: Tensor,
        gene_features: Tensor | None = None,
        exclude: Tensor | None = None,
        include: Tensor | None = None,
        seed: int | None = None,
        rows: Tensor | None = None,
    ) -> Seq2ExpOutput:
        """Predict expression.

        Parameters
        ----------
        sequence: (batch, L) uint8 codes A C G T N = 0..4, or (batch, L, 4) one-hot floats with N all zero.
        signals: (batch, L, tracks), >= 0, contacts last, genome orientation. gene_features: (batch, gene_features).
        exclude, include: bool (batch, L), bases that the mask may not or must select.
        seed, rows: in training the mask is drawn as a function of (seed, rows[b], position); rows: int64 (batch,),
            global sample numbers. Without a seed it is drawn from torch's generator. In evaluation it is the Beta mean.

        Raises
        ------
        ValueError: shapes that do not fit the configuration, negative or non-finite signals. TypeError: wrong dtypes.
        """
        check_inputs(self.config, sequence, signals, gene_features)
        with part("embedding"):
            e = self.sequence_embedding(both_strands(sequence) if self.config.rc_equivariant else sequence)
            if self.position_embedding is not None:
                e = e + self._positions(self.position_embedding).to(e.dtype)
            both = e + self.signal_embedding(signals.to(self.signal_embedding.weight.dtype)).to(e.dtype)
        with part("generator"):
            hidden = self.generator(e if self.config.generator_input == "sequence" else both)
        with part("mask"):
            mask = self._mask(self._over_strands(self.mask_head(hidden)), signals, exclude, include, seed, rows)
        gate = mask.mask.detach() if self.config.hard and not self.config.task_gradient else mask.mask
        pooled = self._over_strands(self._packed(both, gate) if self.config.packed else self._dense(both, gate))
        with part("head"):
            expression = self.head(pooled, gene_features)
        return Seq2ExpOutput(expression, **mask._asdict(), selected_fraction=mask.mask.mean())

    def _mask(
        self, logits: Tensor, signals: Tensor, exclude: Tensor | None, include: Tensor | None, seed: int | None,
        rows: Tensor | None,
    ) -> BetaMask:  # fmt: skip
        c = self.config
        return beta_mask(
            logits, signals, signal_weights=c.signal_weights, signal_betas=c.signal_betas, beta_min=c.beta_min,
            signal_scale=c.signal_scale, z_scale=c.z_scale, prior_mean=c.prior_mean, prior_scale=c.prior_scale,
            sample=self.training, hard=c.hard, threshold=c.threshold, top_fraction=c.top_fraction, exclude=exclude,
            include=include, center=c.center, rule=c.rule, seed=seed, rows=rows,
        )  # fmt: skip

    def _positions(self, p: Tensor) -> Tensor:
        """p (L, d_model) itself, or for both strands (2, 1, L, d_model): the second counts from the other end."""
        return torch.stack([p, p.flip(0)])[:, None] if self.config.rc_equivariant else p

    def _over_strands(self, x: Tensor) -> Tensor:
        """The mean of both strands, or x itself where there is one."""
        return x.mean(0) if self.config.rc_equivariant else x

    def _gate(self, mask: Tensor) -> Tensor | None:
        return mask if self.config.mask_placement == "every_layer" else None

    # x is (batch, L, d_model), or both strands (2, batch, L, d_model) under one mask; the mean of the centre likewise.

    def _dense(self, x: Tensor, mask: Tensor) -> Tensor:
        """The predictor over every base of x * mask; mean of the centre, (..., batch, d_model)."""
        with part("gather"):
            gated = x * mask.unsqueeze(-1).to(x.dtype)
        with part("predictor"):
            hidden = self.predictor(gated, gate=self._gate(mask))
            return hidden[..., centre_slice(x.shape[-2], self.config.center), :].mean(-2)

    def _packed(self, x: Tensor, mask: Tensor) -> Tensor:
        """The predictor over the selected bases, each row a sequence; mean of the centre, (..., batch, d_model)."""
        batch, length = mask.shape
        with part("gather"):
            if self.config.rc_equivariant:
                packed, complements = (pack_selected(strand, mask) for strand in x.unbind(0))
                values = torch.stack([packed.values, complements.values])
            else:
                packed = pack_selected(x, mask)
                values = packed.values
            gate = self._gate(mask.flatten()[packed.indices][None])
        with part("predictor"):
            hidden = self.predictor(values.unsqueeze(-3), gate=gate, cu_seqlens=packed.cu_seqlens).squeeze(-3)
            centre = centre_slice(length, self.config.center)
            position = packed.indices % length
            at_centre = (position >= centre.start) & (position < centre.stop)  # all of the centre is always selected
            return hidden[..., at_centre, :].unflatten(-2, (batch, self.config.center)).mean(-2)


def _backbone(config: Seq2ExpConfig, n_layers: int) -> CaduceusBackbone:
    return CaduceusBackbone(
        config.d_model, n_layers, d_state=config.d_state, d_conv=config.d_conv, expand=config.expand,
        recompute=config.recompute, rc_equivariant=config.rc_equivariant,
    )  # fmt: skip


def check_inputs(
    config: BackboneFields, sequence: Tensor, signals: Tensor | None, gene_features: Tensor | None
) -> None:
    """Shapes and dtypes of a batch against a configuration; ValueError or TypeError in one sentence."""
    one_hot = sequence.dim() == 3
    if sequence.dim() not in (2, 3) or (one_hot and sequence.shape[2] != 4) or sequence.shape[1] != config.length:
        raise ValueError(
            f"sequence must be codes (batch, {config.length}) or one-hot (batch, {config.length}, 4), "
            f"got {tuple(sequence.shape)}"
        )
    if one_hot != sequence.is_floating_point():
        raise TypeError(
            f"sequence of {sequence.dim()} axes is {sequence.dtype}: codes are uint8, one-hot is floating point"
        )
    batch = sequence.shape[0]
    if signals is not None and tuple(signals.shape) != (batch, config.length, config.tracks):
        raise ValueError(f"signals must be ({batch}, {config.length}, {config.tracks}), got {tuple(signals.shape)}")
    fits = not config.gene_features if gene_features is None else gene_features.shape == (batch, config.gene_features)
    if not fits:
        shape = None if gene_features is None else tuple(gene_features.shape)
        raise ValueError(f"gene_features must be ({batch}, {config.gene_features}), got {shape}")
