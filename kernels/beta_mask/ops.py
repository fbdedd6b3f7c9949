"""`beta_mask`: checks and the registered op (schema, fake, autograd)."""

from __future__ import annotations

import importlib
import math
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from seq2exp.kernels import backend as backends
from seq2exp.kernels.beta_mask.settings import BetaMask, Saved, Settings, wide_dtype

RULES = ("sum", "product")

_MODULES = {"reference": "reference", "cpu": "native", "triton": "triton", "cuda": "cuda"}

_SETTINGS = (
    "float beta_min, float signal_scale, float z_scale, float prior_mean, float prior_scale, bool sample, bool hard, "
    "float threshold, float? top_fraction, int smooth, int center, str rule, SymInt seed, str backend"
)  # SymInt: a compiled model takes a new seed at every step without being compiled again
_OUTPUTS = BetaMask._fields


def _implementation(backend: str) -> ModuleType:
    """Imported when first used: `import seq2exp` needs no Triton."""
    return importlib.import_module(f"seq2exp.kernels.beta_mask.{_MODULES[backend]}")


@torch.library.custom_op(
    "seq2exp::beta_mask_fwd", mutates_args=(),
    schema="(Tensor seq_logits, Tensor signals, Tensor signal_weights, Tensor signal_betas, Tensor? exclude, "
    f"Tensor? include, Tensor rows, {_SETTINGS}) -> ({', '.join(['Tensor'] * 8)})",
)  # fmt: skip
def _forward(
    seq_logits: Tensor, signals: Tensor, signal_weights: Tensor, signal_betas: Tensor, exclude: Tensor | None,
    include: Tensor | None, rows: Tensor, *settings: Any, **named: Any,
) -> tuple[Tensor, ...]:  # fmt: skip
    """The outputs, then the logit of the sample and the marks of the backward (see `settings.Saved`)."""
    *scalars, backend = (*settings, *named.values())
    s = Settings(*scalars)
    out, saved, lowest = _implementation(backend).forward(
        seq_logits, signals, signal_weights, signal_betas, exclude, include, rows, s
    )
    _check_values(*lowest.tolist(), s.rule)
    # a custom op may not return one tensor twice
    return *out, saved.logit, saved.marks


@_forward.register_fake
def _(seq_logits, signals, *rest):
    batch, length, _ = seq_logits.shape
    wide = wide_dtype(seq_logits)
    s = Settings(*rest[5:-1])
    dense = [seq_logits.new_empty(batch, length, dtype=wide) for _ in range(4)]
    sums = [seq_logits.new_empty((), dtype=wide) for _ in range(2)]
    logit = seq_logits.new_empty((batch, length) if s.sample else (0,), dtype=wide)
    return *dense, *sums, logit, seq_logits.new_empty(batch, length, dtype=torch.uint8)


@torch.library.custom_op(
    "seq2exp::beta_mask_bwd", mutates_args=(),
    schema=f"({', '.join(f'Tensor? grad_{name}' for name in _OUTPUTS)}, Tensor seq_logits, Tensor? signals, "
    "Tensor signal_weights, Tensor signal_betas, Tensor alpha, Tensor beta, Tensor logit, Tensor marks, "
    f"bool for_signals, bool for_tracks, {_SETTINGS}) -> Tensor[]",
)  # fmt: skip
def _backward(*args: Any, **named: Any) -> list[Tensor]:
    """Gradients of seq_logits, then if asked for of signals, of signal_weights and of signal_betas."""
    args = (*args, *named.values())
    grads, inputs, saved, (for_signals, for_tracks, *scalars, backend) = args[:6], args[6:10], args[10:14], args[14:]
    return _implementation(backend).backward(
        BetaMask(*grads), *inputs, Saved(*saved), Settings(*scalars), for_signals, for_tracks
    )


@_backward.register_fake
def _(*args):
    seq_logits, signals, weights, betas = args[6:10]
    for_signals, for_tracks = args[14:16]
    wanted = [seq_logits, *([signals] if for_signals else []), *([weights, betas] if for_tracks else [])]
    return [torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in wanted]


def _setup_context(ctx, inputs, output) -> None:
    seq_logits, signals, weights, betas, _, _, _, *ctx.settings = inputs
    _, _, alpha, beta, _, _, logit, marks = output
    _, ctx.for_signals, for_weights, for_betas, *_ = ctx.needs_input_grad
    ctx.for_tracks = for_weights or for_betas
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(logit, marks)
    kept = signals if ctx.for_signals or for_weights else None
    ctx.save_for_backward(seq_logits, kept, weights, betas, alpha, beta, logit, marks)


def _autograd(ctx, *grads):
    grad_logits, *rest = _backward(*grads[:6], *ctx.saved_tensors, ctx.for_signals, ctx.for_tracks, *ctx.settings)
    grad_signals = rest.pop(0) if ctx.for_signals else None
    grad_weights, grad_betas = rest if ctx.for_tracks else (None, None)
    return grad_logits, grad_signals, grad_weights, grad_betas, *[None] * (3 + len(ctx.settings))


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
    smooth: int = 1,
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
    top_fraction: keep the floor(top_fraction * L) bases with the largest mean, at 1 (hard) or at their value; of equal
        ones the first.
    smooth: an odd width in bases. Threshold and top_fraction look at the largest value within this width around each
        base, so that whole stretches are selected; 1: at the base itself.
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
    _check_smooth(smooth, hard or top_fraction is not None)
    wide = wide_dtype(seq_logits)
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
    chosen = backends.resolve("beta_mask", seq_logits.device, seq_logits.dtype)
    if seq_logits.numel() == 0:
        raise ValueError(f"beta_mask: empty input, seq_logits is {tuple(seq_logits.shape)}")
    return BetaMask(
        *_forward(
            seq_logits, signals, weights, betas, exclude, include, rows.to(seq_logits.device), float(beta_min),
            float(signal_scale), float(z_scale), float(prior_mean), float(prior_scale), sample, hard, float(threshold),
            top_fraction, smooth, center, rule, seed, chosen,
        )[:6]
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
    if not 0 < prior_scale < math.inf:
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


def _check_smooth(smooth: int, selects: bool) -> None:
    if smooth < 1 or smooth % 2 == 0:
        raise ValueError(f"beta_mask: smooth {smooth} must be odd and positive")
    if smooth > 1 and not selects:
        raise ValueError("beta_mask: smooth widens what is selected: it needs hard=True or top_fraction")


def _check_values(signal: float, alpha: float, beta: float, rule: str) -> None:
    """Of the smallest values; a NaN signal stands for any that is not finite. NaN logits pass: their mask is NaN."""
    if math.isnan(signal):
        raise ValueError("beta_mask: signals contain NaN or inf; replace them by 0 (the store reader does)")
    if signal < 0:
        raise ValueError(f"beta_mask: signals must be >= 0, the smallest is {signal:g}; clip or shift the track")
    for name, x in (("alpha", alpha), ("beta", beta)):
        if rule == "product" and x <= 0:
            raise ValueError(
                f"beta_mask: rule='product' leaves the domain, the smallest {name} is {x:g} and must be "
                "> 0; raise beta_min or signal_scale, or use rule='sum'"
            )
