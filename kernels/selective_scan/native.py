"""The C++ implementation for the CPU (csrc/selective_scan/cpu), loaded by seq2exp.kernels._extension."""

from __future__ import annotations

import torch
from torch import Tensor

CHUNK = 256  # SCAN_CHUNK in csrc/selective_scan/cpu/scan.h


def chunk_length(length: int) -> int:
    """Positions between saved states."""
    return CHUNK


def states_shape(batch: int, dim: int, state: int, length: int, n_sequences: int | None) -> list[int]:
    """Shape of the saved chunk-boundary states: the state at the first position of every chunk, in scan order."""
    return [batch, -(-length // CHUNK), state, dim]


def forward(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None,
    delta_bias: Tensor | None, delta_softplus: bool, reverse: bool, cu_seqlens: Tensor | None, save_states: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Output (batch, dim, L) with u's dtype and strides, last state and chunk-boundary states (float32).

    u, delta, z: (batch, dim, L) of one dtype (float32, bfloat16, float16), any strides. A: (dim, state) float32.
    B, C: (batch, groups, state, L), float32, bfloat16 or float16, any strides; their groups may differ.
    D, delta_bias: (dim,) float32. cu_seqlens: int64 (sequences + 1,). save_states=False returns empty states.
    """
    return torch.ops.seq2exp_native.selective_scan_fwd(
        u, delta, A, B, C, D, z, delta_bias, delta_softplus, reverse, cu_seqlens, save_states
    )


def backward(
    grad_out: Tensor, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None,
    delta_bias: Tensor | None, delta_softplus: bool, reverse: bool, cu_seqlens: Tensor | None, states: Tensor,
) -> tuple[Tensor | None, ...]:  # fmt: skip
    """du, ddelta, dA, dB, dC, dD, dz, ddelta_bias; None for absent inputs. The same bits for any number of threads.

    du, ddelta and dz have the dtypes and strides of their inputs; dA, dD, ddelta_bias are float32; dB and dC are
    contiguous, in the dtypes of B and C.
    """
    *needed, dD, dz, dbias = torch.ops.seq2exp_native.selective_scan_bwd(
        grad_out, u, delta, A, B, C, D, z, delta_bias, delta_softplus, reverse, cu_seqlens, states
    )
    optional = (g if x is not None else None for g, x in ((dD, D), (dz, z), (dbias, delta_bias)))
    return *needed, *optional
