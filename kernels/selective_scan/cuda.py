"""The CUDA C++ implementation (csrc/selective_scan/cuda), loaded by seq2exp.kernels._extension."""

from __future__ import annotations

import torch
from torch import Tensor

CHUNK = 256  # SCAN_GPU_CHUNK in csrc/selective_scan/cuda/scan.h


def chunk_length(length: int) -> int:
    """Positions between saved states."""
    return CHUNK


def states_shape(batch: int, dim: int, state: int, length: int, n_sequences: int | None) -> list[int]:
    """Shape of the saved states: those at the first position of every chunk, in scan order.

    Chunks of batch row b start at b * ceil(L / CHUNK), those of sequence i of cu_seqlens at cu_seqlens[i] // CHUNK + i.
    """
    per_row = -(-length // CHUNK)
    return [per_row * batch if n_sequences is None else per_row + n_sequences, dim, state]


def forward(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None,
    delta_bias: Tensor | None, delta_softplus: bool, reverse: bool, cu_seqlens: Tensor | None, save_states: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Output (batch, dim, L) with u's dtype and strides, last state and chunk states (float32).

    u, delta, z: (batch, dim, L); B, C: (batch, groups, state, L), their groups may differ; all of one dtype (float32,
    bfloat16, float16), any strides. A: (dim, state), D, delta_bias: (dim,) float32. cu_seqlens: int64 (sequences + 1,).
    save_states=False returns empty states. Nothing is synchronised.
    """
    return torch.ops.seq2exp_native.selective_scan_fwd(
        u, delta, A, B, C, D, z, delta_bias, delta_softplus, reverse, cu_seqlens, save_states
    )


def backward(
    grad_out: Tensor, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None,
    delta_bias: Tensor | None, delta_softplus: bool, reverse: bool, cu_seqlens: Tensor | None, states: Tensor,
) -> tuple[Tensor | None, ...]:  # fmt: skip
    """du, ddelta, dA, dB, dC, dD, dz, ddelta_bias; None for absent inputs. The same bits from run to run.

    du, ddelta and dz have the dtypes and strides of their inputs; dA, dD, ddelta_bias are float32; dB and dC are
    contiguous, in the dtypes of B and C.
    """
    du, ddelta, dz, dB, dC, sums = torch.ops.seq2exp_native.selective_scan_cuda_bwd(
        grad_out, u, delta, A, B, C, D, z, delta_bias, delta_softplus, reverse, cu_seqlens, states
    )
    dA, dD, dbias = parameter_gradients(sums)
    return (
        du, ddelta, dA, per_group(dB, B), per_group(dC, C), None if D is None else dD, None if z is None else dz,
        None if delta_bias is None else dbias,
    )  # fmt: skip


def parameter_gradients(sums: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """dA (dim, state), dD, ddelta_bias (dim,) from the segments' parts (sequences, segments, dim, state + 2)."""
    total = sums.sum((0, 1), dtype=torch.float64).float()
    return total[:, :-2].contiguous(), total[:, -2].contiguous(), total[:, -1].contiguous()


def per_group(grad: Tensor, like: Tensor) -> Tensor:
    """(batch, joint groups, state, L) float32, summed over the joint groups that share one group of `like`."""
    if grad.shape[1] != like.shape[1]:
        grad = grad.unflatten(1, (like.shape[1], -1)).sum(2)
    return grad.to(like.dtype)
