"""The names of causal-conv1d 1.4: a causal depthwise convolution, whole and position by position."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from seq2exp.kernels.bimamba import causal_convolution

__version__ = "1.4.0+seq2exp"
__all__ = ["causal_conv1d_fn", "causal_conv1d_update"]


def causal_conv1d_fn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    seq_idx: Tensor | str | None = None,
    initial_states: Tensor | None = None,
    return_final_states: bool = False,
    final_states_out: Tensor | None = None,
    activation: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """x (batch, dim, L) convolved along L with weight (dim, width), whose last tap reads the own position.

    Parameters
    ----------
    bias: (dim,). initial_states: (batch, dim, width - 1), what stands before x.
    seq_idx: (batch, L) integers, the sequence of every position: taps do not reach into another one, and positions of a
        negative sequence give 0. A string in this place is the activation, as in causal-conv1d 1.0.
    return_final_states: also return the last width - 1 inputs. final_states_out: where to write these.
    activation: None, "silu" or "swish".

    Returns
    -------
    (batch, dim, L) in x's dtype; sums are float32. With return_final_states also (batch, dim, width - 1).

    Raises
    ------
    NotImplementedError: another activation. ValueError: shapes that do not fit, seq_idx with states.
    """
    if isinstance(seq_idx, str):
        seq_idx, activation = None, seq_idx
    silu = _is_silu(activation)
    if seq_idx is not None and (initial_states is not None or return_final_states):
        raise ValueError("causal_conv1d_fn: seq_idx goes with neither initial_states nor return_final_states")
    if silu and seq_idx is None and initial_states is None and 2 <= weight.shape[-1] <= 4:
        out = causal_convolution(x, weight, bias)
    else:
        out = _convolved(x, weight, bias, seq_idx, initial_states, silu)
    if not return_final_states:
        return out
    final = _padded(x, weight.shape[1], initial_states)[..., x.shape[2] :]
    return out, final if final_states_out is None else final_states_out.copy_(final)


def causal_conv1d_update(
    x: Tensor,
    conv_state: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
    cache_seqlens: Tensor | None = None,
    conv_state_indices: Tensor | None = None,
) -> Tensor:
    """The next positions of a causal convolution, (batch, dim) or (batch, dim, steps); conv_state is updated in place.

    Parameters
    ----------
    conv_state: (batch, dim, states), the latest inputs, states at least width - 1. weight: (dim, width). bias: (dim,).
    cache_seqlens: (batch,) int32: conv_state is a ring, in which the next input goes to cache_seqlens modulo states.
    conv_state_indices: (batch,) int32: the row of conv_state that belongs to each row of x.

    Returns
    -------
    The shape and dtype of x.

    Raises
    ------
    NotImplementedError: an activation other than None, "silu", "swish". ValueError: too few states.
    """
    silu = _is_silu(activation)
    new = x[..., None] if x.dim() == 2 else x
    before, states = weight.shape[1] - 1, conv_state.shape[2]
    if states < before:
        raise ValueError(f"causal_conv1d_update: conv_state keeps {states} inputs, the weight needs {before}")
    state = conv_state if conv_state_indices is None else conv_state[conv_state_indices.long()]
    if cache_seqlens is None:
        window = torch.cat([state, new.to(state.dtype)], -1)
        state = window[..., -states:]
        window = window[..., window.shape[2] - before - new.shape[2] :]
    else:
        steps = torch.arange(-before, new.shape[2], device=x.device) + cache_seqlens[:, None].long()
        ring = (steps % states)[:, None].expand(-1, new.shape[1], -1)
        window = torch.cat([state.gather(2, ring[..., :before]), new.to(state.dtype)], -1)
        state = state.scatter(2, ring[..., before:], new.to(state.dtype))
    if conv_state_indices is None:
        conv_state.copy_(state.detach())
    else:
        conv_state[conv_state_indices.long()] = state.detach()
    out = _convolved(window[..., before:], weight, bias, None, window[..., :before], silu).to(x.dtype)
    return out[..., 0] if x.dim() == 2 else out


def _is_silu(activation: str | None) -> bool:
    if activation not in (None, "silu", "swish"):
        raise NotImplementedError(f"activation must be None, silu, or swish, not {activation!r}")
    return activation is not None


def _padded(x: Tensor, width: int, initial_states: Tensor | None) -> Tensor:
    """x with the width - 1 inputs before it."""
    if initial_states is None:
        return F.pad(x, (width - 1, 0))
    return torch.cat([initial_states.to(x.dtype), x], -1)


def _convolved(
    x: Tensor, weight: Tensor, bias: Tensor | None, seq_idx: Tensor | None, initial_states: Tensor | None, silu: bool
) -> Tensor:
    """In plain torch: what the op lacks."""
    width = weight.shape[1]
    wide = torch.promote_types(x.dtype, torch.float32)
    padded = _padded(x, width, initial_states).to(wide)
    columns = weight.to(wide).unbind(1)
    total = torch.zeros_like(x, dtype=wide) if bias is None else bias.to(wide)[:, None].expand(x.shape)
    for shift in range(width):
        term = padded[..., width - 1 - shift : padded.shape[2] - shift] * columns[width - 1 - shift][:, None]
        if seq_idx is not None:
            before = F.pad(seq_idx, (shift, 0), value=-1)[:, : seq_idx.shape[1]]
            term = term * (before == seq_idx)[:, None]
        total = total + term
    if seq_idx is not None:
        total = total * (seq_idx >= 0)[:, None]
    return (F.silu(total) if silu else total).to(x.dtype)
