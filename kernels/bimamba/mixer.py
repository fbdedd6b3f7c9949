"""A mixer from its parts, forward and backward. The parts are a backend's; see `direction.py`.

The backward gets the mixer's input and the chunk states, and recomputes the rest: projections and convolution as they
were, the states within a chunk (and with them y) inside the scan's backward. Both work on some rows of the batch at a
time, so that their temporaries (thousands of bytes a base) do not grow with the batch.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from seq2exp.kernels.bimamba.direction import Direction, Taps
from seq2exp.kernels.bimamba.reference import ScanWeights

_MODULES = {"reference": "composed", "cpu": "native", "triton": "triton", "cuda": "cuda"}

# Bases at a time, of whole rows. On a GPU the forward scan needs the warps of 8 rows of 200,000 bases and 256 channels;
# the backward cuts L anyway.
FORWARD_BASES, BACKWARD_BASES = 1 << 21, 1 << 18

Outputs = Iterable[Tensor]


def parts(backend: str) -> ModuleType:
    """Imported when first used: `import seq2exp` needs no Triton."""
    return importlib.import_module(f"seq2exp.kernels.bimamba.{_MODULES[backend]}")


class Weights(NamedTuple):
    """in_proj, out_proj and x_proj in the dtype of the signals, the rest float32 (float64 with float64 signals)."""

    projections: list[tuple[Tensor, Tensor]]  # (in_proj, out_proj): one pair when tied, else of fwd and of rev
    directions: list[ScanWeights]  # fwd, rev

    @classmethod
    def of(cls, flat: list[Tensor]) -> Weights:
        n = len(ScanWeights._fields)
        pairs = [(flat[0], flat[1]), *([] if len(flat) == 2 + 2 * n else [(flat[-2], flat[-1])])]
        return cls(pairs, [ScanWeights(*flat[2 + i * n : 2 + (i + 1) * n]) for i in (0, 1)])

    def flat(self) -> list[Tensor]:
        first, *others = self.projections
        return [*first, *self.directions[0], *self.directions[1], *(x for pair in others for x in pair)]


def by_rows(
    shape: tuple[int, int], bases: int, run: Callable[[slice], tuple[Outputs, Outputs]]
) -> tuple[list[Tensor], list[Tensor]]:
    """Calls run on slices of the rows of a batch of this shape (batch, L), about `bases` at a time.

    run gives tensors whose first axis is that of the rows (or a multiple), put one after the other here, and
    tensors that are summed here, at least in float32.
    """
    batch, length = shape
    step = -(-batch // -(-batch // max(1, bases // length)))  # slices of one size
    if batch <= step:
        rowwise, sums = run(slice(0, batch))
        return list(rowwise), list(sums)
    outs: list[Tensor] = []
    totals: list[Tensor] = []
    for start in range(0, batch, step):
        rows = slice(start, min(start + step, batch))
        rowwise, sums = run(rows)
        pieces, addends = list(rowwise), [x.to(torch.promote_types(x.dtype, torch.float32)) for x in sums]
        per_row = [x.shape[0] // (rows.stop - rows.start) for x in pieces]
        if not outs:
            outs = [x.new_empty(batch * n, *x.shape[1:]) for x, n in zip(pieces, per_row, strict=True)]
        for out, piece, n in zip(outs, pieces, per_row, strict=True):
            out[rows.start * n : rows.stop * n] = piece
        totals = [x + y for x, y in zip(totals, addends, strict=True)] if totals else addends
        del pieces, rowwise
    return outs, totals


def states_of(states: Tensor, batch: int, rows: slice) -> Tensor:
    """The chunk states of some rows."""
    return states.unflatten(0, (batch, -1))[rows].flatten(0, 1)


def forward(
    backend: str, h: Tensor, weights: list[Tensor], multiply: bool, cu_seqlens: Tensor | None, save_states: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """out (batch, L, d) and the chunk states of both directions (empty unless save_states)."""

    def run(rows: slice) -> tuple[Outputs, Outputs]:
        return forward_rows(backend, h[rows], weights, multiply, cu_seqlens, save_states), ()

    out, states_fwd, states_rev = by_rows(tuple(h.shape[:2]), FORWARD_BASES, run)[0]
    return out, states_fwd, states_rev


def backward(
    backend: str, grad_out: Tensor, h: Tensor, weights: list[Tensor], multiply: bool, cu_seqlens: Tensor | None,
    states: list[Tensor],
) -> tuple[Tensor, list[Tensor]]:  # fmt: skip
    """Gradients of h and of the weights, in their order."""

    def run(rows: slice) -> tuple[Outputs, Outputs]:
        own = [states_of(x, h.shape[0], rows) for x in states]
        grad_h, grads = backward_rows(backend, grad_out[rows], h[rows], weights, multiply, cu_seqlens, own)
        return [grad_h], grads

    (grad_h,), grads = by_rows(tuple(h.shape[:2]), BACKWARD_BASES, run)
    return grad_h, grads


def forward_rows(
    backend: str, h: Tensor, weights: list[Tensor], multiply: bool, cu_seqlens: Tensor | None, save_states: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """`forward`, of all rows at once."""
    m, w = parts(backend), Weights.of(weights)
    if len(w.projections) == 1 and not multiply:
        return _joint_forward(m, h, w, cu_seqlens, save_states)
    (out, states_fwd), (other, states_rev) = (
        _single_forward(m, h, w, i, cu_seqlens, save_states) for i in range(2)
    )  # fmt: skip
    return out * other if multiply else out + other, states_fwd, states_rev


def backward_rows(
    backend: str, grad_out: Tensor, h: Tensor, weights: list[Tensor], multiply: bool, cu_seqlens: Tensor | None,
    states: list[Tensor],
) -> tuple[Tensor, list[Tensor]]:  # fmt: skip
    """`backward`, of all rows at once."""
    m, w = parts(backend), Weights.of(weights)
    if len(w.projections) == 1 and not multiply:
        grad_h, grads = _joint_backward(m, grad_out, h, w, cu_seqlens, states)
        return grad_h, grads.flat()
    grad_outs = [grad_out, grad_out]
    if multiply:  # the gradient of each factor needs the other, which is not saved
        grad_outs = [grad_out * _single_forward(m, h, w, 1 - i, cu_seqlens, False)[0] for i in range(2)]
    (grad_h, pair, fwd), (other, other_pair, rev) = (
        _single_backward(m, grad_outs[i], h, w, i, cu_seqlens, states[i]) for i in range(2)
    )
    if len(w.projections) == 1:
        pairs = [(pair[0] + other_pair[0], pair[1] + other_pair[1])]
    else:
        pairs = [pair, other_pair]
    return grad_h.add_(other), Weights(pairs, [fwd, rev]).flat()


# --- tied projections, the directions added: one projection each way, one gate ----------------------------------------


def _joint_forward(
    m: ModuleType, h: Tensor, w: Weights, cu_seqlens: Tensor | None, save_states: bool
) -> tuple[Tensor, Tensor, Tensor]:
    (in_proj, out_proj), (fwd, rev) = w.projections[0], w.directions
    weight_x, weight_z = in_proj.chunk(2)
    c_fwd, c_rev = m.convolve(_project(m, weight_x, h.transpose(1, 2)), _taps(fwd), _taps(rev), cu_seqlens)
    y, states_fwd = m.scan(_direction(m, c_fwd, fwd, None, None, False, cu_seqlens), save_states)
    del c_fwd
    z = _project(m, weight_z, h.transpose(1, 2))
    y, states_rev = m.scan(_direction(m, c_rev, rev, z, y, True, cu_seqlens), save_states)
    del c_rev, z
    return _to_bases(m, out_proj, y), states_fwd, states_rev


def _joint_backward(
    m: ModuleType, grad_out: Tensor, h: Tensor, w: Weights, cu_seqlens: Tensor | None, states: list[Tensor]
) -> tuple[Tensor, Weights]:
    """The directions one after the other, so that the temporaries of only one exist."""
    (in_proj, out_proj), (fwd, rev) = w.projections[0], w.directions
    weight_x, weight_z = in_proj.chunk(2)
    z = _project(m, weight_z, h.transpose(1, 2))
    grad = _project(m, out_proj.t(), grad_out.transpose(1, 2))

    def project_x() -> Tensor:
        """Anew each time: cheaper than to keep it beside the temporaries of a scan."""
        return _project(m, weight_x, h.transpose(1, 2))

    c, _ = m.convolve(project_x(), _taps(fwd), None, cu_seqlens)
    y, _, grad_c_fwd, grad_fwd = _direction_backward(m, grad, c, z, None, fwd, False, cu_seqlens, states[0], False)
    del c
    _, c = m.convolve(project_x(), None, _taps(rev), cu_seqlens)
    y, grad_z, grad_c_rev, grad_rev = _direction_backward(m, grad, c, z, y, rev, True, cu_seqlens, states[1], True)
    del c
    grad_out_proj = _outer(m, grad_out.transpose(1, 2), y)
    del grad, y, z
    conv = m.convolve_backward(project_x(), grad_c_fwd, grad_c_rev, _taps(fwd), _taps(rev), cu_seqlens)
    del grad_c_fwd, grad_c_rev
    grad_h, grad_in_proj = _project_backward(m, conv.x, grad_z, in_proj, h)
    return grad_h, Weights(
        [(grad_in_proj, grad_out_proj)], [_with_taps(grad_fwd, conv.fwd), _with_taps(grad_rev, conv.rev)]
    )


# --- untied projections, or the directions multiplied: each its own mixer; and a mixer of one direction ---------------


def forward_one(backend: str, h: Tensor, weights: list[Tensor], save_states: bool) -> tuple[Tensor, Tensor]:
    """`forward` from left to right only; weights: in_proj, out_proj and the `ScanWeights`."""
    m, w = parts(backend), Weights([(weights[0], weights[1])], [ScanWeights(*weights[2:])])

    def run(rows: slice) -> tuple[Outputs, Outputs]:
        return _single_forward(m, h[rows], w, 0, None, save_states), ()

    out, states = by_rows(tuple(h.shape[:2]), FORWARD_BASES, run)[0]
    return out, states


def backward_one(
    backend: str, grad_out: Tensor, h: Tensor, weights: list[Tensor], states: Tensor
) -> tuple[Tensor, list[Tensor]]:
    """Gradients of h and of the weights of `forward_one`."""
    m, w = parts(backend), Weights([(weights[0], weights[1])], [ScanWeights(*weights[2:])])

    def run(rows: slice) -> tuple[Outputs, Outputs]:
        own = states_of(states, h.shape[0], rows)
        grad_h, pair, direction = _single_backward(m, grad_out[rows], h[rows], w, 0, None, own)
        return [grad_h], [*pair, *direction]

    (grad_h,), grads = by_rows(tuple(h.shape[:2]), BACKWARD_BASES, run)
    return grad_h, grads


def _single(w: Weights, i: int) -> tuple[Tensor, Tensor, ScanWeights, bool]:
    """in_proj, out_proj, weights and `reverse` of direction i."""
    return *w.projections[min(i, len(w.projections) - 1)], w.directions[i], i == 1


def _one_way(taps: Taps, reverse: bool) -> tuple[Taps | None, Taps | None]:
    return (None, taps) if reverse else (taps, None)


def _single_forward(
    m: ModuleType, h: Tensor, w: Weights, i: int, cu_seqlens: Tensor | None, save_states: bool
) -> tuple[Tensor, Tensor]:
    in_proj, out_proj, own, reverse = _single(w, i)
    x, z = _halves(m, in_proj, h)
    c = m.convolve(x, *_one_way(_taps(own), reverse), cu_seqlens)[i]
    y, states = m.scan(_direction(m, c, own, z, None, reverse, cu_seqlens), save_states)
    return _to_bases(m, out_proj, y), states


def _single_backward(
    m: ModuleType, grad_out: Tensor, h: Tensor, w: Weights, i: int, cu_seqlens: Tensor | None, states: Tensor
) -> tuple[Tensor, tuple[Tensor, Tensor], ScanWeights]:
    """Gradients of h, (in_proj, out_proj) and the direction's weights."""
    in_proj, out_proj, own, reverse = _single(w, i)
    x, z = _halves(m, in_proj, h)
    grad = _project(m, out_proj.t(), grad_out.transpose(1, 2))
    c = m.convolve(x, *_one_way(_taps(own), reverse), cu_seqlens)[i]
    y, grad_z, grad_c, grad_own = _direction_backward(m, grad, c, z, None, own, reverse, cu_seqlens, states, True)
    grad_out_proj = _outer(m, grad_out.transpose(1, 2), y)
    del grad, y, z
    conv = m.convolve_backward(x, *_one_way(grad_c, reverse), *_one_way(_taps(own), reverse), cu_seqlens)
    grad_h, grad_in_proj = _project_backward(m, conv.x, grad_z, in_proj, h)
    return grad_h, (grad_in_proj, grad_out_proj), _with_taps(grad_own, conv.rev if reverse else conv.fwd)


# --- pieces -----------------------------------------------------------------------------------------------------------


def _halves(m: ModuleType, in_proj: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    """x and z (batch, d_inner, L), apart from each other in memory: each goes when it is no longer needed."""
    weight_x, weight_z = in_proj.chunk(2)
    return _project(m, weight_x, h.transpose(1, 2)), _project(m, weight_z, h.transpose(1, 2))


def _taps(w: ScanWeights) -> Taps:
    return Taps(w.conv_weight[:, 0].contiguous(), w.conv_bias)


def _direction(
    m: ModuleType, c: Tensor, w: ScanWeights, z: Tensor | None, add: Tensor | None, reverse: bool,
    cu_seqlens: Tensor | None,
) -> Direction:  # fmt: skip
    rank, state = w.dt_proj.shape[1], w.A_log.shape[1]
    low, B, C = _project(m, w.x_proj, c).split([rank, state, state], 1)
    return Direction(c, low, w.dt_proj, -torch.exp(w.A_log), B, C, w.D, w.dt_bias, z, add, reverse, cu_seqlens)


def _direction_backward(
    m: ModuleType, grad: Tensor, c: Tensor, z: Tensor, add: Tensor | None, w: ScanWeights, reverse: bool,
    cu_seqlens: Tensor | None, states: Tensor, closing: bool,
) -> tuple[Tensor, Tensor | None, Tensor, ScanWeights]:  # fmt: skip
    """y and the gradient of z as in `DirectionGrads`, gradients of the convolution's output c and of the weights.

    Those of the convolution's weights are left to `_with_taps`. closing: overwrites grad, z and add.
    """
    d = _direction(m, c, w, z, add, reverse, cu_seqlens)
    g = m.scan_backward(grad, d, states, closing)
    grad_low = _project(m, w.dt_proj.t().to(g.delta.dtype), g.delta)
    grad_projected = torch.cat([grad_low, g.B, g.C], 1)
    grads = w._replace(
        x_proj=_outer(m, grad_projected, c), dt_proj=_outer(m, d.low, g.delta).t().to(w.dt_proj.dtype),
        dt_bias=g.dt_bias, A_log=g.A * d.A, D=g.D,
    )  # fmt: skip
    return g.y, g.z, _project(m, w.x_proj.t(), grad_projected, onto=g.u), grads


def _with_taps(w: ScanWeights, taps: Taps) -> ScanWeights:
    return w._replace(conv_weight=taps.weight[:, None], conv_bias=taps.bias)


def _project(m: ModuleType, weight: Tensor, x: Tensor, onto: Tensor | None = None) -> Tensor:
    """weight (rows, columns) times x (batch, columns, L): (batch, rows, L), laid out as the backend likes it.

    onto: added to, in place.
    """
    if not m.CHANNELS_LAST:
        weight = weight.expand(x.shape[0], -1, -1)
        return torch.bmm(weight, x) if onto is None else onto.baddbmm_(weight, x)
    if onto is None:
        return F.linear(x.transpose(1, 2), weight).transpose(1, 2)
    onto.transpose(1, 2).view(-1, onto.shape[1]).addmm_(_by_base(x), weight.t())
    return onto


def _to_bases(m: ModuleType, weight: Tensor, x: Tensor) -> Tensor:
    """weight (rows, columns) times x (batch, columns, L): (batch, L, rows), contiguous."""
    if m.CHANNELS_LAST:
        return F.linear(x.transpose(1, 2), weight)
    return torch.bmm(x.transpose(1, 2), weight.t().expand(x.shape[0], -1, -1))


def _outer(m: ModuleType, a: Tensor, b: Tensor) -> Tensor:
    """Sum over batch and L of a (batch, rows, L) times b (batch, columns, L): (rows, columns)."""
    if m.CHANNELS_LAST:
        return _by_base(a).t() @ _by_base(b)
    return torch.bmm(a, b.transpose(1, 2)).sum(0)


def _by_base(x: Tensor) -> Tensor:
    """(batch, rows, L) -> (batch L, rows), without a copy where L is laid out before the rows."""
    return x.transpose(1, 2).flatten(0, 1)


def _project_backward(
    m: ModuleType, grad_x: Tensor, grad_z: Tensor, in_proj: Tensor, h: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of h (batch, L, d) and in_proj, from those of both halves of the projection."""
    weight_x, weight_z = in_proj.chunk(2)
    h = h.transpose(1, 2)
    grad_in_proj = torch.cat([_outer(m, grad_x, h), _outer(m, grad_z, h)])
    grad_h = _to_bases(m, weight_x.t(), grad_x)
    if m.CHANNELS_LAST:
        grad_h.flatten(0, 1).addmm_(_by_base(grad_z), weight_z)
    else:
        grad_h.baddbmm_(grad_z.transpose(1, 2), weight_z.expand(h.shape[0], -1, -1))
    return grad_h, grad_in_proj
