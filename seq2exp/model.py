"""Seq2Exp: a generator learns a mask over the bases, a predictor reads what the mask selects."""

from __future__ import annotations

import math
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from seq2exp.backbone import CaduceusBackbone
from seq2exp.config import Seq2ExpConfig, WindowFields
from seq2exp.embedding import Embedding, SequenceEmbedding
from seq2exp.errors import UserError
from seq2exp.kernels import BetaMask, beta_mask
from seq2exp.kernels.beta_mask.settings import centre_slice
from seq2exp.kernels.gather import Selection, select
from seq2exp.parts import part
from seq2exp.pretrained import Pretrained

HEAD_BASES = 1 << 18  # that the mask head works on at a time


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


class ExpressionHead(nn.Module):
    """Mean of the centre hidden states, gene features behind it, a ReLU network: (batch, d_model) -> (batch,).

    hidden: its width; None: d_model.
    """

    def __init__(self, d_model: int, gene_features: int, hidden: int | None = None) -> None:
        super().__init__()
        hidden = hidden or d_model
        self.layers = nn.Sequential(
            nn.Linear(d_model + gene_features, hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Linear(hidden, 1),
        )

    def forward(self, pooled: Tensor, gene_features: Tensor | None) -> Tensor:
        if gene_features is not None:
            pooled = torch.cat([pooled, gene_features.to(pooled.dtype)], -1)
        for layer in self.layers:
            pooled = _row_by_row(layer, pooled) if isinstance(layer, nn.Linear) else layer(pooled)
        expression = pooled.squeeze(-1)
        return expression.to(torch.promote_types(expression.dtype, torch.float32))


def _row_by_row(layer: nn.Linear, x: Tensor) -> Tensor:
    """layer(x) for x (batch, in). A matrix product of one row differs from that of many in the last bits, and a gene's
    prediction must not depend on its neighbours."""
    return (x.unsqueeze(1) * layer.weight).sum(-1) + layer.bias


class Seq2Exp(Pretrained, nn.Module):
    """Embedding, generator, Beta mask, predictor, head. Source: Seq2Exp (ICLR 2025), section 3."""

    config_class = Seq2ExpConfig
    has_mask = True
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
        mask = self.mask(sequence, signals, exclude, include, seed, rows)
        gate = mask.mask.detach() if self.config.hard and not self.config.task_gradient else mask.mask
        expression = self.predict(sequence, signals, gate, gene_features)
        return Seq2ExpOutput(expression, **mask._asdict(), selected_fraction=mask.mask.mean())

    def mask(
        self,
        sequence: Tensor,
        signals: Tensor,
        exclude: Tensor | None = None,
        include: Tensor | None = None,
        seed: int | None = None,
        rows: Tensor | None = None,
    ) -> BetaMask:
        """The generator and the mask alone. Inputs as of `forward`."""
        strands = (False, True) if self.config.rc_equivariant else (False,)
        tracks = signals if self.config.generator_input == "sequence+signals" else None
        logits = [self._mask_logits(sequence, tracks, complement) for complement in strands]
        with part("mask"):
            return self._mask(_mean(logits), signals, exclude, include, seed, rows)

    def predict(self, sequence: Tensor, signals: Tensor, mask: Tensor, gene_features: Tensor | None = None) -> Tensor:
        """Expression (batch,) under a given mask (batch, L), whose centre is 1: the predictor and the head alone."""
        strands = (False, True) if self.config.rc_equivariant else (False,)
        with part("gather"):
            mask, selection = self._select(mask)
        pooled = [self._pooled(sequence, signals, mask, selection, complement) for complement in strands]
        with part("head"):
            return self.head(_mean(pooled), gene_features)

    def _embedding(self, with_signals: bool) -> Embedding:
        sequence, signals = self.sequence_embedding, self.signal_embedding
        bias, weight = (sequence.bias + signals.bias, signals.weight) if with_signals else (sequence.bias, None)
        return Embedding(self.config, sequence.weight, bias, weight, self.position_embedding)

    def _mask_logits(self, sequence: Tensor, signals: Tensor | None, complement: bool) -> Tensor:
        """(batch, L, 2), in genome orientation. The mask head takes some bases at a time, recomputed in the backward:
        no hidden states are kept for it."""
        with part("embedding"):
            x = self._embedding(signals is not None)(sequence, signals, complement=complement)
        with part("generator"):
            stream = self.generator.stream(x, complement=complement)
            del x
        with part("mask"):
            at_a_time = max(1, HEAD_BASES // sequence.shape[0])
            pieces = zip(*(x.split(at_a_time, 1) for x in stream), strict=True)
            recomputed = partial(checkpoint, self._head_logits, use_reentrant=False, preserve_rng_state=False)
            return torch.cat([recomputed(*piece) for piece in pieces], 1)

    def _head_logits(self, x: Tensor, residual: Tensor) -> Tensor:
        return self.mask_head(self.generator.normalised(x, residual))

    def _mask(
        self, logits: Tensor, signals: Tensor, exclude: Tensor | None, include: Tensor | None, seed: int | None,
        rows: Tensor | None,
    ) -> BetaMask:  # fmt: skip
        c = self.config
        return beta_mask(
            logits, signals, signal_weights=c.signal_weights, signal_betas=c.signal_betas, beta_min=c.beta_min,
            signal_scale=c.signal_scale, z_scale=c.z_scale, prior_mean=c.prior_mean, prior_scale=c.prior_scale,
            sample=self.training, hard=c.hard, threshold=c.threshold, top_fraction=c.top_fraction, smooth=c.smooth,
            exclude=exclude, include=include, center=c.center, rule=c.rule, seed=seed, rows=rows,
        )  # fmt: skip

    def _select(self, mask: Tensor) -> tuple[Tensor, Selection | None]:
        """The mask that multiplies, (batch, L), and which of the bases the predictor reads, None for all."""
        c = self.config
        if not c.packs:
            return mask, None
        if c.keep_threshold:
            mask = mask.where(mask >= c.keep_threshold, 0.0)
        if c.capacity is None:
            return mask, select(mask)
        room = max(1, math.ceil(c.capacity * mask.numel()))
        try:
            return mask, select(mask, capacity=room)
        except ValueError:  # on the CPU; on a GPU, where nobody waits, the prediction is NaN
            needed = int((mask != 0).sum())
            raise UserError(
                f"model.capacity {c.capacity:g} has room for {room} of the batch's {mask.numel()} bases, the mask "
                f"selects {needed}: give at least {math.ceil(1000 * needed / mask.numel()) / 1000:g}"
            ) from None

    def _pooled(
        self, sequence: Tensor, signals: Tensor, mask: Tensor, selection: Selection | None, complement: bool
    ) -> Tensor:
        """The predictor on one strand, each row's selected bases a sequence; mean of the centre, (batch, d_model)."""
        c = self.config
        with part("gather"):
            x = self._embedding(True)(sequence, signals, mask=mask, selection=selection, complement=complement)
        with part("predictor"):
            gate = mask if c.mask_placement == "every_layer" else None
            if selection is None:
                stream = self.predictor.stream(x, gate=gate, complement=complement)
                centre = centre_slice(c.length, c.center)
                at_centre = [x[:, centre] for x in stream]
            else:
                gate = None if gate is None else _gathered(gate, selection.indices)[None]
                stream = self.predictor.stream(
                    x[None], gate=gate, cu_seqlens=selection.cu_seqlens, complement=complement
                )
                places = _centre_places(selection.indices, mask.shape[0], c.length, c.center)
                at_centre = [x[0].index_select(0, places).unflatten(0, (-1, c.center)) for x in stream]
            del x
            hidden = self.predictor.normalised(*at_centre)
            return hidden.mean(1, dtype=torch.promote_types(hidden.dtype, torch.float32))


def _mean(strands: list[Tensor]) -> Tensor:
    """Over both strands, or of the only one."""
    return strands[0] if len(strands) == 1 else torch.stack(strands).mean(0)


def _gathered(mask: Tensor, indices: Tensor) -> Tensor:
    """mask (batch, L) at indices (total,); 0 behind the end, where a capacity has padding."""
    inside = (indices >= 0) & (indices < mask.numel())
    return mask.flatten().index_select(0, indices.clamp(0, mask.numel() - 1)).where(inside, 0.0)


def _centre_places(indices: Tensor, batch: int, length: int, center: int) -> Tensor:
    """Where in the ascending indices the centre of each row is, (batch * center,): all of it is always selected."""
    first = torch.arange(batch, device=indices.device) * length + centre_slice(length, center).start
    places = torch.searchsorted(indices, first)[:, None] + torch.arange(center, device=indices.device)
    return places.flatten().clamp(max=indices.shape[0] - 1)  # of a selection beyond its capacity, all of which is NaN


def _backbone(config: Seq2ExpConfig, n_layers: int) -> CaduceusBackbone:
    return CaduceusBackbone(
        config.d_model, n_layers, d_state=config.d_state, d_conv=config.d_conv, expand=config.expand,
        recompute=config.recompute, rc_equivariant=config.rc_equivariant,
    )  # fmt: skip


def check_inputs(config: WindowFields, sequence: Tensor, signals: Tensor | None, gene_features: Tensor | None) -> None:
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
