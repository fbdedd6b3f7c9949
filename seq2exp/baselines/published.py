"""Seq2Exp as the published code computes it, in plain torch operations: what `Seq2Exp` is measured against."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from seq2exp.backbone import BackboneLayer, CaduceusBackbone
from seq2exp.baselines import published_layer as layer
from seq2exp.baselines.published_mask import published_mask
from seq2exp.config import Seq2ExpConfig
from seq2exp.errors import UserError
from seq2exp.kernels import BetaMask
from seq2exp.kernels.beta_mask.settings import centre_slice
from seq2exp.model import Seq2Exp, Seq2ExpOutput, check_inputs
from seq2exp.parts import part
from seq2exp.strands import one_hot

SCANS: dict[str, layer.Mamba] = {
    "ours": layer.mamba,
    "chunked": partial(layer.mamba, scan_step=layer.chunked_scan),
    "reference": partial(layer.mamba, scan_step=layer.reference_scan),
    "mamba_ssm": layer.fast_mamba,
}
# What the published code has; a field that is not here may have any value.
ONLY = {
    "rc_equivariant": False,
    "mask_placement": "input",
    "rule": "sum",
    "top_fraction": None,
    "smooth": 1,
    "keep_threshold": 0.0,
}


class PublishedForm(Seq2Exp):
    """The composed form of a `Seq2Exp` model: the same parameters under the same names, the same inputs and outputs.

    One-hot embedding, two Mamba modules a layer with flips, torch.distributions, a predictor over every base (soft) or
    over rows padded to the longest of the batch (hard). In hard mode the mask only indexes: whatever
    `config.task_gradient` says, the task has no gradient to the mask, and a prediction depends on its neighbours in the
    batch. Nothing is recomputed in the backward.

    Parameters
    ----------
    model: a model, whose weights are copied, or a configuration, in which case they are drawn.
    scan: "ours", `seq2exp.kernels.selective_scan`; "reference", torch operations base by base; "chunked", torch
        operations vectorised over chunks; "mamba_ssm", the fused module of that package.

    Raises
    ------
    UserError: settings that the published code does not have, an unknown scan, a package that is not installed.
    """

    def __init__(self, model: Seq2Exp | Seq2ExpConfig, scan: str = "ours") -> None:
        config = model.config if isinstance(model, Seq2Exp) else model
        _require_published(config)
        _require_scan(scan)
        super().__init__(config)
        self.scan = scan
        self.run: Callable[..., Any] = layer.call
        if isinstance(model, Seq2Exp):
            self.load_state_dict(model.state_dict())
            self.to(next(model.parameters()).device).train(model.training)

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
        """As `Seq2Exp.forward`; seed and rows have no effect, the mask is drawn from torch's generator."""
        c, run = self.config, self.run
        check_inputs(c, sequence, signals, gene_features)
        with part("embedding"):
            weight, bias = self.sequence_embedding.weight, self.sequence_embedding.bias
            letters = sequence if sequence.is_floating_point() else run(one_hot, sequence, weight.dtype)
            e = run(linear, letters, weight, bias)
            if self.position_embedding is not None:
                e = run(layer.add, e, self.position_embedding)
            both = run(layer.add, e, run(linear, signals, self.signal_embedding.weight, self.signal_embedding.bias))
        with part("generator"):
            hidden = self._through(self.generator, e if c.generator_input == "sequence" else both)
        with part("mask"):
            logits = run(linear, hidden, self.mask_head.weight, self.mask_head.bias)
            mask: BetaMask = run(self._beta_mask, logits, signals, exclude, include)
        with part("gather"):
            x = run(selected, both, mask.mask.detach()) if c.hard else run(gated, both, mask.mask)
        with part("predictor"):
            hidden = self._through(self.predictor, x)
            centre = centre_slice(c.length, c.center)
            before = (mask.mask[:, : centre.start] != 0).sum(1).tolist() if c.hard else [centre.start] * len(hidden)
            pooled = run(mean_after, hidden, before, c.center)
        with part("head"):
            expression = self.head(pooled, gene_features)
        return Seq2ExpOutput(expression, **mask._asdict(), selected_fraction=mask.mask.mean())

    def _through(self, backbone: CaduceusBackbone, x: Tensor) -> Tensor:
        """(batch, L, d) -> the same; x is the residual stream."""
        blocks = cast(Iterable[BackboneLayer], backbone.layers)
        for block in blocks:
            h = self.run(layer.rms_norm, x, block.norm.weight)
            weights, _ = block.mixer.weights(complement=False)
            x = self.run(layer.add, x, layer.bimamba(h, *weights, module=SCANS[self.scan], run=self.run))
        return self.run(layer.rms_norm, x, backbone.norm.weight)

    def _beta_mask(
        self, logits: Tensor, signals: Tensor, exclude: Tensor | None, include: Tensor | None
    ) -> BetaMask:  # fmt: skip
        c = self.config
        return published_mask(
            logits, signals, signal_weights=c.signal_weights, signal_betas=c.signal_betas, beta_min=c.beta_min,
            signal_scale=c.signal_scale, z_scale=c.z_scale, prior_mean=c.prior_mean, prior_scale=c.prior_scale,
            sample=self.training, hard=c.hard, threshold=c.threshold, exclude=exclude, include=include, center=c.center,
        )  # fmt: skip


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.linear(x.to(weight.dtype), weight, bias)


def gated(x: Tensor, mask: Tensor) -> Tensor:
    return x * mask.unsqueeze(-1).to(x.dtype)


def selected(x: Tensor, mask: Tensor) -> Tensor:
    """The rows of x (batch, L, d) where the mask is not 0, padded to the longest: (batch, longest, d)."""
    return pad_sequence([row[kept] for row, kept in zip(x, mask != 0, strict=True)], batch_first=True)


def mean_after(hidden: Tensor, before: Sequence[int], count: int) -> Tensor:
    """Mean of the `count` positions of each row that follow the first before[row]: (batch, d)."""
    return torch.stack([row[start : start + count].mean(0) for row, start in zip(hidden, before, strict=True)])


def _require_published(config: Seq2ExpConfig) -> None:
    for name, value in ONLY.items():
        if getattr(config, name, value) != value:
            raise UserError(
                f"PublishedForm: the published code has {name}={value!r} only, this model has "
                f"{getattr(config, name)!r}; take the soft or hard settings"
            )
    if config.packed != config.hard:
        raise UserError(f"PublishedForm: the published code has packed={config.hard} with hard={config.hard} only")


def _require_scan(scan: str) -> None:
    if scan not in SCANS:
        raise UserError(f"scan {scan!r} is unknown: one of {', '.join(SCANS)}")
    if scan == "mamba_ssm" and importlib.util.find_spec("mamba_ssm") is None:
        raise UserError("scan mamba_ssm: the package mamba-ssm is not installed; take ours, chunked or reference")
