"""The selective scan, position by position, forward and backward: the oracle of every other implementation.

Mathematics (Gu and Dao 2023, Algorithm 2, as computed by mamba-ssm's `selective_scan_ref`), per batch row and channel
d, with state index n and the raw step size s = delta (+ delta_bias):

    dt_t = softplus(s_t) or s_t
    h_t  = exp(dt_t A) * h_{t-1} + dt_t B_t u_t            h before the first position of a sequence is 0
    y_t  = sum_n C_t h_t + D u_t
    out  = y_t * silu(z_t)

`reverse` runs t from the last position of each sequence to the first.
Everything is computed in the dtype of `u`, float64 for proofs. Nothing here is fast.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class ScanGrads(NamedTuple):
    """Gradients in the shapes of the inputs; None where the input was absent."""

    u: Tensor
    delta: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None
    z: Tensor | None
    delta_bias: Tensor | None


def _positions(length: int, reverse: bool, cu_seqlens: Tensor | None) -> list[list[int]]:
    """The positions of each sequence in the order of the scan."""
    bounds = [0, length] if cu_seqlens is None else cu_seqlens.tolist()
    spans = [list(range(a, b)) for a, b in pairwise(bounds)]
    return [span[::-1] if reverse else span for span in spans]


def _per_channel(x: Tensor, dim: int) -> Tensor:
    """(batch, groups, state, L) -> (batch, dim, state, L), each group serving dim // groups channels."""
    return x.repeat_interleave(dim // x.shape[1], dim=1)


def _step_size(delta: Tensor, delta_bias: Tensor | None, softplus: bool) -> tuple[Tensor, Tensor]:
    """dt (batch, dim, L) and its derivative by delta."""
    raw = delta if delta_bias is None else delta + delta_bias[:, None]
    return (F.softplus(raw), torch.sigmoid(raw)) if softplus else (raw, torch.ones_like(raw))


def _states(dt: Tensor, u: Tensor, A: Tensor, B: Tensor, order: list[list[int]]) -> Tensor:
    """h of every position, (batch, dim, state, L)."""
    h = u.new_zeros(*u.shape[:2], A.shape[1], u.shape[2])
    for span in order:
        state = h.new_zeros(h.shape[:3])
        for t in span:
            state = torch.exp(dt[:, :, t, None] * A) * state + (dt[:, :, t] * u[:, :, t])[..., None] * B[..., t]
            h[..., t] = state
    return h


def selective_scan_forward(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    reverse: bool = False,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """out (batch, dim, L) and the last state (batch, dim, state), with cu_seqlens (sequences, dim, state).

    u, delta, z: (batch, dim, L); A: (dim, state); B, C: (batch, groups, state, L); D, delta_bias: (dim,);
    cu_seqlens: (sequences + 1,) offsets, batch 1.
    """
    order = _positions(u.shape[2], reverse, cu_seqlens)
    dt, _ = _step_size(delta, delta_bias, delta_softplus)
    h = _states(dt, u, A, _per_channel(B, u.shape[1]), order)
    y = (h * _per_channel(C, u.shape[1])).sum(2)
    if D is not None:
        y = y + D[:, None] * u
    out = y if z is None else y * F.silu(z)
    last = [h[..., span[-1]] if span else h.new_zeros(h.shape[:3]) for span in order]
    return out, torch.cat(last) if cu_seqlens is not None else last[0]


def selective_scan_backward(
    grad_out: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    reverse: bool = False,
    cu_seqlens: Tensor | None = None,
) -> ScanGrads:
    """Gradients of sum(out * grad_out). Shapes as in `selective_scan_forward`.

    With g_t the gradient of h_t:  g_t = dy_t C_t + exp(dt_{t+1} A) g_{t+1}, and w_t = g_t exp(dt_t A) h_{t-1}:

        dC_t = dy_t h_t              dB_t = g_t dt_t u_t        dA = sum_t w_t dt_t
        ddt_t = sum_n w_t A + u_t sum_n g_t B_t                 du_t = dt_t sum_n g_t B_t + D dy_t
    """
    dim, groups = u.shape[1], B.shape[1]
    order = _positions(u.shape[2], reverse, cu_seqlens)
    dt, ddt_ddelta = _step_size(delta, delta_bias, delta_softplus)
    Bd, Cd = _per_channel(B, dim), _per_channel(C, dim)
    h = _states(dt, u, A, Bd, order)

    grad_y, grad_z = grad_out, None
    if z is not None:
        gate = torch.sigmoid(z)
        y = (h * Cd).sum(2) if D is None else (h * Cd).sum(2) + D[:, None] * u
        grad_y = grad_out * z * gate
        grad_z = grad_out * y * gate * (1 + z * (1 - gate))

    g, w = torch.zeros_like(h), torch.zeros_like(h)
    for span in order:
        carry = h.new_zeros(h.shape[:3])
        for i in reversed(range(len(span))):
            t = span[i]
            decay = torch.exp(dt[:, :, t, None] * A)
            g[..., t] = grad_y[:, :, t, None] * Cd[..., t] + carry
            carry = decay * g[..., t]
            if i:
                w[..., t] = carry * h[..., span[i - 1]]

    x_grad = (g * Bd).sum(2)  # gradient of dt * u
    grad_dt = (w * A[:, :, None]).sum(2) + x_grad * u
    grad_delta = grad_dt * ddt_ddelta
    grad_u = x_grad * dt if D is None else x_grad * dt + D[:, None] * grad_y

    def per_group(x: Tensor) -> Tensor:
        return x.unflatten(1, (groups, dim // groups)).sum(2)

    return ScanGrads(
        u=grad_u,
        delta=grad_delta,
        A=(w * dt[:, :, None]).sum((0, 3)),
        B=per_group(g * (dt * u)[:, :, None]),
        C=per_group(h * grad_y[:, :, None]),
        D=None if D is None else (grad_y * u).sum((0, 2)),
        z=grad_z,
        delta_bias=None if delta_bias is None else grad_delta.sum((0, 2)),
    )
