"""`beta_mask`: checks and the registered op (schema, fake, autograd)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from seq2exp.kernels import backend
from seq2exp.kernels.beta_mask import reference
from seq2exp.kernels.beta_mask.reference import BetaMask, Settings

RULES = ("sum", "product")

_INPUTS = (
    "Tensor seq_logits, Tensor signals, Tensor signal_weights, Tensor signal_betas, Tensor? exclude, Tensor? include, "
    "Tensor rows, float beta_min, float signal_scale, float z_scale, float prior_mean, float prior_scale, bool sample, "
    "bool hard, float threshold, float? top_fraction, int center, str rule, int seed"
)
_OUTPUTS = "Tensor mask, Tensor soft_mask, Tensor alpha, Tensor beta, Tensor kl, Tensor continuity"
N_TENSORS = 7  # of _INPUTS, before the scalars of Settings


@torch.library.custom_op(
    "seq2exp::beta_mask_fwd", mutates_args=(), schema=f"({_INPUTS}) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
)
def _forward(
    seq_logits: Tensor, signals: Tensor, signal_weights: Tensor, signal_betas: Tensor, exclude: Tensor | None,
    include: Tensor | None, rows: Tensor, *settings: object, **named: object,
) -> tuple[Tensor, ...]:  # fmt: skip
    _check_values(signals)
    s = Settings(*settings, **named)
    out = reference.mask_forward(seq_logits, signals, signal_weights, signal_betas, exclude, include, rows, s)
    if s.rule == "product":
        _check_domain(out)
    return tuple(out)


@_forward.register_fake
def _(seq_logits, signals, *rest, **named):
    wide = reference.wide_dtype(seq_logits)
    dense = [seq_logits.new_empty(seq_logits.shape[:2], dtype=wide) for _ in range(4)]
    return (*dense, seq_logits.new_empty((), dtype=wide), seq_logits.new_empty((), dtype=wide))


@torch.library.custom_op(
    "seq2exp::beta_mask_bwd",
    mutates_args=(),
    schema="("
    + ", ".join(f"Tensor grad_{x.split()[1]}" for x in _OUTPUTS.split(", "))
    + f", {_OUTPUTS}, {_INPUTS}) -> (Tensor, Tensor, Tensor, Tensor)",
)
def _backward(*args: object, **named: object) -> tuple[Tensor, ...]:
    args = (*args, *named.values())
    grads, forward, tensors, settings = args[:6], args[6:12], args[12 : 12 + N_TENSORS], args[12 + N_TENSORS :]
    return tuple(reference.mask_backward(BetaMask(*grads), BetaMask(*forward), *tensors[:6], Settings(*settings)))


@_backward.register_fake
def _(*args, **named):
    args = (*args, *named.values())
    return tuple(torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in args[12:16])


def _setup_context(ctx, inputs, output) -> None:
    ctx.settings = inputs[N_TENSORS:]
    ctx.save_for_backward(*output, *inputs[:N_TENSORS])


def _autograd(ctx, *grads):
    saved = ctx.saved_tensors
    grads = [torch.zeros_like(x) if g is None else g for g, x in zip(grads, saved[:6], strict=True)]
    return *_backward(*grads, *saved, *ctx.settings), *[None] * (3 + len(ctx.settings))


_forward.register_autograd(_autograd, setup_context=_setup_context)


def beta_mask(
    seq_logits: Tensor,
    signals: Tensor,
    *,
    signal_weights: Tensor | Sequence[float],
    signal_betas: Tensor | Sequence[float],
    beta_min: float,
    signal_scale: float,
    z_scale: float = 1.0,
    prior_mean: float,
    prior_scale: float,
    sample: bool,
    hard: bool = False,
    threshold: float = 0.5,
    top_fraction: float | None = None,
    exclude: Tensor | None = None,
    include: Tensor | None = None,
    center: int = 0,
    rule: str = "sum",
    seed: int | None = None,
    rows: Tensor | None = None,
) -> BetaMask:
    """The Seq2Exp mask: Beta concentrations from sequence and signals, a sample or the mean, selection, regions, KL.

    Parameters
    ----------
    seq_logits: (batch, L, 2); [..., 1] selects, [..., 0] rejects.
    signals: (batch, L, tracks), finite and >= 0.
    signal_weights, signal_betas: one number per track.
    beta_min, signal_scale, z_scale, rule: how the concentrations combine, see `reference`; rule is "sum" (the published
        code) or "product" (paper, Prop. 2).
    prior_mean, prior_scale: the Beta prior of the KL is Beta(scale, scale (1 - mean) / mean).
    sample: draw from the Beta (training) or take its mean (evaluation).
    hard: a binary mask with straight-through gradient, by threshold or by top_fraction.
    top_fraction: keep the floor(top_fraction * L) bases with the largest mean, at 1 (hard) or at their value.
    exclude, include: bool (batch, L), bases forced to 0 or 1. A base in both is included.
    center: the width in bases of the centre, which is always 1.
    seed, rows: sampling is a function of (seed, rows[b], position) alone. rows: int64 (batch,), default 0..batch-1;
        seed: default drawn from torch's generator.

    Returns
    -------
    BetaMask(mask, soft_mask, alpha, beta, kl, continuity), float32 (float64 for float64 logits).

    Raises
    ------
    ValueError: shapes or numbers that do not fit, negative or non-finite signals, concentrations <= 0 under "product".
    TypeError: dtypes that do not fit.
    """
    batch, length = _check(seq_logits, signals, prior_mean, prior_scale, threshold, top_fraction, center, rule)
    wide = reference.wide_dtype(seq_logits)
    weights = torch.as_tensor(signal_weights, dtype=wide, device=seq_logits.device)
    betas = torch.as_tensor(signal_betas, dtype=wide, device=seq_logits.device)
    for name, x in (("signal_weights", weights), ("signal_betas", betas)):
        if tuple(x.shape) != (signals.shape[2],):
            raise ValueError(f"beta_mask: signals have {signals.shape[2]} tracks, {name} has shape {tuple(x.shape)}")
    for name, x in (("exclude", exclude), ("include", include)):
        if x is not None and (x.dtype != torch.bool or tuple(x.shape) != (batch, length)):
            raise ValueError(f"beta_mask: {name} must be bool ({batch}, {length}), got {x.dtype} {tuple(x.shape)}")
    if rows is None:
        rows = torch.arange(batch, device=seq_logits.device)
    if rows.dtype != torch.int64 or tuple(rows.shape) != (batch,):
        raise ValueError(f"beta_mask: rows must be int64 ({batch},), got {rows.dtype} {tuple(rows.shape)}")
    if seed is None:
        seed = int(torch.randint(2**62, ())) if sample else 0
    backend.resolve("beta_mask", seq_logits.device, seq_logits.dtype)
    return BetaMask(
        *_forward(
            seq_logits, signals, weights, betas, exclude, include, rows.to(seq_logits.device), float(beta_min),
            float(signal_scale), float(z_scale), float(prior_mean), float(prior_scale), sample, hard, float(threshold),
            top_fraction, center, rule, seed,
        )
    )  # fmt: skip


def _check(
    seq_logits: Tensor, signals: Tensor, prior_mean: float, prior_scale: float, threshold: float,
    top_fraction: float | None, center: int, rule: str,
) -> tuple[int, int]:  # fmt: skip
    if seq_logits.dim() != 3 or seq_logits.shape[2] != 2:
        raise ValueError(f"beta_mask: seq_logits must be (batch, L, 2), got {tuple(seq_logits.shape)}")
    if signals.dim() != 3 or signals.shape[:2] != seq_logits.shape[:2]:
        raise ValueError(
            f"beta_mask: signals must be (batch, L, tracks) with the (batch, L) of seq_logits, "
            f"got {tuple(signals.shape)} and {tuple(seq_logits.shape)}"
        )
    for name, x in (("seq_logits", seq_logits), ("signals", signals)):
        if not x.is_floating_point():
            raise TypeError(f"beta_mask: {name} is {x.dtype}; a floating point dtype is needed")
    if not 0 < prior_mean < 1:
        raise ValueError(f"beta_mask: prior_mean {prior_mean} is outside (0, 1)")
    if not (prior_scale > 0 and math.isfinite(prior_scale)):
        raise ValueError(f"beta_mask: prior_scale {prior_scale} must be positive")
    if not 0 <= threshold <= 1:
        raise ValueError(f"beta_mask: threshold {threshold} is outside [0, 1]")
    if top_fraction is not None and not 0 <= top_fraction <= 1:
        raise ValueError(f"beta_mask: top_fraction {top_fraction} is outside [0, 1]")
    if rule not in RULES:
        raise ValueError(f"beta_mask: rule {rule!r} is none of {', '.join(RULES)}")
    batch, length, _ = seq_logits.shape
    if not 0 <= center <= length:
        raise ValueError(f"beta_mask: center {center} is outside 0..L = {length}")
    return batch, length


def _check_values(signals: Tensor) -> None:
    if not bool(torch.isfinite(signals).all()):
        raise ValueError("beta_mask: signals contain NaN or inf; replace them by 0 (the store reader does)")
    if bool((signals < 0).any()):
        raise ValueError(
            f"beta_mask: signals must be >= 0, the smallest is {float(signals.min()):g}; clip or shift the track"
        )


def _check_domain(out: BetaMask) -> None:
    for name, x in (("alpha", out.alpha), ("beta", out.beta)):
        if bool((x <= 0).any()):
            raise ValueError(
                f"beta_mask: rule='product' leaves the domain, the smallest {name} is {float(x.min()):g} and must be "
                "> 0; raise beta_min or signal_scale, or use rule='sum'"
            )
